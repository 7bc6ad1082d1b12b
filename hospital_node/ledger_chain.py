"""All entries of one ledger, verified: the hash chain over its rows, and what of it is kept between two questions.

Rule: every question hashes every row again, so a row that was changed on disk is found by the next question. What is not done
again is decoding: a row whose digest is that of a row decoded before is that row. What is kept of a round is about a fifth of a
kB (ledger_pieces.py): a node asks its ledger all the time, for years.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain as one_after_another
from itertools import count
from typing import Final, NamedTuple, overload

from hospital_node.ledger_pieces import DIGEST_BYTES, PIECE, Piece, Tally, tally_of
from hospital_node.ledger_schema import (
    BEFORE_FIRST,
    KIND_OF,
    ChainError,
    Charge,
    Entry,
    Row,
    Verified,
    decoded,
    row_digest,
)

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
KEPT_CHAINS: Final = 64  # ledgers of one process: a node has one, an app as many as it shows


class Event(NamedTuple):
    """One verified entry: its number, its time by the node's clock, what happened, and the chain's digest after it."""

    seq: int
    stamp_us: int  # since 1970
    entry: Entry
    digest: bytes

    @property
    def at(self) -> datetime:
        """When it was written, in UTC."""
        return EPOCH + self.stamp_us * MICROSECOND

    @property
    def kind(self) -> str:
        """Name of what happened."""
        return KIND_OF[type(self.entry)]


class Chain(Sequence[Event]):
    """Verified entries, first to last: full pieces, and the newest entries. Immutable; equal where the digests are."""

    __slots__ = ("_digests", "_entries", "_pieces", "_stamps_us", "_tally")

    def __init__(self, pieces: tuple[Piece, ...], entries: tuple[Entry, ...], stamps_us: array[int], digests: bytes) -> None:
        self._pieces, self._entries, self._stamps_us, self._digests = pieces, entries, stamps_us, digests
        self._tally: Tally | None = None

    def digest(self, place: int) -> bytes:
        """Of the entry at `place`, from 0."""
        piece, within = divmod(place, PIECE)
        digests = self._pieces[piece].digests if piece < len(self._pieces) else self._digests
        return digests[DIGEST_BYTES * within : DIGEST_BYTES * (within + 1)]

    def __len__(self) -> int:
        return PIECE * len(self._pieces) + len(self._entries)

    @overload
    def __getitem__(self, place: int) -> Event: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Event, ...]: ...

    def __getitem__(self, place: int | slice) -> Event | tuple[Event, ...]:
        if isinstance(place, slice):
            return tuple(map(self._event, range(len(self))[place]))
        return self._event(range(len(self))[place])

    def __iter__(self) -> Iterator[Event]:
        for piece in range(len(self._pieces) + 1):
            entries, stamps_us, digests = self._part(piece)
            each = (digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES))
            yield from map(Event, count(PIECE * piece + 1), stamps_us, entries, each)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and len(self) == len(other) and self._head() == other._head()

    def __hash__(self) -> int:
        return hash(self._head())

    def _head(self) -> bytes:
        """Names all entries: each digest is over the one before it."""
        return self.digest(len(self) - 1) if len(self) else b""

    def _event(self, place: int) -> Event:
        piece, within = divmod(place, PIECE)
        entries, stamps_us, _ = self._part(piece)
        return Event(place + 1, stamps_us[within], entries[within], self.digest(place))

    def _part(self, piece: int) -> tuple[tuple[Entry, ...], array[int], bytes]:
        if piece == len(self._pieces):
            return self._entries, self._stamps_us, self._digests
        full = self._pieces[piece]
        return full.entries(), full.stamps_us, full.digests

    def tallies(self) -> Iterator[Tally]:
        """Of everything, in order."""
        if self._tally is None:
            self._tally = tally_of(self._entries)
        return one_after_another((piece.tally for piece in self._pieces), (self._tally,))

    def decisions(self) -> Iterator[Event]:
        """What is neither a charge nor its result."""
        for piece, tally in enumerate(self.tallies()):
            stamps_us = self._pieces[piece].stamps_us if piece < len(self._pieces) else self._stamps_us
            for within, entry in tally.decisions:
                place = PIECE * piece + within
                yield Event(place + 1, stamps_us[within], entry, self.digest(place))

    def until(self, kept: int) -> Chain:
        """The first `kept` entries."""
        piece, within = divmod(min(kept, len(self)), PIECE)
        if piece > len(self._pieces) or kept >= len(self):
            return self
        entries, stamps_us, digests = self._part(piece)
        return Chain(self._pieces[:piece], entries[:within], stamps_us[:within], digests[: DIGEST_BYTES * within])

    def then(self, entries: Sequence[Entry], stamps_us: Sequence[int], digests: bytes) -> Chain:
        """These after the ones here."""
        pieces, rest = list(self._pieces), (*self._entries, *entries)
        stamps = array("q", (*self._stamps_us, *stamps_us))
        digests = self._digests + digests
        full = len(rest) - len(rest) % PIECE
        for first in range(0, full, PIECE):
            last = first + PIECE
            pieces.append(Piece(rest[first:last], stamps[first:last], digests[DIGEST_BYTES * first : DIGEST_BYTES * last]))
        return Chain(tuple(pieces), rest[full:], stamps[full:], digests[DIGEST_BYTES * full :])


NOTHING: Final = Chain((), (), array("q"), b"")


def decisions(events: Sequence[Event]) -> Iterator[Event]:
    """What people decided and noted, in order: all but charges and their results."""
    if isinstance(events, Chain):
        return events.decisions()
    return (event for event in events if not isinstance(event.entry, Charge | Verified))


def tallies(events: Sequence[Event]) -> Iterator[Tally]:
    """What the rules ask of charges and results."""
    return events.tallies() if isinstance(events, Chain) else iter((tally_of(event.entry for event in events),))


def until(events: Sequence[Event], kept: int) -> Sequence[Event]:
    """The first `kept` entries, not copied where they are a chain."""
    return events.until(kept) if isinstance(events, Chain) else events[:kept]


class _Known:
    """Chains decoded before, by the digest of their first entry. Safe to ask from several threads."""

    def __init__(self) -> None:
        self._chains: OrderedDict[bytes, Chain] = OrderedDict()
        self._lock = threading.Lock()

    def beginning_with(self, digest: bytes) -> Chain:
        with self._lock:
            return self._chains.get(digest, NOTHING)

    def keep(self, chain: Chain) -> None:
        with self._lock:
            self._chains[chain.digest(0)] = chain
            self._chains.move_to_end(chain.digest(0))
            while len(self._chains) > KEPT_CHAINS:
                self._chains.popitem(last=False)


_known = _Known()


def read_chain(rows: Iterable[Row]) -> Chain:
    """Verify all rows of a ledger, first to last, and decode those that are new here. Raises ChainError."""
    known, same, number, previous = NOTHING, 0, 0, BEFORE_FIRST
    entries: list[Entry] = []
    stamps_us: list[int] = []
    digests = bytearray()
    for number, row in enumerate(rows, start=1):
        _follows(row, number, previous)
        previous = row.digest
        if number == 1:
            known = _known.beginning_with(row.digest)
        if same == number - 1 and same < len(known) and known.digest(same) == row.digest:
            same = number
            continue
        at, entry = decoded(row)
        entries.append(entry)
        stamps_us.append((at - EPOCH) // MICROSECOND)
        digests += row.digest
    if not number:
        raise ChainError("the first entry, which names the hospital, is missing")
    if not entries and same == len(known):
        return known
    chain = known.until(same).then(entries, stamps_us, bytes(digests))
    _known.keep(chain)
    return chain


def followed(chain: Chain, row: Row) -> Chain:
    """`chain` and the row that was just added to it."""
    at, entry = decoded(row)
    return chain.then((entry,), ((at - EPOCH) // MICROSECOND,), row.digest)


def _follows(row: Row, number: int, previous: bytes) -> None:
    """Raise ChainError unless the row is the one after `previous`, and as it was written."""
    if row.seq != number:
        raise ChainError(f"entry {number} is missing")
    if row.previous != previous or row.digest != row_digest(row.seq, row.at, row.kind, row.body, row.previous):
        raise ChainError(f"entry {row.seq} was changed after it was written")
