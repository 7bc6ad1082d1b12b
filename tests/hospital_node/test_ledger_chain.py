"""A verified chain: what it keeps between two questions, and that it believes nothing because it was read before."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from ledger_world import at
from ledger_world import make_plan as a_plan

from hospital_node.ledger_chain import Chain, read_chain
from hospital_node.ledger_schema import BEFORE_FIRST, ChainError, Charge, Created, Entry, Row, Verified, make_row, row_digest

PLAN = a_plan().digest().hex()
BYTES_A_ROUND = 300  # kept of a round, two entries, the newest piece not packed; as objects they took 510
LEDGER = iter(range(10**6))


def entries_of(rounds: int, first: int = 1) -> list[Entry]:
    """What rounds leave in a ledger."""
    pairs = []
    for number in range(first, first + rounds):
        charge = Charge(
            plan=PLAN,
            study="lidc",
            round=number,
            session=number.to_bytes(16, "big").hex(),
            update_id=number.to_bytes(32, "big").hex(),
            noise_multiplier=1.1,
            sampling_rate=0.05,
            steps=20,
            clip_norm=1.0,
        )
        pairs += [charge, Verified(plan=PLAN, round=number)]
    return pairs


def rows_of(entries: list[Entry], after: list[Row] | None = None) -> list[Row]:
    """A chain of rows: a ledger of its own, or one that goes on."""
    first = [make_row(1, at(0), Created(hospital="st-anna", ledger_id=f"{next(LEDGER):032x}"), BEFORE_FIRST)]
    rows = list(after or first)
    for entry in entries:
        rows.append(make_row(len(rows) + 1, at(len(rows)), entry, rows[-1].digest))
    return rows


def test_a_chain_holds_what_was_written() -> None:
    entries = entries_of(3)
    rows = rows_of(entries)
    chain = read_chain(rows)
    assert [event.entry for event in chain][1:] == entries
    assert [(event.seq, event.digest, event.kind) for event in chain] == [(row.seq, row.digest, row.kind) for row in rows]
    assert [event.at for event in chain] == [at(minutes) for minutes in range(7)]
    assert chain[-1] == list(chain)[-1] == chain[6]
    assert chain[1:3] == tuple(chain)[1:3]
    with pytest.raises(IndexError):
        chain[7]


def test_the_same_rows_are_not_decoded_again() -> None:
    rows = rows_of(entries_of(3))
    chain = read_chain(rows)
    assert read_chain(rows) is chain
    longer = read_chain(rows_of(entries_of(1, first=4), after=rows))
    assert all(old.entry is new.entry for old, new in zip(chain, longer, strict=False))
    assert (len(longer), len(chain)) == (9, 7)
    shorter = read_chain(rows[:3])
    assert (len(shorter), shorter == chain, read_chain(rows) == chain) == (3, False, True)


@pytest.mark.parametrize("field", ["body", "at", "kind", "digest", "previous", "seq"])
@pytest.mark.parametrize("place", [1, 3, 6])
def test_a_row_changed_after_it_was_read_is_found(field: str, place: int) -> None:
    rows = rows_of(entries_of(3))
    read_chain(rows)
    other = {"body": rows[place].body.replace("1", "2"), "at": "2026-11-21T08:00:00+00:00", "kind": "note", "seq": 99}
    other |= {"digest": bytes(32), "previous": bytes(32)}
    rows[place] = replace(rows[place], **{field: other[field]})
    with pytest.raises(ChainError):
        read_chain(rows)


def test_another_history_from_the_same_beginning_is_read_as_it_is() -> None:
    begun = rows_of(entries_of(1))
    one, other = rows_of(entries_of(2, first=2), after=begun), rows_of(entries_of(2, first=7), after=begun)
    first, second = read_chain(one), read_chain(other)
    assert [event.entry for event in second][3:] == entries_of(2, first=7)
    assert first != second
    assert read_chain(one) == first


def test_a_row_without_a_time_zone_is_refused() -> None:
    rows = rows_of([])
    stamp = "2026-11-21T08:00:00.000000"
    digest = row_digest(1, stamp, rows[0].kind, rows[0].body, BEFORE_FIRST)
    with pytest.raises(ChainError, match="no readable time"):
        read_chain([replace(rows[0], at=stamp, digest=digest)])


def test_what_is_kept_of_a_round_is_small() -> None:
    rows = rows_of(entries_of(20))
    kept: list[Chain] = [read_chain(rows)]
    more = rows_of(entries_of(1000, first=21), after=rows)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept.append(read_chain(iter(more)))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 100 < grown / 1000 < BYTES_A_ROUND
