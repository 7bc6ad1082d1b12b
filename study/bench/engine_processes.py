"""Running cells on one machine: one process a cell, one core each.

Every child is a session of its own, so that Ctrl-C reaches only this process, which then closes its children's standard input:
they stop at their next step, or are killed a few seconds later. A child that dies says so by the end of its output.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from study.bench.cells import Cell
from study.bench.worker import STOP_AFTER_S, CellFailed, Event, Message, Run, name_of, read_event

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
READ_BYTES = 1 << 16


@dataclass(slots=True)
class Child:
    """One running cell."""

    cell: str
    process: subprocess.Popen[bytes]
    log: Path
    unread: bytes = b""
    said_last: bool = False  # it sent its result or its reason

    def messages(self) -> Iterator[Message]:
        """Whole lines that have arrived."""
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.said_last |= "round" not in message
            yield message


@dataclass(slots=True)
class Processes:
    """A crew of child processes. Context manager: nothing is left behind."""

    run: Run
    workspace: Path
    logs: Path
    children: list[Child] = field(default_factory=list)
    arrivals: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def start(self, cell: Cell) -> None:
        """Start one cell."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{cell.id}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "study.bench.worker", name_of(self.run), str(self.workspace)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env=os.environ | environment(),
            )
        child = Child(cell.id, process, log)
        self.children.append(child)
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.arrivals.register(process.stdout, selectors.EVENT_READ, child)
        with contextlib.suppress(BrokenPipeError):  # it died at once: the end of its output says so
            process.stdin.write(cell.model_dump_json().encode() + b"\n")
            process.stdin.flush()

    def events(self, timeout_s: float) -> list[Event]:
        """What happened, waiting up to `timeout_s` for it."""
        found: list[Event] = []
        for key, _ in self.arrivals.select(timeout_s):
            child: Child = key.data
            data = os.read(key.fd, READ_BYTES)
            child.unread += data
            found += [read_event(child.cell, message) for message in child.messages()]
            if not data:
                found += self._ended(child)
        return found

    def stop(self) -> None:
        """Ask all children to stop, and kill those that do not."""
        for child in self.children:
            with contextlib.suppress(OSError):
                child.process.stdin.close()  # type: ignore[union-attr]
        deadline_s = time.monotonic() + STOP_AFTER_S
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline_s - time.monotonic()))
        for child in list(self.children):
            self._remove(child, patience_s=0.0)

    def _ended(self, child: Child) -> list[Event]:
        """The end of a child's output: what its end means where it has not said so itself."""
        status = self._remove(child, patience_s=STOP_AFTER_S)
        if child.said_last:
            return []
        log = f"its log is {child.log.parent.name}/{child.log.name}" if child.log.exists() else "it logged nothing"
        return [CellFailed(child.cell, f"{_end_in_words(status)}; {log}")]

    def _remove(self, child: Child, patience_s: float) -> int:
        process = child.process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        if process.poll() is None:
            process.kill()
        status = process.wait()
        assert process.stdout is not None
        self.arrivals.unregister(process.stdout)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self.children.remove(child)
        if not child.log.stat().st_size:
            child.log.unlink()
        return status


def environment() -> dict[str, str]:
    """Of a process that runs one cell: one core, and the modules that this process finds (a study may bring its own task)."""
    return {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(dict.fromkeys(place for place in sys.path if place))}


def _end_in_words(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status} and no result"
    name = signal.Signals(-status).name
    hint = ": the machine may be out of memory, start the study again with fewer workers" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
