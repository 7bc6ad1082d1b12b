"""A small study around one node: certificates, configuration, ledger, the other hospitals, and an honest coordinator.

The other hospitals are pure protocol states. The coordinator here speaks only in messages of federation.proto, so that a
test can bend any one of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from certs.authority import create_authority, issue
from certs.identity import Identity
from certs.party import Party
from certs.peers import PeerList, peer_of, write_peers
from hospital_node.config import NodeConfig, load_config
from hospital_node.ledger import Cap, Ledger
from hospital_node.link import LinkLost, Said
from hospital_node.release import ReleaseDesk
from hospital_node.session import Member
from hospital_node.state import StateFolder
from hospital_node.work import Scored, Workshop
from proto import federation_pb2 as pb
from proto import wire
from proto.layout import Layout, Vector, model_digest
from proto.plan import PROTOCOL_VERSION, Plan, from_canonical
from proto.roundlog import Entry, first_head, next_entry
from secagg import Policy, RoundParams, node
from secagg.coordinate import SessionView, add_upload, open_sum
from secagg.identity import public_der
from secagg.policy import policy_of

STUDY = "lidc"
NAMES = ("h0", "h1", "h2", "h3")
ME = "secagg://lidc/hospital/h0"
EVALUATOR = "secagg://lidc/evaluator/public"
COORDINATOR = "secagg://lidc/coordinator/main"
LAYOUT = Layout((("layer.weight", (5, 3)), ("layer.bias", (4,))))
BASE: Vector = np.arange(LAYOUT.length, dtype=np.float32) / 100
PATIENCE_S = 120.0  # with a thread of a machine that does other things as well; nothing waits so long where all is well
NOW_S = datetime(2026, 11, 21, 9, 0, tzinfo=UTC).timestamp()


def uri(name: str) -> str:
    return f"secagg://{STUDY}/hospital/{name}"


def make_plan(*, sigma: float = 4.0, rounds: int = 5, **timing: float) -> Plan:
    return Plan.model_validate(
        {
            "study": STUDY,
            "rounds": rounds,
            "network": {"labels": ["nodule"]},
            "preparation": {"modality": "CT", "spacing_xyz_mm": [1, 1, 1], "patch_zyx": [8, 8, 8]},
            "training": {"local_steps": 2},
            "privacy": {"noise_multiplier": sigma, "inverse_sampling_rate": 4, "no_guarantee": sigma == 0},
            "timing": timing,
            "hospitals": [{"uri": uri(name), "declared_patients": 20} for name in NAMES],
            "evaluators": [EVALUATOR],
        }
    )


@dataclass
class Folders:
    """Identities of the study and the configuration of the node under test."""

    root: Path
    identities: dict[str, Identity]

    @property
    def config_file(self) -> Path:
        return self.root / "node.toml"

    @property
    def config(self) -> NodeConfig:
        return load_config(self.config_file)

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.root / "state")


def make_folders(root: Path, *, fresh: bool = False) -> Folders:
    """Certificates of everybody, the peer list of h0, and its node.toml; the same keys for every test unless `fresh`."""
    if fresh or not _written:
        identities = _make(root)
        if not fresh:
            _written.update({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()})
            _identities.update(identities)
        return Folders(root, identities)
    (root / "data").mkdir(parents=True)
    for path, content in _written.items():
        (root / path).parent.mkdir(exist_ok=True, mode=0o700)
        (root / path).touch(mode=0o600)
        (root / path).write_bytes(content)
    return Folders(root, dict(_identities))


_written: dict[Path, bytes] = {}
_identities: dict[str, Identity] = {}


def _make(root: Path) -> dict[str, Identity]:
    create_authority(root / "ca", STUDY)
    parties = [*(uri(name) for name in NAMES), EVALUATOR, COORDINATOR]
    identities = {party: issue(root / "ca", party, root / party.rsplit("/", 1)[-1]) for party in parties}
    entries = [
        peer_of(Party(one.uri, one.fingerprint, one.public_key_der), "Dr Keller", datetime(2026, 11, 21, tzinfo=UTC))
        for one in identities.values()
        if "/hospital/" in one.uri
    ]
    write_peers(root / "peers.toml", PeerList(tuple(entries)))
    (root / "data").mkdir()
    (root / "node.toml").write_text(
        'coordinator = "127.0.0.1:9"\nidentity = "h0"\nstate = "state"\ndata = "data"\npeers = "peers.toml"\n'
        "[cap]\nepsilon = 8.0\ndelta = 1e-5\n"
    )
    (root / "evaluator.toml").write_text(
        'coordinator = "127.0.0.1:9"\nidentity = "public"\nstate = "state-public"\ndata = "data"\n'
    )
    return identities


def approved_ledger(folders: Folders, plan: Plan, epsilon: float = 8.0) -> Ledger:
    folders.state.create()
    ledger = folders.state.open_ledger(ME, datetime.fromtimestamp(NOW_S, UTC))
    approve(ledger, plan, epsilon)
    return ledger


def approve(ledger: Ledger, plan: Plan, epsilon: float = 8.0) -> None:
    ledger.approve(plan, "Dr Keller", "test", Cap(epsilon=epsilon, delta=1e-5), datetime.fromtimestamp(NOW_S, UTC))


@dataclass
class Counter:
    """A predictable source of bytes, never repeating: tests of order need no secrets."""

    count: int = 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return np.random.default_rng(self.count).bytes(size)


def make_desk(folders: Folders, plan: Plan, ledger: Callable[[], Ledger], **policy: int) -> ReleaseDesk:
    """The desk of h0 with the real state folder."""
    identity = folders.identities[ME]
    pinned = {party: one.fingerprint for party, one in folders.identities.items() if "/hospital/" in party}
    demands = Policy(pinned, policy.get("minimum_cohort", 3), policy.get("max_colluders", 1))
    member = Member(ME, identity.key, demands, Counter())
    return ReleaseDesk(member, plan, LAYOUT, folders.state, ledger, lambda: NOW_S)


@dataclass
class Peer:
    """Another hospital: honest, and driven by hand."""

    identity: Identity
    update: Vector
    state: Any = None

    def answer(self, params: RoundParams, phase: str, given: Any, rand: Callable[[int], bytes]) -> Any:
        match phase:
            case "advertise":
                self.state, answer = node.advertise(params, self.identity.uri, self.identity.key, policy_of(params), rand)
            case "share":
                self.state, answer = node.share(self.state, given, rand)
            case "mask":
                ready = node.ready_to_mask(self.state, [item.for_receiver(self.identity.uri) for item in given])
                self.state, answer = node.mask(ready, self.update)
            case "confirm":
                self.state, answer = node.confirm(self.state, given)
            case _:
                self.state, answer = node.reveal(self.state, given)
        return answer


@dataclass
class Rehearsal:
    """An honest coordinator of one session: makes the orders for the node under test, takes its answers."""

    plan: Plan
    folders: Folders
    session: bytes = b"\x01" * 16
    round: int = 1
    base: bytes = field(default_factory=lambda: model_digest(BASE))
    names: tuple[str, ...] = NAMES

    def __post_init__(self) -> None:
        self.rand = Counter(1000 * self.session[0])
        self.peers = [
            Peer(self.folders.identities[uri(name)], np.full(LAYOUT.length, index / 10, np.float32))
            for index, name in enumerate(self.names)
            if uri(name) != ME
        ]
        self.order = self.open()
        self.params = wire.open_params(self.plan, self.order, LAYOUT)
        self.view = SessionView(self.params)
        self.total = np.zeros(self.params.words, np.uint64)

    def open(self) -> pb.Open:
        members = [
            pb.Member(
                uri=uri(name),
                public_key=public_der(self.folders.identities[uri(name)].key),
                weight=1,
                base_digest=self.base,
            )
            for name in self.names
        ]
        return pb.Open(session=self.session, round=self.round, members=members)

    def take_advert(self, answer: pb.PhaseAnswer) -> pb.Share:
        self.view.add_advert(wire.from_advert(answer.advert))
        for peer in self.peers:
            self.view.add_advert(peer.answer(self.params, "advertise", None, self.rand))
        return pb.Share(session=self.session, adverts=[wire.to_advert(item) for item in self.view.adverts.values()])

    def take_shares(self, answer: pb.PhaseAnswer) -> pb.Mask:
        adverts = tuple(self.view.adverts.values())
        self.view.add_share_set(wire.from_share_set(answer.shares).with_digests())
        for peer in self.peers:
            self.view.add_share_set(peer.answer(self.params, "share", adverts, self.rand))
        sets = [self.view.share_sets[party].for_receiver(ME) for party in self.view.sharers]
        return pb.Mask(session=self.session, sets=[wire.to_share_set(item) for item in sets])

    def take_upload(self, words: bytes, survivors: Sequence[str] | None = None) -> pb.Confirm:
        add_upload(self.total, words)
        sets = tuple(self.view.share_sets.values())
        for peer in self.peers:
            upload = peer.answer(self.params, "mask", sets, self.rand)
            add_upload(self.total, b"".join(bytes(part) for part in upload.pieces()))
        self.view.close(tuple(survivors or self.params.participants))
        return pb.Confirm(session=self.session, survivors=self.view.survivors)

    def take_confirmation(self, answer: pb.PhaseAnswer) -> pb.Reveal:
        self.view.add_confirmation(wire.from_confirmation(answer.confirmation))
        for peer in self.peers:
            self.view.add_confirmation(peer.answer(self.params, "confirm", self.view.survivors, self.rand))
        confirmations = [wire.to_confirmation(item) for item in self.view.confirmations.values()]
        return pb.Reveal(session=self.session, confirmations=confirmations)

    def take_revealed(self, answer: pb.PhaseAnswer) -> pb.RoundResult:
        confirmations = tuple(self.view.confirmations.values())
        self.view.add_revealed(ME, wire.from_revealed(answer.revealed))
        for peer in self.peers:
            self.view.add_revealed(peer.identity.uri, peer.answer(self.params, "reveal", confirmations, self.rand))
        self.opened = open_sum(self.view, self.total)
        return self.result()

    def result(self, *, opened: bool = True) -> pb.RoundResult:
        return pb.RoundResult(
            round=self.round, session=self.session, survivors=self.params.participants, opened=opened, sum_digest=bytes(32)
        )


@dataclass(frozen=True)
class Trained:
    """What a trainer returns."""

    update: Vector
    base_digest: bytes


@dataclass(frozen=True)
class Step:
    step: int
    steps: int


@dataclass
class Trainer:
    """Counts its calls; waits at `gate` if there is one."""

    update: Vector = field(default_factory=lambda: np.full(LAYOUT.length, 0.25, np.float32))
    gate: threading.Event | None = None
    rounds: list[int] = field(default_factory=list)
    error: Exception | None = None
    base_digest: bytes | None = None  # what it claims to have started from

    def __call__(
        self,
        plan: Plan,
        uri: str,
        base: Vector,
        patients: Any,
        *,
        threads: int = 1,
        round: int = 1,  # noqa: A002  (the plan's word)
        on_step: Any,
    ) -> Trained:
        self.rounds.append(round)
        for step in range(1, plan.training.local_steps + 1):
            while self.gate is not None and not self.gate.wait(0.01):
                on_step(Step(step - 1, plan.training.local_steps))
            on_step(Step(step, plan.training.local_steps))
        if self.error is not None:
            raise self.error
        return Trained(self.update, self.base_digest or model_digest(base))


def make_workshop(trainer: Trainer, prepare: Callable[[Plan, Any], Sequence[Any]] | None = None) -> Workshop:
    def nothing(plan: Plan, count: Any) -> Sequence[Any]:
        count(1, 1)
        return ()

    def scorer(plan: Plan, model: Vector, threads: int) -> Callable[[Any], Scored]:
        return lambda case: Scored({"nodule": 0.5}, np.asarray(case.label))

    return Workshop(lambda plan: LAYOUT, prepare or nothing, trainer, scorer)


class FakeLink:
    """A Link without sockets: gives out instructions in order, records what leaves, loses what it is told to lose."""

    polls_say = True

    def __init__(self, plan: Plan, identity: str = ME) -> None:
        self.reply = pb.JoinReply(protocol_version=PROTOCOL_VERSION, identity=identity, plan=plan.canonical())
        self.box: list[pb.Instruction] = []
        self.sent: list[Any] = []
        self.joins = 0
        self.lose: list[str] = []  # calls whose answer is lost, in this order, after they took effect
        self.models = {model_digest(BASE): BASE}
        self.log: list[Entry] | None = None  # what it shows of rounds that ended; None: it keeps no log
        self.log_reads = 0
        self._last_id = 0
        self._changed = threading.Condition()
        self._woken = False
        self._heard: Said | None = None

    # ---- what a test does ----

    def put(self, **order: Any) -> int:
        with self._changed:
            self._last_id += 1
            self.box.append(pb.Instruction(id=self._last_id, **order))
            self._changed.notify_all()
            return self._last_id

    def wait_for(self, number: int, seconds: float = PATIENCE_S) -> Any:
        """The `number`th thing that was sent (from 1)."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sent) >= number, seconds), self.sent
            return self.sent[number - 1]

    # ---- what the node does ----

    def join(self) -> pb.JoinReply:
        self.joins += 1
        self.reply.ClearField("log")
        if self.log is not None:
            self.reply.log.CopyFrom(self._log_state())
            self.reply.rounds_done = len(self.log)
        return self.reply

    def read_log(self, after: int) -> pb.LogPage:
        self.log_reads += 1
        assert self.log is not None
        return pb.LogPage(entries=[wire.to_entry(one) for one in self.log[after : after + 2]], state=self._log_state())

    def _log_state(self) -> pb.LogState:
        log = self.log or []
        plan = from_canonical(self.reply.plan).digest()
        return pb.LogState(entries=len(log), head=log[-1].head if log else first_head(plan))

    def poll(self, done: int, said: Said | None = None) -> pb.Instruction | None:
        if said is not None and said is not self._heard:  # after a wake it is said again, and heard once
            self._record(said, "answer" if isinstance(said, pb.PhaseAnswer) else "report")
            self._heard = said
        with self._changed:
            self._changed.wait_for(lambda: self._woken or any(item.id > done for item in self.box), 20)
            self._woken = False
            return next((item for item in self.box if item.id > done), None)

    def fetch_model(self, digest: bytes, announced_bytes: int, length: int, item: str) -> Vector:
        self._lose("fetch")
        return self.models[digest].copy()

    def report(self, report: pb.NodeReport) -> None:
        self._record(report, "report")

    def answer(self, answer: pb.PhaseAnswer) -> None:
        self._record(answer, "answer")

    def upload(self, parts: Iterable[pb.UploadChunk], total_bytes: int) -> None:
        self._record(list(parts), "upload")

    def measure(self, measurement: pb.Measurement) -> None:
        self._record(measurement, "measure")

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        pass

    def _record(self, message: Any, call: str) -> None:
        with self._changed:
            self.sent.append(message)
            self._changed.notify_all()
        self._lose(call)

    def _lose(self, call: str) -> None:
        if call in self.lose:
            self.lose.remove(call)
            raise LinkLost("the test cut the connection")


def words_of(parts: Iterable[pb.UploadChunk]) -> bytes:
    return b"".join(part.words for part in parts)


def train_order(round_number: int = 1) -> pb.Train:
    return pb.Train(round=round_number, base_digest=model_digest(BASE), base_bytes=4 * LAYOUT.length)


def until(true: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def log_after(
    plan: Plan,
    log: Sequence[Entry],
    *,
    opened: bool = True,
    session: bytes = b"",
    survivors: Sequence[str] | None = None,
    model: bytes | None = None,
    sum_digest: bytes = bytes(32),
) -> Entry:
    """The honest entry of the next round."""
    number, base = len(log) + 1, log[-1].model if log else model_digest(BASE)
    return next_entry(
        log[-1] if log else None,
        plan.digest(),
        round_number=number,
        state="opened" if opened else "aborted",
        session=session or bytes([100 + number]) * 16,
        base=base,
        model=(model or bytes([number]) * 32) if opened else base,
        sum_digest=sum_digest if opened else b"",
        survivors=[uri(name) for name in NAMES[1:]] if survivors is None else survivors,
    )


def log_of(plan: Plan, rounds: str) -> list[Entry]:
    """A log of rounds without h0, a letter for each: opened, aborted."""
    log: list[Entry] = []
    for letter in rounds:
        log.append(log_after(plan, log, opened=letter == "o"))
    return log
