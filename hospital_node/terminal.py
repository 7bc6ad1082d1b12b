"""A bar on standard error for long local work, where somebody sits at a terminal; nothing where nobody does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hospital_node.work import Count


@contextlib.contextmanager
def counted(title: str, console: Console | None = None) -> Iterator[Count]:
    """Give a function (done, in all) that moves the bar."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
