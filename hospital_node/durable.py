"""Small files that a power cut leaves old or new, never half: written under another name, synced, renamed, folder synced.
One that is only looked at is renamed without being synced (`write_view`).

This file knows no format and imports nothing of this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

READ_BYTES = 1 << 16


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file. Writers of one file must exclude each other; readers need no lock."""
    _replace(path, data, os.fsync)
    sync_folder(path.parent)


def write_view(path: Path, data: bytes) -> None:
    """Replace a file that is only looked at: readers see the old content or the new, a power cut may leave neither."""
    _replace(path, data, lambda _: None)


def _replace(path: Path, data: bytes, sync: Callable[[int], None]) -> None:
    partial, rest = path.with_name(path.name + ".partial"), memoryview(data)
    descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666)  # plain calls: a node writes ten a round
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        sync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)


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


def append_lines(path: Path, lines: bytes) -> None:
    """Add lines, each with its line break, synced. What a power cut left of an earlier one is overwritten.

    Raises OSError where the disk does not take all of them: then they are taken back, so that trying again doubles none.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        end = _whole_bytes(descriptor)
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(lines)
            os.fsync(descriptor)
            sync_folder(path.parent)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, end)
                os.fsync(descriptor)
            raise
    finally:
        os.close(descriptor)


def _whole_bytes(descriptor: int) -> int:
    """Bytes up to and with the last line break."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - READ_BYTES)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
