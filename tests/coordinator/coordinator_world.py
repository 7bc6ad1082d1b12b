"""A simulated federation around the pure round engine: scripted hospitals, one clock, no sockets and no cryptography.

The world plays the service (it draws session ids, opens sums, restarts) and checks on every effect what must hold whatever
the hospitals do. A hospital here keeps the rules of a real node: it trains a round once it is asked, releases an update at
most once, signs one list per session, and forgets everything but its released updates when it is restarted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from coordinator import events as ev
from coordinator import orders
from coordinator.mailbox import Mailbox, first_id
from coordinator.rounds import step
from coordinator.state import Phase, State, begin, smallest_cohort
from proto.plan import Masking, Network, Plan, Preparation, Privacy, Timing, Training
from secagg.messages import Advert, Confirmation, ShareSet

START = b"s" * 32


def make_plan(
    hospitals: int = 4, rounds: int = 3, *, masking: Masking | None = None, evaluators: int = 1, **timing: float
) -> Plan:
    """A small valid plan of study 'lidc'; the mechanism in it plays no part here."""
    return Plan(
        study="lidc",
        rounds=rounds,
        network=Network(labels=("nodule",)),
        preparation=Preparation(modality="CT", spacing_xyz_mm=(1, 1, 1), patch_zyx=(8, 8, 8)),
        training=Training(local_steps=1),
        privacy=Privacy(noise_multiplier=1.0, inverse_sampling_rate=2),
        masking=masking or Masking(),
        timing=Timing(**{"training_deadline_s": 100, "phase_deadline_s": 20, "lost_after_s": 30, **timing}),
        hospitals=[{"uri": uri(number), "declared_patients": 10} for number in range(hospitals)],
        evaluators=[f"secagg://lidc/evaluator/e{number}" for number in range(evaluators)],
    )


def uri(number: int) -> str:
    """URI of the simulated hospital of that number."""
    return f"secagg://lidc/hospital/h{number}"


@dataclass
class Hospital:
    """A scripted node."""

    uri: str
    budget: int = 1000  # rounds that its cap pays for
    alive: bool = True
    joined: bool = False
    done: int = 0
    update: tuple[int, bytes] | None = None  # round and base of an update that was not released
    session: bytes | None = None
    mask_session: bytes | None = None
    signed: set[bytes] = field(default_factory=set)
    released: dict[int, bytes] = field(default_factory=dict)  # round -> session
    results: list[orders.RoundResult] = field(default_factory=list)
    finished: str | None = None

    def restart(self) -> None:
        """Come back with nothing but the ledger."""
        self.alive, self.joined, self.done = True, False, 0
        self.update = self.session = self.mask_session = None
        self.signed = set()

    def carry_out(self, order: orders.Order) -> ev.Event | None:
        """What a correct node answers."""
        match order:
            case orders.Train(number, base):
                assert number not in self.released, "asked to train a round whose update was released"
                if len(self.released) >= self.budget:
                    return ev.Reported(self.uri, number, ev.Report.DECLINED, code="budget-exhausted")
                self.update = (number, base)
                return ev.Reported(self.uri, number, ev.Report.READY, base)
            case orders.Open(session, number, members):
                mine = next(seat for seat in members if seat.uri == self.uri)
                if self.update != (number, mine.base_digest):
                    return ev.Refused(self.uri, session, "no-update")
                self.session = session
                return ev.Advertised(self.uri, session, Advert(self.uri, bytes(32), bytes(32), bytes(32), b"s"))
            case orders.Share(session) if session == self.session:
                return ev.Shared(self.uri, session, ShareSet(self.uri, (), (), b"s"))
            case orders.Mask(session) if session == self.session and self.update is not None:
                number = self.update[0]
                assert number not in self.released, "asked to release an update twice"
                self.released[number] = session
                self.update, self.mask_session = None, session
                return ev.UploadAccepted(self.uri, session)
            case orders.Confirm(session, survivors) if session == self.mask_session:
                assert self.uri in survivors
                assert session not in self.signed, "asked to sign twice"
                self.signed.add(session)
                return ev.Confirmed(self.uri, session, Confirmation(self.uri, b"s"))
            case orders.Reveal(session) if session in self.signed:
                return ev.Revealed(self.uri, session)
            case orders.Share(session) | orders.Mask(session) | orders.Confirm(session) | orders.Reveal(session):
                return ev.Refused(self.uri, session, "unknown-session")
            case orders.RoundResult():
                self.results.append(order)
            case orders.Finished(reason):
                self.finished = reason
        return None


class World:
    """The engine, its service and its hospitals."""

    def __init__(self, plan: Plan, drill_pause_s: float = 0.0) -> None:
        self.plan = plan
        self.drill_pause_s = drill_pause_s
        self.now_s = 1000.0
        self.hospitals = {h.uri: Hospital(h.uri) for h in plan.hospitals}
        self.ids = itertools.count(1)
        self.epoch = 0
        self.sessions: dict[bytes, str] = {}  # id -> open, masking, opened, aborted
        self.session_round: dict[bytes, int] = {}
        self.uploads: dict[bytes, set[str]] = {}
        self.lists: dict[bytes, tuple[str, ...]] = {}
        self.opened: dict[bytes, tuple[str, ...]] = {}
        self.in_sum: set[tuple[str, int]] = set()
        self.ready: dict[tuple[int, int], set[str]] = {}  # (start, round) -> who reported an update for it
        self.saved: dict[int, ev.SaveRound] = {}
        self.records: list[ev.Record] = []
        self.evaluations: list[int] = []
        self.base, self.base_round = START, 0
        self.fail_opening = False
        self.state: State
        self.start(round_number=1)

    def start(self, round_number: int) -> None:
        """Start or restart the coordinator."""
        self.epoch += 1
        due = () if self.evaluations else ((0, START),)
        self.mail = {u: Mailbox(first_id(self.epoch)) for u in (*self.hospitals, *self.plan.evaluators)}
        self.state = begin(
            self.plan,
            round=round_number,
            base_digest=self.base,
            base_round=self.base_round,
            due=due,
            now_s=self.now_s,
            drill_pause_s=self.drill_pause_s,
        )
        self.feed(ev.Tick())

    def crash(self) -> None:
        """kill -9 and restart: what the store's resume() does."""
        done = [number for number, row in self.saved.items() if row.state in {"opened", "aborted"}]
        number = max(done, default=0) + 1
        for session, state in self.sessions.items():
            if state in {"open", "masking"}:
                self.sessions[session] = "aborted"
                if state == "masking" and self.session_round[session] == number:
                    self.saved[number] = ev.SaveRound(number, "aborted")
                    number += 1
        for hospital in self.hospitals.values():
            hospital.joined = False
        self.start(number)

    def feed(self, event: ev.Event) -> None:
        """One event through the engine, then its effects."""
        session = getattr(event, "session", None)
        if isinstance(event, ev.UploadAccepted) and session in self.sessions and session not in self.lists:
            self.uploads.setdefault(session, set()).add(event.party)
        if isinstance(event, ev.Reported) and event.report is ev.Report.READY and event.base_digest == self.base:
            self.ready.setdefault((self.epoch, event.round), set()).add(event.party)
        self.state, effects = step(self.state, event, self.now_s)
        for effect in effects:
            self.carry_out(effect)

    def carry_out(self, effect: ev.Effect) -> None:
        """Play the service, and check the rules."""
        match effect:
            case ev.Instruct(party, order):
                if isinstance(order, orders.Open):
                    assert self.sessions[order.session] == "open"
                    assert self.session_round[order.session] == order.round
                if isinstance(order, orders.Mask):
                    assert self.sessions[order.session] == "masking", "Mask was sent before the commit point was stored"
                if isinstance(order, orders.Evaluate):
                    self.evaluations.append(order.round)
                self.mail[party].put(order)
            case ev.NewSession(number, roster):
                assert number not in {r for r, row in self.saved.items() if row.state in {"opened", "aborted"}}
                assert len(roster) >= smallest_cohort(self.plan)
                assert set(roster) <= self.ready.get((self.epoch, number), set()), "a member has no update for this round"
                session = next(self.ids).to_bytes(16, "big")
                assert session not in self.sessions
                self.sessions[session], self.session_round[session] = "open", number
                self.feed(ev.SessionNamed(session, roster))
            case ev.CommitPoint(session):
                assert self.sessions[session] == "open"
                self.sessions[session] = "masking"
            case ev.CloseList(session, survivors):
                assert session not in self.lists
                assert set(survivors) <= self.uploads.get(session, set())
                self.lists[session] = survivors
            case ev.OpenSum(session, survivors):
                self._open(session, survivors)
            case ev.AbortSession(session):
                assert self.sessions[session] in {"open", "masking"}
                self.sessions[session] = "aborted"
            case ev.Publish(number, session):
                self.sessions[session] = "opened"
                self.base, self.base_round = effect.model_digest, number
            case ev.SaveRound(number):
                assert number not in self.saved or self.saved[number].state not in {"opened", "aborted"}, "a round ended twice"
                self.saved[number] = effect
            case ev.Record():
                assert str(effect.text).startswith(f"Round {effect.round} · ")
                self.records.append(effect)

    def _open(self, session: bytes, survivors: tuple[str, ...]) -> None:
        assert session not in self.opened, "one session was opened twice"
        assert self.sessions[session] == "masking"
        assert self.lists[session] == survivors
        assert len(survivors) >= self.plan.masking.minimum_cohort
        number = self.session_round[session]
        for party in survivors:
            assert self.hospitals[party].released[number] == session
            assert (party, number) not in self.in_sum, "one update is in two sums"
            self.in_sum.add((party, number))
        self.opened[session] = survivors
        if self.fail_opening:
            self.fail_opening = False
            self.feed(ev.SessionBroken(session, "bad shares"))
        else:
            self.feed(ev.Opened(session, b"S" * 32, b"model-of-round" + number.to_bytes(18, "big")))

    # ---- what a schedule can do ----

    def act(self, number: int) -> ev.Event | None:
        """Let a hospital poll once and carry out what it is told."""
        hospital = self.hospitals[uri(number)]
        if not hospital.alive:
            return None
        if not hospital.joined:
            hospital.joined = True
            self.feed(ev.Joined(hospital.uri, b"key"))
        self.feed(ev.Seen(hospital.uri))
        item = self.mail[hospital.uri].after(hospital.done)
        if item is None:
            return None
        hospital.done = item[0]
        answer = hospital.carry_out(item[1])
        if answer is not None:
            self.feed(answer)
        return answer

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        self.feed(ev.Tick())

    def settle(self, turns: int = 400, seconds: float = 1.0) -> bool:
        """Everybody alive works; True once the run is over and they know it."""
        for _ in range(turns):
            for number in range(len(self.hospitals)):
                self.act(number)
            self.tick(seconds)
            live = [h for h in self.hospitals.values() if h.alive]
            if self.state.phase is Phase.FINISHED and all(h.finished is not None for h in live):
                return True
        return False

    def until(self, phase: Phase) -> None:
        """Everybody alive works until the engine enters `phase`."""
        for _ in range(40):
            for number in range(len(self.hospitals)):
                if self.state.phase is phase:
                    return
                self.act(number)
        raise AssertionError(f"the run never reached {phase}")

    def kinds(self) -> list[str]:
        """Kinds of all events recorded so far."""
        return [record.kind for record in self.records]
