"""`secagg-node report`: write a signed privacy report, list those that were kept, check one that was given."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from hospital_node.config import load_config
from hospital_node.crosscheck import prv_epsilon
from hospital_node.officer import ConfigFile
from hospital_node.reporting import kept
from hospital_node.reporting.model import ReportError
from hospital_node.reporting.verify import verify as check
from hospital_node.reporting.write import write_report

app = typer.Typer(help="Write, list and check signed privacy reports. Nothing is sent.", no_args_is_help=True)


@app.command()
def write(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option("--out", help="Also copy the report into this new folder.")] = None,
) -> None:
    """Write the next report from this hospital's own ledger, sign it with the node's key, and keep it in the state folder."""
    if out is not None and out.exists():
        raise ReportError(f"{out} exists already and is not overwritten: name another folder")
    written = write_report(load_config(config), datetime.now(UTC), prv_epsilon)
    if out is not None:
        _copy(written.kept.folder, out)
    report = written.kept.report
    typer.echo(f"Report {report.report_id}: {report.state.name}, epsilon {report.guarantee.stated_epsilon}.")
    typer.echo(f"{out or written.kept.folder}: {', '.join(sorted(path.name for path in written.kept.folder.iterdir()))}")
    typer.echo(f"SHA-256 {written.kept.sha256}")
    for name, why in written.left_out.items():
        typer.echo(f"{name} is left out: {why}", err=True)


@app.command("list")
def list_kept(config: ConfigFile) -> None:
    """List the reports in the state folder, each checked."""
    state = load_config(config).state
    for number in kept.numbers(state):
        one = kept.kept(state, number)
        report = one.report
        spent = f"epsilon {report.guarantee.stated_epsilon}"
        typer.echo(f"{report.report_id}  {report.issued_at:%Y-%m-%d %H:%M} UTC  {spent}  {one.sha256[:12]}")
    if not kept.numbers(state):
        typer.echo("No report was written yet: make one with `secagg-node report write`.")


@app.command()
def verify(
    report: Annotated[Path, typer.Argument(help="The folder of a report, or its JSON file.")],
    root: Annotated[
        Path | None, typer.Option("--root", help="A root certificate that you had before, which must have signed.")
    ] = None,
) -> None:
    """Check a report and the renderings beside it, and name the first bad item. Needs no node and no network."""
    checked = check(report, root)
    made = checked.report
    typer.echo(f"Report {made.report_id} verifies: SHA-256 {checked.sha256}")
    typer.echo(f"Signed by {made.signer.uri} on {made.issued_at:%Y-%m-%d %H:%M} UTC, key {made.signer.key_sha256}")
    if checked.trusted_root:
        typer.echo(f"The certificate beside it is signed by {root}.")
    else:
        typer.echo(f"Compare the words of the key with the hospital, or name a root with --root: {made.signer.key_words}")
    if checked.compared:
        typer.echo(f"The same facts: {', '.join(checked.compared)}.")
    for why in checked.not_compared:
        typer.echo(f"Not compared: {why}", err=True)
    typer.echo(made.statement.paragraph)


def _copy(folder: Path, out: Path) -> None:
    try:
        shutil.copytree(folder, out)
    except OSError as error:
        raise ReportError(f"the report is kept in {folder}, and cannot be copied to {out}: {error.strerror}") from error
