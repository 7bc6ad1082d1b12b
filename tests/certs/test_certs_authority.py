"""The authority and the identities that it issues: extensions, file modes, no replaced key, and every way a folder is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from enrolled_study import COORDINATOR, LAKESIDE, ST_ANNA, Study, forge

from certs import files
from certs.authority import Leaf, create_authority, issue, load_authority, sign_leaf
from certs.identity import load_identity
from certs.party import CertificateError, fingerprint_of, parse_certificate

NOW = datetime.now(UTC)


@pytest.fixture
def no_umask() -> Iterator[None]:
    """The most careless setting that a service can run under."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def leaf_of(folder: Path) -> x509.Certificate:
    return parse_certificate((folder / "node.crt").read_bytes(), "leaf")


def test_a_hospital_leaf_has_exactly_the_rights_of_a_client(enrolled: Study) -> None:
    leaf = leaf_of(enrolled.st_anna)
    extensions = leaf.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not any((usage.key_cert_sign, usage.crl_sign, usage.key_agreement, usage.key_encipherment))
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [
        x509.UniformResourceIdentifier(ST_ANNA)
    ]
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=90, minutes=5)


def test_a_coordinator_leaf_names_the_hosts_it_is_dialled_by(enrolled: Study, tmp_path: Path) -> None:
    names = leaf_of(enrolled.coordinator).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    issue(enrolled.ca, COORDINATOR, tmp_path / "c", dns_names=("c.example.org",), ip=("192.0.2.7", "2001:db8::7"))
    names = leaf_of(tmp_path / "c").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["c.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "2001:db8::7"]
    assert list(leaf_of(tmp_path / "c").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dns_names": ("c.example.org:443",)}, "not a host name"),
        ({"dns_names": ("*.example.org",)}, "not a host name"),
        ({"ip": ("localhost",)}, "not an IP address"),
        ({"days": 0}, "1 to 398 days"),
        ({"days": 399}, "1 to 398 days"),
    ],
)
def test_unusable_leaves_are_not_made(enrolled: Study, tmp_path: Path, fields: dict, reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        issue(enrolled.ca, COORDINATOR, tmp_path / "c", **fields)
    assert not (tmp_path / "c").exists()


def test_an_authority_signs_for_its_own_study_only(enrolled: Study, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="another study than this authority, 'lidc'"):
        issue(enrolled.ca, "secagg://other/hospital/st-anna", tmp_path)
    with pytest.raises(CertificateError, match="is not a party"):
        create_authority(tmp_path / "ca", "Bad Study")


def test_a_leaf_does_not_outlive_its_root(tmp_path: Path) -> None:
    authority = create_authority(tmp_path, "lidc", now=NOW - timedelta(days=3640))
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = parse_certificate(sign_leaf(authority, Leaf(ST_ANNA, key), NOW), "leaf")
    assert leaf.not_valid_after_utc == authority.certificate.not_valid_after_utc
    with pytest.raises(CertificateError, match="root certificate expired"):
        sign_leaf(authority, Leaf(ST_ANNA, key), NOW + timedelta(days=11))


@pytest.mark.usefixtures("no_umask")
def test_private_keys_are_closed_to_other_users_under_any_umask(tmp_path: Path) -> None:
    create_authority(tmp_path / "ca", "lidc")
    issue(tmp_path / "ca", ST_ANNA, tmp_path / "node")
    assert mode(tmp_path / "ca" / "ca.key") == mode(tmp_path / "node" / "node.key") == 0o600
    assert mode(tmp_path / "ca") == mode(tmp_path / "node") == 0o700
    assert mode(tmp_path / "node" / "node.crt") == 0o644
    assert sorted(path.name for path in (tmp_path / "node").iterdir()) == ["ca.crt", "node.crt", "node.key"]


def test_no_key_is_ever_replaced(tmp_path: Path) -> None:
    create_authority(tmp_path / "ca", "lidc")
    issue(tmp_path / "ca", ST_ANNA, tmp_path / "node")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CertificateError, match=r"ca\.key exists already and is not overwritten"):
        create_authority(tmp_path / "ca", "lidc")
    with pytest.raises(CertificateError, match=r"node\.key exists already and is not overwritten"):
        issue(tmp_path / "ca", ST_ANNA, tmp_path / "node")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_that_appears_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_bytes(b"somebody's key")
    with pytest.raises(CertificateError, match="not overwritten"):
        files.write_new(tmp_path / "node.key", b"another key", files.PRIVATE)
    assert (tmp_path / "node.key").read_bytes() == b"somebody's key"
    assert [path.name for path in tmp_path.iterdir()] == ["node.key"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "peers.toml").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    for write, name in ((files.write_new, "node.key"), (files.replace, "peers.toml")):
        with pytest.raises(CertificateError, match=f"cannot write .*{name}: No space left on device"):
            write(tmp_path / name, b"new", files.PRIVATE)
    assert [path.name for path in tmp_path.iterdir()] == ["peers.toml"]
    assert (tmp_path / "peers.toml").read_bytes() == b"old"


def test_everything_signed_is_on_record(tmp_path: Path) -> None:
    create_authority(tmp_path / "ca", "lidc")
    made = [issue(tmp_path / "ca", uri, tmp_path / str(place)) for place, uri in enumerate((ST_ANNA, LAKESIDE))]
    lines = [json.loads(line) for line in (tmp_path / "ca" / "issued.jsonl").read_text().splitlines()]
    assert [(line["uri"], line["key_sha256"]) for line in lines] == [(one.uri, one.fingerprint.hex()) for one in made]
    assert [int(line["serial"], 16) for line in lines] == [leaf_of(tmp_path / str(place)).serial_number for place in range(2)]
    assert [line["words_compared"] for line in lines] == [False, False]


def test_an_identity_loads_and_shows_no_secret(enrolled: Study) -> None:
    identity = load_identity(enrolled.st_anna)
    assert identity.uri == ST_ANNA
    assert identity.fingerprint == fingerprint_of(identity.public_key_der)
    assert timedelta(days=89) < identity.not_after - NOW < timedelta(days=91)
    text = repr(identity)
    assert "PRIVATE" not in text
    assert "key=" not in text.replace("public_key", "")
    identity.key.public_key().verify(identity.key.sign(b"m", ec.ECDSA(hashes.SHA256())), b"m", ec.ECDSA(hashes.SHA256()))


@pytest.fixture
def copy(enrolled: Study, tmp_path: Path) -> Path:
    return Path(shutil.copytree(enrolled.st_anna, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["node.key", "node.crt", "ca.crt"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CertificateError, match=f"cannot read the .*{name}: No such file"):
        load_identity(copy)


@pytest.mark.parametrize("name", ["node.key", "node.crt", "ca.crt"])
def test_a_damaged_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:90])
    with pytest.raises(CertificateError, match=f"{name} "):
        load_identity(copy)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o666, 0o620])
def test_a_key_open_to_others_is_refused(copy: Path, bits: int) -> None:
    (copy / "node.key").chmod(bits)
    with pytest.raises(CertificateError, match=f"open to other users .mode 0{bits:o}.: run chmod 600"):
        load_identity(copy)


def test_files_of_two_parties_do_not_mix(enrolled: Study, copy: Path) -> None:
    shutil.copy(enrolled.lakeside / "node.crt", copy / "node.crt")
    with pytest.raises(CertificateError, match="was made for another key"):
        load_identity(copy)


def test_a_root_that_did_not_sign_is_refused(copy: Path, tmp_path: Path) -> None:
    other = create_authority(tmp_path / "other", "lidc")
    (copy / "ca.crt").write_bytes(other.certificate_pem)
    with pytest.raises(CertificateError, match="did not sign this certificate"):
        load_identity(copy)


def test_an_encrypted_key_is_refused(enrolled: Study, copy: Path) -> None:
    secret = load_identity(enrolled.st_anna).key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (copy / "node.key").write_bytes(secret)
    with pytest.raises(CertificateError, match=r"no readable private key \(PEM, without passphrase\)"):
        load_identity(copy)


def test_a_forged_rsa_identity_does_not_load(enrolled: Study, copy: Path) -> None:
    forged = forge(enrolled.authority, key=rsa.generate_private_key(65537, 2048))
    (copy / "node.key").write_bytes(forged.key)
    (copy / "node.crt").write_bytes(forged.certificate)
    with pytest.raises(CertificateError, match="is not an EC P-256 key"):
        load_identity(copy)


def test_expired_and_early_identities_are_refused(enrolled: Study) -> None:
    with pytest.raises(CertificateError, match="expired on"):
        load_identity(enrolled.st_anna, now=NOW + timedelta(days=91))
    with pytest.raises(CertificateError, match="compare the clocks"):
        load_identity(enrolled.st_anna, now=NOW - timedelta(hours=1))


def test_an_authority_of_mixed_files_is_refused(enrolled: Study, tmp_path: Path) -> None:
    create_authority(tmp_path, "lidc")
    (tmp_path / "ca.crt").write_bytes(enrolled.authority.certificate_pem)
    with pytest.raises(CertificateError, match=r"ca\.crt was made for another key"):
        load_authority(tmp_path)
