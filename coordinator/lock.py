"""One coordinator for one state folder: a second one would delete the first one's spool and abort its session."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderInUse(RuntimeError):
    """Another process works on this state folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder while the block runs; the lock goes with the process, however it ends."""
    with (folder / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUse(f"another coordinator works on {folder}: stop it first, or name another state folder") from error
        yield
