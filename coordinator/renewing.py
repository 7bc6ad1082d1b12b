"""A renewal as the coordinator does it: check what is asked, record it, sign. The caller holds the old key (its TLS session).

(1) Only the present key is followed, so that an older one cannot branch off; the same request again is answered again.
(2) A certificate in its first two thirds is not renewed: a node that asks all the time cannot fill the record.
(3) The statement is on disk before the certificate exists; peers are shown it with the next session of the new key.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from certs.authority import Leaf, load_authority, record, sign_leaf
from certs.enrol import read_request
from certs.party import CertificateError, Party
from certs.renewal import RENEW_FROM_DAY, is_due
from certs.succession import Succession, parse_succession
from coordinator.admission import Admission
from coordinator.sessions import Refusal

MAX_REQUEST_BYTES = 8_000
SOURCE = "the request for renewal"


def renewed(
    authority: Path | None,
    admission: Admission,
    party: Party,
    not_after: datetime,
    request_pem: bytes,
    statement: bytes,
    now: datetime,
) -> bytes:
    """The certificate (PEM) of the new key of `party`, whose present one ends at `not_after`. Raises Refusal."""
    if authority is None:
        raise Refusal("denied", "this coordinator does not sign: send a new request to its people, as at the enrolment")
    if not is_due(not_after, now):
        raise Refusal("late", f"the certificate ends on {not_after:%Y-%m-%d}; it is renewed from day {RENEW_FROM_DAY} on")
    if max(len(request_pem), len(statement)) > MAX_REQUEST_BYTES:
        raise Refusal("invalid", f"{SOURCE} is longer than any request")
    try:
        leaf, follows = read_request(request_pem, SOURCE), parse_succession(statement, SOURCE)
        _check(admission, party, leaf, follows, now)
        pem = sign_leaf(load_authority(authority), Leaf(leaf.uri, leaf.public_key), now)
        if admission.is_present(party):
            admission.follow(follows)  # (3)
        record(authority, leaf, pem, now, words_compared=False, succeeds=party.fingerprint)
    except CertificateError as error:
        raise Refusal("invalid", str(error)) from error
    return pem


def _check(admission: Admission, party: Party, leaf: Leaf, follows: Succession, now: datetime) -> None:
    if leaf.uri != party.uri or follows.uri != party.uri:
        raise CertificateError(f"{SOURCE} names another party than its connection: a party renews itself only")
    if follows.old_sha256 != party.fingerprint or follows.new_sha256 != leaf.fingerprint:
        raise CertificateError(f"{SOURCE} names other keys than those of the connection and of the request")
    if not follows.not_before <= now <= follows.not_after and abs((now - follows.not_before).total_seconds()) > 300:
        raise CertificateError(
            f"{SOURCE} is dated {follows.not_before:%Y-%m-%d %H:%M} UTC: compare the clocks of both machines"
        )
    chain = admission.chain(party.uri)
    if not admission.is_present(party) and chain[-1].new_sha256 != leaf.fingerprint:  # (1)
        raise CertificateError(f"{party.uri} was given a certificate for another new key already: use that one")
