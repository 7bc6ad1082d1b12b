"""How the server starts: what it does not wait for, and what it does not look at."""

from __future__ import annotations

import gc
import importlib.metadata
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.components.v2.component_manager import BidiComponentManager
from streamlit.web.server.starlette import starlette_server

from ui import preload, streamlit_start
from ui.settings import Settings

FIRST_ANSWER = "import sys; sys.argv = ['app.py', '--coordinator', 'none']; import ui.server, ui.cli; print(*sys.modules)"
FIRST_PAGE = "import sys; from ui import preload; preload.load(preload.FIRST_NEEDED); print(*sys.modules)"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is set in Streamlit here is taken back; so is what the collector was told."""
    monkeypatch.setattr(starlette_server, "_bind_server_socket", starlette_server._bind_server_socket)
    monkeypatch.setattr(manifest_scanner, "scan_component_manifests", manifest_scanner.scan_component_manifests)
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.sockets
def test_a_connection_to_the_server_sends_without_delay() -> None:
    streamlit_start.prepare()
    listening, address = starlette_server._bind_server_socket("127.0.0.1", "127.0.0.1", 0, 16)
    with listening, socket.create_connection(listening.getsockname()):
        listening.settimeout(60)
        connection, _ = listening.accept()
        with connection:
            assert address == "127.0.0.1"
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_no_other_package_is_asked_for_components(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: asked.append("all") or [])
    manager = BidiComponentManager()
    manager.discover_and_register_components(start_file_watching=False)
    assert asked == ["all"]  # as Streamlit does by itself
    streamlit_start.prepare()
    manager.discover_and_register_components(start_file_watching=False)
    assert asked == ["all"]


@pytest.mark.parametrize(
    ("before", "absent"),
    [(FIRST_ANSWER, {"sqlalchemy", "pandas", "coordinator.store"}), (FIRST_PAGE, {"pandas", "pyarrow", "altair"})],
)
def test_what_is_loaded_before_the_first_answer_and_the_first_page(before: str, absent: set[str]) -> None:
    done = subprocess.run([sys.executable, "-c", before], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "ui.settings" in loaded
    assert not absent & loaded


def test_the_collector_rests_only_until_there_is_something_to_show(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    class Never:
        def wait(self, _: float) -> bool:
            raise Ended

    rested: list[bool] = []
    monkeypatch.setattr(preload, "read", lambda _: rested.append(not gc.isenabled()))
    preload.rest()
    with pytest.raises(Ended):
        preload._prepare(Settings(coordinator=tmp_path), Never())
    assert rested == [True]
    assert gc.isenabled()
    preload.rest()
    monkeypatch.setattr(preload, "load", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        preload._prepare(Settings(coordinator=tmp_path), Never())
    assert gc.isenabled()
