"""Running cells as tasks of a Ray cluster: the one that RAY_ADDRESS names, or a local one for the time of the study.

The same code runs a cell here and in a process of this machine (study/bench/worker.py). Messages come back to this process,
which alone writes the results. A task's workspace and data are paths on the machine that runs it: on several machines, give
them the same shared folders, or set SECAGG_DATA on each.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from study.bench.cells import Cell
from study.bench.engine_processes import environment
from study.bench.task import StudyError
from study.bench.worker import (
    STOP_AFTER_S,
    CellFailed,
    Event,
    Message,
    Run,
    name_of,
    read_event,
    run_named,
    sentence_of,
    stream,
)

ADDRESS_VARIABLE, ANSWERS_WITHIN_S = "RAY_ADDRESS", 10.0
DATA_VARIABLE, DATA_DEFAULT = "SECAGG_DATA", "../shared/data"  # below the folder that the study was started in


@dataclass(slots=True)
class RayTasks:
    """A crew of Ray tasks, one core each."""

    ray: Any = field(repr=False)
    run: str
    workspace: Path
    running: dict[Any, str] = field(default_factory=dict)  # stream of a task's messages -> cell id
    ended: set[str] = field(default_factory=set)  # cells that sent their result or their reason

    @classmethod
    def begin(cls, run: Run, workspace: Path, workers: int) -> Self:
        """Join the cluster, or start a local one of `workers` cores. Raises StudyError where Ray is missing or unreachable."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a study is sent anywhere
        try:
            import ray
        except ImportError as error:
            raise StudyError("--engine ray needs Ray, which is not installed: pip install 'hospital-secagg[ray]'") from error
        address = os.environ.get(ADDRESS_VARIABLE, "")
        local = {} if address else {"num_cpus": workers, "include_dashboard": False}
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            _refuse_silent(address)
            ray.init(runtime_env={"env_vars": environment()}, log_to_driver=False, logging_level="ERROR", **local)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            said = f"cannot reach the Ray cluster {address} ({sentence_of(error)})"
            raise StudyError(f"{said}: check {ADDRESS_VARIABLE}, or use --engine processes") from error
        signal.signal(signal.SIGTERM, on_term)  # Ray puts its own in place, which would end this process without a word
        return cls(ray, name_of(run), workspace)

    def start(self, cell: Cell) -> None:
        """Submit one cell. It is never retried by Ray: a cell that dies is recorded and run again at the next start."""
        task = self.ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(cell_messages)
        data = os.environ.get(DATA_VARIABLE) or str(Path(DATA_DEFAULT).resolve())
        self.running[task.remote(self.run, cell.model_dump_json(), str(self.workspace), data)] = cell.id

    def events(self, timeout_s: float) -> list[Event]:
        """What happened, waiting up to `timeout_s` for it."""
        if not self.running:
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=timeout_s, fetch_local=False)
        return [event for messages in ready for event in self._next(messages)]

    def stop(self) -> None:
        """Cancel all tasks, wait a little for them, and leave the cluster."""
        for messages in self.running:
            self.ray.cancel(messages)
        ends = [messages.completed() for messages in self.running]
        if ends:
            self.ray.wait(ends, num_returns=len(ends), timeout=STOP_AFTER_S)
        self.running.clear()
        self.ray.shutdown()

    def _next(self, messages: Any) -> Iterator[Event]:
        """The next message of one task; its end where there is none."""
        cell = self.running[messages]
        try:
            message: Message = self.ray.get(next(messages))
        except StopIteration:
            del self.running[messages]
            if cell not in self.ended:
                yield CellFailed(cell, "its task ended without a result")
            return
        except self.ray.exceptions.RayError as error:
            del self.running[messages]
            yield CellFailed(cell, f"its task was lost: {sentence_of(getattr(error, 'cause', None) or error)}")
            return
        if "round" not in message:
            self.ended.add(cell)
        yield read_event(cell, message)


def _refuse_silent(address: str) -> None:
    """Raise OSError where nobody answers at host:port, which Ray itself notices after minutes."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=ANSWERS_WITHIN_S).close()


def cell_messages(run: str, content: str, workspace: str, data: str) -> Iterator[Message]:
    """Run one cell in a task. `data`: SECAGG_DATA of the machine that started the study, for one that does not say."""
    os.environ.setdefault(DATA_VARIABLE, data)
    messages = stream(run_named(run), Cell.model_validate_json(content), Path(workspace), threading.Event())
    with contextlib.closing(messages):
        yield from messages
