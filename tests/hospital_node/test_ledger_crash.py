"""Kill -9 around a commit, two processes for the last round, a full disk: the ledger is never below the true spend.

Children are forked, so that each trial costs milliseconds; a child says "released" through a pipe only after `commit` has
returned, which is when the first masked byte could leave.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
from ledger_world import DELTA, at, make_plan, new_ledger, release, session_id, update_id

from hospital_node import ledger_stamp, ledger_store
from hospital_node.ledger import AlreadyReleased, BudgetExhausted, CannotRecord, Cap, Ledger, LedgerError

PLAN = make_plan(rounds=2000, sigma=0)  # no accountant is asked, so that time goes to the disk; budgets have their own test
TRIALS = 40
KILL_POINTS = ["BEGIN", "SELECT", "INSERT", "COMMIT", "counter", "counter written", "never"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with one charged round."""
    ledger = new_ledger(tmp_path)
    ledger.approve(
        PLAN, "Dr Keller", "public data", Cap(epsilon=1, delta=DELTA), at(1), accept_no_guarantee=True, data_is_public=True
    )
    release(ledger, PLAN, 1)
    return tmp_path / "ledger.db"


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def fork(work: Callable[[Callable[[bytes], None]], None]) -> tuple[int, int]:
    """Run `work(say)` in a child; its process id and the end of the pipe that hears what it says."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        status = 1
        try:
            work(lambda text: os.write(say, text) and None)
            status = 0
        finally:
            os._exit(status)
    os.close(say)
    return child, hear


def heard(child: int, hear: int) -> tuple[bytes, int]:
    """All that the child said, and how it ended."""
    with os.fdopen(hear, "rb") as pipe:
        said = pipe.read()
    return said, os.waitpid(child, 0)[1]


def kill_at(point: str) -> None:
    """From now on this process dies at `point` of its next commit, which reads the entries however long they have settled."""
    ledger_stamp.SETTLED_NS = 10**18
    connect, write = ledger_store._connect, ledger_store.write_whole

    def connected(database: Path, mode: str) -> sqlite3.Connection:
        connection = connect(database, mode)
        connection.set_trace_callback(lambda statement: die() if statement.startswith(point) else None)
        return connection

    def written(target: Path, data: bytes) -> None:
        if point == "counter":
            target.with_name(target.name + ".partial").write_bytes(data[:20])
            die()
        write(target, data)
        if point == "counter written":
            die()

    ledger_store._connect, ledger_store.write_whole = connected, written


@pytest.mark.parametrize("point", KILL_POINTS)
def test_killed_at_each_step_of_a_commit(path: Path, point: str) -> None:
    def work(say: Callable[[bytes], None]) -> None:
        ledger = Ledger.open(path)
        asked = ledger.authorize(PLAN, 2)
        kill_at(point)
        ledger.commit(asked, update_id(PLAN, 2), session_id(2), at(20))
        say(b"released")

    said, status = heard(*fork(work))
    assert os.WIFSIGNALED(status) == (point != "never")
    assert (said == b"released") == (point == "never")

    ledger = Ledger.open(path)  # verifies chain and counter: no false alarm after a crash
    charged = ledger.budget().rounds_done - 1
    assert charged == (point in {"counter", "counter written", "never"})
    if charged:
        with pytest.raises(AlreadyReleased):
            ledger.authorize(PLAN, 2)
    else:
        release(ledger, PLAN, 2)


def test_killed_at_any_moment(path: Path) -> None:
    """A child commits round after round until it is killed; whatever it said was released must be charged."""
    next_round = 2
    for trial in range(TRIALS):

        def work(say: Callable[[bytes], None], first: int = next_round) -> None:
            ledger = Ledger.open(path)
            for number in range(first, PLAN.rounds):
                release(ledger, PLAN, number)
                say(b".")

        child, hear = fork(work)
        started = time.monotonic()
        assert os.read(hear, 1) == b"."  # at least one release, and a measure of how long one takes on this machine now
        time.sleep((time.monotonic() - started) * (trial % 20) / 10)
        os.kill(child, signal.SIGKILL)
        said, status = heard(child, hear)
        assert os.WIFSIGNALED(status)
        ledger = Ledger.open(path)
        charged, released = charges_of(ledger), 1 + len(said)
        assert charged == list(range(1, len(charged) + 1))
        assert 0 <= len(charged) - (next_round - 1 + released) <= 1  # at most one was charged and not released, never less
        ledger.resume("Dr Keller", "crash looked at", at(10))
        next_round = len(charged) + 1


def charges_of(ledger: Ledger) -> list[int]:
    return [event.entry.round for event in ledger.events() if event.kind == "charge"]


def race(works: list[Callable[[], None]]) -> list[bytes]:
    """Run all at once; what each says: ok, or the name of its error."""
    gate_out, gate_in = os.pipe()

    def runner(work: Callable[[], None]) -> Callable[[Callable[[bytes], None]], None]:
        def run(say: Callable[[bytes], None]) -> None:
            os.close(gate_in)
            os.read(gate_out, 1)  # returns for all when the parent closes its end
            try:
                work()
            except LedgerError as error:
                say(type(error).__name__.encode())
            else:
                say(b"ok")

        return run

    children = [fork(runner(work)) for work in works]
    os.close(gate_out)
    os.close(gate_in)
    return [heard(*child)[0] for child in children]


@pytest.mark.parametrize("trial", range(5))
def test_two_jobs_cannot_both_spend_the_last_of_the_budget(tmp_path: Path, trial: int) -> None:
    plan, other = make_plan(), make_plan(study="second")
    cap = Cap(epsilon=1.7, delta=DELTA)  # one round
    ledger = new_ledger(tmp_path, plan, cap)
    ledger.approve(other, "Dr Keller", "second study", cap, at(2))

    def job(which: int) -> Callable[[], None]:
        mine = (plan, other)[which]
        asked = ledger.authorize(mine, 1)  # both are told yes
        return lambda: ledger.commit(asked, bytes([which, trial]) * 16, session_id(which), at(3)) and None

    assert sorted(race([job(0), job(1)])) == [BudgetExhausted.__name__.encode(), b"ok"]
    assert len(charges_of(ledger)) == 1


def test_two_processes_cannot_both_release_one_round(path: Path) -> None:
    asked = Ledger.open(path).authorize(PLAN, 2)

    def job(which: int) -> Callable[[], None]:
        return lambda: Ledger.open(path).commit(asked, bytes([which]) * 32, session_id(which), at(3)) and None

    assert sorted(race([job(0), job(1), job(2)])) == [b"AlreadyReleased", b"AlreadyReleased", b"ok"]
    assert charges_of(Ledger.open(path)) == [1, 2]


def test_many_writers_leave_one_unbroken_chain(path: Path) -> None:
    def job(which: int) -> Callable[[], None]:
        def work() -> None:
            ledger = Ledger.open(path)
            for count in range(10):
                ledger.note(f"person {which}", f"remark {count}", at(5))

        return work

    before = len(Ledger.open(path).events())
    assert race([job(which) for which in range(4)]) == [b"ok"] * 4
    assert len(Ledger.open(path).events()) == before + 40


def test_one_ledger_object_serves_several_threads(path: Path) -> None:
    ledger = Ledger.open(path)
    failures: list[LedgerError] = []

    def work(which: int) -> None:
        try:
            for count in range(5):
                ledger.note(f"person {which}", f"remark {count}", at(5))
                ledger.verify()
        except LedgerError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(ledger.events()) == 4 + 20


@contextlib.contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The database may not grow by a single page."""
    connect = ledger_store._connect

    def connected(database: Path, mode: str) -> sqlite3.Connection:
        connection = connect(database, mode)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(ledger_store, "_connect", connected)
        yield


def test_a_full_disk_records_nothing_and_releases_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(path)
    charged, refused = 1, None
    with full_disk(monkeypatch):
        while refused is None:  # entries fill the last page, then no further page is to be had
            before = ledger.events()
            try:
                release(ledger, PLAN, charged + 1, verified=False)
            except CannotRecord as error:
                refused = error
            else:
                charged += 1
                ledger.resume("Dr Keller", "more", at(10))
        assert "full" in str(refused)
        assert "free space on that disk" in str(refused)
    assert ledger.events() == before
    reopened = Ledger.open(path)
    assert reopened.events() == before
    reopened.resume("Dr Keller", "disk freed", at(20))
    release(reopened, PLAN, charged + 1)


def test_a_disk_that_fills_at_the_counter_counts_as_spent_and_releases_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(target: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger = Ledger.open(path)
    asked = ledger.authorize(PLAN, 2)
    with monkeypatch.context() as patch:
        patch.setattr(ledger_store, "write_whole", failing)
        with pytest.raises(CannotRecord, match=r"No space left on device.*nothing leaves"):
            ledger.commit(asked, update_id(PLAN, 2), session_id(2), at(20))
    assert charges_of(Ledger.open(path)) == [1, 2]


@pytest.mark.parametrize("limit_bytes", [*range(0, 50_000, 1_000), None])
def test_writes_that_fail_at_any_byte_leave_the_ledger_whole(path: Path, limit_bytes: int | None) -> None:
    """No file may grow beyond the limit, as on a disk without room: database, journal, counter, whichever comes first."""

    def work(say: Callable[[bytes], None]) -> None:
        ledger = Ledger.open(path)
        asked = ledger.authorize(PLAN, 2)
        if limit_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        try:
            ledger.commit(asked, update_id(PLAN, 2), session_id(2), at(20))
        except CannotRecord as error:
            say(b"refused" if "nothing leaves" in str(error) else str(error).encode())
        else:
            say(b"released")

    said, status = heard(*fork(work))
    assert status == 0
    charged = charges_of(Ledger.open(path))
    assert (said, charged) in [(b"refused", [1]), (b"refused", [1, 2]), (b"released", [1, 2])]
    if limit_bytes in {0, None}:
        assert said == (b"released" if limit_bytes is None else b"refused")
    if charged == [1]:
        release(Ledger.open(path), PLAN, 2)


def test_a_ledger_held_by_another_program_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_store, "BUSY_TIMEOUT_S", 0.05)
    ledger = Ledger.open(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CannotRecord, match="another program holds the ledger"):
            ledger.note("Dr Keller", "x", at(20))


def test_a_transaction_cut_off_by_a_power_loss_is_rolled_back(path: Path, tmp_path: Path) -> None:
    """Copy the file and its journal in the middle of a transaction whose pages have already reached the file."""
    copy = tmp_path / "after"
    copy.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        for seq in range(5, 9):
            (head,) = connection.execute("SELECT digest FROM events ORDER BY seq DESC LIMIT 1").fetchone()
            connection.execute(
                "INSERT INTO events VALUES (?, '', 'note', ?, ?, ?)", (seq, "x" * 200_000, head, bytes([seq]) * 32)
            )
        for file in (path, Path(f"{path}-journal"), path.with_suffix(".counter"), path.with_suffix(".key")):
            shutil.copy(file, copy / file.name)
        connection.execute("ROLLBACK")
    torn = copy / "ledger.db"
    assert torn.stat().st_size > path.stat().st_size  # the unfinished pages are there
    with pytest.raises(CannotRecord, match="start the node"):
        Ledger.open_readonly(torn)
    ledger = Ledger.open(torn)
    assert charges_of(ledger) == [1]
    release(ledger, PLAN, 2)
    assert charges_of(Ledger.open_readonly(torn)) == [1, 2]
