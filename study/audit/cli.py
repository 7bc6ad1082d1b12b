"""`secagg-study audit`: attack the node's own training, as built and broken on purpose, and write down what came of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

FAILED, BAD_INPUT = 1, 2  # exit status


def audit(
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("audit"),
    runs: Annotated[int, typer.Option(min=20, help="Rounds of each condition, half of them with a canary.")] = 5000,
    canaries: Annotated[int, typer.Option(min=1, max=64, help="Canary patients, each by coins of its own.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Local steps of a round.")] = 2,
    inverse_rate: Annotated[int, typer.Option("--inverse-rate", min=1, help="Patients are drawn with chance 1 in this.")] = 2,
    epsilon: Annotated[float, typer.Option(min=0.01, help="What the node reports: the noise is solved for it.")] = 0.9,
    scan_runs: Annotated[int, typer.Option("--scan-runs", min=0, help="Rounds with a segmentation network, or 0.")] = 1100,
    shared_runs: Annotated[int, typer.Option("--shared-runs", min=0, help="Rounds under shared noise, or 0.")] = 1200,
    checks: Annotated[int, typer.Option(min=0, help="Rounds for divisor, sampling and noise; 0 for none.")] = 2000,
    *,
    pictures: Annotated[bool, typer.Option(help="Try to draw a scan from a plain, a masked and a noised update.")] = True,
) -> None:
    """Attack the node's private training with canary patients. Exit status 1 where something is not as reported.

    As built, the attack must show no more than the epsilon reported; with the noise off, the clip off, or a clip for each
    patch, the same attack must show more; likewise under shared noise, where one hospital tells the coordinator its share. Only
    invented patients are trained on; no ledger is touched.
    """
    from study.audit import audit as whole
    from study.audit import report
    from study.audit.canaries import Setting

    try:
        linear = Setting(runs=runs, canaries=canaries, steps=steps, inverse_rate=inverse_rate, epsilon=epsilon)
        scans = Setting(runs=scan_runs, steps=1, inverse_rate=1, guessed=1 / 4, epsilon=epsilon) if scan_runs else None
        shared = None
        if shared_runs:
            shared = Setting(runs=shared_runs, canaries=canaries, steps=1, inverse_rate=inverse_rate, epsilon=epsilon)
        extent = whole.Extent(linear, scans, checks, pictures, shared)
        with _bar(extent.units) as tick:
            found = whole.run(extent, os.urandom, tick)
    except ValueError as error:
        print(f"secagg-study: {error}", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from error
    written = report.write(found, out)
    print("\n".join(report.text(found)))
    print("\n" + "\n".join(str(path) for path in written))
    raise typer.Exit(FAILED if found.complaints else 0)


def register(app: typer.Typer) -> None:
    """Make `audit` a command of `app`."""
    app.command()(audit)


class _bar:  # noqa: N801  used as a function
    """A progress bar on standard error at a terminal, nothing elsewhere."""

    def __init__(self, units: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
        self._task = self._progress.add_task("starting", total=units)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, label: str) -> None:
        self._progress.update(self._task, advance=1, description=label)
