"""Child processes of a demonstration: started apart from the terminal, stopped together, never left behind.

Each child is a session of its own, so that Ctrl-C reaches only the parent, which then stops all of them in order. On
Linux the kernel also ends a child whose parent died.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

STOP_AFTER_S = 6.0  # a node writes its state within a second; the rest is patience on a loaded machine
PR_SET_PDEATHSIG = 1  # prctl(2)


class ProcessFailed(RuntimeError):
    """A child ended on its own with an error; the text quotes the last lines of its log."""


def _die_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: nothing may be imported after it

    def ask_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask_kernel


@dataclass(slots=True)
class Child:
    """One running process and where its output goes."""

    name: str
    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def last_lines(self, count: int = 3) -> str:
        """The end of its log, for an error message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-count:]) or "(it printed nothing)"


@dataclass(slots=True)
class Family:
    """Context manager: starts children and stops all of them at the end, whatever the reason."""

    threads: int
    children: list[Child] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str], log: Path) -> Child:
        """Start `command` with its output appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509  (no threads of ours run at this point)
                env=environment,
            )
        child = Child(name, command, log, process)
        self.children.append(child)
        return child

    def is_running(self, name: str) -> bool:
        """Whether a child of this name runs."""
        return any(child.running for child in self.children if child.name == name)

    def kill(self, child: Child) -> None:
        """SIGKILL, as a power cut would."""
        child.process.kill()
        child.process.wait()
        self.children.remove(child)

    def raise_if_any_failed(self) -> None:
        """ProcessFailed where a child ended with another exit status than 0."""
        for child in self.children:
            status = child.process.poll()
            if status:
                raise ProcessFailed(f"{child.name} ended with status {status}: {child.last_lines()}\nIts log: {child.log}")

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those that stay."""
        for child in self.children:
            if child.running:
                child.process.terminate()
        deadline_s = time.monotonic() + STOP_AFTER_S
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.1, deadline_s - time.monotonic()))
        for child in self.children:
            if child.running:
                child.process.kill()
                child.process.wait()
        self.children.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
