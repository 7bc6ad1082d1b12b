"""A run under way: the engine's state, and everything that its effects need. No sockets: the service calls in.

The rule of every step: what it decided is stored in one transaction before any party hears of it. If the store fails the
state stays as it was, the caller's request is refused as one to repeat, and nothing has been promised.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import structlog

from coordinator import events as ev
from coordinator import journal, orders
from coordinator.awaited import Awaited, awaited
from coordinator.beside import Beside
from coordinator.config import CoordinatorConfig
from coordinator.ending import Ending, Evaluator
from coordinator.journal import JournalError
from coordinator.machine import Machine
from coordinator.mailbox import Mailbox, first_id
from coordinator.meter import Meter
from coordinator.models import ModelFolder, read_start
from coordinator.opening import Made, Opener
from coordinator.presence import HEARD_EVERY_S, is_present
from coordinator.record import STORED, shows_at_once, store_effect, store_session
from coordinator.resume import Restored, restore, result_again
from coordinator.rounds import step
from coordinator.spool import Spool
from coordinator.state import Phase, Standing, State, begin, member_view, seats_of, smallest_cohort, waiting_for
from coordinator.status import HEARTBEAT_S
from coordinator.store import StoreError
from coordinator.store_interface import RunStore
from coordinator.store_write import Batch, StoreWriter
from coordinator.wire_orders import to_open
from proto import scaffold, shared_noise
from proto.layout import Layout, Vector, model_digest
from proto.parts import sent_layout
from proto.plan import Plan, PlanError, load_toml, short_name
from proto.wire import WireError, mean_error, open_params, tensor_clips_of
from secagg import LocalError, SecaggError, TooFewSurvivors
from secagg.coordinate import SessionView
from secagg.params import RoundParams
from secagg.policy import check_cohort, policy_of

log = structlog.get_logger()

Rand = Callable[[int], bytes]
SESSION_BYTES = 16
STORE_RETRY_S = 1.0
SEEN_RESOLUTION_S = HEARTBEAT_S  # how often the store learns when parties were last heard of


@dataclass(frozen=True, slots=True)
class Drawn:
    """A session id that was drawn for a roster, and the view of the session that it names."""

    session: bytes
    roster: tuple[str, ...]
    view: SessionView


class Run:
    """One study's run. One owner, one event loop; what takes long happens beside it in another thread."""

    def __init__(
        self, config: CoordinatorConfig, rand: Rand, now_s: Callable[[], float] = time.monotonic, *, held: str = ""
    ) -> None:
        self.config = config
        self.plan, self.layout, start = _read_study(config)
        self.update_layout = sent_layout(self.plan, self.layout)
        self.now_s = now_s
        self.store: RunStore = StoreWriter.create(config.database, self.plan, self.layout)
        self._first_id = first_id(self.store.next_epoch())  # before anything is read: from here on no other start writes
        self.published_length = scaffold.published_length(self.plan, self.layout)
        self.models = ModelFolder(config.state / "models", self.layout, self.published_length)
        self.spool = Spool(config.state / "spool")
        self.meter = Meter()
        self.counts: Counter[str] = Counter()  # of what happened since this start, for metrics
        self.views: dict[bytes, SessionView] = {}
        self.bells: dict[str, asyncio.Event] = {}
        self.evaluators = {uri: Evaluator() for uri in self.plan.evaluators}
        self._ending = Ending(self.plan.timing.lost_after_s, config.evaluation_patience_s)
        if self.store.rounds():
            self._ending.took_over_s = now_s()
        self.state = self._begin(config, start, held)
        self.mail = self._mailboxes()
        self.told: set[str] = set()  # parties that know that the run is over
        self._rand = rand
        machine = Machine.measured()
        log.info("sums are opened", door=machine.door.value, threads=machine.threads)
        self.opener = Opener(self.plan, self.layout, self.models, self.spool, machine)
        self.opener.catch_up(self.state.base_digest, self.state.base_round)
        self._events: deque[ev.Event] = deque()
        self._shown: dict[str, tuple[str, str, str]] = {}
        self._about, self._began_at = self.store.status_since()  # the phase that the status is about, and its wall time
        self._status: tuple[str, str, str, tuple[Awaited, ...]] = ("", "", "", ())
        self._stored_seen_s = -SEEN_RESOLUTION_S
        self.beside = Beside()

    def _begin(self, config: CoordinatorConfig, start: Vector, held: str) -> State:
        now = time.time()
        if not self.store.models():
            digest = self.models.write(scaffold.begun(self.plan, start))
            with self.store.batch() as changes:
                changes.model(0, digest.hex(), len(start), now)
        restored = self._restored()
        kept = None if restored is None else restored.kept
        resume = self.store.resume(now, keep=None if kept is None else kept.session.id)
        self.spool.keep_only(None if kept is None else kept.session.id)
        for number in resume.interrupted:
            log.warning("masking session ended by a restart", session=number)
        due = self._due()
        scored = [row.round for row in self.store.scores()]
        return begin(
            self.plan,
            round=resume.round,
            base_digest=bytes.fromhex(resume.model_digest),
            base_round=resume.model_round,
            due=due,
            evaluated_round=max([*scored, *(number for number, _ in due)], default=-1),
            now_s=self.now_s(),
            drill_pause_s=config.drill_pause_s,
            kept=kept,
            held=held,
            models=tuple((model.round, bytes.fromhex(model.digest)) for model in self.store.models()),
            left=frozenset(row.uri for row in self.store.members() if row.state == Standing.LEFT.value),
        )

    def _restored(self) -> Restored | None:
        """The masking session that an earlier start left open, where its record holds; its view is taken up."""
        stored = self.store.open_session()
        if stored is None:
            return None
        try:
            restored = restore(stored, self.plan, self.update_layout, self.spool, self._log_head())
        except JournalError as error:
            log.warning("a masking session cannot go on after the restart", reason=str(error))
            return None
        if restored.asked_again:
            with self.store.batch() as changes:
                for uri in restored.asked_again:
                    changes.forget_message(stored.session, "seal", uri)
        self.views[stored.session] = restored.view
        return restored

    def _mailboxes(self) -> dict[str, Mailbox]:
        boxes = {uri: Mailbox(self._first_id) for uri in (*self.state.members, *self.plan.evaluators)}
        last = self.store.last_result()
        if last is not None:
            for uri in last.row.cohort:
                boxes[uri].put(result_again(last, self.state.base_digest))
        return boxes

    def _due(self) -> tuple[tuple[int, bytes], ...]:
        """Models that some evaluator has not measured yet and that the plan wants measured."""
        scored = {(row.round, row.evaluator) for row in self.store.scores()}
        return tuple(
            (model.round, bytes.fromhex(model.digest))
            for model in self.store.models()
            if model.round % self.plan.evaluate_every == 0
            and any((model.round, uri) not in scored for uri in self.plan.evaluators)
        )

    # ---- the step ----

    def feed(self, event: ev.Event) -> None:
        """One event through the engine and its effects into the world. Raises StoreError; then nothing has changed."""
        self._follow_up()
        self._step(event)
        try:
            self._follow_up()
        except StoreError as error:  # the event itself is stored; what follows from it is tried again with the next one
            log.warning("the store could not be written", reason=str(error))

    def _follow_up(self) -> None:
        """Events that effects gave rise to."""
        while self._events:
            self._step(self._events[0])
            self._events.popleft()

    def _step(self, event: ev.Event) -> None:
        state, effects = step(self.state, event, self.now_s())
        drawn, impossible = self._draw(state, effects)
        self._persist(event, state, effects, drawn)
        self.state = state
        for item in drawn:
            self.views[item.session] = item.view
            self._events.append(ev.SessionNamed(item.session, item.roster))
        self._events.extend(impossible)
        for effect in effects:
            self._act(effect)

    def _draw(self, state: State, effects: Iterable[ev.Effect]) -> tuple[list[Drawn], list[ev.Event]]:
        """Session ids for the rosters that the engine chose, where their parameters hold."""
        drawn: list[Drawn] = []
        impossible: list[ev.Event] = []
        for effect in effects:
            if isinstance(effect, ev.NewSession):
                session = self._rand(SESSION_BYTES)
                try:
                    params = self._params(state, session, effect.roster)
                    drawn.append(Drawn(session, effect.roster, SessionView(params)))
                except (WireError, SecaggError) as error:
                    impossible.append(ev.SessionImpossible(effect.roster, str(error)))
        return drawn, impossible

    def _params(self, state: State, session: bytes, roster: tuple[str, ...]) -> RoundParams:
        order = orders.Open(session, state.round, seats_of(state, roster))
        params = open_params(self.plan, to_open(order, self._log_head()), self.update_layout)
        check_cohort(params, roster, None, policy_of(params), phase="advertise")
        return params

    def _persist(self, event: ev.Event, state: State, effects: tuple[ev.Effect, ...], drawn: list[Drawn]) -> None:
        stored = [effect for effect in effects if isinstance(effect, STORED)]
        message = journal.taken(self.state, event)
        if not stored and not drawn and message is None and not journal.decided(self.state, state):
            return
        at = time.time()
        decided = bool(stored or drawn) or journal.decided(self.state, state)
        ended = any(isinstance(effect, ev.SaveRound) for effect in stored)
        counts = self.meter.drain() if ended else {}  # who reads that a round ended reads its bytes with it
        try:
            with self.store.batch(durable=decided) as changes:  # whose answer a power cut takes is asked again
                changes.traffic_of(counts)
                for effect in stored:
                    store_effect(changes, effect, self.layout.length, at)
                store_session(changes, self.state, state, message)
                for item in drawn:
                    changes.new_session(item.session, state.round, item.roster, at)
                if drawn or shows_at_once(state, stored):
                    self._store_views(changes, state)
        except StoreError:
            self.meter.give_back(counts)
            self._shown.clear()
            raise

    def _store_views(self, changes: Batch, state: State) -> None:
        """Members and status as they are now, where they changed."""
        for uri in state.members:
            view = member_view(state, uri)
            if self._shown.get(uri) != view:
                changes.member(uri, view[0], self._wall(state.members[uri].last_seen_s, view[0]), view[1], view[2])
                self._shown[uri] = view
        now_s = self.now_s()
        missing = awaited(state, now_s)
        status = (waiting_for(state, now_s), state.finished, state.phase.value, missing)
        if status != self._status:
            about: list[object] = [state.round, state.phase.value, "" if state.session is None else state.session.id.hex()]
            still = about == self._about or (self._ended_at is not None and bool(state.finished))  # a restart counts a round on
            began_at = self._began_at if still else time.time() - (now_s - state.phase_since_s)
            them = [asdict(one) for one in missing]
            changes.status(*status[:2], phase=status[2], about=about, since=began_at, awaited=them)
            self._status, self._about, self._began_at = status, about, began_at

    def _wall(self, seen_s: float, state: str) -> float | None:
        return None if state == "absent" else time.time() - (self.now_s() - seen_s)

    def _act(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Instruct(party, order):
                self.mail[party].put(order)
                if party in self.bells:
                    self.bells[party].set()
            case ev.Record():
                _say(effect.text)
            case ev.NewSession():
                self.counts["sessions"] += 1
            case ev.SaveRound(_, state):
                self.counts[state] += 1
            case ev.CloseList(session, survivors):
                self._close(session, survivors)
            case ev.OpenSum(session, survivors):
                self.beside.start(self._open(session, survivors))
            case ev.AbortSession(session) | ev.Publish(_, session):
                self.views.pop(session, None)  # from here on nothing is added to its spool
                self.beside.start(self.beside.thread(self.spool.clear, session))
            case _:
                pass

    # ---- opening a sum ----

    def _close(self, session: bytes, survivors: tuple[str, ...]) -> None:
        try:
            self.views[session].close(survivors)
        except (TooFewSurvivors, LocalError) as error:
            self._events.append(ev.SessionBroken(session, str(error)))

    async def _open(self, session: bytes, survivors: tuple[str, ...]) -> None:
        view, base = self.views[session], self.state.base_digest.hex()
        made: Made | None = None
        try:
            made = await self.beside.thread(self.opener.open, view, session, survivors, base)
            event: ev.Event = made.event
        except (SecaggError, ValueError, RuntimeError, OSError) as error:  # of spool and models, and no thread or file left
            event = ev.SessionBroken(session, str(error))
        await self._fed(event)
        if made is not None and self.state.base_digest == made.event.model_digest:
            await self.beside.thread(self.opener.show, made)

    async def _fed(self, event: ev.Event) -> None:
        """Feed what a sum became, as often as the store needs."""
        while True:
            try:
                self.feed(event)
            except StoreError as error:
                log.warning("the opened sum waits for the store", reason=str(error))
                await asyncio.sleep(STORE_RETRY_S)
            else:
                return

    # ---- what is not the engine's: evaluators, bytes, notes ----

    def heard(self, uri: str, *, joined: bool = False) -> None:
        """A party was heard of; of a hospital the engine hears a few times a second, not with every chunk."""
        if uri not in self.evaluators:
            if not joined and not is_present(self.state.members.get(uri), self.now_s(), HEARD_EVERY_S):
                self.feed(ev.Seen(uri))
            return
        evaluator = self.evaluators[uri]
        evaluator.last_seen_at = time.time()
        if joined and evaluator.state == "absent":
            evaluator.state = "joined"
            self.note("joined", f"{short_name(uri)} joined", uri)

    def known(self, uri: str) -> bool:
        """Whether a party has joined since this start."""
        if uri in self.evaluators:
            return self.evaluators[uri].state != "absent"
        return self.state.members[uri].public_key != b""

    def _log_head(self) -> bytes:
        """As of now; no round ends while a session of the next one is open, so it is that of any open session."""
        return self.store.log_state()[1] if self.plan.masking.bind_log else b""

    def round_of_model(self, digest: bytes) -> int | None:
        """The round that published a model; None where none did. The present one, which is asked for most, is at hand."""
        if digest == self.state.base_digest:
            return self.state.base_round
        return next((model.round for model in self.store.models() if model.digest == digest.hex()), None)

    def note(self, kind: str, text: str, party: str = "") -> None:
        """Record an event that the engine does not know of."""
        number = self.state.round
        sentence = f"Round {number} · {text}"
        with self.store.batch() as changes:
            changes.event(time.time(), number, kind, sentence, party=party, phase=self.state.phase.value)
        _say(sentence)

    def measured(self, uri: str, number: int, scores: list[tuple[str, tuple[float, ...]]]) -> None:
        """Store an evaluator's measurement."""
        with self.store.batch() as changes:
            changes.scores(number, uri, scores)
        means = ", ".join(f"{label} {np.mean(values):.3f}" for label, values in scores)
        self.note("measured", f"model of round {number}: mean Dice {means}", uri)

    def flush(self) -> None:
        """Bring bytes and last-seen times into the store."""
        now_s, counts = self.now_s(), self.meter.drain()
        late = now_s - self._stored_seen_s >= SEEN_RESOLUTION_S
        if not counts and not late:
            return
        try:
            with self.store.batch() as changes:
                changes.traffic_of(counts)
                if late:
                    self._store_seen(changes)
        except StoreError:
            self.meter.give_back(counts)
            raise
        self._stored_seen_s = now_s if late else self._stored_seen_s

    def _store_seen(self, changes: Batch) -> None:
        self._shown.clear()
        self._store_views(changes, self.state)
        changes.heartbeat(time.time())
        for uri, evaluator in self.evaluators.items():
            changes.member(uri, evaluator.state, evaluator.last_seen_at)

    def over(self) -> bool:
        """Whether the run ended and every party that is waited for knows it and has done its last orders."""
        if not self.state.finished:
            return False
        return self._ending.awaited(self.state.members, self.evaluators, self.now_s(), time.time(), self._ended_at) <= self.told

    @property
    def _ended_at(self) -> float | None:
        """When the run was over, by the wall and by the store; None where that says that it goes on."""
        return self._began_at if Phase.FINISHED.value in self._about else None

    async def abandon(self) -> None:
        """Do nothing more: another run takes this plan up from its store, once no thread of this one writes its files."""
        await self.beside.abandon()
        self.store.close()

    async def close(self) -> None:
        """End cleanly: an opening under way is waited for with all that it gives rise to, the last bytes are stored."""
        await self.beside.finish()
        self.flush()
        self.store.close()


def _say(sentence: str) -> None:
    with suppress(OSError, ValueError):  # a closed terminal must not stop a run; the store has the event
        log.info(sentence)


def _read_study(config: CoordinatorConfig) -> tuple[Plan, Layout, Vector]:
    """Plan and start, checked against each other. Raises PlanError or ModelError."""
    plan = load_toml(config.plan)
    smallest_cohort(plan)
    mean_error(plan)
    start = read_start(config.start)
    _check_start(plan, start.vector, config.start)
    try:
        tensor_clips_of(plan.masking, 1, start.layout)
        if plan.privacy.is_shared:
            shared_noise.scale(plan, sent_layout(plan, start.layout).length)
    except (WireError, LocalError) as error:
        raise PlanError(str(error)) from error
    return plan, start.layout, start.vector


def _check_start(plan: Plan, start: Vector, path: Path) -> None:
    digest = model_digest(start).hex()
    if plan.start_digest is not None and plan.start_digest != digest:
        raise PlanError(
            f"the start {path} has digest {digest[:12]}, the plan names {plan.start_digest[:12]}: use the plan's start"
        )
