"""Which ledger files nobody wrote to since this process verified them: those need not be read again for the next question.
The list of answered sessions is known in the same way.

Rule: a stamp is everything the file system says of a file's writes. Two equal stamps mean the same bytes, provided that the
file had settled when the first was taken: a clock of files ticks every few milliseconds (every second or two on some), and two
writes within one tick look alike. So a file that was written just now is never known, and the next question verifies it whole,
as does every question after a write, whoever wrote: the node itself, a command, a backup that was put back, an editor.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

SETTLED_NS: Final = 100_000_000  # ten ticks of the slowest clock that Linux gives files
SETTLED_COARSE_NS: Final = 5_000_000_000  # where only whole seconds are kept: FAT keeps every second one
SECOND_NS: Final = 1_000_000_000
KEPT_FILES: Final = 64  # ledgers of one process: a node has one, an app as many as it shows
BESIDE: Final = ("-journal", "-wal")  # of SQLite: what lies there is not in the file yet, or has to be taken out of it

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Stamp:
    """One file as the file system tells it apart from what it was; ctime cannot be set by a program."""

    device: int
    inode: int
    size_bytes: int
    written_ns: int
    changed_ns: int

    def settled(self, now_ns: int) -> bool:
        """Whether a write from now on would show. False also where the clock went back."""
        coarse = self.written_ns % SECOND_NS == 0 and self.changed_ns % SECOND_NS == 0
        return now_ns - max(self.written_ns, self.changed_ns) >= (SETTLED_COARSE_NS if coarse else SETTLED_NS)


def stamp_of(database: Path) -> Stamp | None:
    """Of a settled database; None where its stamp says nothing, or where it is not there."""
    if any(os.path.lexists(f"{database}{suffix}") for suffix in BESIDE):
        return None
    try:
        seen = database.stat()
    except OSError:
        return None
    stamp = Stamp(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    return stamp if stamp.settled(time.time_ns()) else None


class Unwritten(Generic[Found]):
    """What was found in files that nobody wrote to since. Safe to ask from several threads."""

    def __init__(self) -> None:
        self._found: OrderedDict[Path, tuple[Stamp, Found]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, database: Path, find: Callable[[], Found], serves: Callable[[Found], bool] = lambda _: True) -> Found:
        """What `find` gives, or gave when the file was as it is now. Nothing is kept of a file that changes meanwhile.

        What was kept and does not serve is found again.
        """
        stamp = stamp_of(database)
        with self._lock:
            kept = self._found.get(database)
            if stamp is not None and kept is not None and kept[0] == stamp and serves(kept[1]):
                return kept[1]
            self._found.pop(database, None)  # of a file that is no more: its memory is not kept beside what is found now
        found = find()
        if stamp is not None and stamp == stamp_of(database):
            self._keep(database, stamp, found)
        return found

    def _keep(self, database: Path, stamp: Stamp, found: Found) -> None:
        with self._lock:
            self._found[database] = stamp, found
            self._found.move_to_end(database)
            while len(self._found) > KEPT_FILES:
                self._found.popitem(last=False)
