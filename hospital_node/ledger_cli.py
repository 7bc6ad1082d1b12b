"""`secagg-node ledger`: hand the ledger to somebody else, verify what was handed over, and what only people can say to it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from hospital_node.config import ConfigError, load_config
from hospital_node.ledger import Ledger
from hospital_node.ledger_export import check_continues, read_export, read_rows, write_export
from hospital_node.officer import By, ConfigFile, Reason
from hospital_node.state import StateFolder, ledger_to_read
from hospital_node.statement import statement

app = typer.Typer(
    help="Export, verify and restore the privacy ledger; confirm its clock; start its second counter.", no_args_is_help=True
)

Exported = Annotated[Path, typer.Argument(help="A file that `secagg-node ledger export` wrote.")]


@app.command()
def export(config: ConfigFile, out: Annotated[Path, typer.Option("--out", help="The file to write (JSON).")]) -> None:
    """Write every entry into one file that others can verify. It names who decided what: give it to people you trust."""
    node = load_config(config)
    ledger = Ledger.open_readonly(ledger_to_read(node.state, node.ledger), witness=node.ledger_counter)
    rows = ledger.rows()
    write_export(rows, out)
    typer.echo(f"{out}: {len(rows)} entries, head {rows[-1].digest.hex()}")


@app.command()
def verify(
    exported: Exported,
    continues: Annotated[
        Path | None, typer.Option("--continues", help="An older export of the same ledger, which this one must go on from.")
    ] = None,
) -> None:
    """Verify an export, entry by entry, and say what it proves. Needs no node and no configuration."""
    events = read_export(exported)
    if continues is not None:
        check_continues(read_export(continues), events)
    typer.echo(f"{len(events)} entries in an unbroken chain, head {events[-1].digest.hex()}")
    if continues is not None:
        typer.echo(f"It goes on from {continues}: nothing was changed or removed since.")
    typer.echo(statement(events).paragraph)


@app.command()
def restore(exported: Exported, config: ConfigFile, by: By, reason: Reason) -> None:
    """Bring a lost or older ledger back from an export, where the counters say that nothing newer was ever written."""
    node = load_config(config)
    folder = StateFolder(node.state, node.ledger_counter)
    folder.share_ledger(node.ledger)
    read_export(exported)
    ledger = Ledger.restore(folder.ledger, read_rows(exported), by, reason, datetime.now(UTC), witness=folder.witness)
    typer.echo(f"Restored by {by}: {len(ledger.events())} entries, head {ledger.head.hex()}")


@app.command()
def clock(config: ConfigFile, by: By, reason: Reason) -> None:
    """Say that this machine's clock is right, although the last entry is of a later or a long past time."""
    node = load_config(config)
    path, now = ledger_to_read(node.state, node.ledger), datetime.now(UTC)
    Ledger.open(path, witness=node.ledger_counter).confirm_clock(by, reason, now)
    typer.echo(f"Recorded by {by}: it is {now:%Y-%m-%d %H:%M} UTC.")


@app.command()
def counter(config: ConfigFile, by: By, reason: Reason) -> None:
    """Start the second counter that the configuration names (key 'ledger_counter'), for a ledger that has none yet."""
    node = load_config(config)
    if node.ledger_counter is None:
        raise ConfigError("the configuration has no key 'ledger_counter': name a file where no backup of the ledger reaches")
    path = ledger_to_read(node.state, node.ledger)
    Ledger.start_witness(path, node.ledger_counter, by, reason, datetime.now(UTC))
    typer.echo(f"Started by {by}: from now on this node opens its ledger with {node.ledger_counter} only.")
