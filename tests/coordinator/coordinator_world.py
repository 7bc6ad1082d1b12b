"""A simulated federation around the pure round engine: scripted hospitals, one clock, no sockets and no cryptography.

The world plays the service (it draws session ids, opens sums, restarts) and checks on every effect what must hold whatever
the hospitals do. A hospital here keeps the rules of a real node: it trains a round once it is asked, releases an update at
most once, signs one list per session, and forgets everything but its released updates when it is restarted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from coordinator import events as ev
from coordinator import journal, orders
from coordinator.mailbox import Mailbox, first_id
from coordinator.rounds import step
from coordinator.state import Kept, Phase, Standing, State, begin, smallest_cohort
from proto.buffering import Buffer
from proto.plan import Masking, Network, Plan, Preparation, Privacy, Timing, Training
from secagg.messages import NO_DIGESTS, Advert, Confirmation, Revealed, ShareSet, UploadSeal

START = b"s" * 32


def make_plan(
    hospitals: int = 4,
    rounds: int = 3,
    *,
    masking: Masking | None = None,
    evaluators: int = 1,
    buffer: Buffer | None = None,
    **timing: float,
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
        buffer=buffer,
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
    reachable: bool = True
    done: int = 0
    update: tuple[int, bytes] | None = None  # round and base of an update that was not released
    session: bytes | None = None
    asked: dict[tuple[type, bytes], tuple[orders.Order, ev.Event]] = field(default_factory=dict)  # of this session
    released: dict[int, bytes] = field(default_factory=dict)  # round -> session
    results: list[orders.RoundResult] = field(default_factory=list)
    finished: str | None = None
    buffer: Buffer | None = None
    pace: int = 0  # turns that a training takes
    training: tuple[int, bytes, int] | None = None  # round, base, turns left
    unsent: ev.Event | None = None
    leaves_in: int = 0  # round of the session
    begun: list[int] = field(default_factory=list)  # rounds of its trainings
    opened: list[orders.Open] = field(default_factory=list)

    def restart(self) -> None:
        """Come back with nothing but the ledger."""
        self.alive, self.joined, self.done = True, False, 0
        self.update = self.session = self.training = self.unsent = None
        self.asked = {}

    def work(self) -> ev.Event | None:
        """One turn of training; the report once it is done."""
        if self.training is None:
            return None
        number, base, left = self.training
        self.training = (number, base, left - 1)
        if left > 1:
            return None
        self.training, self.update = None, (number, base)
        return ev.Reported(self.uri, number, ev.Report.READY, base)

    def older(self, number: int) -> ev.Event | None:
        """What a node under a buffered plan goes on with instead of the model that it is offered."""
        if self.buffer is None:
            return None
        if self.update is not None and 0 <= number - self.update[0] <= self.buffer.max_staleness:
            return ev.Reported(self.uri, self.update[0], ev.Report.READY, self.update[1])
        if self.training is not None and 0 <= number - self.training[0] <= self.buffer.max_staleness:
            return ev.Reported(self.uri, self.training[0], ev.Report.TRAINING)
        return None

    def carry_out(self, order: orders.Order) -> ev.Event | None:
        """What a correct node answers; the same question gets the same answer, and must be the same to the last value."""
        session = getattr(order, "session", b"")
        if isinstance(order, orders.RoundResult) or (type(order), session) not in self.asked:
            answer = self._answer(order)
            if answer is not None and session == self.session:
                self.asked[type(order), session] = order, answer
            return answer
        before, answer = self.asked[type(order), session]
        assert before == order, "a phase that was answered is asked again with other content"
        return answer

    def _answer(self, order: orders.Order) -> ev.Event | None:
        match order:
            case orders.Train(number, base, anew):
                if not anew and (older := self.older(number)) is not None:
                    return older
                self.update = self.training = self.unsent = None
                self.begun.append(number)
                if number in self.released:  # it was restarted, or missed how the round ended
                    return ev.Reported(self.uri, number, ev.Report.DECLINED, code="already-released")
                if len(self.released) >= self.budget:
                    return ev.Reported(self.uri, number, ev.Report.DECLINED, code="budget-exhausted")
                if self.pace:
                    self.training = (number, base, self.pace)
                    return ev.Reported(self.uri, number, ev.Report.TRAINING)
                self.update = (number, base)
                return ev.Reported(self.uri, number, ev.Report.READY, base)
            case orders.Open(session, number, members):
                mine = next(seat for seat in members if seat.uri == self.uri)
                if not self.enters(number, mine, members):
                    return ev.Refused(self.uri, session, "no-update")
                self.session, self.asked, self.leaves_in = session, {}, number
                self.opened.append(order)
                return ev.Advertised(self.uri, session, Advert(self.uri, bytes(32), bytes(32), bytes(32), b"s"))
            case orders.Share(session) if session == self.session:
                return ev.Shared(self.uri, session, ShareSet(self.uri, (), NO_DIGESTS, b"s"))
            case orders.Mask(session) if session == self.session and self.update is not None:
                number = self.leaves_in
                assert number not in self.released, "asked to release an update twice"
                self.released[number] = session
                self.update = None
                return ev.UploadAccepted(self.uri, session, UploadSeal(self.uri.encode()[-32:].rjust(32), b"s"), 8)
            case orders.Confirm(session, survivors) if (orders.Mask, session) in self.asked:
                assert self.uri in survivors
                return ev.Confirmed(self.uri, session, Confirmation(self.uri, b"s"))
            case orders.Reveal(session) if (orders.Confirm, session) in self.asked:
                return ev.Revealed(self.uri, session, Revealed(()))
            case orders.Share(session) | orders.Mask(session) | orders.Confirm(session) | orders.Reveal(session):
                return ev.Refused(self.uri, session, "unknown-session")
            case orders.RoundResult():
                self.results.append(order)
                if order.session == self.session:
                    self.session, self.asked = None, {}
            case orders.Finished(reason):
                self.finished = reason
        return None

    def enters(self, number: int, mine: orders.Seat, members: tuple[orders.Seat, ...]) -> bool:
        """Whether the session is for the update held: its model, its age, and company that shares its model."""
        if self.update is None or self.update[1] != mine.base_digest:
            return False
        if self.buffer is None:
            return self.update[0] == number
        age = number - self.update[0]
        assert {seat.base_digest for seat in members} == {mine.base_digest}, "a cohort mixes models"
        return 0 <= age <= self.buffer.max_staleness and mine.weight == self.buffer.factor(age)


class Crash(Exception):
    """The coordinator is killed here."""


class World:
    """The engine, its service and its hospitals."""

    def __init__(self, plan: Plan, drill_pause_s: float = 0.0) -> None:
        self.plan = plan
        self.drill_pause_s = drill_pause_s
        self.now_s = 1000.0
        self.hospitals = {h.uri: Hospital(h.uri, buffer=plan.buffer) for h in plan.hospitals}
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
        self.revoked: set[str] = set()  # calls of these are refused
        self.revoked_in: dict[bytes, set[str]] = {}  # session -> members revoked before its sum was opened
        self.evaluations: list[int] = []
        self.base, self.base_round = START, 0
        self.models = [(0, START)]
        self.fail_opening = False
        self.outline: tuple[bytes, bytes] | None = None  # as the store has it: session and outline
        self.messages: list[journal.Message] = []
        self.doom: tuple[int, str] | None = None  # how many steps from now, and before or after its record
        self.crashes = 0
        self.state: State
        self.start(round_number=1)

    def start(self, round_number: int, kept: Kept | None = None) -> None:
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
            kept=kept,
            models=tuple(self.models),
        )
        self.feed(ev.Tick())

    def crash(self) -> None:
        """kill -9 and restart: an open session goes on from its outline and its messages; nothing else of it was kept."""
        self.crashes += 1
        self.doom = None
        done = [number for number, row in self.saved.items() if row.state in {"opened", "aborted"}]
        kept = None
        if self.outline is not None:
            session, text = self.outline
            bodies = [(message.kind, message.party, journal.body_of(message)) for message in self.messages]
            kept = journal.kept_of(session, journal.read_outline(text), bodies)
            still = {member.uri for member in kept.members.values() if member.standing is Standing.READY}
            self.ready[self.epoch + 1, self._key(self.session_round[session])] = still
        for session, state in self.sessions.items():  # ids that were drawn, and nobody was told of
            if state == "open" and (kept is None or session != kept.session.id):
                self.sessions[session] = "aborted"
        for hospital in self.hospitals.values():
            hospital.joined = False
        self.start(max(done, default=0) + 1, kept)
        for party in sorted(self.revoked):  # coordinator.service: revoke_replaced
            self._feed(ev.Revoked(party))

    def feed(self, event: ev.Event) -> None:
        """One event through the engine, then its record, then its effects; a crash stops it anywhere."""
        try:
            self._feed(event)
        except Crash:
            self.crash()

    def _feed(self, event: ev.Event) -> None:
        when = self._doomed()
        if isinstance(event, ev.Reported) and event.report is ev.Report.READY and self._may_count(event):
            self.ready.setdefault((self.epoch, self._key(event.round)), set()).add(event.party)
        before, (state, effects) = self.state, step(self.state, event, self.now_s)
        if when == "before":
            raise Crash
        self._record(before, event, state, effects)
        if when == "after":
            raise Crash
        self.state = state
        for effect in effects:
            self.carry_out(effect)

    def _may_count(self, event: ev.Reported) -> bool:
        known = [digest for _, digest in self.models] if self.plan.buffer is not None else [self.base]
        return event.base_digest in known

    def _key(self, number: int) -> int:
        """Of `ready`: under a buffered plan an update of one round may leave in a later one."""
        return number if self.plan.buffer is None else 0

    def _doomed(self) -> str:
        if self.doom is None:
            return ""
        left, when = self.doom
        self.doom = None if left == 0 else (left - 1, when)
        return when if left == 0 else ""

    def _record(self, before: State, event: ev.Event, state: State, effects: tuple[ev.Effect, ...]) -> None:
        """One transaction, as coordinator/run.py writes it."""
        message = journal.taken(before, event)
        if message is not None and message.kind == "seal":
            session = before.session.id
            assert session not in self.lists, "an upload was taken after the list was fixed"
            self.uploads.setdefault(session, set()).add(message.party)
        for effect in effects:
            self.store(effect)
        if state.session is None:
            self.outline, self.messages = None, []
            return
        if self.outline is None or self.outline[0] != state.session.id:
            self.messages = []
        elif message is not None:
            assert (message.kind, message.party) not in {(one.kind, one.party) for one in self.messages}
            self.messages = [*self.messages, message]
        if journal.decided(before, state):
            self.outline = state.session.id, journal.outline_of(state).model_dump_json().encode()

    def store(self, effect: ev.Effect) -> None:
        """What is durable before anybody hears of it, and the rules about it."""
        match effect:
            case ev.CommitPoint(session):
                assert self.sessions[session] == "open"
                self.sessions[session] = "masking"
            case ev.CloseList(session, survivors):
                assert session not in self.lists, "a survivor list was fixed twice"
                listed = self.uploads.get(session, set()) - self.revoked_in.get(session, set())
                assert set(survivors) == listed, "the list is not the accepted uploads of those who are still admitted"
                self.lists[session] = survivors
            case ev.AbortSession(session):
                assert self.sessions[session] in {"open", "masking"}
                self.sessions[session] = "aborted"
            case ev.Publish(number, session):
                assert self.sessions[session] == "masking", "a session was published twice"
                assert session in self.opened
                for party in self.opened[session]:
                    assert (party, number) not in self.in_sum, "one update is in two sums"
                    self.in_sum.add((party, number))
                self.sessions[session] = "opened"
                self.base, self.base_round = effect.model_digest, number
                self.models.append((number, effect.model_digest))
            case ev.SaveRound(number):
                assert number not in self.saved or self.saved[number].state not in {"opened", "aborted"}, "a round ended twice"
                self.saved[number] = effect
            case ev.Record():
                assert str(effect.text).startswith(f"Round {effect.round} · ")
                self.records.append(effect)

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
                has = self.ready.get((self.epoch, self._key(number)), set())
                assert set(roster) <= has, "a member has no update for this round"
                if self.plan.buffer is not None:
                    assert len({self.state.members[party].base for party in roster}) == 1, "a cohort mixes models"
                session = next(self.ids).to_bytes(16, "big")
                assert session not in self.sessions
                self.sessions[session], self.session_round[session] = "open", number
                self._feed(ev.SessionNamed(session, roster))
            case ev.OpenSum(session, survivors):
                self._open(session, survivors)

    def _open(self, session: bytes, survivors: tuple[str, ...]) -> None:
        assert self.sessions[session] == "masking"
        assert self.lists[session] == survivors
        assert len(survivors) >= self.plan.masking.minimum_cohort
        number = self.session_round[session]
        assert not set(survivors) & self.revoked_in.get(session, set()), "a sum holds an update of a revoked hospital"
        for party in survivors:
            assert self.hospitals[party].released[number] == session, "a sum holds an update that was not charged for it"
        assert self.opened.setdefault(session, survivors) == survivors, "one session was opened for two lists"
        if self.fail_opening:
            self.fail_opening = False
            self._feed(ev.SessionBroken(session, "bad shares"))
        else:
            self._feed(ev.Opened(session, b"S" * 32, b"model-of-round" + number.to_bytes(18, "big")))

    # ---- what a schedule can do ----

    def act(self, number: int, fault: str = "") -> ev.Event | None:
        """Let a hospital poll once and carry out what it is told.

        `fault`: "no request" or "no response" arrives; "late": the answer is returned and not delivered.
        """
        hospital = self.hospitals[uri(number)]
        if not (hospital.alive and hospital.reachable) or hospital.uri in self.revoked:
            return None
        if not hospital.joined:
            hospital.joined = True
            self.feed(ev.Joined(hospital.uri, b"key"))
        self.feed(ev.Seen(hospital.uri))
        self._report(hospital, fault)
        item = self.mail[hospital.uri].after(hospital.done)
        if item is None:
            return None
        answer, epoch = hospital.carry_out(item[1]), self.epoch
        if answer is not None and fault not in {"no request", "late"}:
            self.feed(answer)
        if fault == "" and epoch == self.epoch:  # a crash in between loses the response as well
            hospital.done = item[0]
        return answer

    def revoke(self, number: int) -> None:
        """Take a hospital from the list of confirmed keys."""
        party = uri(number)
        self.revoked.add(party)
        self.hospitals[party].joined = False
        if self.state.session is not None:
            self.revoked_in.setdefault(self.state.session.id, set()).add(party)
        self.feed(ev.Revoked(party))

    def put_back(self, number: int) -> None:
        """People list it again; it joins with its next call."""
        self.revoked.discard(uri(number))

    def _report(self, hospital: Hospital, fault: str) -> None:
        """What ended in the background; a report whose answer is lost is made again."""
        report = hospital.unsent or hospital.work()
        hospital.unsent = None if fault == "" else report
        if report is not None and fault in {"", "no response"}:
            self.feed(report)

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
            live = [h for h in self.hospitals.values() if h.alive and h.uri not in self.revoked]
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
