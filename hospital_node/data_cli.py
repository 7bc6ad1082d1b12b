"""`secagg-node data`: a hospital looks at its own studies. Nothing is sent, and no line names a patient or a file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hospital_node.cohort import SKIP_CODES
from hospital_node.config import ConfigError, NodeConfig, load_config
from hospital_node.durable import write_whole
from hospital_node.officer import ConfigFile, read_plan
from hospital_node.state import StateFolder
from hospital_node.terminal import counted
from proto.modelfile import read_model

EXIT_UNUSABLE = 1

app = typer.Typer(help="Look at this node's own studies. Nothing is sent.", no_args_is_help=True)

PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="The plan; the one that the coordinator offered last if left out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@app.command()
def check(
    config: Annotated[Path | None, typer.Option("--config", help="The node's configuration (TOML).")] = None,
    folder: Annotated[Path | None, typer.Option("--data", help="A folder of studies, where there is no node yet.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="With --data: the site of its split.csv.")] = None,
    fold: Annotated[str | None, typer.Option("--fold", help="With --data: the fold of its split.csv.")] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="With --data: studies read at once.")] = 1,
    *,
    as_json: AsJson = False,
) -> None:
    """Read every study to its last voxel and say what they are like: counts, spacings, orientations, labels, duplicates.

    Exit status 1 where none can be used. With --config the result is also kept in the state folder.
    """
    from hospital_node.cases import discover
    from hospital_node.studies import usable_studies
    from hospital_node.survey import ANY_LABELS, survey

    if (config is None) == (folder is None):
        raise ConfigError("say which studies: --config node.toml, or --data with their folder")
    node = load_config(config).require_folders() if config is not None else None
    data, site, fold, threads = (node.data, node.site, node.fold, node.threads) if node else (folder, site, fold, threads)
    assert data is not None
    cohort = discover(data, site=site, fold=fold) if node is None else usable_studies(node)
    with counted("reading studies") as count:
        found = survey(cohort, ANY_LABELS, threads, count)
    if node is not None:
        state = StateFolder(node.state)
        state.create()
        write_whole(state.fingerprint, found.model_dump_json(indent=1).encode())
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=1))
    else:
        Console().print(_table(found.lines()))
        _echo_left_out(dict(found.left_out))
    if not found.readable:
        raise typer.Exit(EXIT_UNUSABLE)


@app.command()
def prepare(config: ConfigFile, plan: PlanOption = None, *, as_json: AsJson = False) -> None:
    """Prepare every study of this node as training would, into its cache; count what cannot be used, by reason."""
    node = load_config(config).require_folders()
    chosen = read_plan(node, plan)
    from hospital_node.workshop import prepare_studies

    StateFolder(node.state).create()
    with counted("preparing studies") as count:
        cohort = prepare_studies(node, chosen, count)
    if as_json:
        ready = {"studies": cohort.cases, "patients": len(cohort.patients), "left_out": dict(sorted(cohort.skipped.items()))}
        typer.echo(json.dumps(ready | {"rebuilt": cohort.rebuilt, "bytes": _cache_bytes(node)}, indent=1))
        return
    typer.echo(f"{cohort.cases} studies of {len(cohort.patients)} patients are ready for study '{chosen.study}'.")
    _echo_left_out(dict(cohort.skipped))


@app.command()
def draw(
    config: ConfigFile,
    model: Annotated[Path, typer.Option("--model", help="A model file of this study (safetensors).")],
    plan: PlanOption = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Draw on at most so many scans.")] = 20,
) -> None:
    """Let a model draw on this node's own scans, for the page Scans of this hospital's own app. Nothing is sent."""
    node = load_config(config).require_folders()
    chosen = read_plan(node, plan)
    from hospital_node.drawing import draw_on_scans

    StateFolder(node.state).create()
    with counted("drawing on scans") as count:
        index = draw_on_scans(node, chosen, read_model(model), most, count, datetime.now(UTC))
    means = [scan.mean_dice for scan in index.scans if scan.mean_dice is not None]
    mean = f", mean Dice {sum(means) / len(means):.3f}" if means else ""
    typer.echo(f"{len(index.scans)} scans are ready for the app of this hospital{mean}. Nothing was sent.")


def _cache_bytes(node: NodeConfig) -> int:
    return sum(path.stat().st_size for path in StateFolder(node.state).cache.rglob("*") if path.is_file())


def _echo_left_out(left_out: dict[str, int]) -> None:
    for code, number in sorted(left_out.items()):
        typer.echo(f"{number} left out ({code}): {SKIP_CODES[code]}")


def _table(lines: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None)
    for what, how in lines:
        table.add_row(what, how)
    return table
