"""What a run needs of its store, whatever keeps it: nothing of a database is in these calls.

The contract that every store keeps, and that tests/coordinator/test_coordinator_store.py asks of each: a batch is stored whole
or not at all, and is durable when its block has ended; what one batch stored the next question sees; a session id is taken once
for ever; a store belongs to one plan. Whatever fails raises StoreError and has changed nothing, unless `lost` says that this is
not known.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from coordinator.store import MemberRow, ModelRow, RoundRow, ScoreRow
from coordinator.store_write import Batch, LastResult, Resume, StoredSession
from proto.roundlog import Entry


class RunStore(Protocol):
    """The store of one run, for its one writer."""

    lost: str  # why no call of this object will succeed any more; whoever wants to go on opens the store anew

    def batch(self, *, durable: bool = True) -> AbstractContextManager[Batch]:
        """One transaction; not `durable`: it may be lost in a power cut until a later one is durable."""
        ...

    def next_epoch(self) -> int:
        """Count this start; earlier starts that still run can no longer write to a store that several machines reach."""
        ...

    def open_session(self) -> StoredSession | None:
        """The session of the present round that an earlier start left open."""
        ...

    def last_result(self) -> LastResult | None:
        """How the newest finished round ended."""
        ...

    def resume(self, at: float, keep: bytes | None = None) -> Resume:
        """Close what an earlier start left open, except for session `keep`; where to go on."""
        ...

    def status_since(self) -> tuple[list[object], float]:
        """Which phase the last status was about, as it was written, and when that phase began."""
        ...

    def rounds(self, after: int = 0) -> list[RoundRow]:
        """Rounds above `after`, in order."""
        ...

    def members(self) -> list[MemberRow]:
        """Every party that the plan admits, by URI."""
        ...

    def models(self) -> list[ModelRow]:
        """Published models by round, the start first."""
        ...

    def scores(self, number: int | None = None, *, after: int = -1) -> list[ScoreRow]:
        """Measurements, by round, evaluator and label."""
        ...

    def log_entries(self, after: int = 0, most: int | None = None) -> list[Entry]:
        """The log of rounds after an entry, in order; it grows with each round's end, in the same transaction."""
        ...

    def log_state(self) -> tuple[int, bytes]:
        """How long the log is, and its head."""
        ...

    def sessions_used(self) -> int:
        """How many sessions were begun."""
        ...

    def close(self) -> None:
        """Give the store back."""
        ...
