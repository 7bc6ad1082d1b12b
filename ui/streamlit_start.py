"""What this app needs of Streamlit's server and no option of it says. Names of its inside are used here and nowhere else."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from streamlit.components.v2 import manifest_scanner
from streamlit.components.v2.manifest_scanner import ComponentManifest
from streamlit.web.server.starlette import starlette_server

Given = ParamSpec("Given")
Bound = tuple[socket.socket, str]  # where it listens, and at which address


def prepare() -> None:
    """Once, before the server starts: short answers leave at once, and no other package's components are looked for."""
    starlette_server._bind_server_socket = without_delay(starlette_server._bind_server_socket)  # noqa: SLF001
    manifest_scanner.scan_component_manifests = no_components


def without_delay(bind: Callable[Given, Bound]) -> Callable[Given, Bound]:
    """The server's socket with Nagle's algorithm off (RFC 1122, section 4.2.3.4), which its connections inherit.

    With it the second part of a short answer waits until the browser has acknowledged the first one: 40 ms for each of the
    hundred files that a browser asks for. asyncio turns it off only where a socket was made with the number of its protocol.
    """

    def bound(*given: Given.args, **named: Given.kwargs) -> Bound:
        listening, address = bind(*given, **named)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening, address

    return bound


def no_components(max_workers: int | None = None) -> list[tuple[ComponentManifest, Path]]:
    """None. This app draws with Streamlit's own elements; to ask every installed package takes a tenth of a second."""
    del max_workers
    return []
