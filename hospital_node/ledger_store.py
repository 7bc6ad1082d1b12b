"""The ledger's files: one SQLite database, its counters, and the key of its receipts.

Rules: every write is one BEGIN IMMEDIATE transaction that is on the disk before it returns; a connection lives for one
operation, so none is ever shared between threads; nothing but opening for creation can make a file. The database stays in
rollback-journal mode with synchronous=EXTRA: one file is the whole truth (a reader needs no -wal or -shm beside it), and the
folder is synced after the journal is removed, without which a power cut could undo a commit. Plain sqlite3, because what is
promised here is said in SQLite's own terms and an abstraction over databases would only hide it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

from pydantic import Field, ValidationError

from hospital_node.durable import sync_folder, write_secret, write_whole
from hospital_node.ledger_chain import Chain, Event, read_chain
from hospital_node.ledger_errors import (
    AlreadyReleased,
    CannotRecord,
    LedgerDamaged,
    LedgerError,
    LedgerMissing,
    LedgerRolledBack,
)
from hospital_node.ledger_schema import ChainError, Row
from hospital_node.ledger_stamp import KEPT_FILES, Unwritten
from proto.plan import Frozen

Mode: TypeAlias = Literal["ro", "rw"]

APPLICATION_ID: Final = 0x48534C31  # "HSL1", so that `file` and a curious reader know what this is
SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 30.0  # longer than any transaction, which may compute one epsilon
CACHE_KIB: Final = 128  # of pages; SQLite's 2 MB would fill with every reading, more with every round
KEY_BYTES: Final = 32
RESTORE: Final = "this node trains no more until the newest intact copy is restored."
RECEIPT_LABEL: Final = b"hospital-secagg ledger receipt v1\n"
WITHDRAWAL_LABEL: Final = b"hospital-secagg ledger withdrawal v1\n"

# The insert trigger also stops INSERT OR REPLACE, which deletes rows without asking the delete trigger. The two partial
# indexes keep one release for each round and for each update even against a caller that skips this program's rules.
DDL: Final = (
    """CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    previous BLOB NOT NULL,
    digest BLOB NOT NULL
) STRICT""",
    """CREATE TRIGGER events_grow_at_the_end BEFORE INSERT ON events
WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM events)
    OR NEW.previous IS NOT coalesce((SELECT digest FROM events ORDER BY seq DESC LIMIT 1), zeroblob(32))
BEGIN SELECT raise(ABORT, 'the ledger only grows at its end'); END""",
    """CREATE TRIGGER events_never_change BEFORE UPDATE ON events
BEGIN SELECT raise(ABORT, 'entries of the ledger never change'); END""",
    """CREATE TRIGGER events_never_vanish BEFORE DELETE ON events
BEGIN SELECT raise(ABORT, 'entries of the ledger are never removed'); END""",
    """CREATE UNIQUE INDEX one_release_per_round
ON events (json_extract(body, '$.plan'), json_extract(body, '$.round')) WHERE kind = 'charge'""",
    """CREATE UNIQUE INDEX one_release_per_update
ON events (json_extract(body, '$.update_id')) WHERE kind = 'charge'""",
)


@dataclass(frozen=True, slots=True)
class Known:
    """What was found in a file that nobody wrote to since: its entries, verified; `checked`: after its pages and schema."""

    chain: Chain
    checked: bool


_known: Final = Unwritten[Known]()


class Counter(Frozen):
    """How far the ledger had come: kept apart from it, so that a restored backup of the ledger alone is noticed."""

    entries: int = Field(ge=1)
    head: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class LedgerFiles:
    """Where one ledger lies. `witness` is a second counter in another place, best where no backup of the ledger reaches."""

    database: Path
    counter: Path
    key: Path
    witness: Path | None
    mode: Mode  # "rw" also where only reading: after a crash SQLite must roll back what was not committed

    @classmethod
    def beside(cls, database: Path, witness: Path | None, mode: Mode) -> LedgerFiles:
        """ledger.db, ledger.counter and ledger.key in one folder: that of the file itself, where `database` is a link to it."""
        return _files_of(database.resolve(), witness, mode)

    @property
    def counters(self) -> tuple[Path, ...]:
        """Every counter, in the order in which they are written."""
        return (self.counter,) if self.witness is None else (self.counter, self.witness)

    def create(self, first: Row) -> None:
        """Make all three. Raises LedgerError where a ledger or the traces of one exist."""
        with _disk_errors(self.database), _folder_locked(self.database.parent):
            if self.database.exists():
                raise LedgerError(f"{self.database} exists already: a hospital has one ledger for life.")
            for counter in self.counters:
                traces = _read_counter(counter) if counter.exists() else None
                if traces is not None and traces.entries > 1:
                    raise LedgerRolledBack(
                        f"{counter} says that a ledger of {traces.entries} entries existed here, but {self.database} is gone: "
                        "restore it; a new one would forget what was spent."
                    )
            if not self.key.exists():
                write_secret(self.key, os.urandom(KEY_BYTES))
            self._write_counters(Counter(entries=1, head=first.digest.hex()))
            self._create_database(first)

    def _create_database(self, *rows: Row) -> None:
        # built under another name and linked when whole, so that a crash leaves no half-made ledger
        with tempfile.TemporaryDirectory(dir=self.database.parent, prefix=".ledger-") as folder:
            unfinished = Path(folder) / "ledger.db"
            with contextlib.closing(_connect(unfinished, "rwc")) as connection:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute("BEGIN IMMEDIATE")
                for statement in DDL:
                    connection.execute(statement)
                for row in rows:
                    _insert(connection, row)
                connection.execute("COMMIT")
            os.link(unfinished, self.database)
        sync_folder(self.database.parent)

    def restore(self, rows: Sequence[Row]) -> int:
        """Put back what is missing at the end of the database, or all of it; how many rows that were.

        Every counter must know `rows` as the newest history: LedgerRolledBack where it saw more or another one. So no release
        is forgotten, because none leaves before the counters are written. LedgerDamaged where the database holds anything else.
        """
        events = read_chain(rows)
        for counter in self._read_counters():
            if len(events) < counter.entries or events[counter.entries - 1].digest.hex() != counter.head:
                raise LedgerRolledBack(
                    f"The export ends with entry {len(events)} and the counter saw entry {counter.entries} of another or a "
                    "longer history: find a newer export of this ledger. This node trains no more until then."
                )
        with _disk_errors(self.database), _folder_locked(self.database.parent):
            if not self.key.exists():
                write_secret(self.key, os.urandom(KEY_BYTES))
            if not self.database.exists():
                self._create_database(*rows)
                return len(rows)
        return self._append_missing(rows)

    def _append_missing(self, rows: Sequence[Row]) -> int:
        with self._connected("rw") as connection:
            _check(connection, self.database)
            connection.execute("BEGIN IMMEDIATE")
            try:
                present = tuple(_rows(connection))
                if present != tuple(rows[: len(present)]):
                    raise LedgerDamaged(
                        f"{self.database} holds entries that are not in the export: put it aside, then restore again."
                    )
                for row in rows[len(present) :]:
                    _insert(connection, row)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        return len(rows) - len(present)

    def open(self) -> tuple[Chain, bool]:
        """On opening: SQLite's own check of the pages, and the exact schema with its triggers; then as `read`.

        Left out where nobody wrote to the file since. Also whether a counter has not come to the last entry yet.
        """
        try:
            counters = self._read_counters()
        except LedgerError:
            self._verified(self._find_checked, (), checked=True)  # what is wrong with the ledger itself is said first
            raise
        events = self._verified(self._find_checked, counters, checked=True)
        newest = _counter_of(len(events), events[-1].digest)
        return events, any(counter != newest for counter in counters)

    def read(self) -> Chain:
        """All entries, verified against the chain and the counter. Raises LedgerDamaged, LedgerRolledBack.

        Where nobody wrote to the file since it was verified it is not opened; the counters always are compared.
        """
        counters = self._read_counters()  # first: entries may be added meanwhile, and a ledger ahead of its counters is fine
        return self._verified(self._find, counters)

    def _find(self) -> Known:
        with self._connected(self.mode) as connection:
            return _found(connection)

    def _find_checked(self) -> Known:
        with self._connected(self.mode) as connection:
            _check(connection, self.database)
            return Known(read_chain(_rows(connection)), checked=True)

    def read_rows(self) -> tuple[Row, ...]:
        """All rows, verified like `read`."""
        counters = self._read_counters()
        with self._connected(self.mode) as connection:
            find = partial(_found, connection)  # the same connection: what is added in between is verified by its reader
            self._verified(find, counters)
            return tuple(_rows(connection))

    @contextlib.contextmanager
    def appending(self) -> Iterator[Appender]:
        """One transaction: verified entries to decide on, and at most one to add. It is durable when the block has ended."""
        with self._connected("rw") as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Appender(connection, self._verified(partial(_found, connection), self._read_counters()))
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            self._advance_counter(connection)

    def catch_up(self) -> None:
        """Bring the counters to the last entry, where a crash came between, or make the witness where there is none yet."""
        with self._connected("rw") as connection:
            self._advance_counter(connection)

    def receipt_key(self, study: str) -> bytes:
        """Key of this study's receipts: two studies cannot recognise one ledger by them. Raises LedgerDamaged."""
        return hmac.digest(self._secret(), RECEIPT_LABEL + study.encode(), hashlib.sha256)

    def withdrawal_key(self) -> bytes:
        """Key of the codes of patients who have withdrawn: for the life of the ledger. Raises LedgerDamaged."""
        return hmac.digest(self._secret(), WITHDRAWAL_LABEL, hashlib.sha256)

    def _secret(self) -> bytes:
        try:
            key = self.key.read_bytes()
        except OSError as error:
            raise LedgerDamaged(f"cannot read the receipt key {self.key} ({error.strerror}): restore it.") from error
        if len(key) != KEY_BYTES:
            raise LedgerDamaged(f"the receipt key {self.key} has {len(key)} bytes instead of {KEY_BYTES}: restore it.")
        return key

    def _advance_counter(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")  # serialises writers of the counter; the figures below are the newest
        try:
            entries, head = connection.execute("SELECT seq, digest FROM events ORDER BY seq DESC LIMIT 1").fetchone()
            newest = _counter_of(entries, bytes(head))
            if any(not counter.exists() or _read_counter(counter) != newest for counter in self.counters):
                self._write_counters(newest)
        finally:
            connection.execute("ROLLBACK")

    def _read_counters(self) -> tuple[Counter, ...]:
        return tuple(_read_counter(counter) for counter in self.counters)

    def _write_counters(self, newest: Counter) -> None:
        for counter in self.counters:
            write_whole(counter, newest.model_dump_json().encode())

    def _verified(self, find: Callable[[], Known], counters: Sequence[Counter], *, checked: bool = False) -> Chain:
        """Known from before, or found now. Raises LedgerDamaged, LedgerRolledBack."""
        try:
            events = _known.of(self.database, find, lambda known: known.checked or not checked).chain
        except ChainError as error:
            raise LedgerDamaged(f"{self.database} does not verify: {error}; {RESTORE}") from error
        for counter in counters:
            check_counter(events, counter, self.database)
        return events

    @contextlib.contextmanager
    def _connected(self, mode: Mode) -> Iterator[sqlite3.Connection]:
        if not self.database.exists():
            raise LedgerMissing(f"There is no ledger at {self.database}: approve a plan first, or restore it if there was one.")
        with _disk_errors(self.database), contextlib.closing(_connect(self.database, mode)) as connection:
            yield connection


@lru_cache(maxsize=KEPT_FILES)  # a node asks for its own nine times in a round
def _files_of(database: Path, witness: Path | None, mode: Mode) -> LedgerFiles:
    return LedgerFiles(database, database.with_suffix(".counter"), database.with_suffix(".key"), witness, mode)


@dataclass(frozen=True, slots=True)
class Appender:
    """The inside of one transaction."""

    connection: sqlite3.Connection
    events: Chain

    def add(self, row: Row) -> None:
        """Add the row; it counts once the transaction has ended."""
        _insert(self.connection, row)


def _counter_of(entries: int, head: bytes) -> Counter:
    return Counter(entries=entries, head=head.hex())


def _read_counter(path: Path) -> Counter:
    try:
        return Counter.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise LedgerRolledBack(
            f"The counter {path} is missing, so nobody can say whether the ledger is the newest: restore it; if it is a second "
            "one that this ledger never had, start it with `secagg-node ledger counter`."
        ) from error
    except (OSError, ValidationError) as error:
        raise LedgerDamaged(f"The counter {path} is unreadable: restore it.") from error


def check_counter(events: Sequence[Event], counter: Counter, database: Path) -> None:
    """The ledger must hold the entry that the counter saw last. Raises LedgerRolledBack."""
    if len(events) < counter.entries:
        raise LedgerRolledBack(
            f"{database} holds {len(events)} entries, but {counter.entries} were written: a backup was restored and what was "
            "spent since is missing. This node trains no more until the newest copy or export is back."
        )
    if events[counter.entries - 1].digest.hex() != counter.head:
        raise LedgerRolledBack(
            f"Entry {counter.entries} of {database} is another one than its counter saw: a backup was restored or the history "
            "rewritten. This node trains no more until the newest copy or export is back."
        )


def _connect(database: Path, mode: str) -> sqlite3.Connection:
    address = f"file:{quote(str(database.absolute()))}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    for setting in ("journal_mode = DELETE", "synchronous = EXTRA", "fullfsync = ON"):
        if mode != "ro":
            connection.execute(f"PRAGMA {setting}")
    return connection


def _rows(connection: sqlite3.Connection) -> Iterator[Row]:
    rows = connection.execute("SELECT seq, at, kind, body, previous, digest FROM events ORDER BY seq")
    return (Row(*row) for row in rows)


def _found(connection: sqlite3.Connection) -> Known:
    return Known(read_chain(_rows(connection)), checked=False)


def _check(connection: sqlite3.Connection, database: Path) -> None:
    found = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master")}
    pages = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != set(DDL):
        raise LedgerDamaged(f"The tables or triggers of {database} were changed: {RESTORE}")
    if pages != "ok":
        raise LedgerDamaged(f"{database} is damaged ({pages}): {RESTORE}")


def _insert(connection: sqlite3.Connection, row: Row) -> None:
    connection.execute(
        "INSERT INTO events (seq, at, kind, body, previous, digest) VALUES (?, ?, ?, ?, ?, ?)",
        (row.seq, row.at, row.kind, row.body, row.previous, row.digest),
    )


@contextlib.contextmanager
def _disk_errors(database: Path) -> Iterator[None]:
    """Turn what SQLite and the disk say into one sentence."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise AlreadyReleased(
            f"{database} refused the entry ({error}): a round or an update is released once, ever."
        ) from error
    except sqlite3.OperationalError as error:
        raise CannotRecord(
            f"{database} cannot be used now ({error}): nothing was recorded and nothing leaves; {_remedy(error)}"
        ) from error
    except sqlite3.DatabaseError as error:
        raise LedgerDamaged(f"{database} is damaged ({error}): {RESTORE}") from error
    except OSError as error:
        raise CannotRecord(
            f"{database} cannot be kept safe ({error.strerror}): nothing leaves until the disk works."
        ) from error


def _remedy(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code; the rest refines it
    if code == sqlite3.SQLITE_FULL:
        return "free space on that disk, then start again."
    if code == sqlite3.SQLITE_BUSY:
        return "another program holds the ledger: close it."
    if code == sqlite3.SQLITE_READONLY:  # a reader may not undo what a crash left unfinished
        return "start the node, which repairs the ledger after a crash, or check the rights of its folder."
    return "check the disk and the rights of its folder."


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
