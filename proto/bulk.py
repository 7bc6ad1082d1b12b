"""The two bulk messages, a piece of a model and words of an upload, with no more copies than their bytes need.

Each is one field of bytes on the wire: tag, length, content. protobuf copies the content into a message, out of it at every
look, and again to serialise it. Rules: (1) what is made here has the very bytes that protobuf makes; (2) received bytes of
exactly that form are kept as they came, and the content is a view of them; (3) every other form is read by protobuf itself,
with its errors, and what it finds is kept in the form of (1), as if the sender had sent that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from proto import federation_pb2 as pb

DATA_TAG = 0x0A  # Chunk.data: field 1, of a length and its bytes
WORDS_TAG = 0x12  # UploadChunk.words: field 2, likewise
MOST_HEAD_BYTES = 6  # tag and five groups of 7 bits: lengths up to the 2 GiB of any message


@dataclass(frozen=True, slots=True, repr=False)
class Encoded:
    """A message as the bytes that cross."""

    encoded: bytes

    def ByteSize(self) -> int:  # noqa: N802  (protobuf's name)
        """Serialised size in bytes."""
        return len(self.encoded)

    def SerializeToString(self) -> bytes:  # noqa: N802  (protobuf's name)
        """What crosses the connection."""
        return self.encoded


@dataclass(frozen=True, slots=True, repr=False)
class ModelChunk(Encoded):
    """A `Chunk`."""

    data: memoryview


@dataclass(frozen=True, slots=True, repr=False)
class Words(Encoded):
    """An `UploadChunk` that holds words."""

    words: memoryview


UploadPart: TypeAlias = Words | pb.UploadChunk  # the latter for header and trailer, never for words


def to_chunk(data: bytes | memoryview) -> ModelChunk:
    """A piece of a model, copied once."""
    return ModelChunk(*_field(DATA_TAG, data)) if len(data) else ModelChunk(b"", memoryview(b""))


def to_words(words: bytes | memoryview) -> Words:
    """Words of an upload, copied once."""
    return Words(*_field(WORDS_TAG, words))


def read_chunk(encoded: bytes) -> ModelChunk:
    """`Chunk.FromString`, with its errors; nothing is copied of what `to_chunk` makes."""
    data = _content(DATA_TAG, encoded)
    return to_chunk(pb.Chunk.FromString(encoded).data) if data is None else ModelChunk(encoded, data)


def read_part(encoded: bytes) -> UploadPart:
    """`UploadChunk.FromString`, with its errors; nothing is copied of what `to_words` makes."""
    words = _content(WORDS_TAG, encoded)
    if words is not None:
        return Words(encoded, words)
    message = pb.UploadChunk.FromString(encoded)
    return to_words(message.words) if message.WhichOneof("part") == "words" else message


def encoded(message: ModelChunk | UploadPart) -> bytes:
    """Its bytes on the wire: what gRPC calls instead of one message's own method."""
    return message.SerializeToString()


def _field(tag: int, content: bytes | memoryview) -> tuple[bytes, memoryview]:
    """A message of one field, and its content in there."""
    head = _head(tag, len(content))
    whole = b"".join((head, content))
    return whole, memoryview(whole)[len(head) :]


def _content(tag: int, encoded: bytes) -> memoryview | None:
    """What `_field` was given to make these bytes; None where it made others, or of nothing."""
    for head_bytes in range(2, min(MOST_HEAD_BYTES, len(encoded) - 1) + 1):
        if encoded[:head_bytes] == _head(tag, len(encoded) - head_bytes):
            return memoryview(encoded)[head_bytes:]
    return None


def _head(tag: int, length: int) -> bytes:
    """Tag, then the length in as few groups of 7 bits as hold it, lowest first."""
    head = bytearray((tag,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)
