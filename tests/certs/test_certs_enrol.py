"""Enrolment over two machines: the key stays, only the public key is copied, and words are compared both ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from enrolled_study import COORDINATOR, LAKESIDE, ST_ANNA, Study

from certs.authority import create_authority
from certs.enrol import create_request, install, read_request, sign_request
from certs.identity import load_identity
from certs.party import CertificateError, parse_certificate
from certs.words import words_of

WRONG_WORDS = "-".join(["acorn"] * 8)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    create_request(tmp_path / "hospital", ST_ANNA)
    return tmp_path / "hospital"


def key_words_of(path: Path) -> str:
    return words_of(read_request(path.read_bytes(), "it").fingerprint)


def key_words(folder: Path) -> str:
    return key_words_of(folder / "node.csr")


def write_csr(
    path: Path, builder: x509.CertificateSigningRequestBuilder, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> Path:
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return path


def asking_for(*uris: str) -> x509.CertificateSigningRequestBuilder:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)


def test_the_whole_flow(enrolled: Study, hospital: Path, tmp_path: Path) -> None:
    key_before = (hospital / "node.key").read_bytes()
    assert (hospital / "node.key").stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in (hospital / "node.csr").read_bytes()
    received = Path(shutil.copy(hospital / "node.csr", tmp_path / "received.csr"))
    sign_request(enrolled.ca, received, tmp_path / "signed.pem", key_words(hospital))
    identity = install(hospital, tmp_path / "signed.pem", words_of(enrolled.authority.fingerprint))
    assert identity.uri == ST_ANNA
    assert load_identity(hospital).fingerprint == identity.fingerprint
    assert (hospital / "node.key").read_bytes() == key_before
    record = json.loads((enrolled.ca / "issued.jsonl").read_text().splitlines()[-1])
    assert (record["uri"], record["words_compared"]) == (ST_ANNA, True)


def test_a_request_is_not_signed_without_the_words_of_its_key(enrolled: Study, hospital: Path, tmp_path: Path) -> None:
    before = (enrolled.ca / "issued.jsonl").read_text()
    with pytest.raises(CertificateError, match="does not match this key"):
        sign_request(enrolled.ca, hospital / "node.csr", tmp_path / "signed.pem", WRONG_WORDS)
    assert not (tmp_path / "signed.pem").exists()
    assert (enrolled.ca / "issued.jsonl").read_text() == before


def test_a_root_is_not_installed_without_its_words(enrolled: Study, hospital: Path, tmp_path: Path) -> None:
    sign_request(enrolled.ca, hospital / "node.csr", tmp_path / "signed.pem", key_words(hospital))
    with pytest.raises(CertificateError, match=r"the root: word \d does not match"):
        install(hospital, tmp_path / "signed.pem", WRONG_WORDS)
    assert sorted(path.name for path in hospital.iterdir()) == ["node.csr", "node.key"]


def test_only_the_public_key_is_copied_from_a_request(enrolled: Study, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        asking_for(ST_ANNA)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
    )
    path = write_csr(tmp_path / "greedy.csr", builder, key)
    sign_request(enrolled.ca, path, tmp_path / "signed.pem", key_words_of(path))
    leaf = parse_certificate((tmp_path / "signed.pem").read_bytes(), "leaf")
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert leaf.public_key() == key.public_key()


REFUSED = {
    "RSA": (asking_for(ST_ANNA), rsa.generate_private_key(65537, 2048), "only EC P-256"),
    "two names": (asking_for(ST_ANNA, LAKESIDE), ec.generate_private_key(ec.SECP256R1()), "asks for 2 names"),
    "a foreign name": (asking_for("https://example.org"), ec.generate_private_key(ec.SECP256R1()), "is not a party"),
    "no name": (
        x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])),
        ec.generate_private_key(ec.SECP256R1()),
        "is not a certificate request with a party's URI",
    ),
    "a coordinator": (asking_for(COORDINATOR), ec.generate_private_key(ec.SECP256R1()), "is a coordinator"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_requests_are_refused(enrolled: Study, tmp_path: Path, kind: str) -> None:
    builder, key, reason = REFUSED[kind]
    path = write_csr(tmp_path / "it.csr", builder, key)
    with pytest.raises(CertificateError, match=reason):
        sign_request(enrolled.ca, path, tmp_path / "signed.pem", WRONG_WORDS)
    assert not (tmp_path / "signed.pem").exists()


def test_another_study_is_refused(enrolled: Study, tmp_path: Path) -> None:
    create_request(tmp_path, "secagg://other/hospital/st-anna")
    with pytest.raises(CertificateError, match="another study"):
        sign_request(enrolled.ca, tmp_path / "node.csr", tmp_path / "signed.pem", key_words(tmp_path))


def test_a_key_is_not_replaced_by_a_second_request(hospital: Path) -> None:
    before = (hospital / "node.key").read_bytes()
    with pytest.raises(CertificateError, match=r"node\.key exists already"):
        create_request(hospital, ST_ANNA)
    assert (hospital / "node.key").read_bytes() == before


def test_a_certificate_installs_only_beside_its_own_key(enrolled: Study, hospital: Path, tmp_path: Path) -> None:
    sign_request(enrolled.ca, hospital / "node.csr", tmp_path / "signed.pem", key_words(hospital))
    create_request(tmp_path / "elsewhere", ST_ANNA)
    with pytest.raises(CertificateError, match="was made for another key"):
        install(tmp_path / "elsewhere", tmp_path / "signed.pem", words_of(enrolled.authority.fingerprint))


def test_a_leaf_of_one_root_with_another_root_is_refused(enrolled: Study, hospital: Path, tmp_path: Path) -> None:
    other = create_authority(tmp_path / "other", "lidc")
    sign_request(enrolled.ca, hospital / "node.csr", tmp_path / "signed.pem", key_words(hospital))
    leaf = parse_certificate((tmp_path / "signed.pem").read_bytes(), "leaf").public_bytes(Encoding.PEM)
    (tmp_path / "swapped.pem").write_bytes(leaf + other.certificate_pem)
    with pytest.raises(CertificateError, match="did not sign this certificate"):
        install(hospital, tmp_path / "swapped.pem", words_of(other.fingerprint))


def test_the_same_key_is_signed_again_and_installed_over_the_old_certificate(
    enrolled: Study, hospital: Path, tmp_path: Path
) -> None:
    root_words = words_of(enrolled.authority.fingerprint)
    sign_request(enrolled.ca, hospital / "node.csr", tmp_path / "first.pem", key_words(hospital), days=5)
    first = install(hospital, tmp_path / "first.pem", root_words)
    sign_request(enrolled.ca, hospital / "node.csr", tmp_path / "second.pem", key_words(hospital))
    second = install(hospital, tmp_path / "second.pem", root_words)
    assert second.not_after > first.not_after
    assert second.fingerprint == first.fingerprint
    with pytest.raises(CertificateError, match=r"second\.pem exists already"):
        sign_request(enrolled.ca, hospital / "node.csr", tmp_path / "second.pem", key_words(hospital))
