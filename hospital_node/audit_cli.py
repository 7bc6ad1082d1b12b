"""`secagg-node audit-log`: what people did at this node, and in what order, from its own chain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from certs.audit_file import AuditLog, report
from hospital_node.config import load_config
from hospital_node.officer import ConfigFile

app = typer.Typer(add_completion=False)


@app.command("audit-log")
def audit_log(
    config: ConfigFile,
    export: Annotated[Path | None, typer.Option("--export", help="Write the verified records into this file.")] = None,
    continues: Annotated[
        Path | None, typer.Option("--continues", help="An older export, which the log must go on from.")
    ] = None,
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Say only whether the chain is unbroken, and its head.")] = False,
) -> None:
    """Show who did what at this node, when and why; what the privacy ledger keeps is named there by its entry."""
    log = AuditLog.within(load_config(config).state)
    for line in report(log, verify=verify, export=export, continues=continues):
        typer.echo(line)
