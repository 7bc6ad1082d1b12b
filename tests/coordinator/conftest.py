"""Certificates shared by the tests of the service: making keys for everybody takes a while."""

from __future__ import annotations

from pathlib import Path

import pytest
from coordinator_federation import make_identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one identity folder for each party of study 'lidc'."""
    return make_identities(tmp_path_factory.mktemp("identities"))
