"""A federation in one thread whose coordinator can be killed between any two effects: real store, real spool, real masking.

Only sockets are left out: a node's message goes as bytes into the handler that gRPC would call. A kill stops the coordinator at
a commit, just before or just after it; what it held in memory is gone, and the next one starts on the same folder. Nodes are
the hospital's own release desk over a ledger that counts. Randomness is a function of names, so that two runs are comparable.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from coordinator_federation import LAYOUT, write_study
from coordinator_world import uri

from certs.identity import load_identity
from certs.peers import load_peers
from coordinator import events as ev
from coordinator.run import Run
from coordinator.service import Caller, Federation
from coordinator.sessions import Refusal
from hospital_node.ledger import Receipt
from hospital_node.release import Outcome, ReleaseDesk, refusal_answer
from hospital_node.sending import offset_bytes, parts_of
from hospital_node.session import Member, SessionRefused
from proto import federation_pb2 as pb
from proto.bulk import UploadPart, read_part
from proto.layout import Layout, Vector
from proto.parts import update_layout
from proto.plan import PROTOCOL_VERSION, Plan
from secagg import Policy

TURNS = 300  # of all nodes; a run needs a tenth


class Killed(BaseException):
    """The coordinator was killed; nothing of it runs any more."""


class LinkLost(Exception):
    """What a node sees of that, and of a broken connection."""


def chance_of(name: str) -> Callable[[int], bytes]:
    """Bytes that depend on the name and on how many were drawn before."""
    numbers = itertools.count()

    def rand(size: int) -> bytes:
        return hashlib.shake_256(f"{name} {next(numbers)}".encode()).digest(size)

    return rand


def update_of(party: str, number: int, length: int) -> Vector:
    """Differs in every coordinate from every other one, so that any double count or omission shows."""
    seed = int.from_bytes(hashlib.sha256(f"{party} {number}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).uniform(-0.5, 0.5, length).astype(np.float32)


class CountingLedger:
    """Allows everything and remembers it."""

    def __init__(self) -> None:
        self.committed: list[tuple[int, bytes]] = []  # round and session
        self.verified: list[int] = []

    def authorize(self, plan: Plan, number: int) -> Any:
        return SimpleNamespace(plan=plan, round=number, withdrawn=0)

    def commit(self, authorization: Any, update_id: bytes, session: bytes, at: Any) -> Receipt:
        del at
        assert authorization.round not in {number for number, _ in self.committed}, "a round was charged twice"
        self.committed.append((authorization.round, session))
        return Receipt(bytes(32), hashlib.sha256(session + update_id).digest())

    def record_verified(self, plan: Plan, number: int, at: Any) -> None:
        del plan, at
        self.verified.append(number)


@dataclass
class MemoryFolder:
    """The two calls of a node's state folder that the desk makes."""

    known: set[bytes] = field(default_factory=set)

    def seen_sessions(self) -> frozenset[bytes]:
        return frozenset(self.known)

    def remember_session(self, session: bytes) -> None:
        assert session not in self.known
        self.known.add(session)


class Node:
    """One hospital. `restart` loses what a real one loses."""

    def __init__(self, world: KillWorld, place: int) -> None:
        self.world, self.uri = world, uri(place)
        self.identity = load_identity(world.identities / f"h{place}")
        pins = load_peers(world.config.allow).pinned
        policy = Policy({other: key for other, key in pins.items() if "/hospital/" in other and other != self.uri}, 3, 1)
        self.member = Member(self.uri, self.identity.key, policy, chance_of(self.uri))
        self.ledger, self.folder = CountingLedger(), MemoryFolder()
        self.outcomes: Counter[Outcome] = Counter()
        self.sent_bytes = 0
        self.break_uploads: list[int] = []  # after how many words messages the connection breaks, once each
        self.lose_answers = 0  # acknowledgements that never arrive
        self.restart()

    def restart(self) -> None:
        """Come back with ledger and session ids only."""
        self.desk = ReleaseDesk(self.member, self.world.plan, self.world.layout, self.folder, lambda: self.ledger, lambda: 0.0)
        self.done, self.finished, self.read = 0, "", b""
        self.start = object()

    async def turn(self) -> None:
        """Poll once and carry out what is said. Raises LinkLost, Killed."""
        world, caller = self.world, Caller(self.uri, "hospital", self.identity.public_key_der)
        if self.start is not world.run:
            await world.federation._join(caller, pb.JoinRequest(protocol_version=PROTOCOL_VERSION))
            self.start = world.run
        world.run.heard(self.uri)
        if world.run.mail[self.uri].after(self.done) is None:
            return
        reply = await world.federation._poll(caller, pb.PollRequest(done=self.done))
        order = pb.Instruction.FromString(reply.SerializeToString())
        with suppress(Refusal):  # it came too late: the next poll says what is wanted
            await self.carry_out(caller, order)
        self.done = max(self.done, order.id)

    async def carry_out(self, caller: Caller, order: pb.Instruction) -> None:
        kind = order.WhichOneof("order")
        match kind:
            case "train":
                await self.train(caller, order.train)
            case "result":
                if order.result.session != self.read:
                    self.outcomes[self.desk.result(order.result)] += 1
                self.read = order.result.session
            case "finished":
                self.finished = order.finished.reason
            case "open" | "share" | "mask" | "confirm" | "reveal":
                try:
                    await self.mask_or_answer(caller, kind, getattr(order, kind))
                except SessionRefused as refusal:
                    answer = refusal_answer(getattr(order, kind).session, refusal)
                    await self.world.federation._answer(caller, answer)

    async def train(self, caller: Caller, order: pb.Train) -> None:
        if not self.desk.holds(order.round, order.base_digest):
            if order.round in {number for number, _ in self.ledger.committed}:
                declined = pb.NodeReport(round=order.round, state=pb.NodeReport.DECLINED, code="already-released")
                await self.world.federation._report(caller, declined)
                return
            self.desk.discard()
            vector = update_of(self.uri, order.round, self.world.layout.length)
            self.desk.hold(vector, order.base_digest, self.ledger.authorize(self.world.plan, order.round))
        ready = pb.NodeReport(round=order.round, state=pb.NodeReport.READY, base_digest=order.base_digest)
        await self.world.federation._report(caller, ready)

    async def mask_or_answer(self, caller: Caller, kind: str, order: Any) -> None:
        if kind != "mask":
            answer = getattr(self.desk, kind)(order)
            await self.world.federation._answer(caller, pb.PhaseAnswer.FromString(answer.SerializeToString()))
        else:
            charged, upload = self.desk.mask(order)
            await self.world.federation._upload(caller, self.stream(parts_of(charged, upload, offset_bytes(upload, order))))
        if self.lose_answers:
            self.lose_answers -= 1
            raise LinkLost

    async def stream(self, parts: Iterator[UploadPart]) -> Any:
        stop = self.break_uploads.pop(0) if self.break_uploads else None
        for number, part in enumerate(parts):
            if number == stop:
                raise LinkLost
            self.world.count_chunk()
            self.sent_bytes += len(part.words)
            yield read_part(part.SerializeToString())


class KillWorld:
    """Coordinator, nodes and a clock."""

    def __init__(self, folder: Path, identities: Path, plan: Plan, layout: Layout = LAYOUT, **config: object) -> None:
        self.identities, self.plan = identities, plan
        self.layout = update_layout(layout, plan.training)  # of what nodes train and send
        self.config = write_study(folder, identities, plan, layout=layout, **config)
        self.config.state.mkdir()
        self.now_s = 100.0
        self.starts = self.commits = self.chunks = 0
        self.kill_at: tuple[str, int] | None = None
        self.dead = False
        self.nodes = [Node(self, place) for place in range(len(plan.hospitals))]

    def start(self) -> None:
        """Start a coordinator on the folder."""
        self.starts, self.dead = self.starts + 1, False
        self.run = Run(self.config, self.session_id, lambda: self.now_s)
        self.federation = Federation(self.run, load_peers(self.config.allow))
        self._whole, self.run.store.batch = self.run.store.batch, self._batch  # type: ignore[method-assign]
        self.run.feed(ev.Tick())

    def session_id(self, size: int) -> bytes:
        return hashlib.sha256(f"session {self.run.store.sessions_used()}".encode()).digest()[:size]

    @contextmanager
    def _batch(self, *, durable: bool = True) -> Iterator[Any]:
        del durable  # kills only: the disk need not be waited for
        if self.dead:
            raise Killed
        self.commits += 1
        self._die_if(("before", self.commits))
        with self._whole(durable=False) as changes:
            yield changes
        self._die_if(("after", self.commits))

    def count_chunk(self) -> None:
        self.chunks += 1
        self._die_if(("chunk", self.chunks))

    def _die_if(self, moment: tuple[str, int]) -> None:
        if moment == self.kill_at:
            self.kill_at, self.dead = None, True
            raise Killed

    async def live(self) -> None:
        """Until every node has heard that the run is over."""
        self.run = SimpleNamespace()
        alive = False
        for _ in range(TURNS):
            try:
                if not alive:
                    self.start()
                    alive = True
                await self._everybody()
                self.now_s += 0.01
                self.run.feed(ev.Tick())
                alive = await self._opened()
            except Killed:
                alive = False
            if not alive:
                await self._opened()
                self.run.store._engine.dispose()
            if all(node.finished for node in self.nodes):
                self.run.store._engine.dispose()
                return
        raise AssertionError(f"the run is not over: {self.run.state.phase}, round {self.run.state.round}")

    async def _everybody(self) -> None:
        for node in self.nodes:
            with suppress(LinkLost):
                await node.turn()

    async def _opened(self) -> bool:
        await self.run.beside.finish()
        return not self.dead
