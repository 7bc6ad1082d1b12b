"""The write side of a study's results: one writer, every change one transaction; CSV copies for other tools.

A round is published as it happens, a cell as it ends. Rule: only what ended stays; a cell that was running when its process
went away is planned again and its rounds are removed, so that no table ever mixes two runs of one cell.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, delete, event, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from study import results_tables as tables
from study.bench.cells import Cell, CellResult, Readings, RoundRow, Setting
from study.bench.readings import known
from study.results import FILE, CellRow, Results, ResultsError, StudyRow, cause, results_engine

UNENDED: Mapping[str, Any] = {"state": "planned", "reason": "", "started_at": None, "ended_at": None}


class ResultsWriter(Results):
    """The one writer of a study's results; study/bench/engine.py holds the folder's lock while it lives."""

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Open the results in `folder`, making file and tables where needed. Raises ResultsError."""
        path = folder / FILE
        engine = _write_engine(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tables.metadata.create_all(engine)
            with engine.begin() as connection:
                _claim_schema(connection)
        except (OSError, SQLAlchemyError) as error:
            said = cause(error) if isinstance(error, SQLAlchemyError) else error.strerror
            raise ResultsError(f"cannot write the results {path}: {said}") from error
        return cls(engine, path)

    def begin(self, study: StudyRow, cells: Sequence[Cell]) -> None:
        """Take `cells` as what the study file lists now: everything but finished cells is planned, from its first round.

        Raises ResultsError where the folder belongs to another study.
        """
        with self._changing() as connection:
            held = connection.scalar(select(tables.studies.c.name))
            if held not in {None, study.name}:
                raise ResultsError(f"{self.path.parent} holds the results of study '{held}': name another folder with --out")
            row = {"task": study.task, "metric": study.metric, "honesty": study.honesty, "source": study.source}
            _upsert(connection, tables.studies, {"name": study.name}, row)
            _forget(connection, _unended(connection))
            connection.execute(update(tables.cells).values(position=None))
            for position, cell in enumerate(cells):
                _upsert(connection, tables.cells, {"id": cell.id}, _listed(cell, position), UNENDED)

    def started(self, cell: str, at: float) -> None:
        """A planned cell begins."""
        self._move(cell, "planned", {"state": "running", "started_at": at})

    def round_done(self, cell: str, row: RoundRow) -> None:
        """Publish one round of a running cell."""
        with self._changing() as connection:
            _insert_round(connection, cell, row)

    def finished(self, result: CellResult, at: float) -> None:
        """A running cell is done; its rounds are those of the result."""
        kept = (
            "wall_s",
            "cpu_s",
            "epsilon",
            "delta",
            "noise_multiplier",
            "vector_length",
            "plan_digest",
            "hospitals",
            "clipped",
        )
        values: dict[str, Any] = {name: getattr(result, name) for name in kept}
        values |= {"state": "done", "ended_at": at, "software": software()}
        values["upload_bytes"] = sum(row.upload_bytes for row in result.rounds)
        values["download_bytes"] = sum(row.download_bytes for row in result.rounds)
        self._move(result.cell, "running", values, result)

    def failed(self, cell: str, reason: str, at: float) -> None:
        """A running cell gave nothing; it is run again at the next start."""
        self._move(cell, "running", {"state": "failed", "reason": reason, "ended_at": at})

    def interrupted(self) -> None:
        """Every running cell is planned again."""
        with self._changing() as connection:
            table = tables.cells
            _forget(connection, list(connection.scalars(select(table.c.id).where(table.c.state == "running"))))

    def _move(self, cell: str, state: str, values: Mapping[str, Any], result: CellResult | None = None) -> None:
        """Change one cell that is in `state`; with `result`, its rounds replace the published ones."""
        table = tables.cells
        with self._changing() as connection:
            changed = connection.execute(update(table).where(table.c.id == cell, table.c.state == state).values(dict(values)))
            if changed.rowcount != 1:
                raise ResultsError(
                    f"cell {cell} is not {state} in {self.path}: another process changed it; start the study again"
                )
            if result is not None:
                _remove_rounds(connection, [cell])
                for row in result.rounds:
                    _insert_round(connection, cell, row)
                if result.readings is not None:
                    _upsert(connection, tables.readings, {"cell": cell}, result.readings.model_dump())

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """One transaction: all of it on disk on leaving, or none of it."""
        try:
            with self._engine.begin() as connection:
                yield connection
                table = tables.counters
                number = connection.scalar(select(table.c.number).where(table.c.name == "revision")) or 0
                _set_counter(connection, "revision", number + 1)
        except SQLAlchemyError as error:
            raise ResultsError(f"cannot write the results {self.path}: {cause(error)}") from error


def software() -> str:
    """Version of the installed product."""
    try:
        return version("hospital-secagg")
    except PackageNotFoundError:
        return "not installed"


def write_csv(rows: Sequence[CellRow], folder: Path) -> None:
    """Rewrite cells.csv and rounds.csv: one row a cell, one row a round. Empty: not known, or no guarantee."""
    names = list(dict.fromkeys(name for row in rows for name in row.cell.settings))
    labels = list(dict.fromkeys(label for row in rows for one in row.rounds for label in one.scores))
    _write_rows(folder / "cells.csv", (_cell_values(row, names, labels) for row in rows))
    _write_rows(folder / "rounds.csv", (_round_values(row, one, labels) for row in rows for one in row.rounds))


def plain_setting(value: Setting) -> Setting:
    """`value` in plain JSON, which has no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cell_values(row: CellRow, names: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    cell, result = row.cell, row.result
    final = result.final if result else {}
    values: dict[str, Any] = {"cell": cell.id, "method": cell.method.value, "seed": cell.seed, "state": row.state}
    values |= {name: _written(cell.settings.get(name)) for name in names}
    values["score"] = result.score if result and final else None
    values |= {f"score {label}": final.get(label) for label in labels}
    for name in ("epsilon", "delta", "noise_multiplier", "wall_s", "cpu_s", "vector_length", "plan_digest", "clipped"):
        values["spent_epsilon" if name == "epsilon" else name] = getattr(result, name) if result else None
    values["epsilon_of"] = None if result is None or result.epsilon is None else cell.epsilon_of
    read = known(cell, result) if result else Readings()
    values |= {f"epsilon_{name}": value for name, value in read.model_dump().items()}
    values["rounds"] = row.rounds[-1].round if row.rounds else None
    values["hospitals_dealt"] = len(result.hospitals) if result else None
    values["patients"] = sum(result.hospitals.values()) if result else None
    return {**values, "upload_bytes": row.upload_bytes, "download_bytes": row.download_bytes, "reason": row.reason}


def _round_values(row: CellRow, one: RoundRow, labels: Sequence[str]) -> dict[str, Any]:
    means = {f"score {label}": math.fsum(values) / len(values) for label, values in one.scores.items() if values}
    return {
        "cell": row.cell.id,
        "method": row.cell.method.value,
        "seed": row.cell.seed,
        "round": one.round,
        "survivors": one.survivors,
        "score": math.fsum(means.values()) / len(means) if means else None,
        **{f"score {label}": means.get(f"score {label}") for label in labels},
        "spent_epsilon": one.epsilon,
        "epsilon_of": None if one.epsilon is None else row.cell.epsilon_of,
        "upload_bytes": one.upload_bytes,
        "download_bytes": one.download_bytes,
        "seconds": one.seconds,
    }


def _written(value: Setting) -> Setting:
    return json.dumps(value) if isinstance(value, list) else value


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """In one step: a reader sees the old file or the new one."""
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as handle:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(handle, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
    part.replace(path)


def _write_engine(path: Path) -> Engine:
    engine = results_engine(str(path))

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last cell, never the file

    return engine


def _listed(cell: Cell, position: int) -> dict[str, Any]:
    return {
        "study": cell.study,
        "position": position,
        "method": cell.method.value,
        "seed": cell.seed,
        "data_kind": cell.data.kind.value,
        "settings": {name: plain_setting(value) for name, value in cell.settings.items()},
        "content": cell.model_dump_json(),
    }


def _unended(connection: Connection) -> list[str]:
    table = tables.cells
    return list(connection.scalars(select(table.c.id).where(table.c.state.in_(("running", "failed")))))


def _forget(connection: Connection, cells: Sequence[str]) -> None:
    """These cells are planned from their first round."""
    _remove_rounds(connection, cells)
    connection.execute(update(tables.cells).where(tables.cells.c.id.in_(cells)).values(dict(UNENDED)))


def _remove_rounds(connection: Connection, cells: Sequence[str]) -> None:
    for table in (tables.scores, tables.rounds):
        connection.execute(delete(table).where(table.c.cell.in_(cells)))


def _insert_round(connection: Connection, cell: str, row: RoundRow) -> None:
    figures = {name: value for name, value in row.model_dump().items() if name != "scores"}
    connection.execute(insert(tables.rounds).values(cell=cell, **figures))
    for position, (label, values) in enumerate(row.scores.items()):
        one = {"cell": cell, "round": row.round, "label": label, "position": position, "per_case": list(values)}
        connection.execute(insert(tables.scores).values(one))


def _claim_schema(connection: Connection) -> None:
    """Number a new file; an old one keeps its number, which opening it checks."""
    if connection.scalar(select(tables.counters.c.number).where(tables.counters.c.name == "schema")) is None:
        _set_counter(connection, "schema", tables.SCHEMA_VERSION)


def _set_counter(connection: Connection, name: str, number: int) -> None:
    _upsert(connection, tables.counters, {"name": name}, {"number": number})


def _upsert(
    connection: Connection,
    table: Any,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    at_first: Mapping[str, Any] | None = None,
) -> None:
    same = [table.c[name] == value for name, value in key.items()]
    changed = connection.execute(update(table).where(*same).values(dict(values)))
    if changed.rowcount == 0:
        connection.execute(insert(table).values({**key, **values, **(at_first or {})}))
