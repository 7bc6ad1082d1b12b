"""A coordinator in a liar's hands: the real service definition over the real mutual TLS, and nothing behind it but the test.

Each node is told what the test says, in the order in which the test says it; whatever the nodes send is kept in `received`,
which is all that a liar can ever learn. Nothing here checks anything.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from certs.tls import party_of, server_credentials
from proto import federation_pb2 as pb
from proto import federation_pb2_grpc as rpc
from proto.plan import PROTOCOL_VERSION, Plan
from proto.roundlog import Entry, first_head
from proto.wire import chunks, to_entry

LONG_POLL_S = 10.0
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Upload:
    """One whole upload as it arrived."""

    session: bytes
    receipt: bytes
    words: bytes
    digest: bytes
    signature: bytes


@dataclass(frozen=True)
class Received:
    """One thing that left a node. `kind` is report, upload, or the name of an answer in federation.proto."""

    uri: str
    kind: str
    message: Any

    @property
    def session(self) -> bytes:
        return b"" if self.kind == "report" else self.message.session

    @property
    def content(self) -> Any:
        """What was answered, without the session that it belongs to."""
        return self.message if self.kind in {"report", "upload"} else getattr(self.message, self.kind)


@dataclass
class Box:
    """Orders of one node."""

    orders: list[pb.Instruction] = field(default_factory=list)
    bell: asyncio.Event = field(default_factory=asyncio.Event)
    done: int = 0
    joins: int = 0
    hang_up: bool = False


class LyingCoordinator(rpc.FederationServicer):
    """Serves in a thread of its own between `start` and `stop`; may be started again, on the same port."""

    def __init__(self, identity: Path, plan: Plan, models: dict[bytes, bytes]) -> None:
        self.identity = identity
        self.plan = plan
        self.plans: dict[str, Plan] = {}  # for nodes that are shown another plan
        self.models = models
        self.models_of: dict[str, dict[bytes, bytes]] = defaultdict(dict)  # for nodes that are sent another model
        self.log: list[Entry] | None = None  # of rounds that ended; None: as an older release, which keeps none
        self.logs: dict[str, list[Entry]] = {}  # for nodes that are shown another history
        self.received: list[Received] = []
        self.more_on_silence = lambda: ""  # what a test wants to read where a node says nothing
        self.cut_uploads = 0  # how many uploads break in the middle from now on
        self.port = 0
        self._boxes: dict[str, Box] = defaultdict(Box)
        self._changed = threading.Condition()
        self._last_id = 0

    # ---- what the test does ----

    def start(self) -> str:
        """Listen; returns host:port."""
        ready = threading.Event()
        for box in self._boxes.values():
            box.bell = asyncio.Event()  # an event belongs to the loop that it first waited in
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(PATIENCE_S)
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Hang up on everybody."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(PATIENCE_S)

    def forget(self, *uris: str) -> None:
        """Lose the orders for these nodes, or all: a coordinator without a disk that is started again."""
        for uri in uris or tuple(self._boxes):
            self._boxes[uri].orders.clear()

    def give(self, uri: str, **order: Any) -> int:
        """One more instruction for a node; returns its id."""
        with self._changed:
            self._last_id += 1
            self._boxes[uri].orders.append(pb.Instruction(id=self._last_id, **order))
            number = self._last_id
        self._loop.call_soon_threadsafe(self._boxes[uri].bell.set)
        return number

    def rejoin(self, *uris: str) -> None:
        """Make nodes connect anew, which is when they read the plan."""
        before = {uri: self._boxes[uri].joins for uri in uris}
        for uri in uris:
            self._boxes[uri].hang_up = True
            self._loop.call_soon_threadsafe(self._boxes[uri].bell.set)
        self.wait(lambda: all(self._boxes[uri].joins > count for uri, count in before.items()), f"{uris} join again")

    def joined(self, *uris: str) -> bool:
        return all(self._boxes[uri].joins for uri in uris)

    def did(self, uri: str, number: int) -> bool:
        """Whether a node has come back for what follows this instruction."""
        return self._boxes[uri].done >= number

    def wait(self, reached, what: str, within_s: float = PATIENCE_S) -> None:
        """Until `reached()`, which is looked at after everything that arrives."""
        until = time.monotonic() + within_s
        with self._changed:
            while not reached():
                left_s = until - time.monotonic()
                assert self._changed.wait(left_s), f"not within {within_s} s: {what}\n{self.more_on_silence()}"

    def after(self, count: int, uri: str, kinds: set[str] | None = None) -> list[Received]:
        """What a node sent after the first `count` things that anybody sent."""
        return [one for one in self.received[count:] if one.uri == uri and (kinds is None or one.kind in kinds)]

    # ---- what the nodes do ----

    async def Join(self, request: pb.JoinRequest, context: grpc.aio.ServicerContext) -> pb.JoinReply:
        del request
        uri = party_of(context).uri
        plan = self.plans.get(uri, self.plan)
        with self._changed:
            self._boxes[uri].joins += 1
            self._boxes[uri].hang_up = False
            self._changed.notify_all()
        reply = pb.JoinReply(protocol_version=PROTOCOL_VERSION, identity=uri, plan=plan.canonical())
        if self.shown(uri) is not None:
            reply.log.CopyFrom(self._log_state(uri))
        return reply

    async def ReadLog(self, request: pb.LogRequest, context: grpc.aio.ServicerContext) -> pb.LogPage:
        uri = party_of(context).uri
        entries = [to_entry(one) for one in (self.shown(uri) or [])[request.after :]]
        return pb.LogPage(entries=entries[:2], state=self._log_state(uri))

    def shown(self, uri: str) -> list[Entry] | None:
        """The history that this node is shown."""
        return self.logs.get(uri, self.log)

    def head(self, uri: str) -> bytes:
        """Of that history."""
        log = self.shown(uri)
        return log[-1].head if log else first_head(self.plan.digest())

    def _log_state(self, uri: str) -> pb.LogState:
        return pb.LogState(entries=len(self.shown(uri) or []), head=self.head(uri))

    async def Poll(self, request: pb.PollRequest, context: grpc.aio.ServicerContext) -> pb.Instruction:
        box = self._boxes[party_of(context).uri]
        with self._changed:
            box.done = request.done
            self._changed.notify_all()
        until = self._loop.time() + LONG_POLL_S
        while True:
            box.bell.clear()
            if box.hang_up:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the test hangs up")
            waiting = next((order for order in box.orders if order.id > request.done), None)
            if waiting is not None:
                return waiting
            try:
                await asyncio.wait_for(box.bell.wait(), until - self._loop.time())
            except TimeoutError:
                return pb.Instruction(id=request.done, wait=pb.Wait(reason="nothing new"))

    async def FetchModel(self, request: pb.ModelRequest, context: grpc.aio.ServicerContext):
        uri = party_of(context).uri
        for piece in chunks(self.models_of[uri].get(request.digest) or self.models[request.digest]):
            yield pb.Chunk(data=bytes(piece))

    async def Report(self, request: pb.NodeReport, context: grpc.aio.ServicerContext) -> pb.Ack:
        return self._keep(Received(party_of(context).uri, "report", request))

    async def Answer(self, request: pb.PhaseAnswer, context: grpc.aio.ServicerContext) -> pb.Ack:
        return self._keep(Received(party_of(context).uri, request.WhichOneof("answer") or "", request))

    async def Upload(self, request_iterator, context: grpc.aio.ServicerContext) -> pb.Ack:
        parts = [part async for part in request_iterator]
        words = b"".join(part.words for part in parts)
        header, trailer = parts[0].header, parts[-1].trailer
        whole = Upload(header.session, header.receipt, words, trailer.digest, trailer.signature)
        assert len(words) == header.total_bytes
        self._keep(Received(party_of(context).uri, "upload", whole))
        if self.cut_uploads:
            self.cut_uploads -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the test cuts the connection")
        return pb.Ack()

    def _keep(self, one: Received) -> pb.Ack:
        with self._changed:
            self.received.append(one)
            self._changed.notify_all()
        return pb.Ack()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        rpc.add_FederationServicer_to_server(self, server)
        self.port = server.add_secure_port(f"127.0.0.1:{self.port}", server_credentials(self.identity))
        await server.start()
        ready.set()
        await self._stopped.wait()
        await server.stop(0)
