"""One flipped bit in any byte of any message to or from a node: a named refusal, or the same sum. Never another sum.

Messages are the protobuf bytes that a connection carries; what takes them is what runs in production: the node's release desk
and masking session, the coordinator's intake and its view of the session. In a round of three and of four members every byte
of every message of one member is flipped in one bit, short messages in every bit. A flip that is not refused where it arrives
must leave its receiver with exactly what the honest message leaves it with; where it does not, the whole round is played.

Out of scope: a false total that the coordinator itself announces. Uploads carry a signed digest, so nobody on the way can
change them, but who adds them up is believed (README, threat model). Acknowledgements and polls carry no value: a node asked
again gives the same bytes again.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError
from secagg_round import Drbg

from coordinator import events as ev
from coordinator.receive import Receiver
from coordinator.rounds import step
from coordinator.service import Caller, Federation
from coordinator.sessions import Refusal, take
from coordinator.spool import Spool, UploadError
from coordinator.state import Phase, Seat, Session, Standing, State, begin
from hospital_node.config import NodePolicy
from hospital_node.ledger import Receipt
from hospital_node.link import GrpcLink, LinkRefused, ModelMismatch, receive_model
from hospital_node.release import Outcome, ReleaseDesk
from hospital_node.sending import parts_of
from hospital_node.session import Member, SessionRefused
from hospital_node.study import plan_offered, policy_obstacle
from proto import federation_pb2 as pb
from proto import wire
from proto.bulk import read_chunk, read_part, to_chunk
from proto.layout import Layout, model_digest
from proto.plan import PROTOCOL_VERSION, Plan, PlanError
from secagg import REFUSAL_CODES, Policy, SecaggError
from secagg.coordinate import SessionView, add_upload, open_sum
from secagg.identity import public_der
from secagg.once import Once

LAYOUT = Layout((("w", (7,)),))
BASE = np.zeros(LAYOUT.length, np.float32)
SESSION = bytes(range(16))
ROUND = 3
PHASES = {"open": Phase.ADVERTISE, "share": Phase.SHARE, "mask": Phase.MASK, "confirm": Phase.CONFIRM, "reveal": Phase.REVEAL}
OF_THE_NODE = {"out-of-place", "unknown-session", "session-ended", "too-few", "no-update", "unusable", "transport"}
CODES = {*REFUSAL_CODES, *OF_THE_NODE, "wrong-model", "wrong-roster"}
SHORT_BYTES = 60  # messages up to this are flipped in every bit

Key = tuple[str, str, str, int]  # to or from, name, phase, number of the message
Meddle = Callable[[Key, bytes, Callable[[bytes], object]], bytes]


class Stalled(Exception):
    """The message became one that asks for nothing, so its sender waits until the phase's deadline: the round is aborted."""


REFUSED = (SessionRefused, Refusal, UploadError, wire.WireError, DecodeError, SecaggError, Stalled)


def uri(name: str) -> str:
    return f"secagg://flip/hospital/{name}"


def plan_of(names: str, **masking: object) -> Plan:
    return Plan.model_validate(
        {
            "study": "flip",
            "rounds": 9,
            "network": {"labels": ["nodule"]},
            "preparation": {"modality": "CT", "spacing_xyz_mm": [1, 1, 1], "patch_zyx": [8, 8, 8]},
            "training": {"local_steps": 2},
            "privacy": {"noise_multiplier": 4.0, "inverse_sampling_rate": 4},
            "masking": masking,
            "hospitals": [{"uri": uri(name), "declared_patients": 20} for name in names],
        }
    )


@dataclass
class MemoryFolder:
    """The two calls of a node's state folder that the desk makes."""

    known: set[bytes] = field(default_factory=set)

    def seen_sessions(self) -> frozenset[bytes]:
        return frozenset(self.known)

    def remember_session(self, session: bytes) -> None:
        self.known.add(session)


class OpenLedger:
    """A ledger that allows everything."""

    def authorize(self, plan: Plan, number: int) -> Any:
        return SimpleNamespace(plan=plan, round=number, withdrawn=0)

    def commit(self, authorization: Any, update_id: bytes, session: bytes, at: Any) -> Receipt:
        return Receipt(bytes(32), hashlib.sha256(session + update_id).digest())

    def record_verified(self, plan: Plan, number: int, at: Any) -> None:
        assert number == ROUND


class Round:
    """A whole round over serialised messages. Deterministic: two rounds differ only by what meddles with them."""

    def __init__(self, names: str, spool: Path) -> None:
        self.names = names
        self.plan = plan_of(names)
        self.keys = {name: ec.derive_private_key(1000 + ord(name), ec.SECP256R1()) for name in names}
        self.updates = {
            name: np.linspace(-0.9, 0.3 + place / 4, LAYOUT.length, dtype=np.float32) for place, name in enumerate(names)
        }
        pinned = {uri(name): hashlib.sha256(public_der(key)).digest() for name, key in self.keys.items()}
        self.desks = {}
        for name in names:
            member = Member(uri(name), self.keys[name], Policy(pinned, 3, 1), Drbg(name))
            desk = ReleaseDesk(member, self.plan, LAYOUT, MemoryFolder(), OpenLedger, lambda: 0.0)
            desk.hold(self.updates[name], model_digest(BASE), OpenLedger().authorize(self.plan, ROUND))
            self.desks[name] = desk
        seats = tuple(Seat(uri(name), public_der(self.keys[name]), 1, model_digest(BASE)) for name in names)
        session = Session(SESSION, seats, self.plan.threshold_of(len(names)), frozenset(map(uri, names)))
        state = begin(self.plan, round=ROUND, base_digest=model_digest(BASE), base_round=0, due=(), now_s=0.0)
        self.state: State = replace(state, phase=Phase.ADVERTISE, session=session)
        self.view = SessionView(wire.open_params(self.plan, self._open(), LAYOUT))
        self.uploads: dict[str, bytes] = {}
        self.spool = Spool(spool)

    # ---- the coordinator ----

    def order(self, phase: str, reader: str) -> pb.Instruction:
        session = SESSION
        match phase:
            case "open":
                return pb.Instruction(id=1, open=self._open())
            case "share":
                return pb.Instruction(id=2, share=pb.Share(session=session, adverts=_all(self.view.adverts, wire.to_advert)))
            case "mask":
                sets = [wire.to_share_set(self.view.share_sets[p].for_receiver(uri(reader))) for p in self.view.sharers]
                return pb.Instruction(id=3, mask=pb.Mask(session=session, sets=sets))
            case "confirm":
                return pb.Instruction(id=4, confirm=pb.Confirm(session=session, survivors=self.view.survivors))
            case _:
                signed = _all(self.view.confirmations, wire.to_confirmation)
                return pb.Instruction(id=5, reveal=pb.Reveal(session=session, confirmations=signed))

    def take(self, name: str, data: bytes) -> None:
        """An answer arrives from `name`."""
        message = pb.PhaseAnswer.FromString(data)
        event = take(self.state, self.view, uri(name), message).event
        if message.WhichOneof("answer") == "refusal":
            raise Refusal("late", f"the member left the session: {event}")

    def take_upload(self, name: str, parts: list[bytes]) -> None:
        """An upload arrives from `name`."""

        async def stream() -> Any:
            for part in parts:
                yield read_part(part)

        fed: list[Any] = []
        run = SimpleNamespace(
            state=self.state, views={SESSION: self.view}, spool=self.spool, feed=fed.append, heard=id, note=lambda *_: None
        )
        asyncio.run(Receiver(run).receive(uri(name), stream()))
        assert fed, "an upload was taken without being counted"
        self.uploads[name] = data = bytearray()
        self.spool.add_all(SESSION, (uri(name),), lambda piece, _: data.extend(piece))

    def _open(self) -> pb.Open:
        members = [
            pb.Member(uri=uri(name), public_key=public_der(self.keys[name]), weight=1, base_digest=model_digest(BASE))
            for name in self.names
        ]
        return pb.Open(session=SESSION, round=ROUND, members=members)

    # ---- a node ----

    def carry_out(self, name: str, data: bytes) -> list[bytes]:
        """An instruction arrives at `name`; what leaves."""
        order = pb.Instruction.FromString(data)
        kind, desk = order.WhichOneof("order"), self.desks[name]
        if kind not in PHASES:
            raise Stalled(str(kind))
        answered = getattr(desk, kind)(getattr(order, kind))
        if kind != "mask":
            return [answered.SerializeToString()]
        return [part.SerializeToString() for part in parts_of(*answered)]

    def take_result(self, name: str, data: bytes) -> None:
        """A result arrives: it counts only where it is about the list that was signed."""
        order = pb.Instruction.FromString(data)
        if order.WhichOneof("order") != "result":
            raise Stalled
        if self.desks[name].result(order.result) is not Outcome.COUNTED:
            raise SessionRefused("result-altered", "not counted")
        assert sorted(order.result.survivors) == sorted(map(uri, self.names))

    # ---- everything ----

    def play(self, meddle: Meddle = lambda key, data, probe: data) -> Any:
        """The mean; raises one of REFUSED."""
        for phase, present in PHASES.items():
            self.state = replace(self.state, phase=present)
            for name in self.names:
                self._one(phase, name, meddle)
            if phase == "mask":
                self.view.close(tuple(map(uri, self.uploads)))
        mean = self.opened(self.view)
        survivors = tuple(map(uri, self.names))
        result = pb.RoundResult(round=ROUND, session=SESSION, survivors=survivors, opened=True, sum_digest=b"s" * 32)
        data = pb.Instruction(id=6, result=result).SerializeToString()
        for name in self.names:
            self.take_result(name, meddle(("to", name, "result", 0), data, partial(self._try_result, name)))
        return mean

    def opened(self, view: SessionView) -> Any:
        total = np.zeros(view.params.words, np.uint64)
        for words in self.uploads.values():
            add_upload(total, words)
        return open_sum(view, total).mean

    def opened_with(self, name: str, data: bytes) -> Any:
        """The mean after `play`, had this member revealed something else."""
        kept, self.view = self.view, copied(self.view)
        del self.view.revealed[uri(name)]
        try:
            self.take(name, data)
            return self.opened(self.view)
        finally:
            self.view = kept

    def _one(self, phase: str, name: str, meddle: Meddle) -> None:
        order = self.order(phase, name).SerializeToString()
        order = meddle(("to", name, phase, 0), order, partial(self._try_order, name))
        answers = self.carry_out(name, order)
        for number in range(len(answers)):
            probe = partial(self._try_answers, name, phase, tuple(answers), number)
            answers[number] = meddle(("from", name, phase, number), answers[number], probe)
        if phase == "mask":
            self.take_upload(name, answers)
        else:
            self.take(name, answers[0])

    # ---- trying a message without its consequences: each returns what the receiver would be left with ----

    def _try_order(self, name: str, data: bytes) -> object:
        with self._untouched(name):
            left = self.carry_out(name, data)
            session = self.desks[name]._session
            return left, session.params, {phase: asked for phase, (asked, _) in session._answered.items()}

    def _try_result(self, name: str, data: bytes) -> object:
        with self._untouched(name):
            return self.take_result(name, data)

    def _try_answers(self, name: str, phase: str, answers: tuple[bytes, ...], number: int, data: bytes) -> object:
        told = [data if place == number else part for place, part in enumerate(answers)]
        kept, uploads = self.view, self.uploads
        self.view, self.uploads = copied(kept), dict(uploads)
        try:
            if phase == "mask":
                self.take_upload(name, told)
            else:
                self.take(name, told[0])
            return [getattr(self.view, item.name) for item in fields(self.view)], self.uploads
        finally:
            self.view, self.uploads = kept, uploads

    @contextmanager
    def _untouched(self, name: str) -> Iterator[None]:
        """Afterwards the node remembers and has asked for chance as if nothing had been tried."""
        desk = self.desks[name]
        session, outer = desk._session, (desk._held, set(desk._seen), desk._session)
        inner = None if session is None else (session._state, dict(session._answered), session.ended, session.charged)
        if session is not None and hasattr(session._state, "once"):
            session._state = replace(session._state, once=Once())  # a question that is only tried does not count as asked
        count = desk._member.rand.count
        try:
            yield
        finally:
            desk._held, desk._seen, desk._session = outer
            desk._member.rand.count = count
            if session is not None:
                session._state, session._answered, session.ended, session.charged = inner


def copied(view: SessionView) -> SessionView:
    """A view that can be changed without changing this one."""
    twin = copy.copy(view)
    for item in fields(view):
        if isinstance(value := getattr(view, item.name), dict):
            setattr(twin, item.name, dict(value))
    return twin


def _all(messages: Any, to_wire: Callable[[Any], Any]) -> list[Any]:
    return [to_wire(messages[party]) for party in sorted(messages)]


def flips(about: object, data: bytes, short_bytes: int = SHORT_BYTES) -> Iterator[bytes]:
    """One flipped bit in every byte, chosen anew for each place; of a short message every bit."""
    for place in range(len(data)):
        chosen = hashlib.sha256(repr((about, place)).encode()).digest()[0] % 8
        for bit in range(8) if len(data) <= short_bytes else (chosen,):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            yield bytes(changed)


@dataclass
class Flipping:
    """Tries every flip of one member's messages where they arrive."""

    member: str
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    taken: list[tuple[Key, bytes]] = field(default_factory=list)  # not refused, and the receiver is left with something else
    codes: set[str] = field(default_factory=set)

    def __call__(self, key: Key, data: bytes, probe: Callable[[bytes], object]) -> bytes:
        if key[1] == self.member:
            honest = probe(data)
            for changed in flips(key, data):
                self.tried[key[0], key[2]] += 1
                try:
                    left = probe(changed)
                except REFUSED as error:
                    self.codes.add(getattr(error, "code", "transport"))
                else:
                    if left != honest:
                        self.taken.append((key, changed))
        return data


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of refusals are expected here."""
    with structlog.testing.capture_logs():
        yield


@pytest.mark.parametrize(("names", "member"), [("abc", "a"), ("abcd", "c")], ids=["three", "four"])
def test_a_flipped_bit_is_refused_or_changes_nothing(names: str, member: str, tmp_path: Path) -> None:
    honest = Round(names, tmp_path / "honest")
    mean = honest.play()
    flipping = Flipping(member)
    assert np.array_equal(Round(names, tmp_path / "flipping").play(flipping), mean), "trying leaves no trace"
    sent, told = {*PHASES}, {*PHASES, "result"}
    assert set(flipping.tried) == {("to", phase) for phase in told} | {("from", phase) for phase in sent}
    assert min(flipping.tried.values()) >= 100
    assert flipping.codes <= CODES
    assert {"bad-signature", "altered-box", "unknown-session", "malformed", "policy"} <= flipping.codes

    outcomes: Counter[object] = Counter()
    for number, (key, changed) in enumerate(flipping.taken):
        try:
            if key[0] == "from" and key[2] == "reveal":
                got = honest.opened_with(key[1], changed)
            else:
                told_instead = {key: changed}
                got = Round(names, tmp_path / str(number)).play(lambda at, data, _, told=told_instead: told.get(at, data))
        except REFUSED:
            outcomes["refused"] += 1
        else:
            assert np.array_equal(got, mean), f"{key}: another sum"
            outcomes["same sum", *key[::2]] += 1
    assert outcomes["refused"] > 0
    corrected = outcomes["same sum", "from", "reveal"]
    assert (corrected > 100) == (len(names) > 3), "a fourth member's shares correct wrong ones"


# ---- before masking: the plan, the order to train, the model, the report ----


def test_a_flipped_bit_in_the_plan_gives_one_that_nobody_approved() -> None:
    plan = plan_of("abcd", threshold=3)
    reply = pb.JoinReply(protocol_version=PROTOCOL_VERSION, software_version="0.1.0", identity=uri("a"), plan=plan.canonical())
    offered = Counter()
    for changed in flips("join", reply.SerializeToString(), short_bytes=10_000):
        try:
            got = plan_offered(pb.JoinReply.FromString(changed), uri("a"))
        except (LinkRefused, PlanError, DecodeError):
            offered["refused"] += 1
        else:
            offered["another" if got.digest() != plan.digest() else "the same"] += 1
            assert (got == plan) == (got.digest() == plan.digest())
            policy_obstacle(
                got, uri("a"), NodePolicy(), dict.fromkeys(map(uri, "bcd"), b""), ROUND
            )  # asked before any approval
    assert min(offered[what] for what in ("refused", "another", "the same")) > 0


def test_a_flipped_bit_in_the_model_is_not_trained_on() -> None:
    base = np.linspace(-1, 1, LAYOUT.length, dtype=np.float32)
    for changed in flips("model", pb.Chunk(data=base.tobytes()).SerializeToString()):
        with pytest.raises((ModelMismatch, DecodeError)):
            receive_model([read_chunk(changed)], model_digest(base), LAYOUT.length)


def test_a_flipped_bit_in_the_order_to_train_gives_no_update_for_the_round(tmp_path: Path) -> None:
    """Another round: the update joins no session of this one. Another model or length: none is received."""
    train = pb.Train(round=ROUND, base_digest=model_digest(BASE), base_bytes=4 * LAYOUT.length)
    for changed in flips("train", pb.Instruction(id=1, train=train).SerializeToString()):
        try:
            told = pb.Instruction.FromString(changed)
        except DecodeError:
            continue
        if told.WhichOneof("order") != "train" or told.train == train:
            continue
        if told.train.round != ROUND:
            desk = Round("abcd", tmp_path / "round").desks["a"]
            desk.hold(BASE, told.train.base_digest, OpenLedger().authorize(plan_of("abcd"), told.train.round))
            with pytest.raises(SessionRefused, match="no unreleased update of round"):
                desk.open(Round("abcd", tmp_path / "round").order("open", "a").open)
        elif told.train.base_bytes != 4 * LAYOUT.length:
            with pytest.raises(ModelMismatch):
                GrpcLink.fetch_model(None, told.train.base_digest, told.train.base_bytes, LAYOUT.length, "train")
        else:
            with pytest.raises(ModelMismatch):
                receive_model([to_chunk(BASE.tobytes())], told.train.base_digest, LAYOUT.length)


def test_a_flipped_bit_in_a_report_makes_nobody_ready(tmp_path: Path) -> None:
    """A report carries no part of a sum: it only lets a hospital into a cohort, where its update is checked."""
    plan = plan_of("abcd")
    state = begin(plan, round=ROUND, base_digest=model_digest(BASE), base_round=0, due=(), now_s=0.0)
    for event in (ev.Tick(), *(ev.Joined(uri(name), name.encode()) for name in "abcd")):
        state, _ = step(state, event, 0.0)
    report = pb.NodeReport(round=ROUND, state=pb.NodeReport.READY, base_digest=model_digest(BASE))
    fed: list[Any] = []
    config = SimpleNamespace(authority=None, allow=tmp_path / "allow", state=tmp_path)
    run = SimpleNamespace(state=state, feed=fed.append, meter=SimpleNamespace(add=lambda *_: None), config=config, store=None)
    caller = Caller(uri("a"), "hospital", b"a")

    def reported(data: bytes) -> bool:
        fed.clear()
        asyncio.run(Federation(run, SimpleNamespace(peers=()))._report(caller, pb.NodeReport.FromString(data)))
        return step(state, fed[0], 0.0)[0].members[uri("a")].standing is Standing.READY

    assert reported(report.SerializeToString())
    for changed in flips("report", report.SerializeToString()):
        try:
            ready = reported(changed)
        except (Refusal, DecodeError):
            continue
        assert not ready or pb.NodeReport.FromString(changed) == report


# ---- not a flip, but near one ----


def test_other_words_under_the_seal_of_an_upload_that_was_taken(tmp_path: Path) -> None:
    """The first try's seal was good and its file was lost: the second try must still be the upload that was signed."""
    played = Round("abc", tmp_path / "spool")
    played.play(lambda key, data, _: data)
    party, view = uri("a"), copied(played.view)
    seal = view.seals[party]
    view.add_seal(party, seal.digest, seal)
    with pytest.raises(SecaggError):
        view.add_seal(party, hashlib.sha256(b"other words").digest(), seal)
