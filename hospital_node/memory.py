"""Memory that a round needed goes back to the system when the round is over: a node waits far longer than it trains.

A network is a web of objects that refer to each other, which Python frees only when it looks for such webs, rarely where much
else is alive; and glibc keeps pages between what is still in use. Both together let a node grow by 20 MB in 1,000 small rounds.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from typing import Final

from hospital_node import accounting

M_ARENA_MAX: Final = -8  # of malloc.h
LARGE_BYTES: Final = 4 << 20  # of a vector from which on its pages are worth keeping for the next order
TRIM_EVERY_S: Final = 10.0  # pages that are handed back are cleared again, or fetched from the host of a virtual machine


def share_one_heap() -> None:
    """Let all threads allocate from one heap; to be called before the first is started.

    glibc gives each thread a heap of its own, and `malloc_trim` returns the free end of the first one only: the thread that
    talks to the coordinator kept the high water of its largest round, 2 MB after 1,000 of them, and it grew with the ledger.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class Memory:
    """Of this process. `give_back` costs about a millisecond once the first round is over."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._frozen = False
        self._now_s = now_s
        self._trimmed_s = now_s()
        self._every_s = 0.0
        self._trim = getattr(_libc(), "malloc_trim", None)  # of glibc only

    def expect(self, vector_bytes: int) -> None:
        """Vectors of this size: between orders of a round the pages of large ones are kept."""
        self._every_s = TRIM_EVERY_S if vector_bytes >= LARGE_BYTES else 0.0

    def give_back(self) -> None:
        """Free what nothing refers to any more; its pages go back with the next trim that is due."""
        gc.collect()
        if not self._frozen:
            gc.freeze()  # libraries and what else is there after a round stays, so it is looked through once
            self._frozen = True
        self.trim()

    def trim(self) -> None:
        """Hand back the pages of what is freed already: at once where vectors are small, every ten seconds where they are not.

        Small things left in pages between large ones let a node grow by 2 MiB in 1,000 rounds where it is done once a round, by
        less than half of that after every order. Orders on large vectors use the same pages again: a fifth of a round went into
        new ones. A node at rest is told to wait every few seconds, so what its last round left is gone soon after.
        """
        accounting.forget_compositions()  # each round makes a longer one; the epsilon read from it stays
        if self._trim is not None and self._now_s() - self._trimmed_s >= self._every_s:
            self._trim(0)
            self._trimmed_s = self._now_s()
