"""Uploads on disk until their session is opened: whole and verified, or gone.

A party's upload is written to a file of its own try, checked while it arrives, and renamed into the accepted set in one step;
a stream that breaks leaves nothing. Memory is one chunk per upload; disk a few uploads per member.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Self

from coordinator.models import sync

READ_BYTES = 1 << 19  # whole words; a piece of every upload is added to one part of the sum while the cache holds it
FILES_AT_ONCE = 64  # open at a time: far below any limit, and the sum passes through memory once for so many uploads


class SpoolError(RuntimeError):
    """The spool cannot be written or read: the coordinator's own disk, never a party's fault."""


class UploadError(ValueError):
    """An upload of the wrong length; the sender's fault."""


class Try:
    """One upload as it arrives. Use as a context manager: leaving it without `accept` removes the file."""

    def __init__(self, path: Path, final: Path, total_bytes: int) -> None:
        self._path, self._final = path, final
        self._left_bytes = total_bytes
        self._hash = hashlib.sha256()
        self._file = path.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, words: bytes) -> None:
        """Append the next words. UploadError past the announced length, SpoolError where the disk is full."""
        if len(words) > self._left_bytes:
            raise UploadError("the upload is longer than its session allows")
        self._left_bytes -= len(words)
        self._hash.update(words)
        try:
            self._file.write(words)
        except OSError as error:
            raise SpoolError(f"cannot write the spool {self._path.parent}: {error.strerror}") from error

    def digest(self) -> bytes:
        """SHA-256 of the whole upload. UploadError where words are missing."""
        if self._left_bytes:
            raise UploadError(f"the upload is {self._left_bytes} bytes too short")
        return self._hash.digest()

    def sync(self) -> None:
        """Hand the words to the disk."""
        try:
            sync(self._file)
        except OSError as error:
            raise SpoolError(f"cannot write the spool {self._path.parent}: {error.strerror}") from error

    def accept(self) -> None:
        """Move the file into the accepted set."""
        try:
            self._file.close()
            self._path.replace(self._final)
        except OSError as error:
            raise SpoolError(f"cannot write the spool {self._path.parent}: {error.strerror}") from error


class Spool:
    """Uploads of the sessions that are open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        shutil.rmtree(folder, ignore_errors=True)  # of sessions that ended with an earlier start
        folder.mkdir(parents=True)

    def begin(self, session: bytes, party: str, total_bytes: int) -> Try:
        """Begin one upload. Raises SpoolError."""
        final = self._path_of(session, party)
        try:
            final.parent.mkdir(exist_ok=True)
            return Try(final.with_name(f"{final.name}.{next(self._numbers)}.part"), final, total_bytes)
        except OSError as error:
            raise SpoolError(f"cannot write the spool {final.parent}: {error.strerror}") from error

    def add_all(self, session: bytes, parties: tuple[str, ...], add: Callable[[memoryview, int], None]) -> None:
        """Call add(words, offset in bytes) for every piece of every accepted upload; all have the same length.

        The words are overwritten by those of the next call. Raises SpoolError.
        """
        try:
            for first in range(0, len(parties), FILES_AT_ONCE):
                with ExitStack() as opened:
                    paths = [self._path_of(session, party) for party in parties[first : first + FILES_AT_ONCE]]
                    _add_files([opened.enter_context(path.open("rb")) for path in paths], add)
        except OSError as error:
            raise SpoolError(f"cannot read the spool {self._folder}: {error.strerror}") from error

    def clear(self, session: bytes) -> None:
        """Delete every upload of a session."""
        shutil.rmtree(self._folder / session.hex(), ignore_errors=True)

    def held(self) -> list[str]:
        """Names of all files, for tests and checks: empty once no session is open."""
        return sorted(path.name for path in self._folder.rglob("*") if path.is_file())

    def _path_of(self, session: bytes, party: str) -> Path:
        name = hashlib.sha256(party.encode()).hexdigest()[:32]  # a URI is no file name
        return self._folder / session.hex() / name


def _add_files(files: Sequence[BufferedReader], add: Callable[[memoryview, int], None]) -> None:
    """The first piece of every file, then the second of every file, until they end."""
    buffer = memoryview(bytearray(READ_BYTES))
    for at in itertools.count(0, READ_BYTES):
        sizes = set()
        for file in files:
            size = file.readinto(buffer)
            if size:
                add(buffer[:size], at)
            sizes.add(size)
        if max(sizes) < READ_BYTES:
            return
