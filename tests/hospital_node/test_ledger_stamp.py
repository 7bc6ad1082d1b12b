"""A ledger is not verified again while nobody writes to its file, and is verified whole after any write, whoever wrote."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from ledger_world import at, make_plan, new_ledger, release

from hospital_node import ledger_chain, ledger_stamp, ledger_store
from hospital_node.ledger import Ledger, LedgerDamaged, LedgerError, LedgerMissing, LedgerRolledBack
from hospital_node.ledger_stamp import SETTLED_COARSE_NS, SETTLED_NS, Stamp, Unwritten, stamp_of

PLAN = make_plan()
LATER_NS = 60 * 10**9


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file has settled: the clock of this program is a minute ahead of that of the files."""
    now = ledger_stamp.time.time_ns
    monkeypatch.setattr("hospital_node.ledger_stamp.time.time_ns", lambda: now() + LATER_NS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with two charged rounds."""
    ledger = new_ledger(tmp_path, PLAN)
    for number in (1, 2):
        release(ledger, PLAN, number)
    return tmp_path / "ledger.db"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the rows that were hashed."""
    seen: list[int] = []
    digest = ledger_chain.row_digest
    monkeypatch.setattr(ledger_chain, "row_digest", lambda *row: (seen.append(row[0]), digest(*row))[1])
    return seen


@pytest.mark.usefixtures("later")
def test_a_file_that_nobody_wrote_to_is_hashed_once(path: Path, hashed: list[int]) -> None:
    ledger = Ledger.open(path)
    before = len(ledger.events())
    Ledger.open(path).authorize(PLAN, 3)
    assert hashed == list(range(1, before + 1))
    release(ledger, PLAN, 3)  # two writes, of this very process: after each everything is hashed again
    hashed.clear()
    assert len(Ledger.open(path).events()) == before + 2
    assert hashed == list(range(1, before + 3))


def test_a_file_written_just_now_is_hashed_every_time(path: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    written_ns = path.stat().st_mtime_ns
    monkeypatch.setattr("hospital_node.ledger_stamp.time.time_ns", lambda: written_ns + SETTLED_NS - 1)
    ledger = Ledger.open_readonly(path)
    hashed.clear()
    once = len(ledger.events())
    ledger.events()
    assert len(hashed) == 2 * once


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.rindex(b'"noise_multiplier":1.1') + len(b'"noise_multiplier":')] ^= 4
    with path.open("r+b") as file:  # in place: same inode, same length
        file.write(data)


def hidden(path: Path) -> None:
    """As before, with the old times put back."""
    seen = path.stat()
    flipped(path)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def unlocked(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER events_never_change")


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [flipped, hidden, unlocked])
def test_whatever_is_done_to_the_file_is_found_by_the_next_opening(path: Path, change: Callable[[Path], None]) -> None:
    Ledger.open(path).authorize(PLAN, 3)
    change(path)
    with pytest.raises(LedgerDamaged):
        Ledger.open(path)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [flipped, hidden])
def test_an_edit_is_found_by_the_next_question_of_an_open_ledger(path: Path, change: Callable[[Path], None]) -> None:
    ledger = Ledger.open(path)
    asked = ledger.authorize(PLAN, 3)
    change(path)
    for question in (
        lambda: ledger.authorize(PLAN, 3),
        lambda: ledger.commit(asked, b"u" * 32, b"s" * 16, at(90)),
        lambda: ledger.record_verified(PLAN, 2, at(90)),
    ):
        with pytest.raises(LedgerDamaged):
            question()


@pytest.mark.usefixtures("later")
def test_a_restored_copy_of_the_same_size_is_found(path: Path, tmp_path: Path) -> None:
    backup = shutil.copy2(path, tmp_path / "backup.db")
    ledger = Ledger.open(path)
    release(ledger, PLAN, 3)
    ledger.authorize(PLAN, 4)
    size_bytes = path.stat().st_size
    os.replace(backup, path)
    assert path.stat().st_size == size_bytes  # nothing but the file itself tells them apart
    with pytest.raises(LedgerRolledBack):
        ledger.authorize(PLAN, 4)


@pytest.mark.usefixtures("later")
def test_the_counters_are_compared_although_the_chain_is_known(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.authorize(PLAN, 3)
    path.with_suffix(".counter").unlink()
    with pytest.raises(LedgerRolledBack, match="missing"):
        ledger.authorize(PLAN, 3)


def refused(*_: object) -> sqlite3.Connection:
    raise sqlite3.OperationalError("gone")


@pytest.mark.usefixtures("later")
def test_a_file_that_cannot_be_opened_any_more_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(path)
    asked = ledger.authorize(PLAN, 3)
    monkeypatch.setattr(ledger_store, "_connect", refused)
    with pytest.raises(LedgerError, match="gone"):  # nothing is charged on what was known before
        ledger.commit(asked, b"u" * 32, b"s" * 16, at(90))
    os.utime(path)
    for question in (lambda: ledger.authorize(PLAN, 3), lambda: Ledger.open(path), ledger.rows):
        with pytest.raises(LedgerError, match="gone"):
            question()


@pytest.mark.usefixtures("later")
def test_a_file_that_nobody_wrote_to_is_not_opened_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Ledger.open(path).events()
    monkeypatch.setattr(ledger_store, "_connect", refused)
    ledger = Ledger.open(path)
    assert ledger.opened_on == ledger.events() == before
    assert ledger.authorize(PLAN, 3).round == 3


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files to which connections were made, each time anew."""
    seen: list[Path] = []
    connect = ledger_store._connect
    monkeypatch.setattr(ledger_store, "_connect", lambda path, mode: (seen.append(path), connect(path, mode))[1])
    return seen


@pytest.mark.usefixtures("later")
def test_after_a_write_pages_schema_and_entries_are_looked_at_over_one_connection(
    path: Path, hashed: list[int], opened: list[Path]
) -> None:
    Ledger.open(path)
    release(Ledger.open(path), PLAN, 3)
    hashed.clear()
    opened.clear()
    Ledger.open(path).authorize(PLAN, 4)
    assert len(opened) == 1
    assert hashed == list(range(1, len(hashed) + 1))


@pytest.mark.usefixtures("later")
def test_an_opening_checks_pages_and_schema_although_the_entries_are_known(path: Path) -> None:
    ledger = Ledger.open(path)
    unlocked(path)
    ledger.events()  # as for every question between two openings, the entries alone
    with pytest.raises(LedgerDamaged, match="triggers"):
        Ledger.open(path)


@pytest.mark.parametrize("change", [unlocked, flipped])
def test_of_a_damaged_ledger_without_its_counter_the_damage_is_said(path: Path, change: Callable[[Path], None]) -> None:
    change(path)
    path.with_suffix(".counter").unlink()
    with pytest.raises(LedgerDamaged):
        Ledger.open(path)
    path.unlink()
    with pytest.raises(LedgerMissing):
        Ledger.open(path)


@pytest.mark.usefixtures("later")
def test_a_file_that_is_gone_is_missed_although_the_chain_is_known(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.authorize(PLAN, 3)
    path.unlink()
    with pytest.raises(LedgerMissing):
        ledger.authorize(PLAN, 3)


def test_what_a_recorded_result_left_is_what_the_file_then_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_chain, "PIECE", 3)  # entries are packed on the way
    ledger = new_ledger(tmp_path, PLAN)
    for number in range(1, 6):
        release(ledger, PLAN, number, verified=False)
        left = ledger.record_verified(PLAN, number, at(10))
        assert left == ledger.events()
        assert list(left) == list(ledger.events())
        assert ledger.record_verified(PLAN, number, at(11)) == left  # nothing is added twice


def test_an_opened_ledger_says_what_it_was_opened_on_and_asks_again(path: Path) -> None:
    ledger = Ledger.open(path)
    release(Ledger.open(path), PLAN, 3)
    assert len(ledger.events()) == len(ledger.opened_on) + 2
    assert ledger.events()[: len(ledger.opened_on)] == tuple(ledger.opened_on)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("suffix", ["-journal", "-wal"])
def test_a_file_with_something_beside_it_has_no_stamp(path: Path, suffix: str) -> None:
    assert stamp_of(path) is not None
    Path(f"{path}{suffix}").touch()
    assert stamp_of(path) is None


@pytest.mark.usefixtures("later")
def test_what_changes_while_it_is_looked_at_is_not_kept(path: Path) -> None:
    kept = Unwritten[int]()

    def touched() -> int:
        path.touch()
        return 1

    assert (kept.of(path, touched), kept.of(path, lambda: 2), kept.of(path, lambda: 3)) == (1, 2, 2)
    assert kept.of(path.with_name("nowhere.db"), lambda: 4) == 4


@pytest.mark.parametrize(
    ("written_ns", "wait_ns", "settled"),
    [
        (10**18 + 1, SETTLED_NS, True),
        (10**18 + 1, SETTLED_NS - 1, False),
        (10**18 + 1, -LATER_NS, False),
        (10**18, SETTLED_COARSE_NS, True),
        (10**18, SETTLED_COARSE_NS - 1, False),
    ],
)
def test_a_file_settles(written_ns: int, wait_ns: int, settled: bool) -> None:
    assert Stamp(1, 2, 3, written_ns, written_ns).settled(written_ns + wait_ns) is settled


def test_a_connection_keeps_few_pages_of_a_ledger_that_grows_for_years(path: Path) -> None:
    for mode in ("ro", "rw"):
        with closing(ledger_store._connect(path, mode)) as connection:
            assert connection.execute("PRAGMA cache_size").fetchone() == (-128,)  # KiB
