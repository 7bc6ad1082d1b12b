"""A relay that sees what TLS hides: it holds the keys of both ends, as only a test can, and keeps every byte that a node sends.

The node believes to speak with the coordinator, the coordinator with the node; both run the installed software unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable
from pathlib import Path


class DecryptingRelay:
    """Relays one node's connections to `target`; `sent` holds the plain bytes of each, from the node's side."""

    def __init__(self, target: tuple[str, int], coordinator: Path, node: Path) -> None:
        self.sent: list[bytearray] = []
        self.port = 0
        self._target = target
        self._near = _context(ssl.PROTOCOL_TLS_SERVER, coordinator)
        self._near.verify_mode = ssl.CERT_REQUIRED
        self._far = _context(ssl.PROTOCOL_TLS_CLIENT, node)
        self._loop = asyncio.new_event_loop()
        listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        assert listening.wait(120)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(120)

    def _run(self, listening: threading.Event) -> None:
        async def listen() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._near)
            self.port = server.sockets[0].getsockname()[1]
            listening.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        host, port = self._target
        far_in, far_out = await asyncio.open_connection(host, port, ssl=self._far, server_hostname=host)
        kept = bytearray()
        self.sent.append(kept)
        up: Awaitable[None] = _pump(near_in, far_out, kept)
        await asyncio.gather(up, _pump(far_in, near_out, bytearray()))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await source.read(1 << 16):
            kept += data
            sink.write(data)
            await sink.drain()
    sink.close()


def _context(side: int, identity: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity / "node.crt", identity / "node.key")
    context.load_verify_locations(identity / "ca.crt")
    context.set_alpn_protocols(["h2"])
    return context
