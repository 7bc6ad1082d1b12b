"""`secagg-certs`: the command line of this package, and its only file that prints."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from certs import authority, enrol, files
from certs.identity import CERTIFICATE_FILE, KEY_FILE, ROOT_FILE
from certs.party import (
    CertificateError,
    PartyName,
    fingerprint_of,
    is_ca,
    leaf_key,
    parse_certificate,
    party_of_certificate,
    public_key_der_of,
    uri_of,
)
from certs.peers import UNCONFIRMED, PeerList, load_peers, peer_of, write_peers
from certs.words import compare_words, words_of

EXIT_REFUSED = 2
PEM_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"

app = typer.Typer(
    help="Keys, certificates and peer lists of one study. Private keys get mode 0600, are never shown and never replaced.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AuthorityFolder = Annotated[Path, typer.Option("--ca", help="Folder of the authority, made by init-ca.")]
Days = Annotated[
    int, typer.Option(help=f"Life of the certificate, 1 to {authority.MAX_LEAF_DAYS} days; there is no revocation list.")
]
Uri = Annotated[str, typer.Argument(help="secagg://<study>/<hospital|evaluator|coordinator>/<name>")]


def main() -> None:
    """Run one command; a refusal is one sentence on standard error and exit status 2."""
    try:
        app()
    except CertificateError as error:
        typer.echo(f"secagg-certs: {error}", err=True)
        sys.exit(EXIT_REFUSED)


@app.command("init-ca")
def init_ca(
    study: Annotated[str, typer.Argument(help="Name of the study: lower-case letters, digits, dashes.")],
    out: Annotated[Path, typer.Option(help="New folder for ca.key and ca.crt. Keep ca.key off the network.")],
) -> None:
    """Make the root of a study. Read its words to every hospital: they ask for them in `install`."""
    made = authority.create_authority(out, study)
    typer.echo(f"{out / ROOT_FILE}: root of study '{study}'")
    _show_key(made.fingerprint)


@app.command()
def issue(
    uri: Uri,
    ca: AuthorityFolder,
    out: Annotated[Path, typer.Option(help="New folder for node.key, node.crt and ca.crt.")],
    *,
    days: Days = authority.LEAF_DAYS,
    dns: Annotated[list[str] | None, typer.Option(help="Host name under which nodes dial a coordinator; repeatable.")] = None,
    ip: Annotated[list[str] | None, typer.Option(help="Address under which nodes dial a coordinator; repeatable.")] = None,
) -> None:
    """Make a key and its certificate on this machine: the coordinator's own, or a party of a demo.

    A hospital makes its key itself with `request`. Without --dns and --ip a coordinator is reachable on loopback only.
    """
    names = tuple(dns or ()) if dns or ip else authority.LOOPBACK_DNS
    addresses = tuple(ip or ()) if dns or ip else authority.LOOPBACK_IP
    made = authority.issue(ca, uri, out, days=days, dns_names=names, ip=addresses)
    typer.echo(f"{out / CERTIFICATE_FILE}: {made.uri}, valid until {made.not_after:%Y-%m-%d}")
    _show_key(made.fingerprint)


@app.command()
def request(
    uri: Uri,
    out: Annotated[Path, typer.Option(help="Folder for node.key, which stays there, and node.csr, which is sent.")],
) -> None:
    """At a hospital: make a key and ask for a certificate. Send node.csr; read the words to the coordinator by telephone."""
    fingerprint = enrol.create_request(out, uri)
    typer.echo(f"{out / KEY_FILE}: private key, stays here\n{out / enrol.REQUEST_FILE}: send this file to the coordinator")
    _show_key(fingerprint)


@app.command()
def sign(
    request_file: Annotated[Path, typer.Argument(metavar="REQUEST", help="The node.csr that was received.")],
    ca: AuthorityFolder,
    out: Annotated[Path, typer.Option(help="New file for the certificate and the root, to be sent back.")],
    words: Annotated[str, typer.Option(help="The eight words that the hospital read from its own screen.")],
    days: Days = authority.LEAF_DAYS,
) -> None:
    """At the coordinator: sign a request whose words were compared. Copies the public key from it and nothing else."""
    leaf = enrol.sign_request(ca, request_file, out, words, days=days)
    typer.echo(f"{out}: certificate of {leaf.uri} and the root. The hospital will ask for the root's words:")
    _show_key(authority.load_authority(ca).fingerprint)


@app.command()
def install(
    signed: Annotated[Path, typer.Argument(help="The file that came back from the coordinator.")],
    identity: Annotated[Path, typer.Option(help="Folder in which `request` made the key.")],
    root_words: Annotated[str, typer.Option(help="The eight words of the root, as the coordinator read them.")],
) -> None:
    """At a hospital: put the signed certificate beside its key, after comparing the root's words."""
    installed = enrol.install(identity, signed, root_words)
    typer.echo(f"{identity}: {installed.uri}, valid until {installed.not_after:%Y-%m-%d}")


@app.command()
def fingerprint(
    path: Annotated[Path, typer.Argument(help="A certificate, a request, or the folder of an identity or authority.")],
) -> None:
    """Show whose key a file holds: name, SHA-256 of the key, and the eight words that people compare."""
    name, key_sha256 = _read_any(_file_in(path))
    typer.echo(name)
    _show_key(key_sha256)


@app.command()
def peers(
    certificates: Annotated[list[Path], typer.Argument(help="Certificates, or folders that hold a node.crt.")],
    out: Annotated[Path, typer.Option(help="The list to write (peers.toml).")],
    *,
    confirmed_by: Annotated[
        str | None, typer.Option(help="Who compared the words; needs --words for every certificate.")
    ] = None,
    words: Annotated[list[str] | None, typer.Option(help="Words of one key, as its owner read them; repeat in order.")] = None,
    unconfirmed: Annotated[
        bool, typer.Option("--unconfirmed", help="Nobody compared words; written to the list. For demos.")
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Add to an existing list.")] = False,
) -> None:
    """Write the list of confirmed keys: a hospital's own peers, or the parties that a coordinator admits."""
    at = datetime.now(UTC)
    parties = [
        party_of_certificate(
            parse_certificate(files.read_bytes(path, "the certificate", enrol.SIGNED), str(path)), at, str(path)
        )
        for path in map(_file_in, certificates)
    ]
    if unconfirmed == (confirmed_by is not None):
        raise CertificateError("say who compared the words with --confirmed-by, or --unconfirmed where nobody did")
    if not unconfirmed:
        spoken = words or []
        if len(spoken) != len(parties):
            raise CertificateError(f"{len(parties)} certificates need {len(parties)} times --words, {len(spoken)} were given")
        for party, heard in zip(parties, spoken, strict=True):
            compare_words(heard, party.fingerprint, party.uri)
    if out.exists() and not add:
        raise CertificateError(f"{out} exists already and is not overwritten: say --add to add to it")
    present = load_peers(out) if add and out.exists() else PeerList(())
    listed = present.with_peers(peer_of(party, confirmed_by or UNCONFIRMED, at) for party in parties)
    write_peers(out, listed)
    typer.echo(f"{out}: {len(listed.peers)} confirmed keys")


def _show_key(key_sha256: bytes) -> None:
    typer.echo(f"key SHA-256  {key_sha256.hex()}\nkey words    {words_of(key_sha256)}")


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    return next(
        (path / name for name in (CERTIFICATE_FILE, enrol.REQUEST_FILE, ROOT_FILE) if (path / name).exists()),
        path / CERTIFICATE_FILE,
    )


def _read_any(path: Path) -> tuple[str, bytes]:
    pem = files.read_bytes(path, "the certificate or request", "name a file that is there")
    if PEM_CERTIFICATE not in pem:
        asked = enrol.read_request(pem, str(path))
        return f"request of {asked.uri}", asked.fingerprint
    certificate = parse_certificate(pem, str(path))
    key_sha256 = fingerprint_of(public_key_der_of(leaf_key(certificate.public_key, str(path))))
    until = f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}"
    if is_ca(certificate, str(path)):
        return f"root certificate, {until}", key_sha256
    uri = uri_of(certificate, str(path))
    return f"{uri} ({PartyName.parse(uri).purpose} certificate, {until})", key_sha256


if __name__ == "__main__":
    main()
