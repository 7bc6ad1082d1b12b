"""The bulk messages: the bytes that protobuf makes, what protobuf reads, errors included, and old and new sides together."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

import certs  # noqa: F401  sets the TLS floor before anything imports grpc
from coordinator.dispatch import register
from hospital_node.link import stub_of
from proto import federation_pb2 as pb
from proto import federation_pb2_grpc as rpc
from proto.bulk import ModelChunk, Words, read_chunk, read_part, to_chunk, to_words
from proto.wire import SERVICE, framed_bytes, upload_messages, upload_trailer

import grpc  # isort: skip  after certs

HEADER = pb.UploadHeader(session=bytes(range(16)), total_bytes=1 << 40, receipt=b"r", offset_bytes=5)
TRAILER = pb.UploadTrailer(digest=bytes(32), signature=b"s" * 70)
LENGTHS = [0, 1, 127, 128, 16_383, 16_384, 2**20, 2**21 - 1, 2**21, 2**21 + 1]


def of_chunk(parse, encoded):
    """Content, or None where the bytes are refused."""
    try:
        return bytes(parse(encoded).data)
    except DecodeError:
        return None


def of_part(parse, encoded):
    """Which part, and what is in it; None where the bytes are refused."""
    try:
        part = parse(encoded)
    except DecodeError:
        return None
    kind = "words" if isinstance(part, Words) else part.WhichOneof("part")
    if kind == "words":
        return kind, bytes(part.words)
    return kind, None if kind is None else getattr(part, kind)


def agree(encoded):
    assert of_chunk(read_chunk, encoded) == of_chunk(pb.Chunk.FromString, encoded)
    assert of_part(read_part, encoded) == of_part(pb.UploadChunk.FromString, encoded)


@pytest.mark.parametrize("length", LENGTHS)
def test_bytes_and_sizes_are_protobufs(length):
    content = bytes(range(256)) * (length // 256 + 1)
    content = content[:length]
    for mine, theirs in ((to_chunk(content), pb.Chunk(data=content)), (to_words(content), pb.UploadChunk(words=content))):
        assert mine.SerializeToString() == theirs.SerializeToString()
        assert mine.ByteSize() == theirs.ByteSize()
        assert framed_bytes(mine) == framed_bytes(theirs)
        agree(mine.SerializeToString())
    assert to_chunk(memoryview(content)).data == to_words(memoryview(content)).words == content


@given(st.binary(max_size=400))
def test_what_is_made_is_what_protobuf_makes(content):
    assert to_chunk(content).SerializeToString() == pb.Chunk(data=content).SerializeToString()
    assert to_words(content).SerializeToString() == pb.UploadChunk(words=content).SerializeToString()
    assert read_chunk(to_chunk(content).SerializeToString()).data == content
    assert read_part(to_words(content).SerializeToString()).words == content


@settings(max_examples=1000)
@given(st.binary(max_size=300))
@example(b"")
@example(b"\x0a")
@example(b"\x12\x00")
@example(b"\x0a\x00")
def test_any_bytes_are_read_as_protobuf_reads_them(encoded):
    agree(encoded)


ODD = {
    "length in a group too many": b"\x12\x83\x00abc",
    "length of five groups": b"\x12\x81\x80\x80\x80\x00a",
    "tag in a group too many": b"\x92\x00\x01b",
    "twice": b"\x12\x01a\x12\x02bc",
    "an unknown field behind": b"\x12\x01a\x78\x05",
    "an unknown field before": b"\x78\x05\x12\x01a",
    "words that hold words": b"\x12\x03\x12\x01a",
    "a header, then words": b"\x0a\x00\x12\x01a",
    "empty": b"\x12\x00",
}


@pytest.mark.parametrize("encoded", ODD.values(), ids=ODD.keys())
def test_words_in_other_forms_are_read_and_counted_as_if_sent_in_ours(encoded):
    wanted, part = pb.UploadChunk.FromString(encoded), read_part(encoded)
    assert isinstance(part, Words)
    assert part.words == wanted.words
    assert framed_bytes(part) == framed_bytes(pb.UploadChunk(words=wanted.words))


@pytest.mark.parametrize("encoded", ODD.values(), ids=ODD.keys())
def test_a_chunk_in_other_forms_is_read_and_counted_as_if_sent_in_ours(encoded):
    encoded = encoded.replace(b"\x0a\x00", b"").replace(b"\x12", b"\x0a").replace(b"\x92", b"\x8a")
    wanted, chunk = pb.Chunk.FromString(encoded), read_chunk(encoded)
    assert chunk.data == wanted.data
    assert framed_bytes(chunk) == framed_bytes(pb.Chunk(data=wanted.data))


@pytest.mark.parametrize(
    "message",
    [pb.UploadChunk(header=HEADER), pb.UploadChunk(trailer=TRAILER), pb.UploadChunk()],
    ids=["header", "trailer", "none"],
)
def test_header_and_trailer_are_protobufs(message):
    encoded = message.SerializeToString()
    assert read_part(encoded) == read_part(b"\x12\x01a" + encoded if encoded else b"") == message


@st.composite
def messages(draw):
    """A message of either kind, or some of them behind each other, which protobuf reads as one."""
    content = draw(st.binary(max_size=200))
    one = st.sampled_from(
        [
            pb.Chunk(data=content).SerializeToString(),
            pb.UploadChunk(words=content).SerializeToString(),
            pb.UploadChunk(header=HEADER).SerializeToString(),
            pb.UploadChunk(trailer=TRAILER).SerializeToString(),
            b"\x78\x05",  # a field that nobody knows
        ]
    )
    return b"".join(draw(st.lists(one, min_size=1, max_size=3)))


@settings(max_examples=1000)
@given(messages(), st.data())
def test_changed_messages_are_read_as_protobuf_reads_them(message, data):
    changed = bytearray(message)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, min(8, len(changed))))  # tags and lengths are in front
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    agree(bytes(changed))
    agree(bytes(changed[: data.draw(st.integers(0, len(changed)))]))


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_nothing_is_copied_of_what_has_our_form(length):
    content = bytes(length)
    chunk, words = pb.Chunk(data=content).SerializeToString(), pb.UploadChunk(words=content).SerializeToString()
    assert read_chunk(chunk).data.obj is chunk
    assert read_chunk(chunk).SerializeToString() is chunk
    assert read_part(words).words.obj is words
    assert read_part(words).SerializeToString() is words


# ---- sides of two releases, on real connections ----

PIECES = [bytes(700_000), b"\x01" * 400_000, b"end"]


def chunks_sent():
    return [pb.Chunk(data=piece) for piece in PIECES]


def parts_sent():
    header = pb.UploadChunk(header=pb.UploadHeader(session=b"s" * 16, total_bytes=sum(map(len, PIECES)), receipt=b"r"))
    words = [pb.UploadChunk(words=piece) for piece in PIECES]
    return [header, *words, pb.UploadChunk(trailer=TRAILER)]


class Coordinator(rpc.FederationServicer):
    """Sends the pieces, keeps what comes."""

    def __init__(self, chunk):
        self.chunk, self.parts = chunk, []

    async def FetchModel(self, request, context):
        for piece in PIECES:
            yield self.chunk(piece)

    async def Upload(self, request_iterator, context):
        self.parts = [part async for part in request_iterator]
        return pb.Ack()


@asynccontextmanager
async def channel_to(add):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel
    await server.stop(0)


def of_this_release(coordinator):
    return lambda server: register(server, coordinator)


def of_an_older_release(coordinator):
    return lambda server: rpc.add_FederationServicer_to_server(coordinator, server)


def own_parts():
    sent = upload_messages(b"s" * 16, sum(map(len, PIECES)), b"r", PIECES)
    return [*sent, upload_trailer(TRAILER.digest, TRAILER.signature)]


async def both_ways(stub, parts):
    got = [chunk async for chunk in stub.FetchModel(pb.ModelRequest())]
    await stub.Upload(iter(parts))
    return got


@pytest.mark.sockets
@pytest.mark.parametrize("old_node", [False, True], ids=["new node", "old node"])
@pytest.mark.parametrize("old_coordinator", [False, True], ids=["new coordinator", "old coordinator"])
def test_old_and_new_sides_understand_each_other(old_node, old_coordinator):
    coordinator = Coordinator((lambda piece: pb.Chunk(data=piece)) if old_coordinator else to_chunk)
    add = (of_an_older_release if old_coordinator else of_this_release)(coordinator)

    async def scenario():
        async with channel_to(add) as channel:
            stub = rpc.FederationStub(channel) if old_node else stub_of(channel)
            return await both_ways(stub, parts_sent() if old_node else own_parts())

    got = asyncio.run(scenario())
    assert {type(chunk) for chunk in got} == {pb.Chunk if old_node else ModelChunk}
    assert [bytes(chunk.data) for chunk in got] == PIECES
    assert [type(part) for part in coordinator.parts[1:-1]] == [pb.UploadChunk if old_coordinator else Words] * 3
    assert [part.SerializeToString() for part in coordinator.parts] == [part.SerializeToString() for part in parts_sent()]


@pytest.mark.sockets
def test_the_bytes_on_the_connection_are_those_of_protobuf():
    came = []

    async def keep(request_iterator, context):
        came.extend([data async for data in request_iterator])
        return pb.Ack().SerializeToString()

    raw = grpc.method_handlers_generic_handler(SERVICE, {"Upload": grpc.stream_unary_rpc_method_handler(keep)})

    async def scenario():
        async with channel_to(of_this_release(Coordinator(to_chunk))) as channel:
            call = channel.unary_stream(f"/{SERVICE}/FetchModel")(pb.ModelRequest().SerializeToString())
            down = [data async for data in call]
        async with channel_to(lambda server: server.add_generic_rpc_handlers((raw,))) as channel:
            await stub_of(channel).Upload(iter(own_parts()))
        return down

    assert asyncio.run(scenario()) == [chunk.SerializeToString() for chunk in chunks_sent()]
    assert came == [part.SerializeToString() for part in parts_sent()]


@pytest.mark.sockets
@pytest.mark.parametrize("add", [of_this_release, of_an_older_release])
def test_a_message_that_nobody_can_read_ends_the_call_as_before(add):
    async def scenario():
        async with channel_to(add(Coordinator(to_chunk))) as channel:
            await channel.stream_unary(f"/{SERVICE}/Upload")(iter([b"\x12\x05ab"]))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(scenario())
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
