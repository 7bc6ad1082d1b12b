"""Buffered rounds of a study: the coordinator's own engine under a simulated clock, around hospitals of given speeds.

Real: the engine, who forms a cohort with whom and when, staleness, weights and the server step; for `masked` also quantizer,
masks and every check of both sides (secagg.rehearse). Simulated: time, of which only trainings take any. Left out: ledgers
and connections, so epsilon is what a ledger would read from as many releases as the hospital that had most. A training
whose update is let go is not computed: nothing of it would be seen.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator import events as ev
from coordinator import orders
from coordinator.optimizer import next_model
from coordinator.rounds import step
from coordinator.state import Phase, begin, seats_of
from coordinator.wire_orders import to_open
from hospital_node.releases import Release
from proto.buffering import damping
from proto.layout import Vector, model_digest
from proto.parts import sent_layout
from proto.plan import role_of
from proto.wire import WireError, open_params
from secagg import SecaggError
from secagg.identity import public_der
from secagg.messages import NO_DIGESTS, Advert, Confirmation, Revealed, ShareSet, UploadSeal
from secagg.params import RoundParams
from secagg.policy import check_cohort, policy_of
from secagg.rehearse import run_round
from study.bench.cell import Setting
from study.bench.cells import Method, RoundRow
from study.bench.plain import Plain, unless_stopped, weighted_mean
from study.bench.task import StudyError

NOTHING, UNSIGNED = bytes(32), b"-"  # in the place of keys, digests and signatures that nobody reads here


def run_buffered(
    setting: Setting, paces: Mapping[str, float], on_round: Callable[[RoundRow], None], stop: threading.Event
) -> tuple[list[RoundRow], Release | None]:
    """Play the cell's plan to its end; `paces`: what a training takes at each hospital. Raises StudyError, Interrupted.

    Beside the rounds: what a ledger of the hospital that took most steps would hold; None where the plan gives no guarantee.
    """
    return _Simulation(setting, paces, on_round, stop).run()


class _Simulation:
    """One federation under a clock of its own."""

    def __init__(
        self, setting: Setting, paces: Mapping[str, float], on_round: Callable[[RoundRow], None], stop: threading.Event
    ) -> None:
        self._setting, self._paces, self._on_round, self._stop = setting, paces, on_round, stop
        plan = setting.plan
        self._hospitals = Plain(plan, setting.hospitals, setting.test, setting.task, setting.draws, stop)
        self._keys = {uri: ec.generate_private_key(ec.SECP256R1()) for uri in setting.hospitals}
        self._models: dict[bytes, Vector] = {model_digest(setting.start): setting.start}
        self._memory: Vector | None = None
        self._sessions: dict[bytes, orders.Open] = {}
        self._at: dict[str, tuple[int, bytes]] = {}  # round and model of what each hospital trains or holds
        self._events: deque[ev.Event] = deque()
        self._trainings: list[tuple[float, int, str, tuple[int, bytes]]] = []  # a heap: end, number, hospital, of what
        self._begun = self._sent_bytes = 0
        self._clock = self._told = 0.0
        self._rows: list[RoundRow] = []
        first = model_digest(setting.start)
        self._state = begin(plan, round=1, base_digest=first, base_round=0, due=(), now_s=0.0)

    def run(self) -> tuple[list[RoundRow], Release | None]:
        """To the end."""
        self._tell(self._hospitals.row(0, self._setting.start, (), time.perf_counter()))
        self._events += [ev.Tick(), *(ev.Joined(uri, public_der(key)) for uri, key in self._keys.items())]
        self._settle()
        while self._state.phase is not Phase.FINISHED:
            if not self._trainings:
                raise StudyError(f"cell {self._setting.cell.label}: no hospital trains and no cohort can form")
            self._clock, _, uri, of = heapq.heappop(self._trainings)
            if self._at.get(uri) == of:
                self._events.append(ev.Reported(uri, of[0], ev.Report.READY, of[1]))
            self._settle()
        return self._rows, self._hospitals.charged()

    def _settle(self) -> None:
        """Everything that follows before time passes. Everybody is always heard of."""
        self._events.extendleft(ev.Seen(uri) for uri in self._keys)
        while self._events:
            unless_stopped(self._stop)
            self._state, effects = step(self._state, self._events.popleft(), self._clock)
            for effect in effects:
                self._carry_out(effect)

    def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Instruct(party, order) if role_of(party) == "hospital":
                self._obey(party, order)
            case ev.NewSession(number, roster):
                session = number.to_bytes(16, "big")
                self._params(orders.Open(session, number, seats_of(self._state, roster)))
                self._events.append(ev.SessionNamed(session, roster))
            case ev.OpenSum(session, survivors):
                self._events.append(self._opened(session, survivors))
            case ev.SaveRound(number, "opened", survivors=survivors, model_digest=bytes() as digest):
                row = self._hospitals.row(number, self._models[digest], survivors, time.perf_counter())
                self._tell(row.model_copy(update={"upload_bytes": self._sent_bytes or row.upload_bytes}))
            case _:
                pass

    def _obey(self, uri: str, order: orders.Order) -> None:
        """What a node answers; a training ends after the hospital's pace."""
        match order:
            case orders.Train(number, digest):
                self._at[uri] = number, digest
                self._begun += 1
                heapq.heappush(self._trainings, (self._clock + self._paces[uri], self._begun, uri, self._at[uri]))
                self._events.append(ev.Reported(uri, number, ev.Report.TRAINING))
            case orders.Open(session):
                self._sessions[session] = order
                self._events.append(ev.Advertised(uri, session, Advert(uri, NOTHING, NOTHING, NOTHING, UNSIGNED)))
            case orders.Share(session):
                self._events.append(ev.Shared(uri, session, ShareSet(uri, (), NO_DIGESTS, UNSIGNED)))
            case orders.Mask(session):
                self._events.append(ev.UploadAccepted(uri, session, UploadSeal(NOTHING, UNSIGNED)))
            case orders.Confirm(session):
                self._events.append(ev.Confirmed(uri, session, Confirmation(uri, UNSIGNED)))
            case orders.Reveal(session):
                self._events.append(ev.Revealed(uri, session, Revealed(())))
            case _:
                pass

    def _opened(self, session: bytes, survivors: Sequence[str]) -> ev.Opened:
        """The sum of a session and the server step (coordinator/run.py)."""
        plan, order = self._setting.plan, self._sessions[session]
        layout = self._setting.task.layout(plan)
        weights = {seat.uri: seat.weight for seat in order.members}
        updates = {uri: self._update(uri) for uri in survivors}
        if self._setting.cell.method is Method.MASKED:
            mean = self._masked(order, updates)
        else:
            mean = weighted_mean((weights[uri], update) for uri, update in updates.items())
        declared = [plan.hospital(uri).weight for uri in survivors]
        mean = mean * np.float32(damping(declared, [weights[uri] for uri in survivors]))
        base = self._models[self._state.base_digest]
        model, self._memory = next_model(plan, layout, base, mean, self._memory, order.round, survivors)
        digest = model_digest(model)
        self._models[digest] = model
        return ev.Opened(session, NOTHING, digest)

    def _update(self, uri: str) -> Vector:
        number, digest = self._at[uri]
        return self._hospitals.mean_update(number, self._models[digest], None, [uri])

    def _masked(self, order: orders.Open, updates: Mapping[str, Vector]) -> Vector:
        """The same through quantizer and masks."""
        done = run_round(self._params(order), updates, rand=os.urandom, signing_keys=self._keys)
        self._sent_bytes = sum(done.upload_bytes.values())
        return done.mean

    def _params(self, order: orders.Open) -> RoundParams:
        """Of a session that nodes accept; StudyError where they would not."""
        plan = self._setting.plan
        try:
            params = open_params(plan, to_open(order), sent_layout(plan, self._setting.task.layout(plan)))
            check_cohort(params, params.participants, None, policy_of(params), phase="advertise")
        except (WireError, SecaggError) as error:
            text = f"cell {self._setting.cell.label}: no session of round {order.round} can open: {error}"
            raise StudyError(f"{text}; weigh the hospitals equally, or ask for more updates a sum") from error
        return params

    def _tell(self, row: RoundRow) -> None:
        """Time is the simulated one."""
        self._rows.append(row.model_copy(update={"seconds": self._clock - self._told}))
        self._told = self._clock
        self._on_round(self._rows[-1])
