"""One cell in a process of its own: the cell comes in on standard input, events go out on standard output, one JSON a line.

Standard input stays open for as long as the cell is wanted: when it closes, because the study was stopped or its process is
gone, the cell stops at its next step. Everything that a library prints goes to the log with the errors.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

from hospital_node.work import Interrupted
from study.bench.cells import Cell, CellResult, RoundRow

STOP_AFTER_S = 5.0  # one local step of a large network; then the process is ended
WAKES_AFTER_S = 0.5
OUR_PACKAGES = ("study", "hospital_node", "coordinator", "secagg", "proto", "certs")


class Engine(StrEnum):
    """Where cells run."""

    PROCESSES = "processes"  # of this machine
    RAY = "ray"  # tasks of a cluster


Run = Callable[[Cell, Path, Callable[[RoundRow], None], threading.Event], CellResult]
Message = dict[str, Any]  # {"round": ...}, {"result": ...}, {"failed": sentence} or {"stopped": true}; plain JSON


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A round of a running cell ended."""

    cell: str
    row: RoundRow


@dataclass(frozen=True, slots=True)
class CellDone:
    """A cell ended as it should."""

    result: CellResult

    @property
    def cell(self) -> str:
        """Its id."""
        return self.result.cell


@dataclass(frozen=True, slots=True)
class CellFailed:
    """A cell ended without a result, with the reason in one sentence."""

    cell: str
    reason: str


Event = RoundDone | CellDone | CellFailed


def read_event(cell: str, message: Message) -> Event:
    """What a message of a worker says."""
    if "round" in message:
        return RoundDone(cell, RoundRow.model_validate(message["round"]))
    if "result" in message:
        return CellDone(CellResult.model_validate(message["result"]))
    return CellFailed(cell, message.get("failed", "stopped before its end"))


def name_of(run: Run) -> str:
    """`package.module:name` of a function, by which another process finds it."""
    return f"{run.__module__}:{run.__qualname__}"


def run_named(name: str) -> Run:
    """The function of that name."""
    module, _, attribute = name.partition(":")
    return cast("Run", getattr(importlib.import_module(module), attribute))


def stream(run: Run, cell: Cell, workspace: Path, stop: threading.Event) -> Generator[Message]:
    """Run one cell in a thread and give its messages as they come; the last one is no round. Closing it stops the cell."""
    waiting: SimpleQueue[RoundRow | None] = SimpleQueue()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="cell") as pool:
        future = pool.submit(run, cell, workspace, waiting.put, stop)
        future.add_done_callback(lambda _: waiting.put(None))
        try:
            while (row := _next(waiting)) is not None:
                yield {"round": row.model_dump()}
        finally:
            stop.set()
    yield _last(future, cell)


def sentence_of(error: BaseException) -> str:
    """The error in one line; the errors of our own packages are sentences already."""
    ours = type(error).__module__.split(".")[0] in OUR_PACKAGES
    said = " ".join(str(error).split())
    return said if ours and said else f"{type(error).__name__}: {said}"


def _next(waiting: SimpleQueue[RoundRow | None]) -> RoundRow | None:
    """The next item. Wakes up now and then: Ray's interrupt reaches no thread that waits for a lock."""
    while True:
        try:
            return waiting.get(timeout=WAKES_AFTER_S)
        except Empty:
            continue


def _last(future: Future[CellResult], cell: Cell) -> Message:
    error = future.exception()
    if error is None:
        return {"result": future.result().model_dump()}
    if isinstance(error, Interrupted):
        return {"stopped": True}
    traceback.print_exception(error)
    return {"failed": sentence_of(error) or f"cell {cell.id} failed"}


def _main() -> None:
    run, workspace = run_named(sys.argv[1]), Path(sys.argv[2])
    events = _claimed_stdout()
    cell = Cell.model_validate_json(sys.stdin.readline())
    stop = threading.Event()
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()
    for message in stream(run, cell, workspace, stop):
        os.write(events, json.dumps(message).encode() + b"\n")


def _claimed_stdout() -> int:
    """A descriptor for events alone; what else is printed goes where errors go."""
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events


def _watch(stop: threading.Event) -> None:
    """Wait for the end of standard input, then stop the cell, and the process if it does not listen."""
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read, whose lock an ending interpreter would wait for
        pass
    stop.set()
    time.sleep(STOP_AFTER_S)
    os._exit(1)


if __name__ == "__main__":
    _main()
