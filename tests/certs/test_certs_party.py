"""Names and leaves: what is accepted, and that damaged bytes raise CertificateError and nothing else."""

from __future__ import annotations

import base64
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from enrolled_study import CLIENT, EVALUATOR, SERVER, ST_ANNA, Study, forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.enrol import create_request, read_request
from certs.identity import load_identity
from certs.party import CertificateError, PartyName, Purpose, parse_certificate, party_of_certificate

NOW = datetime.now(UTC)
SERVER_NAME = x509.UniformResourceIdentifier("secagg://lidc/coordinator/main")


def test_names_are_read_in_parts() -> None:
    assert PartyName.parse(ST_ANNA) == PartyName("lidc", "hospital", "st-anna")
    assert PartyName.parse(EVALUATOR).purpose is Purpose.CLIENT
    assert PartyName.parse(SERVER_NAME.value).purpose is Purpose.SERVER


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "secagg://lidc/hospital",
        "secagg://lidc/hospital/",
        "secagg://lidc/patient/st-anna",
        "secagg://lidc/hospital/St-Anna",
        "secagg://lidc/hospital/st-anna/",
        "secagg://lidc/hospital/st-anna\n",
        "secagg://lidc/hospital/../coordinator",
        "secagg://lidc:443/hospital/st-anna",
        "secagg://me@lidc/hospital/st-anna",
        "secagg://lidc/hospital/st-anna?x=1",
        "https://lidc/hospital/st-anna",
        "secagg://lidc/hospital/" + "a" * 64,
        "secagg://lidc/hospital/st-аnna",  # a Cyrillic letter that looks like a Latin one
    ],
)
def test_other_names_are_refused(uri: str) -> None:
    with pytest.raises(CertificateError, match="is not a party"):
        PartyName.parse(uri)


def test_the_party_of_an_issued_leaf(enrolled: Study) -> None:
    identity = load_identity(enrolled.st_anna)
    party = party_of_certificate(parse_certificate(identity.certificate_pem, "leaf"), datetime.now(UTC), "leaf")
    assert (party.uri, party.fingerprint) == (ST_ANNA, identity.fingerprint)
    assert party.public_key_der == identity.public_key_der


LIES = {
    "RSA": ({"key": rsa.generate_private_key(65537, 2048)}, "only EC P-256"),
    "another curve": ({"key": ec.generate_private_key(ec.SECP384R1())}, "kind secp384r1"),
    "no name": ({"names": ()}, "names no party"),
    "a DNS name only": ({"names": (x509.DNSName("st-anna.example.org"),)}, "names 0 parties"),
    "two names": ({"names": (x509.UniformResourceIdentifier(ST_ANNA), x509.UniformResourceIdentifier(EVALUATOR))}, "2 parties"),
    "a foreign URI": ({"names": (x509.UniformResourceIdentifier("https://example.org"),)}, "is not a party"),
    "a CA": ({"ca": True}, "belongs to a CA"),
    "no purpose": ({"usage": ()}, "states no purpose"),
    "both purposes": ({"usage": (CLIENT, SERVER)}, "not a client certificate"),
    "hospital as server": ({"usage": (SERVER,)}, "not a client certificate"),
    "coordinator as client": ({"names": (SERVER_NAME,)}, "not a server certificate"),
    "expired": ({"start": NOW - timedelta(days=91)}, "expired on"),
    "not yet valid": ({"start": NOW + timedelta(days=1)}, "valid only from"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_leaf_that_says_too_much_or_too_little_is_refused(enrolled: Study, lie: str) -> None:
    fields, reason = LIES[lie]
    certificate = parse_certificate(forge(enrolled.authority, **fields).certificate, "it")
    with pytest.raises(CertificateError, match=reason):
        party_of_certificate(certificate, NOW, "it")


def damaged(pem: bytes, position: float, value: int) -> bytes:
    header, *lines, footer = pem.strip().splitlines()
    der = bytearray(base64.b64decode(b"".join(lines)))
    der[int(position * len(der))] ^= value
    return b"\n".join((header, base64.b64encode(bytes(der)), footer, b""))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # damage can make a serial of 0
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_damaged_certificates_raise_nothing_but_certificate_errors(enrolled: Study, position: float, value: int) -> None:
    pem = damaged((enrolled.st_anna / "node.crt").read_bytes(), position, value)
    with suppress(CertificateError):
        party_of_certificate(parse_certificate(pem, "it"), NOW, "it")


@pytest.fixture(scope="module")
def request_pem(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("request")
    create_request(folder, ST_ANNA)
    return (folder / "node.csr").read_bytes()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_no_damaged_request_is_accepted(request_pem: bytes, position: float, value: int) -> None:
    with pytest.raises(CertificateError):
        read_request(damaged(request_pem, position, value), "it")


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(CertificateError):
        parse_certificate(content, "it")
    with pytest.raises(CertificateError):
        read_request(content, "it")
