"""The audit log: an unbroken chain is read back as it was written, and whatever was done to it is named."""

from __future__ import annotations

import multiprocessing
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.audit import Action, AuditDamaged, AuditError, check_continues, in_words, line_of, next_record, records_of
from certs.audit_file import AuditLog, read_export, report

NOW = datetime(2026, 11, 21, 14, 32, tzinfo=UTC)
PAUSE = Action(by="Dr K. Weber", kind="pause", reason="a question from the board", fields={"round": "7"})

readable = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), max_size=30).filter(str.isprintable)
actions = st.builds(
    Action,
    by=readable.filter(str.strip),
    kind=st.sampled_from(["approve", "pause", "words-not-compared"]),
    reason=readable,
    fields=st.dictionaries(readable, readable, max_size=3),
)


def chain(*made: Action) -> bytes:
    data, last = b"", None
    for action in made:
        last = next_record(last, NOW, action)
        data += line_of(last)
    return data


@given(st.lists(actions, max_size=5))
def test_what_was_written_is_read_back(made: list[Action]) -> None:
    records = records_of(chain(*made))
    assert [record.action for record in records] == made
    assert [record.seq for record in records] == list(range(1, len(made) + 1))


@given(st.lists(actions, min_size=1, max_size=3), st.data())
def test_every_changed_byte_is_found(made: list[Action], data: st.DataObject) -> None:
    whole = chain(*made)
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    changed = whole[:place] + bytes([other]) + whole[place + 1 :]
    if place == len(whole) - 1:  # the line break: the line was never finished, and does not count
        assert len(records_of(changed)) == len(made) - 1
        return
    line = whole[:place].count(b"\n") + 1
    with pytest.raises(AuditDamaged, match=rf"line ({line}|{line + 1}) "):
        records_of(changed)


@pytest.mark.parametrize("wrong", ["drop", "swap", "double"])
def test_a_missing_a_swapped_and_a_doubled_line_are_named(wrong: str) -> None:
    lines = chain(*(Action(by="A", kind="pause", reason=str(number)) for number in range(4))).splitlines(keepends=True)
    order = {"drop": (0, 2, 3), "swap": (0, 2, 1, 3), "double": (0, 1, 1, 2)}[wrong]
    with pytest.raises(AuditDamaged, match=r"line [23] "):
        records_of(b"".join(lines[number] for number in order))


def test_a_line_cut_short_was_never_confirmed_and_the_next_one_takes_its_place(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    first = log.append(PAUSE, NOW)
    with log.path.open("ab") as file:
        file.write(line_of(next_record(first, NOW, PAUSE))[:-20])
    assert log.read() == (first,)
    second = log.append(Action(by="B", kind="resume"), NOW)
    assert log.read() == (first, second)


def test_a_line_that_lacks_only_its_line_break_counts(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    first, second = log.append(PAUSE, NOW), log.append(PAUSE, NOW)
    log.path.write_bytes(log.path.read_bytes()[:-1])
    assert log.read() == (first, second)
    third = log.append(PAUSE, NOW)
    assert log.read() == (first, second, third)


def test_nothing_is_added_to_a_damaged_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    log.append(PAUSE, NOW)
    log.append(PAUSE, NOW)
    log.path.write_bytes(damaged := log.path.read_bytes().replace(b"Weber", b"Wexer", 1))
    with pytest.raises(AuditDamaged, match=r"audit\.log: line 1 .* move it away"):
        log.append(PAUSE, NOW)
    assert log.path.read_bytes() == damaged


def _append_many(path: Path) -> None:
    for _ in range(20):
        AuditLog(path).append(PAUSE, NOW)


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert len(AuditLog(path).read()) == 40


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    log = AuditLog.within(tmp_path)
    log.append(PAUSE, NOW)
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_a_log_is_synced_before_its_record_is_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, synced = AuditLog(tmp_path / "audit.log"), []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    log.append(PAUSE, NOW)
    assert log.path.stat().st_size in synced


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit.log")
    first = log.append(PAUSE, NOW)
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, line, offset: whole(descriptor, line[:10], offset))
    with pytest.raises(AuditError, match="disk is full"):
        log.append(PAUSE, NOW)
    assert log.path.read_bytes() == line_of(first)


@pytest.mark.parametrize(
    ("by", "kind", "reason"),
    [
        (" ", "pause", ""),
        ("A", "Pause", ""),
        ("A", "", ""),
        ("A", "pause", "two\nlines"),
        ("A" * 300, "pause", ""),
        ("\x1b[2J", "pause", ""),
    ],
)
def test_what_no_line_can_hold_is_refused(by: str, kind: str, reason: str) -> None:
    with pytest.raises(AuditError):
        Action(by=by, kind=kind, reason=reason)


def test_an_older_export_shows_what_was_cut_off(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    log.append(PAUSE, NOW)
    log.append(PAUSE, NOW)
    out = tmp_path / "export.log"
    assert list(report(log, verify=False, export=out, continues=None))[-1].startswith(str(out))
    assert read_export(out) == log.read()
    log.append(PAUSE, NOW)
    check_continues(read_export(out), log.read())
    log.path.write_bytes(chain(PAUSE))
    with pytest.raises(AuditDamaged, match="cut off"):
        list(report(log, verify=True, export=None, continues=out))
    log.path.write_bytes(chain(Action(by="Somebody", kind="pause"), PAUSE))
    with pytest.raises(AuditDamaged, match="record 1 is another"):
        list(report(log, verify=True, export=None, continues=out))


def test_people_read_a_line_each(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    assert list(report(log, verify=True, export=None, continues=None)) == [f"{log.path}: nothing was recorded yet"]
    east = NOW.astimezone(timezone(timedelta(hours=8)))
    said = in_words(log.append(PAUSE, east))
    assert said == "1  2026-11-21 14:32:00 UTC  Dr K. Weber  pause (round 7): a question from the board"
    assert next(report(log, verify=False, export=None, continues=None)) == said
