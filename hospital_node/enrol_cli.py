"""`secagg-node request` and `install`: a hospital's half of the enrolment. The private key is made here and stays here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from certs import enrol
from certs.cli import By, asked_words, record_act, show_key
from certs.identity import KEY_FILE

app = typer.Typer(add_completion=False)
DEFAULT_FOLDER = Path("identity")

Folder = Annotated[Path, typer.Option("--identity", help="Folder of node.key, which never leaves it.")]
Study = Annotated[str, typer.Option(help="Name of the study, as the coordinator said it.")]


@app.command()
def request(
    study: Study,
    hospital: Annotated[str | None, typer.Option(help="Name of the hospital: lower-case letters, digits, dashes.")] = None,
    evaluator: Annotated[str | None, typer.Option(help="Instead: name of an evaluator with public data.")] = None,
    identity: Folder = DEFAULT_FOLDER,
    by: By = None,
) -> None:
    """Make this node's key (mode 0600, stays here) and a request for its certificate."""
    if (hospital is None) == (evaluator is None):
        raise typer.BadParameter("say who this is with --hospital NAME or --evaluator NAME")
    name = f"hospital/{hospital}" if evaluator is None else f"evaluator/{evaluator}"
    uri = f"secagg://{study}/{name}"
    fingerprint = enrol.create_request(identity, uri)
    record_act(identity, by, "key-made", party=uri, key=fingerprint.hex())
    typer.echo(f"{identity / KEY_FILE}: private key, stays here")
    typer.echo(f"{identity / enrol.REQUEST_FILE}: send this file to the coordinator, and read it these words by telephone:")
    show_key(fingerprint)


@app.command()
def install(
    signed: Annotated[Path, typer.Argument(help="The file that came back from the coordinator, or from your own CA.")],
    root_words: Annotated[
        str | None, typer.Option(help="The eight words of the root, as the coordinator read them; asked for if left out.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="With --issuer: the study's root, ca.crt of the coordinator.")] = None,
    issuer: Annotated[Path | None, typer.Option(help="Your own CA's certificates, where it signed the request.")] = None,
    identity: Folder = DEFAULT_FOLDER,
    by: By = None,
) -> None:
    """Put the signed certificate beside its key, after comparing the root's words with what the coordinator read to you."""
    if (root is None) != (issuer is None):
        raise typer.BadParameter("a certificate of your own CA needs both --issuer (your CA) and --root (the study's root)")
    words = asked_words(root_words, "--root-words", "The eight words of the root that the coordinator read to you")
    installed = enrol.install(identity, signed, words, root=root, issuer=issuer)
    until = f"{installed.not_after:%Y-%m-%d}"
    record_act(identity, by, "certificate-installed", party=installed.uri, key=installed.fingerprint.hex(), until=until)
    typer.echo(f"{identity}: {installed.uri}, valid until {installed.not_after:%Y-%m-%d}")
    typer.echo("Next: secagg-node check --config node.toml")
