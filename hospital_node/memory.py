"""Memory that a round needed goes back to the system when the round is over: a node waits far longer than it trains.

A network is a web of objects that refer to each other, which Python frees only when it looks for such webs, rarely where much
else is alive; and glibc keeps pages between what is still in use. Both together let a node grow by 20 MB in 1,000 small rounds.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

from hospital_node import accounting

M_ARENA_MAX: Final = -8  # of malloc.h


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

    def __init__(self) -> None:
        self._frozen = False
        self._trim = getattr(_libc(), "malloc_trim", None)  # of glibc only

    def give_back(self) -> None:
        """Free what nothing refers to any more, and hand its pages back."""
        gc.collect()
        if not self._frozen:
            gc.freeze()  # libraries and what else is there after a round stays, so it is looked through once
            self._frozen = True
        self.trim()

    def trim(self) -> None:
        """Hand back the pages of what is freed already: reading a long ledger leaves megabytes. A millisecond."""
        accounting.forget_compositions()  # each round makes a longer one; the epsilon read from it stays
        if self._trim is not None:
            self._trim(0)
