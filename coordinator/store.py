"""The read side of the coordinator's store: what the app, `status` and the study may see of a run.

Opened read-only: nothing here can change a run. Rows are frozen values; times are aware (UTC); parties are certificate
URIs. Writing lives in coordinator/store_write.py. A store of an older release is read as it is: what it does not hold is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from coordinator import tables
from coordinator.database import StoreError, StoreLost, read_engine, refused, shown
from coordinator.migrations import refuse_newer, version_of
from proto.layout import Layout
from proto.plan import Plan, from_canonical
from proto.roundlog import DIGEST_FIELDS, Entry, first_head

__all__ = ["StoreError", "StoreLost"]  # of what others take from here

PHASES = ("join", "broadcast", "train", "advertise", "share", "mask", "confirm", "reveal", "result", "evaluate")
FLOAT32_BYTES = 4
STORE_FILE = "store.db"
URL_FILE = "store.url"  # of the state folder: where the store is, if it is no file of it


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round. `state`: training, masking, opened, aborted. `dropped`: member -> phase in which it was lost."""

    number: int
    state: str
    started_at: datetime
    ended_at: datetime | None = None
    cohort: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)
    model_digest: str | None = None  # hexadecimal; None until opened
    phase_seconds: dict[str, float] = field(default_factory=dict)
    reason: str = ""  # why, where aborted


@dataclass(frozen=True, slots=True)
class TrafficRow:
    """Bytes on the connection of one party; `direction`: up = from the party, down = to it."""

    round: int
    party: str
    direction: str
    phase: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Dice of one label on an evaluator's public cases; round 0 is the start."""

    round: int
    label: str
    per_case: tuple[float, ...]
    evaluator: str = ""


@dataclass(frozen=True, slots=True)
class ValidationRow:
    """Mean score of one label over the hospitals' own validation patients, with noise on it; rode in `round`.

    `mean` is None where the noisy count `patients` is too near to 0; `standard_error` is of the noise alone.
    """

    round: int
    label: str
    model_round: int  # round of the model that was measured; 0: the start
    hospitals: int
    mean: float | None
    standard_error: float | None
    patients: float


@dataclass(frozen=True, slots=True)
class EventRow:
    """One thing that happened, in plain words. `party` is empty where the whole federation is meant."""

    seq: int
    at: datetime
    round: int
    party: str
    kind: str
    phase: str
    text: str


@dataclass(frozen=True, slots=True)
class MemberRow:
    """State of one admitted party.

    `state`: absent, joined, training, ready, masking, declined, failed, excluded, evaluating. `code`: why, where declined
    or failed (proto.plan.DECLINE_CODES).
    """

    uri: str
    state: str
    last_seen_at: datetime | None
    phase: str
    code: str


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One published model; round 0 is the public start. Its vector is models/<digest>.f32 of the state folder."""

    round: int
    digest: str
    length: int


def open_store(where: Path | str, readonly: bool = True) -> StoreReader:
    """Open the store at a file path or URL for reading. Raises StoreError where there is none."""
    if not readonly:
        raise StoreError("the store is written by the coordinator alone: use coordinator.store_write.StoreWriter")
    engine = read_engine(str(where))
    try:
        return StoreReader(engine)
    except StoreError:
        engine.dispose()
        raise


def store_in(folder: Path) -> Path | str | None:
    """Where the store of a state folder is: its file, or the URL of a server; None before there is one."""
    file, server = folder / STORE_FILE, folder / URL_FILE
    try:
        return file if file.is_file() else server.read_text(encoding="utf-8").strip()
    except OSError:
        return None


class StoreReader:
    """Questions to one store. Every answer is read in one short transaction of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        with self._reading() as connection:
            version = version_of(connection)
        if version == 0:
            raise StoreError(f"the database {shown(engine)} holds no store yet: start the coordinator once")
        refuse_newer(version, shown(engine))

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(self) -> Plan:
        """The study plan of this run."""
        return from_canonical(self._document("plan"))

    def layout(self) -> Layout:
        """Names and shapes of the model's tensors."""
        return Layout.from_json(self._document("layout").decode())

    def float32_bytes(self) -> int:
        """Size of one update as plain float32: the line that upload sizes are compared with."""
        return FLOAT32_BYTES * self.layout().length

    def waiting(self) -> str:
        """What the run waits for, in plain words; empty where it waits for nobody."""
        return json.loads(self._document("status"))["waiting"]  # type: ignore[no-any-return]

    def finished(self) -> str:
        """Why the run ended; empty while it goes on."""
        return json.loads(self._document("status"))["finished"]  # type: ignore[no-any-return]

    def phase(self) -> tuple[str, datetime | None]:
        """The present phase and when it began; ("", None) before the first one."""
        status = json.loads(self._document("status"))
        return status.get("phase", ""), _time(status["since"]) if "since" in status else None

    def awaited(self) -> list[dict[str, Any]]:
        """Hospitals that the present phase waits for: uri, state, phase, since (seconds since 1970), survives_without."""
        status = json.loads(self._document("status"))
        same = {"phase": status.get("phase", ""), "since": status.get("since", 0.0)}
        return [{**item, **same} for item in status.get("awaited", [])]

    def heartbeat(self) -> datetime | None:
        """When the coordinator last said that it runs; None before its first start."""
        with self._reading() as connection:
            table = tables.documents
            body = connection.scalar(select(table.c.body).where(table.c.name == "heartbeat"))
        return None if body is None else _time(json.loads(bytes(body))["at"])

    def revision(self) -> int:
        """A number that grows whenever anything in the store has changed."""
        table = tables.counters
        with self._reading() as connection:
            return int(connection.scalar(select(table.c.number).where(table.c.name == "revision")) or 0)

    def rounds(self, after: int = 0) -> list[RoundRow]:
        """Rounds begun so far, in order; those with a number above `after`."""
        times: dict[int, dict[str, float]] = {}
        with self._reading() as connection:
            of = tables.phase_times.c
            for number, phase, seconds in connection.execute(select(of.round, of.phase, of.seconds).where(of.round > after)):
                times.setdefault(number, {})[phase] = seconds
            chosen = select(tables.rounds).where(tables.rounds.c.number > after)
            rows = connection.execute(chosen.order_by(tables.rounds.c.number)).all()
        return [_round_row(row, times.get(row.number, {})) for row in rows]

    def traffic(self, number: int | None = None) -> list[TrafficRow]:
        """Bytes by round, party, direction and phase; of one round where it is named."""
        table = tables.traffic
        query = select(table).where(*_of_round(table, number))
        query = query.order_by(table.c.round, table.c.party, table.c.direction, table.c.phase)
        return [TrafficRow(row.round, row.party, row.direction, row.phase, row.bytes) for row in self._all(query)]

    def traffic_between(self, first: int, last: int) -> list[TrafficRow]:
        """As `traffic`, of rounds `first` to `last`, both included."""
        table = tables.traffic
        columns = (table.c.round, table.c.party, table.c.direction, table.c.phase)
        query = select(*columns, table.c.bytes).where(table.c.round >= first, table.c.round <= last).order_by(*columns)
        return [TrafficRow(*row) for row in self._all(query)]

    def traffic_seen(self, first: int, last: int) -> dict[int, tuple[int, int]]:
        """Round -> (rows, bytes) of rounds `first` to `last`: what grows when bytes are counted for one of them."""
        table = tables.traffic
        query = select(table.c.round, func.count(), func.sum(table.c.bytes))
        query = query.where(table.c.round >= first, table.c.round <= last).group_by(table.c.round)
        return {number: (count, int(size)) for number, count, size in self._all(query)}

    def traffic_totals(self, after: int = -1, last: int | None = None) -> dict[tuple[str, str], int]:
        """(party, direction) -> bytes of all phases, of rounds above `after` up to `last`."""
        table = tables.traffic
        query = select(table.c.party, table.c.direction, func.sum(table.c.bytes).label("bytes")).where(table.c.round > after)
        if last is not None:
            query = query.where(table.c.round <= last)
        rows = self._all(query.group_by(table.c.party, table.c.direction))
        return {(row.party, row.direction): int(row.bytes) for row in rows}

    def scores_seen(self) -> tuple[int, int]:
        """How many measurements there are, and the newest round measured: what changes when one arrives."""
        table = tables.scores
        with self._reading() as connection:
            count, newest = connection.execute(select(func.count(), func.max(table.c.round)).select_from(table)).one()
        return int(count), -1 if newest is None else int(newest)

    def scores(self, number: int | None = None, *, after: int = -1) -> list[ScoreRow]:
        """Dice per case, by round, evaluator and label; of one round where it is named, of rounds above `after`."""
        table = tables.scores
        query = select(table).where(table.c.round > after, *_of_round(table, number))
        query = query.order_by(table.c.round, table.c.evaluator, table.c.position)
        return [ScoreRow(row.round, row.label, tuple(row.per_case), row.evaluator) for row in self._all(query)]

    def validations(self) -> list[ValidationRow]:
        """Noised means over the hospitals' validation patients, by round and label; none in a store made before there were."""
        table = tables.validations
        return [
            ValidationRow(row.round, row.label, row.model_round, row.hospitals, row.mean, row.standard_error, row.patients)
            for row in self._all_of(table, select(table).order_by(table.c.round, table.c.position))
        ]

    def events(self, after_seq: int = 0, *, number: int | None = None, kinds: Sequence[str] = ()) -> list[EventRow]:
        """What happened after event `after_seq`, oldest first; of one round or of some kinds where they are named."""
        table = tables.events
        query = select(table).where(table.c.seq > after_seq, *_of_round(table, number))
        if kinds:
            query = query.where(table.c.kind.in_(kinds))
        return [_event(row) for row in self._all(query.order_by(table.c.seq))]

    def newest_events(self, most: int) -> list[EventRow]:
        """The last `most` events, oldest first."""
        table = tables.events
        rows = self._all(select(table).order_by(table.c.seq.desc()).limit(most))
        return [_event(row) for row in reversed(rows)]

    def members(self) -> list[MemberRow]:
        """Every party that the plan admits, by URI."""
        rows = sorted(self._all(select(tables.members)), key=lambda row: str(row.uri))  # servers sort text in their own ways
        return [
            MemberRow(row.uri, row.state, None if row.last_seen_at is None else _time(row.last_seen_at), row.phase, row.code)
            for row in rows
        ]

    def models(self) -> list[ModelRow]:
        """Published models by round, the start first."""
        query = select(tables.models).order_by(tables.models.c.round)
        return [ModelRow(row.round, row.digest, row.length) for row in self._all(query)]

    def means(self) -> dict[int, str]:
        """Round -> digest of the mean that it opened, whose values are models/<digest>.mean.f32; of rounds that kept it."""
        table = tables.means
        return {row.round: row.digest for row in self._all_of(table, select(table).order_by(table.c.round))}

    def sum_digests(self) -> dict[int, str]:
        """Round -> digest of the sum that its hospitals were told, hexadecimal."""
        table = tables.sessions
        rows = self._all(select(table.c.round, table.c.sum_digest).where(table.c.state == "opened"))
        return {row.round: row.sum_digest for row in rows}

    def log_entries(self, after: int = 0, most: int | None = None) -> list[Entry]:
        """The log of rounds after entry `after`, at most so many; none in a store made before there was one."""
        table = tables.round_log
        query = select(table).where(table.c.number > after).order_by(table.c.number).limit(most)
        return [log_entry_of(row) for row in self._all_of(table, query)]

    def log_state(self) -> tuple[int, bytes]:
        """How many entries the log of rounds has, and its head."""
        table = tables.round_log
        rows = self._all_of(table, select(table.c.number, table.c.head).order_by(table.c.number.desc()).limit(1))
        return (rows[0].number, bytes.fromhex(rows[0].head)) if rows else (0, first_head(self.plan().digest()))

    def sessions_used(self) -> int:
        """How many masking sessions this run has begun."""
        with self._reading() as connection:
            return int(connection.scalar(select(func.count()).select_from(tables.sessions)) or 0)

    def _all_of(self, table: Table, query: Select[Any]) -> list[Any]:
        """As `_all`; nothing where the store is older than the table."""
        with self._reading() as connection:
            return list(connection.execute(query).all()) if inspect(connection).has_table(table.name) else []

    def _all(self, query: Select[Any]) -> list[Any]:
        with self._reading() as connection:
            return list(connection.execute(query).all())

    def _document(self, name: str) -> bytes:
        table = tables.documents
        with self._reading() as connection:
            body = connection.scalar(select(table.c.body).where(table.c.name == name))
        if body is None:
            raise StoreError(f"the store {shown(self._engine)} holds no {name} yet: start the coordinator once")
        return bytes(body)

    @contextmanager
    def _reading(self, does: str = "read") -> Iterator[Connection]:
        """A connection while the block runs; what the database says against it is a StoreError."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise refused(self._engine, does, error) from error


def _of_round(table: Table, number: int | None) -> tuple[ColumnElement[bool], ...]:
    return () if number is None else (table.c.round == number,)


def _round_row(row: Any, seconds: dict[str, float]) -> RoundRow:
    return RoundRow(
        number=row.number,
        state=row.state,
        started_at=_time(row.started_at),
        ended_at=None if row.ended_at is None else _time(row.ended_at),
        cohort=tuple(row.cohort),
        survivors=tuple(row.survivors),
        dropped=dict(row.dropped),
        model_digest=row.model_digest,
        phase_seconds={phase: seconds[phase] for phase in PHASES if phase in seconds},
        reason=row.reason,
    )


def log_entry_of(row: Any) -> Entry:
    """A row of the log of rounds as the entry that it holds."""
    digests = {name: bytes.fromhex(getattr(row, name)) for name in DIGEST_FIELDS}
    return Entry(index=row.number, round=row.round, state=row.state, survivors=tuple(row.survivors), **digests)


def _event(row: Any) -> EventRow:
    return EventRow(row.seq, _time(row.at), row.round, row.party, row.kind, row.phase, row.text)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
