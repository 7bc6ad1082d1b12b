"""One reading of the coordinator's store, kept up to date by reading only what is new.

A finished round never changes again, so it is read once; bytes may still be counted for a round shortly after it ended, so the
newest rounds are read each time. Of events the newest are kept, and those that the table of rounds needs; the others, and the
bytes of older rounds, are read when a page asks for them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from time import monotonic

from coordinator.store import EventRow, MemberRow, RoundRow, ScoreRow, StoreReader, TrafficRow, ValidationRow
from proto.plan import Plan

NEWEST_EVENTS = 40
RECENT_ROUNDS = 40  # whose bytes are kept row by row: what a chart of bytes can show
UNSETTLED_ROUNDS = 5  # the newest: their bytes may still grow, an evaluator being the slowest to fetch a model
DONE = ("opened", "aborted")
OUT = ("declined", "failed", "excluded", "left")  # kinds of events after which a hospital is not in the round

Totals = dict[tuple[str, str], int]  # (party, direction) -> bytes


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class RoundBytes:
    """Bytes of one round by party, direction and phase. The same object until some are added: what it shows is kept."""

    number: int
    rows: tuple[TrafficRow, ...]


@dataclass(frozen=True, slots=True)
class Federation:
    """One reading of the coordinator's store."""

    revision: int
    plan: Plan
    rounds: tuple[RoundRow, ...]
    by_round: tuple[RoundBytes, ...]  # of the newest rounds, from `first_recent` on
    first_recent: int
    scores: tuple[ScoreRow, ...]
    validations: tuple[ValidationRow, ...]
    events: tuple[EventRow, ...]  # the newest, oldest first
    out: tuple[EventRow, ...]  # why hospitals sat rounds out
    members: tuple[MemberRow, ...]
    float32_bytes: int
    waiting: str
    finished: str

    @property
    def recent(self) -> tuple[RoundRow, ...]:
        """The rounds whose bytes are at hand."""
        return tuple(row for row in self.rounds[-RECENT_ROUNDS:] if row.number >= self.first_recent)

    @property
    def traffic(self) -> tuple[TrafficRow, ...]:
        """Bytes of the newest rounds, row by row."""
        return tuple(row for one in self.by_round for row in one.rows)

    @property
    def hospitals(self) -> tuple[str, ...]:
        """URIs in the order of the plan."""
        return tuple(hospital.uri for hospital in self.plan.hospitals)


@dataclass(slots=True)
class Keeper:
    """Holds what has been read of one store. Safe to ask from several sessions at once."""

    reader: StoreReader
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _now: Federation | None = None
    _read_at: float = 0.0
    _settled: Counter[tuple[str, str]] = field(default_factory=Counter)  # bytes of rounds up to _settled_to
    _settled_to: int = -1
    _scores_seen: tuple[int, int] = (-1, -1)

    def read(self, age_s: float = 0.0) -> Federation:
        """The store as it is now, or as it was up to `age_s` ago. Raises StoreError."""
        with self._lock:
            if self._now is not None and monotonic() - self._read_at < age_s:
                return self._now
            revision = self.reader.revision()
            self._read_at = monotonic()
            if self._now is None or self._now.revision != revision:
                self._now = self._read(revision, self._now)
            return self._now

    def _read(self, revision: int, before: Federation | None) -> Federation:
        kept = () if before is None else _finished(before.rounds)
        rounds = (*kept, *self.reader.rounds(after=kept[-1].number if kept else 0))
        latest = rounds[-1].number if rounds else 0
        first_recent = max(latest - RECENT_ROUNDS + 1, 0)
        old_out, old_events = ((), ()) if before is None else (before.out, before.events)
        newest = tuple(self.reader.newest_events(NEWEST_EVENTS))
        after, last = (events[-1].seq if events else 0 for events in (old_events, newest))
        out = (
            event for event in self.reader.events(after, kinds=OUT) if event.seq <= last
        )  # what came since is read next time
        return Federation(
            revision=revision,
            plan=self.reader.plan() if before is None else before.plan,
            rounds=rounds,
            by_round=self._recent(before, first_recent, latest),
            first_recent=first_recent,
            scores=self._scores(before),
            validations=tuple(self.reader.validations()),
            events=newest,
            out=(*old_out, *out),
            members=tuple(self.reader.members()),
            float32_bytes=self.reader.float32_bytes() if before is None else before.float32_bytes,
            waiting=self.reader.waiting(),
            finished=self.reader.finished(),
        )

    def _recent(self, before: Federation | None, first: int, latest: int) -> tuple[RoundBytes, ...]:
        """Bytes of the recent rounds. Those of settled ones are taken over, and of the others where none were added."""
        kept = {} if before is None else {one.number: one for one in before.by_round}
        if before is None or before.first_recent > first or not before.rounds:
            return by_round(self.reader.traffic_between(first, latest))
        open_from = max(first, min(latest, before.rounds[-1].number) - UNSETTLED_ROUNDS + 1)
        found = {number: one for number, one in kept.items() if first <= number < open_from}
        for number, seen in self.reader.traffic_seen(open_from, latest).items():
            one = kept.get(number)
            same = one is not None and seen == (len(one.rows), sum(row.bytes for row in one.rows))
            found[number] = one if one is not None and same else RoundBytes(number, self._bytes_of(number))
        return tuple(found[number] for number in sorted(found))

    def _bytes_of(self, number: int) -> tuple[TrafficRow, ...]:
        return tuple(self.reader.traffic_between(number, number))

    def totals(self) -> Totals:
        """Bytes by party and direction over all rounds. The first question sums a whole run, later ones what is new."""
        seen = self.read()
        with self._lock:
            settled_to = (seen.rounds[-1].number if seen.rounds else 0) - UNSETTLED_ROUNDS
            if settled_to > self._settled_to:
                self._settled.update(self.reader.traffic_totals(self._settled_to, settled_to))
                self._settled_to = settled_to
            return dict(self._settled + Counter(self.reader.traffic_totals(self._settled_to)))

    def _scores(self, before: Federation | None) -> tuple[ScoreRow, ...]:
        """Read on where measurements were added to the newest rounds, and all of them again where an old one came late."""
        count, newest = seen = self.reader.scores_seen()
        if before is not None and seen == self._scores_seen:
            return before.scores
        self._scores_seen = seen
        if before is not None:
            settled = newest - UNSETTLED_ROUNDS
            kept = tuple(row for row in before.scores if row.round <= settled)
            found = (*kept, *self.reader.scores(after=settled))
            if len(found) == count:
                return found
        return tuple(self.reader.scores())


def by_round(rows: Iterable[TrafficRow]) -> tuple[RoundBytes, ...]:
    """Rows in the order of their rounds, round by round."""
    return tuple(RoundBytes(number, tuple(some)) for number, some in groupby(rows, attrgetter("round")))


def _finished(rounds: tuple[RoundRow, ...]) -> tuple[RoundRow, ...]:
    """Rounds before the first unfinished one."""
    first = next((place for place, row in enumerate(rounds) if row.state not in DONE), len(rounds))
    return rounds[:first]
