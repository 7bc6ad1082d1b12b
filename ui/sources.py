"""Reads what other processes write, read-only, and keeps a reading until the file behind it has changed.

Nothing here computes an epsilon or asks a question twice: a store is read again when its revision grows, a ledger when
its file changes, and both are verified by their own packages. A file that does not exist yet is not an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from certs.audit_file import AUDIT_FILE
from coordinator.store import EventRow, StoreError, open_store, store_in
from hospital_node.evidence_shown import RECEIPTS_FILE
from hospital_node.ledger import BudgetView, CannotRecord, Cap, DecisionRefused, Event, Ledger, LedgerError, LedgerMissing
from hospital_node.offer import if_approved, terms
from hospital_node.progress import LEAVES_FILE, PROGRESS_FILE, Leaves, LocalProgress, read_leaves, read_progress
from hospital_node.reports import Statement, statement
from hospital_node.scans import INDEX_FILE, SCANS_FOLDER, Scan, read_scan
from proto.plan import Plan, PlanError, from_canonical
from study.results import FILE as RESULTS_FILE
from study.results import CellRow, Results, ResultsError, StudyRow, open_results
from ui.settings import Settings
from ui.store_reading import Federation, Keeper, RoundBytes, Totals, by_round
from ui.words import party

LEDGER_FILE = "ledger.db"
PLAN_FILE = "plan.json"
NODE_FILE = "node.json"
WATCHED = (
    LEDGER_FILE,
    AUDIT_FILE,
    LEAVES_FILE,
    PLAN_FILE,
    f"{SCANS_FOLDER}/{INDEX_FILE}",
    RECEIPTS_FILE,
)  # of a hospital; progress has its own fragments
KEPT = 64  # readings in memory: one for each hospital and a few older ones

Stamp = tuple[int, int, int]  # inode, size, time of the last change in ns


@dataclass(frozen=True, slots=True)
class Hospital:
    """One reading of a hospital node's state folder.

    `problem` says why a ledger that exists cannot be trusted, or, where `busy`, why it cannot be read at this moment.
    """

    name: str
    folder: Path
    plan: Plan | None = None
    head: str = ""
    events: Sequence[Event] = ()
    budget: BudgetView | None = None
    leaves: Leaves | None = None
    problem: str = ""
    busy: bool = False


@dataclass(frozen=True, slots=True)
class StudyReading:
    """One reading of a study's results."""

    folder: Path
    revision: int
    study: StudyRow
    rows: tuple[CellRow, ...]


def stamp(path: Path) -> Stamp | None:
    """What changes when the file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def federation(folder: Path | None, age_s: float = 0.0) -> Federation | None:
    """The coordinator's store, as it was up to `age_s` ago; None before it exists. Raises StoreError."""
    keeper = None if folder is None else _keeper_of(folder)
    return None if keeper is None else keeper.read(age_s)


def totals(folder: Path) -> Totals:
    """Bytes by party and direction over all rounds. Raises StoreError."""
    keeper = _keeper_of(folder)
    return {} if keeper is None else keeper.totals()


def events_of(folder: Path, number: int) -> tuple[EventRow, ...]:
    """What happened in one round, in order. Raises StoreError."""
    keeper = _keeper_of(folder)
    return () if keeper is None else tuple(keeper.reader.events(number=number))


def traffic_of(folder: Path, first: int, last: int) -> tuple[RoundBytes, ...]:
    """Bytes of older rounds. Raises StoreError."""
    keeper = _keeper_of(folder)
    return () if keeper is None else by_round(keeper.reader.traffic_between(first, last))


def _keeper_of(folder: Path) -> Keeper | None:
    """The reading of a state folder's store; None before there is one. Raises StoreError."""
    where = store_in(folder)
    found = stamp(where) if isinstance(where, Path) else None
    return None if where is None else _keeper(where, 0 if found is None else found[0])


@lru_cache(maxsize=4)
def _keeper(where: Path | str, inode: int) -> Keeper:
    """One for each file or server; the inode notices a file that was deleted and made again."""
    del inode
    return Keeper(open_store(where))


def hospital(folder: Path) -> Hospital:
    """One hospital's ledger and files. Never raises: a damaged ledger is something to show."""
    files = (LEDGER_FILE, "ledger.counter", PLAN_FILE, LEAVES_FILE)
    try:
        return _hospital(folder, tuple(stamp(folder / name) for name in files))
    except CannotRecord as error:  # a lock or the disk, not the ledger: nothing to keep, it is asked again
        return Hospital(name_of(folder), folder, plan=_plan(folder / PLAN_FILE), problem=str(error), busy=True)


@lru_cache(maxsize=KEPT)
def _hospital(folder: Path, stamps: tuple[Stamp | None, ...]) -> Hospital:
    del stamps
    plan = _plan(folder / PLAN_FILE)
    leaves = read_leaves(folder / LEAVES_FILE)
    try:
        ledger = Ledger.open_readonly(folder / LEDGER_FILE)
        events = ledger.events()
        return Hospital(
            name=ledger.hospital,
            folder=folder,
            plan=plan,
            head=events[-1].digest.hex(),
            events=events,
            budget=_budget(ledger, events[-1].digest, plan),
            leaves=leaves,
        )
    except CannotRecord:
        raise
    except LedgerMissing:
        return Hospital(name_of(folder), folder, plan=plan, leaves=leaves)
    except LedgerError as error:
        return Hospital(name_of(folder), folder, plan=plan, leaves=leaves, problem=str(error))


@lru_cache(maxsize=KEPT)
def _budget(ledger: Ledger, head: bytes, plan: Plan | None) -> BudgetView:
    """The figures of one head: computed once, because the accountant takes part of a second."""
    del head
    return ledger.budget(plan)


@lru_cache(maxsize=KEPT)
def statement_of(folder: Path, head: str) -> Statement:
    """The generated statement of one head; computed once, like its figures. Raises LedgerError where it was changed since."""
    del head
    found = hospital(folder)
    return statement(found.events, found.plan)


@lru_cache(maxsize=KEPT)
def after_approval(folder: Path, head: str, plan: bytes, chosen: float) -> BudgetView:
    """The budget after approving the plan on offer under a cap of `chosen`; once for each head, plan and cap.

    Raises DecisionRefused where the ledger would refuse it.
    """
    found = hospital(folder)
    if found.plan is None or found.plan.digest() != plan or found.head != head:
        raise DecisionRefused("Another plan is on offer since, or the ledger has a new entry: read the page again.")
    delta = found.budget.delta if found.budget is not None and found.budget.cap else found.plan.privacy.delta
    return if_approved(found.events, found.name, found.plan, Cap(epsilon=chosen, delta=delta), datetime.now(UTC))


@lru_cache(maxsize=KEPT)
def terms_of(plan: Plan, hospital: str) -> dict[str, str]:
    """What a plan asks of one hospital; the accountant runs once for it."""
    return terms(plan, hospital)


def study(folder: Path) -> StudyReading | None:
    """A study's results; None before its first run. Raises ResultsError where they cannot be read."""
    if (found := stamp(folder / RESULTS_FILE)) is None:
        return None
    reader = _results(folder, found[0])
    return _study(reader, reader.revision())


@lru_cache(maxsize=4)
def _results(folder: Path, inode: int) -> Results:
    del inode
    return open_results(folder)


@lru_cache(maxsize=4)
def _study(reader: Results, revision: int) -> StudyReading:
    return StudyReading(reader.path.parent, revision, reader.study(), tuple(reader.cells()))


def _study_revision(folder: Path) -> int | str | None:
    """What grows when anything of a study has changed."""
    try:
        found = stamp(folder / RESULTS_FILE)
        return None if found is None else _results(folder, found[0]).revision()
    except ResultsError as error:
        return str(error)


def _plan(path: Path) -> Plan | None:
    try:
        return from_canonical(path.read_bytes())
    except (OSError, PlanError):
        return None


@lru_cache(maxsize=2)  # a prepared volume can take a hundred megabytes
def scan(folder: Path, name: str, number: int) -> Scan:
    """One scan of a hospital's own set in folder `name`. Raises ScansError."""
    return read_scan(folder, name, number)


def name_of(folder: Path) -> str:
    """A hospital's name: as its node wrote it, or from the folder before the node ran."""
    try:
        return party(str(json.loads((folder / NODE_FILE).read_bytes())["uri"]))
    except (OSError, ValueError, KeyError, TypeError):
        return folder.parent.name if folder.name == "state" else folder.name


def hospitals(settings: Settings) -> tuple[Hospital, ...]:
    """All hospitals of this deployment in the order configured."""
    return tuple(hospital(folder) for folder in settings.hospitals)


def progress(folder: Path) -> LocalProgress | None:
    """What a node does at this moment; read anew each time, because it changes several times a second."""
    return read_progress(folder / PROGRESS_FILE)


def signature(settings: Settings, age_s: float = 0.0) -> tuple[object, ...]:
    """What a page shows, in a value that is cheap to compare: it differs only where something visible changed."""
    try:
        seen = federation(settings.coordinator, age_s)
    except StoreError as error:
        return (str(error),)
    shown = () if seen is None else _visible(seen)
    stamps = (stamp(folder / name) for folder in settings.hospitals for name in WATCHED)
    return (*shown, *stamps, *map(_study_revision, settings.studies))


def _visible(seen: Federation) -> tuple[object, ...]:
    """Without the moments at which parties were last heard of, which change all the time."""
    last = seen.events[-1].seq if seen.events else 0
    states = tuple((member.state, member.code) for member in seen.members)
    rounds = tuple((row.number, row.state) for row in seen.rounds[-2:])
    return (last, states, rounds, len(seen.scores), len(seen.validations), seen.waiting, seen.finished)
