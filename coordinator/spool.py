"""Uploads on disk until their session is opened: whole and verified, or gone.

A party's upload is written to a file beside the accepted set, checked while it arrives, and renamed into the set in one step.
What a broken stream left is no part of any sum; it waits for its sender to go on, and is deleted with its session. Memory is
one chunk per upload; disk two uploads per member at most. Everything is readable by its owner only.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import ClassVar, Self
from weakref import WeakValueDictionary

from coordinator.models import sync_folder

READ_BYTES = 1 << 19  # whole words; a piece of every upload is added to one part of the sum while the cache holds it
OWNER_ONLY = 0o600
FILES_AT_ONCE = 64  # open at a time: far below any limit, and the sum passes through memory once for so many uploads


class SpoolError(RuntimeError):
    """The spool cannot be written or read: the coordinator's own disk, never a party's fault."""


class UploadError(ValueError):
    """An upload of a wrong length or form; the sender's fault."""


class UploadBroken(UploadError):
    """An upload that stopped half way; what has come is kept, and it goes on there."""


class Try:
    """One upload as it arrives, alone or on top of what came before. Use as a context manager; `write` in any thread.

    Leaving it with an UploadError, other than UploadBroken, deletes what has come; otherwise it stays for another try.
    """

    def __init__(self, path: Path, final: Path, total_bytes: int, offset_bytes: int = 0) -> None:
        self._path, self._final = path, final
        self._left_bytes = total_bytes - offset_bytes
        self._again_bytes = offset_bytes
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()  # held while words are written: nobody closes the file meanwhile, or begins it anew
        self._replaced = False
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, OWNER_ONLY), "r+b")
        if offset_bytes > min(total_bytes, os.fstat(self._file.fileno()).st_size):
            self._file.close()
            raise UploadBroken(f"less than {offset_bytes} bytes of this upload have arrived")
        self._file.truncate(offset_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._lock:
            self._file.close()
        if isinstance(error, UploadError) and not isinstance(error, UploadBroken) and not self._replaced:
            self._path.unlink(missing_ok=True)

    def replace(self) -> None:
        """Another try of the same upload begins: from here on this one neither writes its file nor deletes it."""
        with self._lock:
            self._replaced = True
            self._file.close()

    def rehash(self) -> Iterator[None]:
        """Digest what came before, piece by piece; to be exhausted before `write`."""
        try:
            while self._again_bytes:
                piece = self._file.read(min(READ_BYTES, self._again_bytes))
                self._hash.update(piece)
                self._again_bytes -= len(piece)
                yield
        except OSError as error:
            raise SpoolError(f"cannot read the spool {self._path.parent}: {error.strerror}") from error

    def write(self, words: bytes | memoryview) -> None:
        """Append the next words.

        Raises UploadError past the announced length, UploadBroken once replaced, SpoolError where the disk is full.
        """
        assert not self._again_bytes, "what came before is digested first"
        with self._lock:
            self._still_mine()
            if len(words) > self._left_bytes:
                raise UploadError("the upload is longer than its session allows")
            self._left_bytes -= len(words)
            self._hash.update(words)
            try:
                self._file.write(words)
                self._file.flush()  # what has come outlives this process
            except OSError as error:
                raise SpoolError(f"cannot write the spool {self._path.parent}: {error.strerror}") from error

    def _still_mine(self) -> None:
        if self._file.closed:
            raise UploadBroken("this upload has begun anew")

    def digest(self) -> bytes:
        """SHA-256 of the whole upload. UploadError where words are missing."""
        if self._left_bytes:
            raise UploadError(f"the upload is {self._left_bytes} bytes too short")
        return self._hash.digest()

    def sync(self) -> None:
        """Hand the words to the disk. Raises UploadBroken once replaced, SpoolError."""
        try:
            with self._lock:
                self._still_mine()
                again = os.dup(self._file.fileno())  # a slow disk keeps nobody waiting who closes the file
            try:
                os.fsync(again)
            finally:
                os.close(again)
        except OSError as error:
            raise SpoolError(f"cannot write the spool {self._path.parent}: {error.strerror}") from error

    def accept(self) -> None:
        """Move the file into the accepted set."""
        try:
            self._file.close()
            self._path.replace(self._final)
            sync_folder(self._final.parent)
        except OSError as error:
            raise SpoolError(f"cannot write the spool {self._path.parent}: {error.strerror}") from error


class Spool:
    """Uploads of the sessions that are open."""

    _tries: ClassVar[WeakValueDictionary[Path, Try]] = WeakValueDictionary()  # the latest of each upload, of whatever run

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep_only(self, session: bytes | None) -> None:
        """Delete what sessions left that ended with an earlier start; all of it where none is open."""
        for path in self._folder.iterdir():
            if session is None or path.name != session.hex():
                shutil.rmtree(path, ignore_errors=True)

    def digest_of(self, session: bytes, party: str) -> bytes | None:
        """SHA-256 of an accepted upload, read again; None where there is none. Raises SpoolError."""
        path = self._path_of(session, party)
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SpoolError(f"cannot read the spool {path.parent}: {error.strerror}") from error

    def begin(self, session: bytes, party: str, total_bytes: int, offset_bytes: int = 0) -> Try:
        """Begin one upload, or go on with it at `offset_bytes`. Raises SpoolError, and UploadBroken beyond what has come."""
        final = self._path_of(session, party)
        try:
            final.parent.mkdir(mode=0o700, exist_ok=True)
            if (older := self._tries.get(final)) is not None:
                older.replace()
            newer = Try(_part_of(final), final, total_bytes, offset_bytes)
        except OSError as error:
            raise SpoolError(f"cannot write the spool {final.parent}: {error.strerror}") from error
        self._tries[final] = newer
        return newer

    def received_bytes(self, session: bytes, party: str) -> int:
        """How much of an upload that is not accepted yet has come."""
        try:
            return _part_of(self._path_of(session, party)).stat().st_size
        except FileNotFoundError:
            return 0

    def add_all(
        self, session: bytes, parties: tuple[str, ...], add: Callable[[memoryview, int], None], threads: int = 1
    ) -> None:
        """Call add(words, offset in bytes) for every piece of every accepted upload; all have the same length.

        Each of `threads` has a part of the length to itself. The words are overwritten by those of its next call.
        Raises SpoolError.
        """
        try:
            for first in range(0, len(parties), FILES_AT_ONCE):
                with ExitStack() as opened, ThreadPoolExecutor(threads) as pool:
                    paths = [self._path_of(session, party) for party in parties[first : first + FILES_AT_ONCE]]
                    files = [opened.enter_context(path.open("rb", buffering=0)) for path in paths]
                    parts = _parts(os.fstat(files[0].fileno()).st_size, threads)
                    for added in [pool.submit(_add_part, files, add, start, stop) for start, stop in parts]:
                        added.result()
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


def _part_of(final: Path) -> Path:
    return final.with_name(f"{final.name}.part")


def _parts(total_bytes: int, count: int) -> list[tuple[int, int | None]]:
    """(start, end) of about equal parts, each of whole pieces; the last has no end but that of the files."""
    step = -(-total_bytes // (count * READ_BYTES)) * READ_BYTES
    starts = range(0, total_bytes, step) if step else range(1)
    return [(start, start + step if start + step < total_bytes else None) for start in starts]


def _add_part(files: Sequence[FileIO], add: Callable[[memoryview, int], None], start: int, stop: int | None) -> None:
    """The first piece of every file, then the second of every file, from `start` to `stop`, or until they end."""
    buffer = memoryview(bytearray(READ_BYTES))
    for at in itertools.count(start, READ_BYTES) if stop is None else range(start, stop, READ_BYTES):
        if max(_add_piece(file, buffer, add, at) for file in files) < READ_BYTES:
            return


def _add_piece(file: FileIO, buffer: memoryview, add: Callable[[memoryview, int], None], at: int) -> int:
    """Its bytes: fewer than a piece at the file's end."""
    size = 0
    while size < len(buffer) and (read_bytes := os.preadv(file.fileno(), [buffer[size:]], at + size)):
        size += read_bytes
    if size:
        add(buffer[:size], at)
    return size
