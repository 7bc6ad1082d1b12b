"""`secagg-node withdraw`: a patient withdraws. First it is shown, then confirmed by name and reason.

Arguments of a command are seen by everybody on the machine and kept by shells, so the patient's id is never one of them: it is
read from standard input, or from a file.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from hospital_node.cap import plain
from hospital_node.config import ConfigError, load_config
from hospital_node.officer import By, ConfigFile, Reason
from hospital_node.reporting.kept import check_signed_by, read_file
from hospital_node.reporting.model import ReportTampered
from hospital_node.withdrawal import SHORT_CODE
from hospital_node.withdrawing import (
    CHAIN_FILE,
    HTML_FILE,
    JSON_FILE,
    SIGNATURE_FILE,
    Shown,
    folder_of,
    page_of,
    read_certificate,
    show,
    withdraw,
)

app = typer.Typer(
    help="A patient withdraws: show what it means, then confirm. The id comes by standard input or a file. Nothing is sent.",
    no_args_is_help=True,
)

IdFile = Annotated[
    Path | None, typer.Option("--id-file", help="A file that holds the hospital's own patient id; standard input if left out.")
]


@app.command("show")
def show_it(config: ConfigFile, id_file: IdFile = None) -> None:
    """Say what a withdrawal of this patient means: rounds, what was spent, studies. Changes nothing."""
    shown = show(load_config(config), _patient(id_file))
    _echo(shown)
    if shown.withdrawn is None:
        typer.echo("Nothing is recorded yet: confirm with `secagg-node withdraw confirm`.")


@app.command()
def confirm(
    config: ConfigFile,
    by: By,
    reason: Reason,
    id_file: IdFile = None,
    *,
    although_absent: Annotated[
        bool, typer.Option("--although-absent", help="Also where no study of this patient is in the data folder.")
    ] = False,
) -> None:
    """Record the withdrawal: no later training and no later evaluation uses this patient. Writes a signed certificate."""
    node = load_config(config)
    made = withdraw(node, _patient(id_file), by, reason, datetime.now(UTC), although_absent=although_absent)
    typer.echo(f"Recorded by {made.recorded_by}, entry {made.ledger_entry} of the ledger, code {made.code[:SHORT_CODE]}.")
    for sentence in made.sentences:
        typer.echo(sentence)
    typer.echo(f"Certificate: {node.state / folder_of(made.ledger_entry)}")


@app.command()
def verify(certificate: Annotated[Path, typer.Argument(help="The folder of a certificate.")]) -> None:
    """Check a certificate of withdrawal and name the first bad item. Needs no node and no network."""
    data = read_file(certificate / JSON_FILE)
    found = read_certificate(data)
    check_signed_by(certificate, (JSON_FILE, SIGNATURE_FILE, CHAIN_FILE), data, found.signer, found.recorded_at)
    page = certificate / HTML_FILE
    if page.exists() and read_file(page) != page_of(found, data).encode():
        raise ReportTampered(HTML_FILE, "it is not what the signed file says: it was changed, or another version made it")
    typer.echo(f"The certificate verifies: {found.hospital}, code {found.code}, key {found.signer.key_words}")
    for sentence in found.sentences:
        typer.echo(sentence)


def _patient(id_file: Path | None) -> str:
    """The id, from a file or from standard input; not echoed at a terminal. Raises ConfigError."""
    if id_file is not None:
        try:
            return id_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {id_file}: name a text file that holds the patient's id") from error
    if sys.stdin.isatty():
        return getpass("The hospital's own patient id (not shown): ")
    return sys.stdin.readline()


def _echo(shown: Shown) -> None:
    typer.echo(f"Studies of this patient in the data folder: {shown.studies}.")
    if shown.withdrawn is not None:
        typer.echo(f"Withdrawn already, by {shown.withdrawn.by}, code {shown.withdrawn.code[:SHORT_CODE]}.")
    for one in shown.eligible:
        typer.echo(f"{one.charged_at:%Y-%m-%d %H:%M} UTC  study {one.study}, round {one.round}: {one.part}, if drawn")
    cost = f"epsilon {shown.spent.stated_epsilon} at delta {plain(shown.spent.delta)}"
    typer.echo(f"Eligible for {len(shown.eligible)} charged releases: {cost}.")
