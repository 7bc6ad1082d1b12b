"""secagg-study: whole federations on one machine."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from study.audit import cli as audit
from study.bench import cli as bench

APP = typer.Typer(add_completion=False, no_args_is_help=True, help="Whole federations on one machine.")


LOG_WIDTH = 140  # columns where the output is no terminal: one line an event


class Switch(StrEnum):
    """on or off."""

    ON = "on"
    OFF = "off"


@APP.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="msd-hippocampus or a LUNA16 folder; synthetic chest CT if left out.")
    ] = None,
    dp: Annotated[Switch, typer.Option(help="off: no noise, no guarantee; updates are still masked.")] = Switch.ON,
    kill: Annotated[bool, typer.Option(help="Kill one hospital in the masking session of round 2.")] = False,
    ui: Annotated[Switch, typer.Option(help="off: no app; the command ends by itself.")] = Switch.ON,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds instead of the plan's own number.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="First port tried for the app.")] = 8501,
    folder: Annotated[Path, typer.Option(help="Where everything of the demonstration is kept.")] = Path("demo"),
) -> None:
    """Run a coordinator, four hospitals, an evaluator and the app as processes; print and save what came of it."""
    from study import demo as play

    options = play.Options(folder, data, dp is Switch.ON, kill, ui is Switch.ON, rounds, port=port)
    signal.signal(signal.SIGTERM, _as_interrupt)
    console = Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
    try:
        play.run(options, console)
    except KeyboardInterrupt:
        console.print("\nStopped; every process has ended.")
        raise typer.Exit(0 if ui is Switch.ON else 130) from None
    except play.FAILURES as error:
        print(f"secagg-study: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


bench.register(APP)
audit.register(APP)


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of secagg-study."""
    APP()


if __name__ == "__main__":
    main()
