"""Run a study: every cell of it that has not finished yet, several side by side, publishing what they give as it comes.

One process writes the results: this one, which holds the lock of the study's folder. Cells never see the file, so a crew may be
processes of this machine or tasks of a Ray cluster. Whatever ends the run, finished cells stay finished and all others are
planned again, from their first round.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from rich.console import Console

from study.bench.cells import Cell, Data, DataKind
from study.bench.engine_processes import Processes
from study.bench.engine_screen import Preparing, Screen, opening
from study.bench.estimate import Estimate, estimate
from study.bench.grid import Study
from study.bench.task import StudyError, Task
from study.bench.worker import CellDone, CellFailed, Engine, Event, RoundDone, Run
from study.results import StudyRow
from study.results_write import ResultsWriter, write_csv

POLL_S = 0.2
WORKSPACE, LOGS, LOCK = "work", "logs", "lock"  # in a study's folder


class Crew(Protocol):
    """Whatever runs cells."""

    def start(self, cell: Cell) -> None:
        """Start one cell."""
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """What happened, waiting up to `timeout_s` for it."""
        ...

    def stop(self) -> None:
        """End whatever still runs."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    done: int
    failed: int
    planned: int
    interrupted: bool


def run_study(
    study: Study,
    out: Path,
    *,
    workers: int | None = None,
    engine: Engine = Engine.PROCESSES,
    console: Console,
    run: Run | None = None,
    task: Task | None = None,
) -> Outcome:
    """Run what is not done yet; results go to `out`. `run` and `task` are the study's own unless given.

    Raises StudyError and ResultsError before anything runs; a cell that fails is recorded and the others go on.
    """
    from study.bench.charge import refuse_hopeless

    cells = study.cells()
    refuse_hopeless(cells)
    workers = _at_once(cells, workers or os.cpu_count() or 1)
    with only_one(out), ResultsWriter.create(out) as results:
        task = task or task_named(study.file.task)
        honesty = honesty_of(cells)
        results.begin(StudyRow(study.name, task.name, task.metric, honesty, study.source), cells)
        _settle_stored(results)
        todo, costs = _plan_work(results, cells, task, out, console, study.name)
        console.print(f"{costs.sentence(workers)}\n{honesty}", highlight=False, markup=False, soft_wrap=True)
        interrupted = False
        if todo:
            screen = Screen(console, {cell.id: cell for cell in cells}, len(cells) - len(todo), costs.core_s, workers)
            with _crew(engine, run or _run_cell(), out, workers) as crew:
                interrupted = _Driver(results, crew, screen, out).work(todo, workers)
        return _closing(results, interrupted, out, console)


def price_study(
    study: Study, out: Path, task: Task | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, str], Estimate]:
    """State of each cell and what the rest would cost; runs nothing and writes only the cache of prepared patients."""
    from study.bench.charge import refuse_hopeless
    from study.results import FILE, open_results

    refuse_hopeless(study.cells())
    states = {cell.id: "planned" for cell in study.cells()}
    finished: list[tuple[Cell, float]] = []
    if (out / FILE).is_file():
        with open_results(out) as results:
            rows = {row.cell.id: row for row in results.cells()}
        states |= {cell: rows[cell].state for cell in states if cell in rows}
        finished = [(row.cell, row.result.cpu_s) for row in rows.values() if row.result]
    todo = [cell for cell in study.cells() if states[cell.id] != "done"]
    task = task or task_named(study.file.task)
    return states, estimate(todo, finished, task, out / WORKSPACE / "cache", Preparing(say))


def task_named(name: str) -> Task:
    """The learning problem of that name. Raises StudyError."""
    from study.bench.cell import task_of

    return task_of(name)


def honesty_of(cells: Sequence[Cell]) -> str:
    """Whose patients these are and what that means, once for each kind of data."""
    from study.bench.charge import statement

    kinds: dict[str, Data] = {cell.data.model_dump_json(): cell.data for cell in cells}
    return "\n".join(dict.fromkeys(statement(data) for data in kinds.values()))


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold the study's folder; the lock goes with the process, however it ends. Raises StudyError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / LOCK).open("w", encoding="utf-8")
    except OSError as error:
        raise StudyError(f"cannot write {out}: {error.strerror}; name another folder with --out") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyError(
                f"another process runs the study in {out}: wait for it, or name another folder with --out"
            ) from error
        yield


def _at_once(cells: Sequence[Cell], workers: int) -> int:
    """A ledger bears only so many charges that have no result yet."""
    from study.bench.charge import CELLS_AT_ONCE

    private = any(cell.data.kind is DataKind.PRIVATE for cell in cells)
    return min(workers, CELLS_AT_ONCE) if private else workers


def _settle_stored(results: ResultsWriter) -> None:
    """Record in their ledgers what an earlier run stored and did not come to record. Raises StudyError."""
    from study.bench.charge import settle

    for row in results.cells():
        if row.result is not None:
            settle(row.cell, datetime.now(UTC))


def _run_cell() -> Run:
    from study.bench.cell import run_cell

    return run_cell


def _plan_work(
    results: ResultsWriter, cells: Sequence[Cell], task: Task, out: Path, console: Console, name: str
) -> tuple[list[Cell], Estimate]:
    """Cells to run, in the order of the file, and what they will cost."""
    rows = results.cells()
    finished = [(row.cell, row.result.cpu_s) for row in rows if row.result]
    done = {cell.id for cell, _ in finished}
    console.print(opening(name, cells, len(done)), highlight=False, markup=False, soft_wrap=True)
    todo = [cell for cell in cells if cell.id not in done]
    preparing = Preparing(lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True))
    return todo, estimate(todo, finished, task, out / WORKSPACE / "cache", preparing)


@contextmanager
def _crew(engine: Engine, run: Run, out: Path, workers: int) -> Iterator[Crew]:
    workspace = (out / WORKSPACE).resolve()
    crew: Crew
    if engine is Engine.RAY:
        from study.bench.engine_ray import RayTasks

        crew = RayTasks.begin(run, workspace, workers)
    else:
        crew = Processes(run, workspace, (out / LOGS).resolve())
    try:
        yield crew
    finally:
        crew.stop()


class _Driver:
    """Keeps `workers` cells running and writes down what they say."""

    def __init__(self, results: ResultsWriter, crew: Crew, screen: Screen, out: Path) -> None:
        self.results = results
        self.crew = crew
        self.screen = screen
        self.out = out
        self.running: dict[str, Cell] = {}

    def work(self, todo: Sequence[Cell], workers: int) -> bool:
        """Until nothing is left; whether it was interrupted before that."""
        waiting = list(reversed(todo))
        with self.screen:
            try:
                while waiting or self.running:
                    while waiting and len(self.running) < workers:
                        self._start(waiting.pop())
                    for event in self.crew.events(POLL_S):
                        self._take(event)
            except KeyboardInterrupt:
                self.crew.stop()
                self.results.interrupted()
                return True
        return False

    def _start(self, cell: Cell) -> None:
        self.running[cell.id] = cell
        self.results.started(cell.id, time.time())
        self.crew.start(cell)
        self.screen.started(cell)

    def _take(self, event: Event) -> None:
        cell = self.running[event.cell]
        match event:
            case RoundDone(row=row):
                self.results.round_done(cell.id, row)
                self.screen.round_done(cell, row)
            case CellDone(result=result):
                self._end(cell, lambda: self.results.finished(result, time.time()))
                self.screen.finished(cell, result)
                self._settle(cell)
            case CellFailed(reason=reason):
                self._end(cell, lambda: self.results.failed(cell.id, reason, time.time()))
                self.screen.failed(cell, reason)

    def _settle(self, cell: Cell) -> None:
        """After the result is stored. A ledger that cannot be written now is asked again at the next start."""
        from study.bench.charge import settle

        try:
            settle(cell, datetime.now(UTC))
        except StudyError as error:
            self.screen.say(f"{error}; the result is kept, and the next start of this study records it")

    def _end(self, cell: Cell, record: Callable[[], None]) -> None:
        record()
        del self.running[cell.id]
        write_csv(self.results.cells(), self.out)


def _closing(results: ResultsWriter, interrupted: bool, out: Path, console: Console) -> Outcome:
    write_csv(results.cells(), out)
    states = list(results.states().values())
    outcome = Outcome(states.count("done"), states.count("failed"), states.count("planned"), interrupted)
    said = f"{outcome.done} of {len(states)} cells done"
    if outcome.failed:
        said += f", {outcome.failed} failed: run the same command again to try them once more"
    elif interrupted:
        said += f", {outcome.planned} left: run the same command again to go on"
    else:
        said += f". Tables and figures: secagg-study report {out}"
    console.print(("Stopped. " if interrupted else "") + said, highlight=False, markup=False, soft_wrap=True)
    return outcome
