"""What a gRPC client sent, read back from the plain bytes of its connection: every header and every message of every call.

RFC 9113 (frames) and RFC 7541 (header compression), as far as a client of gRPC uses them. Anything else raises ValueError, so
that nothing passes unread: strings in Huffman coding, padding that is not zero, compressed messages, frames of an unknown kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
OF_THE_CONNECTION = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}  # fixed sizes; they carry no text
PADDED, PRIORITY = 0x8, 0x20
GRPC_PREFIX_BYTES = 5

_NAMES = """:authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 :status=204
:status=206 :status=304 :status=400 :status=404 :status=500 accept-charset accept-encoding=gzip,+deflate accept-language
accept-ranges accept access-control-allow-origin age allow authorization cache-control content-disposition content-encoding
content-language content-length content-location content-range content-type cookie date etag expect expires from host if-match
if-modified-since if-none-match if-range if-unmodified-since last-modified link location max-forwards proxy-authenticate
proxy-authorization range referer refresh retry-after server set-cookie strict-transport-security transfer-encoding user-agent
vary via www-authenticate"""
STATIC = [(name, value.replace("+", " ")) for name, _, value in (entry.partition("=") for entry in _NAMES.split())]
assert len(STATIC) == 61


@dataclass
class Call:
    """One call: its headers in order, and its messages, whole."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    @property
    def method(self) -> str:
        """The last part of the path."""
        return dict(self.headers)[":path"].rsplit("/", 1)[1]

    @property
    def messages(self) -> list[bytes]:
        """Serialised protobuf messages; a last one that was cut off counts as far as it came."""
        found, at = [], 0
        while at < len(self.body):
            if self.body[at]:
                raise ValueError("a compressed message: this reader would not see into it")
            size = int.from_bytes(self.body[at + 1 : at + GRPC_PREFIX_BYTES], "big")
            at += GRPC_PREFIX_BYTES
            found.append(bytes(self.body[at : at + size]))
            at += size
        return found


def calls_in(sent: bytes) -> list[Call]:
    """All calls of one connection, in the order in which they were begun."""
    if not sent.startswith(PREFACE):
        raise ValueError("not a client of HTTP/2")
    calls: dict[int, Call] = {}
    headers = HeaderDecoder()
    block, block_of = bytearray(), 0
    for kind, flags, stream, payload in _frames(sent[len(PREFACE) :]):
        if kind in {HEADERS, CONTINUATION}:
            block, block_of = (
                (block + payload, block_of) if kind == CONTINUATION else (bytearray(_unpadded(flags, payload)), stream)
            )
            if flags & 0x4:  # END_HEADERS
                calls.setdefault(block_of, Call()).headers += headers.decode(bytes(block))
        elif kind == DATA:
            calls[stream].body += _unpadded(flags, payload)
        elif kind in OF_THE_CONNECTION:
            if len(payload) != OF_THE_CONNECTION[kind]:
                raise ValueError(f"a frame of kind {kind} with {len(payload)} bytes")
        elif kind == SETTINGS:
            if stream or len(payload) % 6:
                raise ValueError("settings of a wrong size")
        elif kind != GOAWAY:
            raise ValueError(f"a frame of kind {kind}")
    return [calls[stream] for stream in sorted(calls)]


def _frames(sent: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while at + FRAME_HEADER_BYTES <= len(sent):
        size = int.from_bytes(sent[at : at + 3], "big")
        kind, flags = sent[at + 3], sent[at + 4]
        stream = int.from_bytes(sent[at + 5 : at + 9], "big") & 0x7FFFFFFF
        at += FRAME_HEADER_BYTES
        yield kind, flags, stream, sent[at : at + size]
        at += size


def _unpadded(flags: int, payload: bytes) -> bytes:
    if flags & PADDED:
        padding = payload[0]
        if any(payload[len(payload) - padding :]):
            raise ValueError("padding that is not zero")
        payload = payload[1 : len(payload) - padding]
    return payload[5:] if flags & PRIORITY else payload


class HeaderDecoder:
    """RFC 7541 without Huffman coding; one for each connection, because its table grows with every block."""

    def __init__(self) -> None:
        self._table: deque[tuple[str, str]] = deque()
        self._limit = 4096

    def decode(self, block: bytes) -> list[tuple[str, str]]:
        """The headers of one block, in order."""
        found, at = [], 0
        while at < len(block):
            first = block[at]
            if first & 0x80:  # an entry of the table
                index, at = _integer(block, at, 7)
                found.append(self._entry(index))
            elif first & 0xE0 == 0x20:  # another size of the table
                self._limit, at = _integer(block, at, 5)
                self._evict()
            else:
                keep = first & 0xC0 == 0x40
                index, at = _integer(block, at, 6 if keep else 4)
                name, at = (self._entry(index)[0], at) if index else _string(block, at)
                value, at = _string(block, at)
                found.append((name, value))
                if keep:
                    self._table.appendleft((name, value))
                    self._evict()
        return found

    def _entry(self, index: int) -> tuple[str, str]:
        return STATIC[index - 1] if index <= len(STATIC) else self._table[index - len(STATIC) - 1]

    def _evict(self) -> None:
        while sum(len(name) + len(value) + 32 for name, value in self._table) > self._limit:
            self._table.pop()


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte, at = block[at], at + 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _string(block: bytes, at: int) -> tuple[str, int]:
    if block[at] & 0x80:
        raise ValueError("a header in Huffman coding: this reader would not see into it")
    size, at = _integer(block, at, 7)
    return block[at : at + size].decode("latin-1"), at + size
