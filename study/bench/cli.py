"""The study commands of `secagg-study`, from run to processes. Heavy modules load when a command needs them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from study.bench.task import StudyError
from study.bench.worker import Engine

LOG_WIDTH = 140  # columns where the output is no terminal: one line an event
STUDIES = Path("studies")
INTERRUPTED, FAILED_CELLS, BAD_INPUT = 130, 1, 2  # exit status


class Noise(StrEnum):
    """Whose noise."""

    LOCAL = "local"
    SHARED = "shared"


class Reading(StrEnum):
    """Whose reading of shared noise."""

    CHARGED = "charged"
    OUTSIDER = "outsider"


StudyFile = Annotated[Path, typer.Argument(help="The study file (TOML): study/STUDIES.md says how to write one.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results; studies/<name of the study> if left out.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Cells side by side, one core each; all cores if left out.")]


def run(
    study: StudyFile,
    out: Out = None,
    workers: Workers = None,
    engine: Annotated[
        Engine, typer.Option(help="processes: of this machine; ray: tasks of the cluster at RAY_ADDRESS, else of a local one.")
    ] = Engine.PROCESSES,
) -> None:
    """Run every cell of a study that is not done yet. Say first what it will cost; Ctrl-C keeps what is finished.

    Results: results.db, cells.csv and rounds.csv in the folder. Exit status 1 where a cell failed, 130 where it was stopped.
    """
    from study.bench.engine import run_study
    from study.bench.grid import load_study

    with sentences():
        loaded = load_study(study)
        outcome = run_study(loaded, out or STUDIES / loaded.name, workers=workers, engine=engine, console=console())
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(FAILED_CELLS if outcome.failed else 0)


def cells(study: StudyFile, out: Out = None, workers: Workers = None) -> None:
    """List the cells of a study with their ids and states, and estimate what is left. Nothing is trained.

    The estimate reads the patients, and prepares those that no earlier command has prepared.
    """
    from study.bench.engine import honesty_of, price_study
    from study.bench.grid import load_study

    with sentences():
        loaded = load_study(study)
        states, costs = price_study(loaded, out or STUDIES / loaded.name, say=lambda text: print(text, file=sys.stderr))
        for cell in loaded.cells():
            print(f"{cell.id}  {states[cell.id]:8}  {cell.label}")
        print(f"{len(states)} cells, {list(states.values()).count('done')} done already")
        print(costs.sentence(workers or os.cpu_count() or 1))
        print(honesty_of(loaded.cells()))


def report(folder: Annotated[Path, typer.Argument(help="The folder of a study's results.")]) -> None:
    """Write report.md, tables.csv and the figures (PNG, SVG) of a study from its results; equal results, equal files."""
    from study.bench.report import write_report

    with sentences():
        for path in write_report(folder):
            print(path)


def pretrain(
    plan: Annotated[str, typer.Option(help="A template's name (study/plans), or the path of a plan or template in TOML.")],
    out: Annotated[Path, typer.Option(help="Where the start is written (safetensors).")],
    seed: Annotated[int, typer.Option(min=0, help="Of the generator and of training.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps instead of the template's own.")] = None,
    volumes: Annotated[int | None, typer.Option(min=1, help="Abstract volumes instead of the template's own.")] = None,
) -> None:
    """Make a public start from anatomy-like volumes of a seeded generator. No scan of any cohort enters it."""
    from study.bench.startfile import pretrain_to_file

    with sentences():
        pretrain_to_file(plan, out, seed, steps, volumes, print)


def processes(
    study: StudyFile,
    out: Out = None,
    count: Annotated[int, typer.Option("--processes", min=2, help="Processes of the hospital, one core each.")] = 2,
) -> None:
    """Compare ways in which several processes of one hospital can train without privacy: the largest one of each cell.

    Prints a row for each cell and way. Nothing is kept but prepared patients and the start.
    """
    from study.bench.asynchrony import compare
    from study.bench.grid import load_study

    with sentences():
        loaded = load_study(study)
        print("| way | seed | score | wall s | CPU s |\n|---|--:|--:|--:|--:|")
        for done, score in compare(loaded.cells(), (out or STUDIES / loaded.name) / "work" / "cache", count):
            print(f"| {done.way} | {done.seed} | {score:.3f} | {done.wall_s:.0f} | {done.cpu_s:.0f} |", flush=True)


def advise(
    patients: Annotated[int, typer.Option(min=1, help="Patients of all hospitals together, as they declare them.")],
    hospitals: Annotated[int, typer.Option(min=1, help="How many there are; they count as equally large.")],
    epsilon: Annotated[float, typer.Option(help="What one patient may cost at most over the whole training.")],
    noise: Annotated[
        Noise, typer.Option(help="local: each hospital's own; shared: one of all, which relies on masking.")
    ] = Noise.LOCAL,
    reading: Annotated[
        Reading, typer.Option(help="Of shared noise: charged, against colluders; outsider, against whoever knows no share.")
    ] = Reading.CHARGED,
    delta: Annotated[float | None, typer.Option(help="1 / (10 x patients) if left out.")] = None,
    may_drop: Annotated[
        int | None, typer.Option(min=0, help="Hospitals that shared noise survives losing; 3 in 16, 1 at least.")
    ] = None,
    may_collude: Annotated[
        int, typer.Option(min=1, help="Hospitals that may work with the coordinator, for shared noise.")
    ] = 1,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the plan's template (TOML), for `plan` of a study file.")] = None,
) -> None:
    """Recommend settings for so many patients and hospitals and an epsilon, from public numbers alone.

    Says what they cost at this delta and at 1e-5, in each reading, and what the public study reached with such noise. Exit
    status 2 where nothing was measured that comes near.
    """
    from study.bench import advice, advice_text

    with sentences():
        asked = advice.Question(patients, hospitals, epsilon, noise.value, reading.value, delta, may_drop, may_collude)
        found = advice.advise(asked, advice.load())
        if out is not None:
            advice_text.write_template(found, out)
        if as_json:
            print(json.dumps(advice_text.as_json(found), indent=1))
        else:
            advice_text.show(found, console())


def register(app: typer.Typer) -> None:
    """Make these functions commands of `app`."""
    for command in (run, cells, report, advise, pretrain, processes):
        app.command()(command)


def console() -> Console:
    """The terminal, or plain lines."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


@contextmanager
def sentences() -> Iterator[None]:
    """Bad input is one sentence and exit status 2; a stop before anything ran is said as well."""
    from proto.plan import PlanError
    from study.results import ResultsError

    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("\nStopped; nothing was lost: run the same command again.")
        raise typer.Exit(INTERRUPTED) from None
    except (StudyError, PlanError, ResultsError) as error:
        print(f"secagg-study: {error}", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from error


def _as_interrupt(_signal: int, _frame: FrameType | None) -> Any:
    raise KeyboardInterrupt
