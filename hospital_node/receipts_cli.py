"""`secagg-node receipts`: list, hand over and verify what left this building, round by round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key, load_pem_public_key
from rich.console import Console
from rich.table import Table

from certs.identity import load_identity
from certs.party import MALFORMED, CertificateError, fingerprint_of
from certs.succession import Succession, load_successions, parse_succession
from certs.words import words_of
from hospital_node.cap import rounded_up
from hospital_node.config import ConfigError, NodeConfig, load_config
from hospital_node.durable import write_whole
from hospital_node.ledger import Ledger
from hospital_node.officer import ConfigFile
from hospital_node.receipt_book import RECEIPTS_FILE, fields_of, read_book, signed_of
from hospital_node.receipts import (
    MEANING,
    Receipt,
    ReceiptError,
    Signed,
    check_ledger,
    check_log,
    parse,
    verify,
)
from hospital_node.roundlog import KeptLog
from hospital_node.state import StateFolder, ledger_to_read
from proto.plan import short_name

EXPORT_FORMAT = "hospital-secagg receipts v1"

app = typer.Typer(help="Signed receipts: what left this building in each round, and what it cost.", no_args_is_help=True)


@app.command("list")
def list_receipts(
    config: ConfigFile, *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a receipt a line.")] = False
) -> None:
    """Show every receipt: round, what happened, bytes, epsilon. Says nothing about whether they hold: that is `verify`."""
    book = read_book(load_config(config).state / RECEIPTS_FILE)
    receipts = [parse(one.body, number) for number, one in enumerate(book, start=1)]
    if as_json:
        for receipt in receipts:
            typer.echo(receipt.canonical().decode())
        return
    Console().print(_table(receipts))
    for outcome in dict.fromkeys(receipt.outcome for receipt in receipts):
        typer.echo(f"{outcome}: {MEANING[outcome]}")


@app.command()
def export(
    config: ConfigFile,
    out: Annotated[Path, typer.Option("--out", help="The file to write, or with --number a new folder.")],
    number: Annotated[
        int | None, typer.Option("--number", help="One receipt, as receipt.json, receipt.sig and key.pem, for openssl.")
    ] = None,
) -> None:
    """Write all receipts with their keys into one file, or one of them so that openssl verifies it."""
    node = load_config(config)
    book = read_book(node.state / RECEIPTS_FILE)
    try:
        if number is None:
            statements = [one.encoded().decode() for one in load_successions(StateFolder(node.state).own_successions)]
            content = {"format": EXPORT_FORMAT, "receipts": [fields_of(one) for one in book], "successions": statements}
            write_whole(out, json.dumps(content, indent=1).encode() + b"\n")
            typer.echo(f"{out}: {len(book)} receipts")
            return
        if not 1 <= number <= len(book):
            raise ReceiptError(0, f"there is no receipt {number}: {len(book)} were written")
        _write_one(book[number - 1], out)
    except OSError as error:
        raise ReceiptError(0, f"cannot write {out}: {error.strerror}") from error
    typer.echo(f"openssl dgst -sha256 -verify {out}/key.pem -signature {out}/receipt.sig {out}/receipt.json")


@app.command("verify")
def verify_receipts(
    exported: Annotated[
        Path | None, typer.Argument(help="What `export` wrote; without it this node's own, with --config.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The node's configuration (node.toml).")] = None,
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="A public key (PEM) that people confirmed; may be given again.")
    ] = None,
) -> None:
    """Verify numbers, chain, signatures and keys; a node's own also against its ledger and its log of rounds.

    Exit status 2 names the first receipt that does not hold, or the first that is missing.
    """
    if (exported is None) == (config is None):
        raise ConfigError("name either a file of exported receipts, or with --config the node whose own are to be verified")
    trusted = None if not key else frozenset(_fingerprint(path) for path in key)
    note = ""
    if config is not None:
        receipts, note = _own(load_config(config), trusted)
    else:
        assert exported is not None
        receipts = verify(*read_export(exported), trusted)
    typer.echo(f"{len(receipts)} receipts in an unbroken chain, every signature holds")
    for one in dict.fromkeys(receipt.key for receipt in receipts):
        typer.echo(
            f"key {words_of(bytes.fromhex(one))}" + ("" if trusted else "  (compare these words with the hospital's people)")
        )
    if note:
        typer.echo(f"Note: {note}.")


def read_export(path: Path) -> tuple[tuple[Signed, ...], tuple[Succession, ...]]:
    """Receipts and statements of an exported file, unverified but for their form. Raises ReceiptError, CertificateError."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != EXPORT_FORMAT:
            raise ReceiptError(0, f"{path} has another format than this release reads")
        receipts: list[Any] = list(content["receipts"])
        statements = [str(line).encode() for line in content["successions"]]
    except OSError as error:
        raise ReceiptError(0, f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ReceiptError):
            raise
        raise ReceiptError(0, f"{path} holds no receipts: make it with `secagg-node receipts export`") from error
    signed = tuple(signed_of(fields, number) for number, fields in enumerate(receipts, start=1))
    return signed, tuple(parse_succession(line, str(path)) for line in statements)


def _own(node: NodeConfig, trusted: frozenset[bytes] | None) -> tuple[tuple[Receipt, ...], str]:
    """The node's own, against its identity, its ledger and its log."""
    statements = load_successions(StateFolder(node.state).own_successions)
    identity = load_identity(node.identity)
    confirmed = {identity.fingerprint, *(one.old_sha256 for one in statements if one.uri == identity.uri), *(trusted or ())}
    receipts = verify(read_book(node.state / RECEIPTS_FILE), statements, confirmed)
    ledger = Ledger.open_readonly(ledger_to_read(node.state, node.ledger), witness=node.ledger_counter)
    note = check_ledger(receipts, ledger.events(), identity.name.study)
    plan = StateFolder(node.state).read_plan()
    if plan is not None:
        check_log(receipts, KeptLog(node.state, plan).read())
    return receipts, note


def _write_one(one: Signed, folder: Path) -> None:
    folder.mkdir(parents=True)
    pem = load_der_public_key(one.public_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, content in (("receipt.json", one.body), ("receipt.sig", one.signature), ("key.pem", pem)):
        write_whole(folder / name, content)


def _fingerprint(path: Path) -> bytes:
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}") from error
    except MALFORMED as error:
        raise CertificateError(
            f"{path} is no public key in PEM: write it with `secagg-node receipts export --number 1`"
        ) from error
    return fingerprint_of(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _table(receipts: list[Receipt]) -> Table:
    table = Table("no.", "round", "what happened", "sent", "cohort", "dropped", "epsilon of it", "spent", "left", box=None)
    for one in receipts:
        sent = "" if one.sent_bytes is None else f"{sum(one.sent_bytes.values()) / 1000:,.1f} kB"
        spent = ("no guarantee", "", "") if one.epsilon is None else _figures(one)
        gone = "" if one.dropped is None else ", ".join(map(short_name, one.dropped)) or "nobody"
        said = one.outcome + (f" ({one.code})" if one.code else "") + (", made up after a restart" if one.made_up else "")
        table.add_row(str(one.number), str(one.round), said, sent, str(one.cohort or ""), gone, *spent)
    return table


def _figures(one: Receipt) -> tuple[str, str, str]:
    assert one.epsilon is not None
    left = "" if one.epsilon.left is None else f"{one.epsilon.left:.2f}"
    return rounded_up(one.epsilon.of_round), rounded_up(one.epsilon.spent), left
