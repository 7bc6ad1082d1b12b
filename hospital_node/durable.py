"""Small files that a power cut leaves old or new, never half: written under another name, synced, renamed, folder synced.

This file knows no format and imports nothing of this package.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file. Writers of one file must exclude each other; readers need no lock."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def write_secret(path: Path, data: bytes) -> None:
    """Make a file that only its owner can read. Raises FileExistsError rather than replace one."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable: a new or renamed file is lost in a power cut without it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
