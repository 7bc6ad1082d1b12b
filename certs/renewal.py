"""Renewal on a party's own machine: a new key beside the old one, a request for it, and the change from one to the other.

The folder `next` holds the new key from the moment it is made and its certificate once it came. The change is two renames, key
first; whatever a crash leaves is finished by `finish`, before the folder is read. The old key is gone from the disk after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from certs import files
from certs.authority import LEAF_DAYS
from certs.enrol import REQUEST_FILE, create_request
from certs.identity import CERTIFICATE_FILE, ISSUER_FILE, KEY_FILE, KEY_ORIGIN, Identity, check_issued, load_private_key
from certs.party import CertificateError, parse_certificate, party_of_certificate, public_key_der_of
from certs.succession import Succession, sign_succession

NEXT = "next"
RENEW_FROM_DAY = 60  # of 90
RENEW_LEFT = timedelta(days=LEAF_DAYS - RENEW_FROM_DAY)
WARN_DAYS = (30, 14, 7)  # left, at which people are told
LIFE = timedelta(days=LEAF_DAYS)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is sent for a renewal."""

    request_pem: bytes
    succession: Succession


def is_due(not_after: datetime, now: datetime) -> bool:
    """Whether a certificate has entered its last third."""
    return not_after - now <= RENEW_LEFT


def expiry_warning(not_after: datetime, now: datetime) -> str | None:
    """A sentence from 30 days before the end of a certificate on; None earlier."""
    left = not_after - now
    if left > timedelta(days=WARN_DAYS[0]):
        return None
    if left <= timedelta(0):
        return f"the certificate expired on {not_after:%Y-%m-%d}: nothing is served until a new one is installed"
    return (
        f"the certificate ends in {left.days} days, on {not_after:%Y-%m-%d}: a running node renews it if the coordinator signs"
    )


def renews_itself(folder: Path) -> bool:
    """Whether the study's authority signs here; a leaf of the hospital's own CA is renewed by its own people."""
    return not (folder / ISSUER_FILE).exists()


def ask(folder: Path, identity: Identity, now: datetime) -> Asked:
    """Make the new key, or take the one made before, and the old key's statement about it."""
    place = folder / NEXT
    if not ((place / REQUEST_FILE).exists() and (place / KEY_FILE).exists()):  # a crash came between: nobody heard of this key
        (place / KEY_FILE).unlink(missing_ok=True)
        (place / REQUEST_FILE).unlink(missing_ok=True)
        create_request(place, identity.uri)
    key = _next_key(folder)
    request = files.read_bytes(place / REQUEST_FILE, "the request for the next key", KEY_ORIGIN)
    return Asked(request, sign_succession(identity.uri, identity.key, key.public_key(), now, LIFE))


def keep(folder: Path, identity: Identity, certificate_pem: bytes, now: datetime) -> None:
    """Check the certificate that came back and lay it beside the new key. Raises CertificateError; nothing has changed then."""
    source = "the renewed certificate"
    leaf = parse_certificate(certificate_pem, source)
    party = party_of_certificate(leaf, now, source)
    check_issued(leaf, identity.ca_pem, now, source)
    if party.uri != identity.uri or party.public_key_der != public_key_der_of(_next_key(folder).public_key()):
        raise CertificateError(f"{source} names another party or key than was asked for: the old one stays in use")
    files.replace(folder / NEXT / CERTIFICATE_FILE, certificate_pem, files.PUBLIC)


def is_ready(folder: Path) -> bool:
    """Whether a new key and its certificate wait to be changed to."""
    return (folder / NEXT / CERTIFICATE_FILE).exists()


def finish(folder: Path) -> bool:
    """Change to the next key if its certificate is here, or go on with a change that a crash cut; False where there is none."""
    place = folder / NEXT
    if not is_ready(folder):
        return False
    try:
        if (place / KEY_FILE).exists():
            (place / KEY_FILE).replace(folder / KEY_FILE)
        (place / CERTIFICATE_FILE).replace(folder / CERTIFICATE_FILE)
        (place / REQUEST_FILE).replace(folder / REQUEST_FILE)
        place.rmdir()
    except OSError as error:
        raise CertificateError(
            f"cannot change to the next key in {folder}: {error.strerror}; let this user write the folder"
        ) from error
    return True


def _next_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    path = folder / NEXT / KEY_FILE
    return load_private_key(files.read_private(path, "the next private key", KEY_ORIGIN), str(path))
