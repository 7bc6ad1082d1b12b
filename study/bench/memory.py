"""Nodes and coordinator in one process: gRPC and TLS left out, everything else as on a connection.

Rules: (1) every message is serialised by its sender and parsed by its receiver, so that neither side holds an object of the
other and bytes are counted where they are counted on a wire; (2) the service learns who calls from the caller's real
certificate and checks it as it checks one from a TLS session; (3) a refused call reaches the node as the kind of failure that
`hospital_node.link.GrpcLink` makes of its status; (4) the service's code runs in its event loop, a node's code in the node's
own threads, and where the coordinator has ended no call waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from coordinator.service import Federation
from hospital_node.link import (
    DISTRIBUTION,
    LOST,
    REFUSED,
    LinkLost,
    LinkRefused,
    ModelMismatch,
    OrderStale,
    Said,
    item_of,
    poll_of,
)
from hospital_node.link import receive_model as received
from hospital_node.progress import Item
from hospital_node.traffic import ByteMeter
from proto import federation_pb2 as pb
from proto.bulk import ModelChunk, UploadPart, read_chunk, read_part
from proto.layout import Vector
from proto.plan import PROTOCOL_VERSION
from proto.wire import CHUNK_BYTES

if TYPE_CHECKING:
    import grpc

Result = TypeVar("Result")
Message = TypeVar("Message", pb.JoinReply, pb.Instruction, pb.Ack, pb.LogPage)
Method = Callable[[Any, "MemoryContext"], Awaitable[Any]]  # of the service: a message in, a message out
ENDED = "the coordinator of this process has ended"
HANDED_BYTES = CHUNK_BYTES  # of a stream that go from thread to thread at once; a wire's chunk, as there
TURNS_TO_END = 3  # of the event loop: one to begin a call that came last, one to cancel it, one to hear of it


class CallEnded(Exception):
    """A call that the service ended with a status other than OK."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.status = status
        self.details = details


@dataclass(frozen=True, slots=True)
class MemoryContext:
    """What the service may ask of a call (coordinator.service.CallContext)."""

    certificate_pem: bytes

    def auth_context(self) -> Mapping[str, list[bytes]]:
        """What a TLS session of this caller would show."""
        return {"transport_security_type": [b"ssl"], "x509_pem_cert": [self.certificate_pem]}

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with a status."""
        raise CallEnded(code, details)


class Exchange:
    """The coordinator's end of every connection. Make it in the event loop that serves; calls may come from any thread."""

    def __init__(self, service: Federation) -> None:
        self.service = service
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._open = True
        self._calls: set[Future[Any]] = set()

    def start(self, call: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Begin a call. Raises LinkLost once the exchange is closed."""
        with self._lock:
            if not self._open:
                call.close()
                raise LinkLost(ENDED)
            begun = asyncio.run_coroutine_threadsafe(call, self._loop)
            self._calls.add(begun)
        begun.add_done_callback(self._forget)
        return begun

    async def close(self) -> None:
        """Take no more calls and end those under way: their callers get LinkLost."""
        with self._lock:
            self._open = False
            under_way = tuple(self._calls)
        for call in under_way:
            call.cancel()
        for _ in range(TURNS_TO_END):
            await asyncio.sleep(0)

    def _forget(self, call: Future[Any]) -> None:
        with self._lock:
            self._calls.discard(call)


class MemoryLink:
    """A `hospital_node.link.Link` to an Exchange, for the party of one certificate."""

    polls_say = True

    def __init__(self, exchange: Exchange, certificate_pem: bytes, meter: ByteMeter) -> None:
        self._exchange = exchange
        self._service = exchange.service
        self._context = MemoryContext(certificate_pem)
        self._meter = meter
        self.lost = ENDED  # why the connection is lost, where it is
        self._wake_asked = threading.Event()
        self._arrived = threading.Event()

    def join(self) -> pb.JoinReply:
        """See Link."""
        request = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version=version(DISTRIBUTION))
        return self._unary(self._service.Join, request, pb.JoinReply, "join")

    def poll(self, done: int, said: Said | None = None) -> pb.Instruction | None:
        """See Link."""
        request = poll_of(done, said)
        arrived = threading.Event()  # of this call alone: a call given up before also ends, later
        self._arrived = arrived
        call = self._begin(self._service.Poll, request)
        call.add_done_callback(lambda _: arrived.set())
        if not self._wake_asked.is_set():
            arrived.wait()
        self._wake_asked.clear()
        self._meter.count_sent(item_of(said), request)
        if not call.done():
            call.cancel()
            return None
        order = pb.Instruction.FromString(self._outcome(call))
        self._meter.count_received("poll", order)
        return order

    def fetch_model(self, digest: bytes, announced_bytes: int, length: int, item: Item) -> Vector:
        """See Link."""
        if announced_bytes != 4 * length:
            raise ModelMismatch(f"a model of {announced_bytes} bytes is announced, the plan's network has {4 * length}")
        request = pb.ModelRequest(digest=digest)
        self._meter.count_sent(item, request)
        stream = self._service.FetchModel(pb.ModelRequest.FromString(request.SerializeToString()), self._context)
        try:
            return received(self._chunks(stream, item), digest, length)
        finally:
            with contextlib.suppress(LinkLost):
                self._exchange.start(_closed(stream))

    def report(self, report: pb.NodeReport) -> None:
        """See Link."""
        self._unary(self._service.Report, report, pb.Ack, item_of(report))

    def answer(self, answer: pb.PhaseAnswer) -> None:
        """See Link."""
        self._unary(self._service.Answer, answer, pb.Ack, item_of(answer))

    def upload(self, parts: Iterable[UploadPart], total_bytes: int) -> None:
        """See Link."""
        del total_bytes  # sets the deadline of a wire
        messages = _uploaded(self._counted(parts))
        ack = pb.Ack.FromString(self._outcome(self._exchange.start(_call(self._service.Upload, messages, self._context))))
        self._meter.count_received("mask", ack)

    def measure(self, measurement: pb.Measurement) -> None:
        """See Link."""
        self._unary(self._service.Measure, measurement, pb.Ack, "evaluate")

    def renew(self, request: pb.RenewRequest) -> pb.RenewReply:
        """See Link."""
        raise LinkRefused(f"certificates of a simulation outlive it: {len(request.request)} bytes were sent for nothing")

    def read_log(self, after: int) -> pb.LogPage:
        """See Link."""
        return self._unary(self._service.ReadLog, pb.LogRequest(after=after), pb.LogPage, "result")

    def wake(self) -> None:
        """See Link."""
        self._wake_asked.set()
        self._arrived.set()

    def close(self) -> None:
        """See Link. Nothing stays open between two calls."""

    def _begin(self, method: Method, request: Any) -> Future[bytes]:
        there = type(request).FromString(request.SerializeToString())
        return self._exchange.start(_call(method, there, self._context))

    def _unary(self, method: Method, request: Any, reply: type[Message], item: Item) -> Message:
        self._meter.count_sent(item, request)
        given: Message = reply.FromString(self._outcome(self._begin(method, request)))
        self._meter.count_received(item, given)
        return given

    def _outcome(self, call: Future[Result]) -> Result:
        """What a call gave; every failure is one of the three kinds (3)."""
        try:
            return call.result()
        except CancelledError as error:
            raise LinkLost(ENDED) from error
        except CallEnded as error:
            kind = _kind_of(error.status)
            if kind is LinkLost:
                self.lost = error.details
            raise kind(error.details) from error

    def _counted(self, parts: Iterable[UploadPart]) -> Iterator[bytes]:
        for part in parts:
            self._meter.count_sent("mask", part)
            yield part.SerializeToString()

    def _chunks(self, stream: AsyncIterator[ModelChunk], item: Item) -> Iterator[ModelChunk]:
        while pieces := self._outcome(self._exchange.start(_next_chunks(stream))):
            for data in pieces:
                chunk = read_chunk(data)
                self._meter.count_received(item, chunk)
                yield chunk


async def _call(method: Method, request: Any, context: MemoryContext) -> bytes:
    data: bytes = (await method(request, context)).SerializeToString()
    return data


async def _next_chunks(stream: AsyncIterator[ModelChunk]) -> list[bytes]:
    """Chunks worth a change of thread; none at the end."""
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < HANDED_BYTES and (chunk := await anext(stream, None)) is not None:
        pieces.append(chunk.SerializeToString())
    return pieces


async def _closed(stream: Any) -> None:
    await stream.aclose()


async def _uploaded(parts: Iterator[bytes]) -> AsyncIterator[UploadPart]:
    """The parts as they are asked for, made in a thread of their own: masking must not hold up the service."""
    while pieces := await asyncio.to_thread(_next_parts, parts):
        for data in pieces:
            yield read_part(data)


def _next_parts(parts: Iterator[bytes]) -> list[bytes]:
    """Parts worth a change of thread; none at the end."""
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < HANDED_BYTES and (part := next(parts, None)) is not None:
        pieces.append(part)
    return pieces


def _kind_of(status: grpc.StatusCode) -> type[RuntimeError]:
    if status in LOST:
        return LinkLost
    return LinkRefused if status in REFUSED else OrderStale
