"""All entries of one ledger, verified: the hash chain over its rows, and what of it is kept between two questions.

Rule: every question hashes every row again, so a row that was changed on disk is found by the next question. What is not done
again is decoding: a row whose digest is that of a row decoded before is that row. Kept is only what the rules read, about half
a kB a round: a node asks its ledger all the time, for years.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Final, NamedTuple, overload

from hospital_node.ledger_schema import BEFORE_FIRST, KIND_OF, ChainError, Entry, Row, decoded, row_digest

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
DIGEST_BYTES: Final = 32
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
    """Verified entries, first to last. Immutable; two chains are equal where their last digests are."""

    __slots__ = ("_digests", "_entries", "_stamps_us")

    def __init__(self, entries: tuple[Entry, ...], stamps_us: array[int], digests: bytes) -> None:
        self._entries, self._stamps_us, self._digests = entries, stamps_us, digests

    def digest(self, place: int) -> bytes:
        """Of the entry at `place`, from 0."""
        return self._digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)]

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, place: int) -> Event: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Event, ...]: ...

    def __getitem__(self, place: int | slice) -> Event | tuple[Event, ...]:
        if isinstance(place, slice):
            return tuple(map(self._event, range(len(self))[place]))
        return self._event(range(len(self))[place])

    def __iter__(self) -> Iterator[Event]:
        digests = (self._digests[at : at + DIGEST_BYTES] for at in range(0, len(self._digests), DIGEST_BYTES))
        return map(Event, count(1), self._stamps_us, self._entries, digests)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self._digests == other._digests

    def __hash__(self) -> int:
        return hash(self._digests)

    def _event(self, place: int) -> Event:
        return Event(place + 1, self._stamps_us[place], self._entries[place], self.digest(place))

    def then(self, entries: Sequence[Entry], stamps_us: Iterable[int], digests: bytes, kept: int) -> Chain:
        """The first `kept` entries of this chain, and these after them."""
        stamps = self._stamps_us[:kept]
        stamps.extend(stamps_us)
        return Chain((*self._entries[:kept], *entries), stamps, self._digests[: DIGEST_BYTES * kept] + digests)


NOTHING: Final = Chain((), array("q"), b"")


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
    chain = known.then(entries, stamps_us, bytes(digests), same)
    _known.keep(chain)
    return chain


def _follows(row: Row, number: int, previous: bytes) -> None:
    """Raise ChainError unless the row is the one after `previous`, and as it was written."""
    if row.seq != number:
        raise ChainError(f"entry {number} is missing")
    if row.previous != previous or row.digest != row_digest(row.seq, row.at, row.kind, row.body, row.previous):
        raise ChainError(f"entry {row.seq} was changed after it was written")
