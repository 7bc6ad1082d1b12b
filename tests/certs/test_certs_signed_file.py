"""Files signed with the key of a certificate: what is signed, what is not, and who is believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.authority import create_authority, issue
from certs.identity import Identity
from certs.party import CertificateError
from certs.signed_file import SignatureWrong, chain_of, check_chain, check_signature, sign_file
from secagg.encoding import encode
from secagg.identity import SIGNATURE_LABEL

DATA = b'{"a": 1}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signed")


@pytest.fixture(scope="module")
def identity(folder: Path) -> Identity:
    create_authority(folder / "ca", "lidc")
    return issue(folder / "ca", "secagg://lidc/hospital/h0", folder / "h0")


def test_what_was_signed_verifies_and_names_its_party(identity: Identity, folder: Path) -> None:
    chain = chain_of(identity, folder / "h0")
    check_signature(DATA, sign_file(identity.key, DATA), chain, "x")
    by = check_chain(chain, datetime.now(UTC), "x")
    assert (by.party.uri, by.party.fingerprint) == (identity.uri, identity.fingerprint)
    assert by.not_after == identity.not_after


@given(place=st.integers(0, len(DATA) - 1), other=st.integers(1, 255))
def test_one_other_byte_is_another_file(identity: Identity, folder: Path, place: int, other: int) -> None:
    changed = DATA[:place] + bytes([DATA[place] ^ other]) + DATA[place + 1 :]
    with pytest.raises(SignatureWrong):
        check_signature(changed, sign_file(identity.key, DATA), chain_of(identity, folder / "h0"), "x")


def test_another_partys_certificate_does_not_vouch(identity: Identity, folder: Path) -> None:
    other = issue(folder / "ca", "secagg://lidc/hospital/h1", folder / "h1")
    with pytest.raises(SignatureWrong):
        check_signature(DATA, sign_file(identity.key, DATA), chain_of(other, folder / "h1"), "x")


def test_a_certificate_that_nobody_beside_it_signed_is_refused(identity: Identity, folder: Path) -> None:
    create_authority(folder / "elsewhere", "lidc")
    foreign = (folder / "elsewhere" / "ca.crt").read_bytes()
    with pytest.raises(CertificateError, match="none of the 1 certificates"):
        check_chain(identity.certificate_pem + foreign, datetime.now(UTC), "x")
    with pytest.raises(CertificateError, match="none of the 0 certificates"):
        check_chain(identity.certificate_pem, datetime.now(UTC), "x")


def test_a_certificate_counts_at_the_time_of_signing(identity: Identity, folder: Path) -> None:
    with pytest.raises(CertificateError, match="expired"):
        check_chain(chain_of(identity, folder / "h0"), identity.not_after + timedelta(days=1), "x")


def test_nothing_but_a_json_object_is_signed(identity: Identity) -> None:
    protocol = encode(SIGNATURE_LABEL, "advert", b"context", b"statement")
    tls = b" " * 64 + b"TLS 1.3, server CertificateVerify\0"
    for data in (protocol, tls, b"", b"[]", b" {}"):
        with pytest.raises(ValueError, match="only a JSON object"):
            sign_file(identity.key, data)
