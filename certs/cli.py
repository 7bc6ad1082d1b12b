"""`secagg-certs`: the command line of this package, and its only file that prints."""

from __future__ import annotations

import getpass
import hashlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from certs import authority, enrol, files
from certs.audit import Action, AuditError
from certs.audit_file import AuditLog
from certs.identity import CALLERS_FILE, CERTIFICATE_FILE, ROOT_FILE
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
WHOSE_KEY = "The eight words that the hospital read to you from its own screen"
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
By = Annotated[str | None, typer.Option(help="Who does this, for the audit log; the login name if left out.")]
SpokenWords = Annotated[
    str | None, typer.Option(help="The eight words that the hospital read from its own screen; asked for if left out.")
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
    show_key(made.fingerprint)


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
    show_key(made.fingerprint)


@app.command()
def approve(
    request_file: Annotated[Path, typer.Argument(metavar="REQUEST", help="The node.csr that was received.")],
    ca: AuthorityFolder,
    out: Annotated[Path, typer.Option(help="New file for the certificate and the root, to be sent back.")],
    words: SpokenWords = None,
    days: Days = authority.LEAF_DAYS,
    by: By = None,
) -> None:
    """Sign a hospital's request whose words were compared. Copies the public key from it and nothing else."""
    asked = enrol.read_request(files.read_bytes(request_file, "the request", enrol.REQUESTED), str(request_file))
    typer.echo(f"{request_file}: request of {asked.uri}")
    leaf = enrol.sign_request(ca, request_file, out, asked_words(words, "--words", WHOSE_KEY), days=days)
    csr = hashlib.sha256(request_file.read_bytes()).hexdigest()
    record_act(ca, by, "request-approved", party=leaf.uri, key=leaf.fingerprint.hex(), request=csr, words="compared")
    typer.echo(f"{out}: certificate of {leaf.uri} and the root. The hospital will ask for the root's words:")
    show_key(authority.load_authority(ca).fingerprint)


@app.command()
def admit(
    certificate: Annotated[Path, typer.Argument(help="The certificate that the hospital's own CA signed.")],
    issuer: Annotated[Path, typer.Option(help="That CA's certificates (PEM), from the one that signed upwards.")],
    identity: Annotated[Path, typer.Option(help="Folder of the coordinator's own node.key and node.crt.")],
    words: SpokenWords = None,
    by: By = None,
) -> None:
    """Let the coordinator's connections accept certificates of a hospital's own CA. Membership stays with `peers`."""
    party = enrol.admit_issuer(identity, certificate, issuer, asked_words(words, "--words", WHOSE_KEY))
    record_act(identity, by, "issuer-admitted", party=party.uri, key=party.fingerprint.hex(), words="compared")
    typer.echo(f"{identity / CALLERS_FILE}: the CA of {party.uri} may sign callers; a running coordinator takes it up")
    show_key(party.fingerprint)


@app.command()
def revoke(
    uri: Uri,
    allow: Annotated[Path, typer.Option("--list", help="The list to take the key from (peers.toml).")],
    reason: Annotated[str, typer.Option(help="Why, in a few words; it is recorded.")] = "",
    by: By = None,
) -> None:
    """Take a party from a list of confirmed keys. A running coordinator or node acts on it within seconds."""
    present = load_peers(allow)
    left = present.without(uri)
    record_act(allow.parent, by, "key-removed", reason, party=uri, key=present.pinned[uri].hex(), list=allow.name)
    write_peers(allow, left)
    typer.echo(f"{allow}: {uri} is removed; its next call is refused, and a masking session with it ends or goes on without it")


@app.command()
def fingerprint(
    path: Annotated[Path, typer.Argument(help="A certificate, a request, or the folder of an identity or authority.")],
) -> None:
    """Show whose key a file holds: name, SHA-256 of the key, and the eight words that people compare."""
    name, key_sha256 = _read_any(_file_in(path))
    typer.echo(name)
    show_key(key_sha256)


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
    for party in parties:
        how = "nobody" if unconfirmed else "compared"
        record_act(
            out.parent, confirmed_by, "key-confirmed", party=party.uri, key=party.fingerprint.hex(), words=how, list=out.name
        )
    write_peers(out, listed)
    typer.echo(f"{out}: {len(listed.peers)} confirmed keys")


def show_key(key_sha256: bytes) -> None:
    """Hash and words of a key, as every command prints them."""
    typer.echo(f"key SHA-256  {key_sha256.hex()}\nkey words    {words_of(key_sha256)}")


def record_act(folder: Path, by: str | None, kind: str, reason: str = "", **fields: str) -> None:
    """Write into audit.log beside what is changed, before it is changed; the login name where nobody is named."""
    who = by or getpass.getuser()
    try:
        AuditLog.within(folder).append(Action(who, kind, reason, fields), datetime.now(UTC))
    except AuditError as error:
        raise CertificateError(str(error)) from error


def asked_words(given: str | None, option: str, question: str) -> str:
    """The words that a person heard: from the option, or typed at a terminal. There is no way around them."""
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise CertificateError(f"nobody typed the eight words: give them with {option}")
    return str(typer.prompt(question))


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
