"""The read side of a study's results: what the report, the app and the engine may see. Nothing here changes a file.

Rows are frozen values of study/bench/cells.py; writing lives in study/results_write.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from study import results_tables as tables
from study.bench.cells import Cell, CellResult, Readings, RoundRow

FILE = "results.db"  # in a study's folder
BUSY_S = 10.0  # a reader waits so long for the writer's checkpoint
STATES = ("planned", "running", "done", "failed")


class ResultsError(RuntimeError):
    """Results that cannot be read or written; one sentence that names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class StudyRow:
    """What is known of the study itself."""

    name: str
    task: str
    metric: str
    honesty: str
    source: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CellRow:
    """One cell. `rounds`: published so far. `result`: only where `state` is done."""

    cell: Cell
    state: str
    reason: str
    listed: bool  # in the study file of the last start
    started_at: datetime | None
    ended_at: datetime | None
    software: str
    rounds: tuple[RoundRow, ...] = field(repr=False)
    result: CellResult | None = field(repr=False)

    @property
    def upload_bytes(self) -> int:
        """Of all hospitals and rounds."""
        return sum(row.upload_bytes for row in self.rounds)

    @property
    def download_bytes(self) -> int:
        """Of all hospitals and rounds."""
        return sum(row.download_bytes for row in self.rounds)


def open_results(folder: Path) -> Results:
    """Open the results in a study's folder for reading. Raises ResultsError where there are none."""
    path = folder / FILE
    if not path.is_file():
        raise ResultsError(f"there are no results in {folder}: name the folder of a study that was run (secagg-study run)")
    return Results(results_engine(f"file:{quote(str(path.resolve()))}?mode=ro&uri=true"), path)


class Results:
    """Questions to one file of results. Every answer is read in one short transaction of its own."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self.path = path
        with self.reading() as connection:
            version = connection.scalar(select(tables.counters.c.number).where(tables.counters.c.name == "schema"))
        if version != tables.SCHEMA_VERSION:
            raise ResultsError(
                f"{path} has schema {version}, this software reads {tables.SCHEMA_VERSION}: use the version that wrote it"
            )

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def study(self) -> StudyRow:
        """The study whose results these are. Raises ResultsError where none was begun."""
        with self.reading() as connection:
            row = connection.execute(select(tables.studies)).first()
        if row is None:
            raise ResultsError(f"{self.path} names no study yet: start it once with secagg-study run")
        return StudyRow(row.name, row.task, row.metric, row.honesty, row.source)

    def revision(self) -> int:
        """A number that grows whenever anything has changed."""
        table = tables.counters
        with self.reading() as connection:
            return int(connection.scalar(select(table.c.number).where(table.c.name == "revision")) or 0)

    def states(self) -> dict[str, str]:
        """Cell id -> planned, running, done or failed; cells of the study file as last started."""
        table = tables.cells
        with self.reading() as connection:
            rows = connection.execute(select(table.c.id, table.c.state).where(table.c.position.is_not(None))).all()
        return {row.id: row.state for row in rows}

    def unlisted(self) -> int:
        """Cells that an earlier version of the study file listed."""
        table = tables.cells
        with self.reading() as connection:
            return int(connection.scalar(select(func.count()).select_from(table).where(table.c.position.is_(None))) or 0)

    def cells(self) -> list[CellRow]:
        """Cells of the study file as last started, in its order, with their rounds."""
        table = tables.cells
        with self.reading() as connection:
            rounds, readings = _rounds(connection), _readings(connection)
            rows = connection.execute(select(table).where(table.c.position.is_not(None)).order_by(table.c.position)).all()
        return [_cell_row(row, tuple(rounds.get(row.id, ())), readings.get(row.id)) for row in rows]

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection whose failures are ResultsError."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise ResultsError(f"cannot read the results {self.path}: {cause(error)}") from error


def results_engine(name: str) -> Engine:
    """SQLite engine on a path or file: URI whose connections wait for each other."""
    engine = create_engine(f"sqlite:///{name}", connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def cause(error: SQLAlchemyError) -> str:
    """What the database said, in its first line."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _rounds(connection: Connection) -> dict[str, list[RoundRow]]:
    """Published rounds by cell, in order."""
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)
    table = tables.scores
    for row in connection.execute(select(table).order_by(table.c.cell, table.c.round, table.c.position)):
        found[row.cell, row.round][row.label] = list(row.per_case)
    rounds: dict[str, list[RoundRow]] = defaultdict(list)
    for row in connection.execute(select(tables.rounds).order_by(tables.rounds.c.cell, tables.rounds.c.round)):
        figures = {name: getattr(row, name) for name in RoundRow.model_fields if name != "scores"}
        rounds[row.cell].append(RoundRow(**figures, scores=found.get((row.cell, row.round), {})))
    return rounds


def _readings(connection: Connection) -> dict[str, Readings]:
    """By cell; none in a file of a version that stored epsilon alone."""
    if not inspect(connection).has_table(tables.readings.name):
        return {}
    figures = tuple(Readings.model_fields)
    rows = connection.execute(select(tables.readings))
    return {row.cell: Readings(**{name: getattr(row, name) for name in figures}) for row in rows}


def _cell_row(row: Any, rounds: tuple[RoundRow, ...], readings: Readings | None) -> CellRow:
    return CellRow(
        cell=Cell.model_validate_json(row.content),
        state=row.state,
        reason=row.reason,
        listed=row.position is not None,
        started_at=_time(row.started_at),
        ended_at=_time(row.ended_at),
        software=row.software or "",
        rounds=rounds,
        result=_result(row, rounds, readings) if row.state == "done" else None,
    )


def _result(row: Any, rounds: tuple[RoundRow, ...], readings: Readings | None) -> CellResult:
    stored = ("wall_s", "cpu_s", "vector_length", "plan_digest", "noise_multiplier", "epsilon", "delta", "hospitals", "clipped")
    return CellResult(cell=row.id, rounds=list(rounds), readings=readings, **{name: getattr(row, name) for name in stored})


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
