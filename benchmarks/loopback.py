"""What one stream of gRPC over mutual TLS carries on this machine's loopback, both ways: the floor under any round.

The same library, certificates, message size and kind of server as the coordinator's, and nothing done with the bytes. Client
and server are processes of their own, as coordinator and node are. `python -m benchmarks.loopback IDENTITY` is the server.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certs  # noqa: F401  sets the TLS floor before anything imports grpc
from certs.tls import channel_credentials, server_credentials
from proto.wire import CHUNK_BYTES, MAX_MESSAGE_BYTES
from study.processes import Family

import grpc  # isort: skip  after certs

CHUNKS = 200
REPEATS = 4
NAME = "bench.Loopback"
OPTIONS = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second of the wall clock, the best of several."""

    up: float
    down: float

    def seconds(self, up_bytes: int, down_bytes: int) -> float:
        """So long the transport alone takes."""
        return up_bytes / self.up + down_bytes / self.down


def rates(family: Family, server_identity: Path, client_identity: Path, log: Path) -> Rates:
    """Measure now."""
    server = family.start("loopback", [sys.executable, "-m", "benchmarks.loopback", str(server_identity)], log)
    while not (port := _port_in(log)):
        family.raise_if_any_failed()
        time.sleep(0.05)
    with grpc.secure_channel(f"127.0.0.1:{port}", channel_credentials(client_identity), options=OPTIONS) as channel:
        down: Any = channel.unary_stream(f"/{NAME}/Down")
        up: Any = channel.stream_unary(f"/{NAME}/Up")
        for _ in down(b"", timeout=60):  # the connection is made, caches are warm
            pass
        found = Rates(
            up=max(_rate(lambda: up(_pieces(), timeout=60)) for _ in range(REPEATS)),
            down=max(_rate(lambda: sum(1 for _ in down(b"", timeout=60))) for _ in range(REPEATS)),
        )
    family.kill(server)
    return found


def _rate(work: Any) -> float:
    began_s = time.perf_counter()
    work()
    return CHUNKS * CHUNK_BYTES / (time.perf_counter() - began_s)


def _pieces() -> Iterator[bytes]:
    piece = bytes(CHUNK_BYTES)
    for _ in range(CHUNKS):
        yield piece


def _port_in(log: Path) -> str:
    return log.read_text(encoding="ascii").strip() if log.is_file() else ""


async def _down(_: bytes, __: Any) -> AsyncIterator[bytes]:
    for piece in _pieces():
        yield piece


async def _up(messages: AsyncIterator[bytes], _: Any) -> bytes:
    async for _piece in messages:
        pass
    return b""


async def serve(identity: Path) -> None:
    """Until the process is ended; prints its port."""
    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, Any] = {
        "Down": grpc.unary_stream_rpc_method_handler(_down),
        "Up": grpc.stream_unary_rpc_method_handler(_up),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
