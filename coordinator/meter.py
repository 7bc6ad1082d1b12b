"""Bytes on the connection, by round, party, direction and phase, gathered in memory between two writes to the store."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

from proto.wire import Sized, framed_bytes

Direction = Literal["up", "down"]


class Lane(NamedTuple):
    """What bytes are counted by; up = from the party."""

    round: int
    party: str
    direction: Direction
    phase: str


class Meter:
    """Counts messages as they pass."""

    def __init__(self) -> None:
        self._counts: Counter[Lane] = Counter()
        self.totals: Counter[tuple[Direction, str]] = Counter()  # by direction and phase, since the start

    def add(self, lane: Lane, message: Sized) -> int:
        """Count one message; returns its bytes."""
        size = framed_bytes(message)
        self._counts[lane] += size
        self.totals[lane.direction, lane.phase] += size
        return size

    def drain(self) -> dict[Lane, int]:
        """What was counted since the last call."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    def give_back(self, counts: dict[Lane, int]) -> None:
        """Take counts again that could not be stored."""
        self._counts.update(counts)
