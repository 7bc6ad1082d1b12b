"""The log of rounds: a second implementation, recorded vectors, and any single change named at its place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.roundlog import (
    DIGEST_FIELDS,
    Entry,
    RoundLogError,
    check_log,
    entry_of,
    exported,
    first_difference,
    first_head,
    head_of,
    line_of,
    next_entry,
    read_exported,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "roundlog.json").read_bytes())
PLAN = hashlib.sha256(b"plan").digest()
URIS = tuple(f"secagg://lidc/hospital/h{number}" for number in range(4))
START = hashlib.sha256(b"start").digest()


def log_of(opened: list[bool], plan: bytes = PLAN) -> list[Entry]:
    """An honest log: round i opened or not."""
    entries: list[Entry] = []
    base = START
    for number, is_open in enumerate(opened, start=1):
        model = hashlib.sha256(b"model" + base).digest() if is_open else base
        entries.append(
            next_entry(
                entries[-1] if entries else None,
                plan,
                round_number=number,
                state="opened" if is_open else "aborted",
                session=bytes([number]) * 16,
                base=base,
                model=model,
                sum_digest=hashlib.sha256(bytes([number])).digest() if is_open else b"",
                survivors=URIS[: 3 + number % 2],
            )
        )
        base = model
    return entries


logs = st.lists(st.booleans(), min_size=1, max_size=8).map(log_of)


def plain_head(entry: Entry) -> bytes:
    """The same hash written a second time, from the description alone."""

    def field(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    def number(value: int) -> bytes:
        return field(value.to_bytes(8, "big"))

    survivors = number(len(entry.survivors)) + b"".join(field(uri.encode()) for uri in entry.survivors)
    parts = [field(b"hospital-secagg round log entry v1"), number(entry.index), field(entry.plan), number(entry.round)]
    parts += [field(entry.state.encode()), field(entry.session), field(entry.base), field(entry.model)]
    parts += [field(entry.sum_digest), field(survivors), field(entry.previous)]
    return hashlib.sha256(b"".join(parts)).digest()


@given(logs)
def test_an_honest_log_holds_and_says_the_same_in_every_form(entries):
    check_log(entries, PLAN, START)
    assert all(entry.head == plain_head(entry) for entry in entries)
    assert list(read_exported(exported(entries))) == entries
    assert [entry_of(line_of(entry), entry.index) for entry in entries] == entries


@given(logs, st.data())
def test_any_single_change_is_named_at_its_entry(entries, data):
    place = data.draw(st.integers(0, len(entries) - 1))
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(Entry)]))
    value = getattr(entries[place], name)
    match value:
        case bytes():
            at = data.draw(st.integers(0, max(0, len(value) - 1)))
            other = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :] if value else b"\x01" * 16
        case int():
            other = value + data.draw(st.sampled_from([-1, 1, 7]))
        case str():
            other = {"opened": "aborted", "aborted": "opened"}[value]
        case _:
            other = data.draw(st.sampled_from([value[1:], (*value, "secagg://lidc/hospital/z"), value[::-1], ()]))
    changed = [*entries]
    changed[place] = dataclasses.replace(entries[place], **{name: other})
    with pytest.raises(RoundLogError) as error:
        check_log(changed, PLAN, START)
    assert error.value.index == entries[place].index
    assert first_difference(entries, changed) == place + 1


@given(logs, st.data())
def test_a_change_that_is_hashed_again_is_named_at_what_follows_it(entries, data):
    """Whoever rewrites an entry has to rewrite all that follow; the first that was left as it was is named."""
    place = data.draw(st.integers(0, len(entries) - 1))
    bent = dataclasses.replace(entries[place], survivors=(*entries[place].survivors[:-1], "secagg://lidc/hospital/z"))
    changed = [*entries]
    changed[place] = dataclasses.replace(bent, head=head_of(bent))
    if place == len(entries) - 1:
        check_log(changed, PLAN, START)
        assert first_difference(entries, changed) == place + 1, "only who kept the log can tell"
        return
    with pytest.raises(RoundLogError, match="does not go on") as error:
        check_log(changed, PLAN, START)
    assert error.value.index == place + 2


@given(st.lists(st.booleans(), min_size=2, max_size=8).map(log_of), st.data())
def test_a_dropped_doubled_or_moved_entry_is_named(entries, data):
    place = data.draw(st.integers(0, len(entries) - 2))
    dropped = entries[:place] + entries[place + 1 :]
    doubled = entries[: place + 1] + entries[place:]
    moved = [*entries]
    moved[place], moved[place + 1] = moved[place + 1], moved[place]
    for bent, index in ((dropped, place + 1), (doubled, place + 2), (moved, place + 1)):
        with pytest.raises(RoundLogError) as error:
            check_log(bent, PLAN, START)
        assert error.value.index == index


def test_a_round_left_out_is_seen_although_all_was_hashed_again():
    first = log_of([True])[0]
    third = next_entry(
        first,
        PLAN,
        round_number=3,
        state="aborted",
        session=b"",
        base=first.model,
        model=first.model,
        sum_digest=b"",
        survivors=(),
    )
    with pytest.raises(RoundLogError, match=r"entry 2 .* is of round 3"):
        check_log([first, third], PLAN)


def test_two_plans_have_two_chains():
    other = hashlib.sha256(b"other").digest()
    assert first_head(PLAN) != first_head(other)
    with pytest.raises(RoundLogError, match=r"entry 1 .* another plan"):
        check_log(log_of([True, True], other), PLAN)


@pytest.mark.parametrize("good", VECTORS["good"], ids=lambda one: one["name"])
def test_recorded_logs_hold(good):
    entries = read_exported(json.dumps(good["log"]).encode())
    check_log(entries, bytes.fromhex(good["plan"]))
    assert [entry.head.hex() for entry in entries] == good["heads"]
    assert first_head(bytes.fromhex(good["plan"])).hex() == good["first_head"]


@pytest.mark.parametrize("bad", VECTORS["bad"], ids=lambda one: one["name"])
def test_recorded_bad_logs_are_refused_at_the_right_entry(bad):
    with pytest.raises(RoundLogError, match=bad["sentence"]) as error:
        check_log(read_exported(json.dumps(bad["log"]).encode()), bytes.fromhex(bad["plan"]))
    assert error.value.index == bad["index"]


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"{}", b'{"format": "other", "entries": []}', b"\xff", b"null"])
def test_what_is_no_log_is_refused(junk):
    with pytest.raises(ValueError, match=r".*"):
        read_exported(junk)


@given(logs, st.data())
def test_a_line_of_a_kept_copy_has_one_spelling(entries, data):
    line = line_of(entries[-1])
    at = data.draw(st.integers(0, len(line) - 2))
    other = line[:at] + bytes([data.draw(st.integers(32, 126).filter(lambda code: code != line[at]))]) + line[at + 1 :]
    with suppress(RoundLogError):
        changed = entry_of(other, entries[-1].index)
        assert changed != entries[-1]
        assert line_of(changed) == other


def test_the_digests_of_an_entry_are_all_there_is_in_bytes():
    """A field of bytes that is not in DIGEST_FIELDS would be missing in files."""
    entry = log_of([True])[0]
    assert {name for name in entry.__slots__ if isinstance(getattr(entry, name), bytes)} == set(DIGEST_FIELDS)
