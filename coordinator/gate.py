"""How much one party may ask at once and in a while: what is above is refused, so that one party cannot slow the others down.

A bucket of calls for each certificate: it fills at CALLS_PER_S up to BURST. A node at work makes a few calls a second and has
about three open. Time is an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

CALLS_PER_S = 50.0
BURST = 300.0
CALLS_OPEN = 16


class TooMuch(Exception):
    """A party asks more than anybody needs; one sentence for it."""


class Gate:
    """Calls of all parties. Memory: one entry for each party that asked lately."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}  # calls left, and when that was so
        self._open: Counter[str] = Counter()

    def ask(self, party: str, now_s: float) -> None:
        """Count one call that begins. Raises TooMuch."""
        left, at_s = self._left.get(party, (BURST, now_s))
        left = min(BURST, left + (now_s - at_s) * CALLS_PER_S)
        if left < 1:
            self._left[party] = left, now_s
            raise TooMuch(f"more than {CALLS_PER_S:g} calls a second from one party: slow down")
        if left == BURST:
            self._forget_full(now_s)
        self._left[party] = left - 1, now_s

    @contextmanager
    def held(self, party: str) -> Iterator[None]:
        """Keep a call open while the block runs. Raises TooMuch."""
        if self._open[party] >= CALLS_OPEN:
            raise TooMuch(f"{CALLS_OPEN} calls of one party are open already: end one first")
        self._open[party] += 1
        try:
            yield
        finally:
            self._open[party] -= 1
            if not self._open[party]:
                del self._open[party]

    def _forget_full(self, now_s: float) -> None:
        """Forget parties whose bucket is full again: they are as good as new."""
        rested_s = BURST / CALLS_PER_S
        for party in [one for one, (_, at_s) in self._left.items() if now_s - at_s > rested_s]:
            del self._left[party]
