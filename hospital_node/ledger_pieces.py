"""Verified entries in pieces of fixed length: the newest as objects, older ones packed, each with a tally of what it says.

Why: a node asks its ledger several times in every round, for years. A piece that is full never changes, so longer histories
share it; a question of a round reads tallies, a tenth of the memory, and pages and reports unpack what they show. Pure; what is
packed was verified before, and its digests stay, because every reading compares them with the rows (ledger_chain.py).
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeAlias

from hospital_node.ledger_schema import FORMS, KIND_OF, Charge, Entry, Verified

PIECE: Final = 128  # entries
DIGEST_BYTES: Final = 32
BEGINNING_DIGITS: Final = 16  # hexadecimal, of an update's id: enough to say that it is not among others
NO_ROUNDS: Final = array("I")
UNPACKED: Final = 2  # pieces kept unpacked: who reads entries one by one reads neighbours

Rounds: TypeAlias = Mapping[str, "array[int]"]  # by plan


@dataclass(frozen=True, slots=True)
class Tally:
    """What entries say, as far as a round asks. `runs`: charges in a row that differ in round, session and update alone."""

    decisions: tuple[tuple[int, Entry], ...]  # place from 0, and what is neither a charge nor its result
    charged: Rounds
    verified: Rounds
    updates: array[int]  # the beginnings of their ids
    runs: tuple[tuple[Charge, int], ...]

    def is_charged(self, plan: str, round_number: int) -> bool:
        """Whether this round is among the charges."""
        return round_number in self.charged.get(plan, NO_ROUNDS)

    def is_verified(self, plan: str, round_number: int) -> bool:
        """Whether its result is here."""
        return round_number in self.verified.get(plan, NO_ROUNDS)

    def may_hold(self, update_id: str) -> bool:
        """False where no charge here is of this update."""
        return _beginning(update_id) in self.updates


def tally_of(entries: Iterable[Entry]) -> Tally:
    """The tally of these entries."""
    decisions: list[tuple[int, Entry]] = []
    charged: dict[str, array[int]] = {}
    verified: dict[str, array[int]] = {}
    updates = array("Q")
    runs: list[tuple[Charge, int]] = []
    for place, entry in enumerate(entries):
        if isinstance(entry, Charge):
            charged.setdefault(entry.plan, array("I")).append(entry.round)
            updates.append(_beginning(entry.update_id))
            _run_on(runs, _terms_of(entry), 1)
        elif isinstance(entry, Verified):
            verified.setdefault(entry.plan, array("I")).append(entry.round)
        else:
            decisions.append((place, entry))
    return Tally(tuple(decisions), charged, verified, updates, tuple(runs))


def joined_runs(tallies: Iterable[Tally]) -> tuple[tuple[Charge, int], ...]:
    """Over several tallies: what costs the same in a row, and how often."""
    runs: list[tuple[Charge, int]] = []
    for tally in tallies:
        for terms, count in tally.runs:
            _run_on(runs, terms, count)
    return tuple(runs)


def _beginning(update_id: str) -> int:
    return int(update_id[:BEGINNING_DIGITS], 16)


def _run_on(runs: list[tuple[Charge, int]], terms: Charge, count: int) -> None:
    if runs and runs[-1][0] == terms:
        count += runs.pop()[1]
    runs.append((terms, count))


def _terms_of(charge: Charge) -> Charge:
    """A charge without what is its alone."""
    return _one_object(replace(charge, round=1, session="00", update_id="00"))


@lru_cache(maxsize=64)  # of the charges of a plan, thousands of equal ones
def _one_object(terms: Charge) -> Charge:
    return terms


class Piece:
    """PIECE entries that never change: packed, with their times, digests and tally."""

    __slots__ = ("_packed", "digests", "stamps_us", "tally")

    def __init__(self, entries: Sequence[Entry], stamps_us: array[int], digests: bytes) -> None:
        self.stamps_us, self.digests, self.tally = stamps_us, digests, tally_of(entries)
        self._packed = zlib.compress(b"\n".join(map(_line_of, entries)))

    def entries(self) -> tuple[Entry, ...]:
        """As they were packed."""
        return _unpacked(self._packed)


def _line_of(entry: Entry) -> bytes:
    kind = KIND_OF[type(entry)]
    return kind.encode() + b" " + FORMS[kind].dump_json(entry, exclude_none=True)  # JSON has no line breaks within


@lru_cache(maxsize=UNPACKED)
def _unpacked(packed: bytes) -> tuple[Entry, ...]:
    kinds_and_bodies = (line.split(b" ", 1) for line in zlib.decompress(packed).split(b"\n"))
    return tuple(FORMS[kind.decode()].validate_json(body) for kind, body in kinds_and_bodies)
