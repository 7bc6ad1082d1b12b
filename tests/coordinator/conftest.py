"""Certificates shared by the tests of the service: making keys for everybody takes a while."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from coordinator_federation import make_identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one identity folder for each party of study 'lidc'."""
    return make_identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture
def unused_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return request.getfixturevalue("postgres").database()  # type: ignore[no-any-return]
