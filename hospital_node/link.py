"""The connection to the coordinator: mutual TLS, one channel, ten calls, every byte counted.

The only file of the node that imports grpc. It decides nothing about the protocol: it turns messages into calls, checks that
a model is the announced one while it streams in, and says of every failure which of three kinds it is. A node dials out only.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

import grpc
import numpy as np
from grpc.experimental import ChannelOptions

from certs.tls import channel_credentials
from hospital_node.config import NodeConfig
from hospital_node.progress import Item
from hospital_node.traffic import ByteMeter
from proto import bulk
from proto import federation_pb2 as pb
from proto.bulk import ModelChunk, UploadPart
from proto.federation_pb2_grpc import FederationStub
from proto.layout import MODEL_LABEL, Vector, all_finite
from proto.plan import PROTOCOL_VERSION
from proto.wire import CHUNK_BYTES, MAX_MESSAGE_BYTES, PLAN_KEY, SERVICE, Sized

DISTRIBUTION = "hospital-secagg"
CALL_DEADLINE_S = 60.0  # a small message and its answer; longer means a half-open connection
POLL_DEADLINE_S = 120.0  # the coordinator answers a long poll with `wait` well before
SLOWEST_BYTES_PER_S = 50_000  # a stream slower than this is given up: 20 MB would take more than six minutes
LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:")

ITEM_OF_ANSWER: dict[str, Item] = {
    "advert": "advertise",
    "shares": "share",
    "confirmation": "confirm",
    "revealed": "reveal",
    "refusal": "mask",
}
LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
REFUSED = frozenset(
    {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED}
)  # every other code: this one request came too late or does not fit any more

Message = TypeVar("Message", bound=Sized)
Said = pb.PhaseAnswer | pb.NodeReport


class LinkLost(RuntimeError):
    """The connection broke or was never made; trying again later may help."""


class LinkRefused(RuntimeError):
    """The coordinator does not serve this node; a person has to do something."""


class OrderStale(RuntimeError):
    """The coordinator no longer wants this answer; the next poll says what it wants."""


class ModelMismatch(RuntimeError):
    """The coordinator sent another model than it announced."""


class Link(Protocol):
    """What the node needs of a connection. Every call may raise LinkLost or LinkRefused; `wake` may come from any thread."""

    @property
    def polls_say(self) -> bool:
        """Whether polls may say something: not to a coordinator of an older release. Known once joined."""
        ...

    def join(self) -> pb.JoinReply:
        """First call: compare versions, get the plan."""
        ...

    def poll(self, done: int, said: Said | None = None) -> pb.Instruction | None:
        """The instruction after `done`; None if `wake` was called meanwhile. Raises OrderStale where `said` is not wanted.

        `said` is taken where an instruction comes back; otherwise it may have been, and is to be said again.
        """
        ...

    def fetch_model(self, digest: bytes, announced_bytes: int, length: int, item: Item) -> Vector:
        """The model of this digest. Raises ModelMismatch, OrderStale."""
        ...

    def report(self, report: pb.NodeReport) -> None:
        """Training state, or that a model is being measured; the one call for any thread. Raises OrderStale."""
        ...

    def answer(self, answer: pb.PhaseAnswer) -> None:
        """One answer of a masking session. Raises OrderStale."""
        ...

    def upload(self, parts: Iterable[UploadPart], total_bytes: int) -> None:
        """One whole masked vector. Raises OrderStale."""
        ...

    def measure(self, measurement: pb.Measurement) -> None:
        """Accuracy on public data. Raises OrderStale."""
        ...

    def renew(self, request: pb.RenewRequest) -> pb.RenewReply:
        """A certificate for a new key. Raises OrderStale where it is not time yet, LinkRefused where nobody signs."""
        ...

    def read_log(self, after: int) -> pb.LogPage:
        """A page of the log of rounds after entry `after`. Raises OrderStale."""
        ...

    def wake(self) -> None:
        """End a poll in progress, or the next one."""
        ...

    def close(self) -> None:
        """Give the connection up."""
        ...


class GrpcLink:
    """A `Link` over one gRPC channel. Make a new one for every connection attempt: the certificate is read afresh."""

    def __init__(self, config: NodeConfig, meter: ByteMeter) -> None:
        self._meter = meter
        self._wake_asked = threading.Event()
        self._arrived = threading.Event()
        self._channel = grpc.secure_channel(
            config.coordinator, channel_credentials(config.identity), options=_options(config.coordinator)
        )
        self._stub = stub_of(self._channel)
        self._plan = () if config.plan is None else ((PLAN_KEY, config.plan),)  # goes with every call
        self.polls_say = False

    def join(self) -> pb.JoinReply:
        """See Link."""
        request = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version=version(DISTRIBUTION))
        reply: pb.JoinReply = self._unary(self._stub.Join, request, "join")
        self.polls_say = reply.polls_say
        return reply

    def poll(self, done: int, said: Said | None = None) -> pb.Instruction | None:
        """See Link."""
        request = poll_of(done, said)
        arrived = threading.Event()  # of this call alone: a call given up before also ends, later
        self._arrived = arrived
        call = self._stub.Poll.future(request, timeout=POLL_DEADLINE_S, metadata=self._plan)
        call.add_done_callback(lambda _: arrived.set())
        if not self._wake_asked.is_set():
            arrived.wait()
        self._wake_asked.clear()
        self._meter.count_sent(item_of(said), request)
        if not call.done():
            call.cancel()
            return None
        order: pb.Instruction = _translated(call.result)
        self._meter.count_received("poll", order)
        return order

    def fetch_model(self, digest: bytes, announced_bytes: int, length: int, item: Item) -> Vector:
        """See Link."""
        if announced_bytes != 4 * length:
            raise ModelMismatch(
                f"the coordinator announces a model of {announced_bytes} bytes, the plan's network has {4 * length}"
            )
        request = pb.ModelRequest(digest=digest)
        self._meter.count_sent(item, request)
        stream = self._stub.FetchModel(request, timeout=_stream_deadline_s(announced_bytes), metadata=self._plan)
        try:
            return _translated(lambda: receive_model(self._counted_in(stream, item), digest, length))
        finally:
            stream.cancel()

    def report(self, report: pb.NodeReport) -> None:
        """See Link."""
        self._unary(self._stub.Report, report, item_of(report))

    def answer(self, answer: pb.PhaseAnswer) -> None:
        """See Link."""
        self._unary(self._stub.Answer, answer, item_of(answer))

    def upload(self, parts: Iterable[UploadPart], total_bytes: int) -> None:
        """See Link."""
        counted = self._counted_out(parts, "mask")
        ack = _translated(lambda: self._stub.Upload(counted, timeout=_stream_deadline_s(total_bytes), metadata=self._plan))
        self._meter.count_received("mask", ack)

    def measure(self, measurement: pb.Measurement) -> None:
        """See Link."""
        self._unary(self._stub.Measure, measurement, "evaluate")

    def renew(self, request: pb.RenewRequest) -> pb.RenewReply:
        """See Link."""
        reply: pb.RenewReply = self._unary(self._stub.Renew, request, "join")
        return reply

    def read_log(self, after: int) -> pb.LogPage:
        """See Link."""
        reply: pb.LogPage = self._unary(self._stub.ReadLog, pb.LogRequest(after=after), "result")
        return reply

    def identify(self) -> pb.IdentifyReply:
        """How the coordinator sees this node. Raises LinkLost, LinkRefused; joins nothing."""
        reply: pb.IdentifyReply = self._unary(
            self._stub.Identify, pb.IdentifyRequest(protocol_version=PROTOCOL_VERSION), "join"
        )
        return reply

    def wake(self) -> None:
        """See Link."""
        self._wake_asked.set()
        self._arrived.set()

    def close(self) -> None:
        """See Link."""
        self._channel.close()

    def _unary(self, method: Callable[..., Message], request: Sized, item: Item) -> Message:
        self._meter.count_sent(item, request)
        reply = _translated(lambda: method(request, timeout=CALL_DEADLINE_S, metadata=self._plan))
        self._meter.count_received(item, reply)
        return reply

    def _counted_out(self, messages: Iterable[Message], item: Item) -> Iterator[Message]:
        for message in messages:
            self._meter.count_sent(item, message)
            yield message

    def _counted_in(self, messages: Iterable[Message], item: Item) -> Iterator[Message]:
        for message in messages:
            self._meter.count_received(item, message)
            yield message


def say_apart(link: Link, said: Said) -> None:
    """By a call of its own: to a coordinator of an older release, or where there is more than one thing to say."""
    if isinstance(said, pb.PhaseAnswer):
        link.answer(said)
    else:
        link.report(said)


def poll_of(done: int, said: Said | None) -> pb.PollRequest:
    """A poll with what it says."""
    if isinstance(said, pb.PhaseAnswer):
        return pb.PollRequest(done=done, answer=said)
    return pb.PollRequest(done=done, report=said)


def item_of(said: Said | None) -> Item:
    """Under which item bytes are counted; a poll without a word is one of its own."""
    if said is None:
        return "poll"
    if isinstance(said, pb.PhaseAnswer):
        return ITEM_OF_ANSWER[said.WhichOneof("answer") or "refusal"]
    return "evaluate" if said.state == pb.NodeReport.MEASURING else "train"


def dial(config: NodeConfig, meter: ByteMeter) -> GrpcLink:
    """A link to the coordinator of `config`. Raises CertificateError; the connection itself is made by the first call."""
    return GrpcLink(config, meter)


def stub_of(channel: Any) -> Any:
    """The calls of federation.proto on a channel, grpc's or grpc.aio's; the bulk messages of two go by proto/bulk.py."""
    stub: Any = FederationStub(channel)  # type: ignore[no-untyped-call]
    stub.FetchModel = channel.unary_stream(f"/{SERVICE}/FetchModel", pb.ModelRequest.SerializeToString, bulk.read_chunk)
    stub.Upload = channel.stream_unary(f"/{SERVICE}/Upload", bulk.encoded, pb.Ack.FromString)
    return stub


def receive_model(chunks: Iterable[ModelChunk], digest: bytes, length: int) -> Vector:
    """Put a streamed model together, hashing as it comes. ModelMismatch where it is longer, shorter or another one."""
    vector = np.empty(length, dtype="<f4")
    target = vector.data.cast("B")
    state = hashlib.sha256(MODEL_LABEL + length.to_bytes(8, "little"))  # as proto.layout.model_digest
    at, checked, finite = 0, 0, True
    for chunk in chunks:
        data = chunk.data
        if at + len(data) > len(target) or not 0 < len(data) <= 4 * CHUNK_BYTES:
            raise ModelMismatch("the coordinator sends more of the model than it announced, or chunks of a wrong size")
        target[at : at + len(data)] = data
        state.update(data)
        at += len(data)
        finite = finite and all_finite(vector[checked : at // 4])  # while a core's cache holds them
        checked = at // 4
    if at != len(target) or state.digest() != digest:
        raise ModelMismatch("the model that the coordinator sent does not have the announced digest")
    if not finite:
        raise ModelMismatch("the model that the coordinator sent holds values that are not finite")
    return vector.astype(np.float32, copy=False)


def _stream_deadline_s(size_bytes: int) -> float:
    return CALL_DEADLINE_S + size_bytes / SLOWEST_BYTES_PER_S


def _options(address: str) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),  # a half-open connection is noticed within 30 s
        ("grpc.keepalive_timeout_ms", 10_000),
        (ChannelOptions.SingleThreadedUnaryStream, 1),  # a model comes to the thread that asks; two more would only hand it on
        ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, with the certificate as it is now
    ]
    if address.startswith(LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))  # a hospital's proxy is for the world outside
    return options


Result = TypeVar("Result")


def _translated(call: Callable[[], Result]) -> Result:
    """Run `call`; every gRPC failure becomes one of the three kinds."""
    try:
        return call()
    except grpc.FutureCancelledError as error:
        raise LinkLost("the connection was given up") from error
    except grpc.RpcError as error:
        call_state: Any = error  # every RpcError of a client is a Call, which grpc's types do not say
        status: grpc.StatusCode = call_state.code()
        raise _kind_of(status)(call_state.details() or status.name.lower().replace("_", " ")) from error


def _kind_of(status: grpc.StatusCode) -> type[RuntimeError]:
    if status in LOST:
        return LinkLost
    return LinkRefused if status in REFUSED else OrderStale
