"""A hospital's own PKI, played by openssl: it signs our request, and however much it signs, membership is not its to give."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography.x509 import load_pem_x509_certificate
from enrolled_study import ST_ANNA, Study
from live_service import REFUSED_BY_TLS, call, files_of, raw_channel, sync_server

from certs.authority import create_authority, issue
from certs.enrol import admit_issuer, create_request, install
from certs.identity import load_identity
from certs.party import CertificateError
from certs.peers import Peer, PeerList
from certs.tls import channel_credentials, party_of, server_credentials
from certs.words import words_of

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: it plays the hospital's own CA"),
]


def openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """A CA on another curve than ours, as hospitals have them."""
    folder = tmp_path / "pki"
    folder.mkdir()
    openssl(folder, "ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", "ca.key")
    subject = ("-subj", "/O=St Anna/CN=St Anna Issuing CA")
    extensions = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl(folder, "req", "-x509", "-new", "-key", "ca.key", "-out", "ca.crt", "-days", "400", *subject, *extensions)
    return folder


def signed_by(pki: Path, request: Path, out: Path) -> Path:
    ca = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "90", "-copy_extensions", "copyall")
    openssl(pki, "x509", "-req", "-in", str(request), "-out", str(out), *ca)
    return out


@pytest.fixture
def coordinator(enrolled: Study, tmp_path: Path) -> Path:
    return Path(shutil.copytree(enrolled.coordinator, tmp_path / "coordinator"))


@pytest.fixture
def hospital(enrolled: Study, pki: Path, tmp_path: Path) -> Path:
    """Enrolled with a certificate of its own CA."""
    folder = tmp_path / "hospital"
    create_request(folder, ST_ANNA)
    signed = signed_by(pki, folder / "node.csr", tmp_path / "st-anna.crt")
    words = words_of(enrolled.authority.fingerprint)
    install(folder, signed, words, root=enrolled.ca / "ca.crt", issuer=pki / "ca.crt")
    return folder


def words_in(folder: Path) -> str:
    return words_of(load_identity(folder).fingerprint)


def test_openssl_signs_our_request_and_the_hospital_is_served(pki: Path, hospital: Path, coordinator: Path) -> None:
    with sync_server(server_credentials(coordinator)) as port:
        assert call(port, channel_credentials(hospital)).code is REFUSED_BY_TLS  # nobody admitted this CA yet
        party = admit_issuer(coordinator, hospital / "node.crt", pki / "ca.crt", words_in(hospital))
        admitted = call(port, channel_credentials(hospital))  # taken up without a restart
    assert (party.uri, admitted.code) == (ST_ANNA, grpc.StatusCode.OK)
    assert admitted.text.split() == [ST_ANNA, load_identity(hospital).fingerprint.hex()]


def test_a_ca_that_mints_impostors_gets_no_further_than_the_handshake(
    pki: Path, hospital: Path, coordinator: Path, tmp_path: Path
) -> None:
    admit_issuer(coordinator, hospital / "node.crt", pki / "ca.crt", words_in(hospital))
    create_request(tmp_path / "impostor", ST_ANNA)
    signed_by(pki, tmp_path / "impostor" / "node.csr", tmp_path / "impostor" / "node.crt")
    allowed = PeerList((Peer(ST_ANNA, load_identity(hospital).fingerprint, "Dr. Adler", datetime.now(UTC)),))

    def listed(_: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            allowed.check(party_of(context))
        except CertificateError as error:
            return context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return b"admitted"

    root = (hospital / "ca.crt").read_bytes()
    with sync_server(server_credentials(coordinator), listed) as port:
        assert call(port, channel_credentials(hospital)).text == "admitted"
        refused = call(port, raw_channel(root, files_of(tmp_path / "impostor")))
    assert (refused.code, "presents another key" in refused.text) == (grpc.StatusCode.PERMISSION_DENIED, True)


def test_the_hospitals_ca_is_no_coordinator(enrolled: Study, pki: Path, hospital: Path, tmp_path: Path) -> None:
    """What the hospital trusts for servers is the study's root alone: its own CA cannot stand between."""
    own_ca = create_authority(tmp_path / "other", "lidc")
    issue(tmp_path / "other", "secagg://lidc/coordinator/main", tmp_path / "fake")
    (hospital / "issuer.crt").write_bytes((hospital / "issuer.crt").read_bytes() + own_ca.certificate_pem)
    with sync_server(server_credentials(tmp_path / "fake")) as port:
        assert call(port, channel_credentials(hospital)).code is REFUSED_BY_TLS


def test_what_is_refused_of_a_foreign_ca(enrolled: Study, pki: Path, coordinator: Path, hospital: Path, tmp_path: Path) -> None:
    words = words_of(enrolled.authority.fingerprint)
    leaf = hospital / "node.crt"
    with pytest.raises(CertificateError, match="does not match this key"):
        admit_issuer(coordinator, leaf, pki / "ca.crt", "-".join(["acorn"] * 8))
    with pytest.raises(CertificateError, match="is no CA"):
        admit_issuer(coordinator, leaf, leaf, words_in(hospital))
    with pytest.raises(CertificateError, match="did not sign this certificate"):
        admit_issuer(coordinator, leaf, enrolled.ca / "ca.crt", words_in(hospital))
    with pytest.raises(CertificateError, match="the root: word"):
        install(hospital, leaf, "-".join(["acorn"] * 8), root=enrolled.ca / "ca.crt", issuer=pki / "ca.crt")
    with pytest.raises(CertificateError, match="holds 1 certificates"):
        install(hospital, leaf, words)
    assert not (coordinator / "callers.crt").exists()


def test_a_renewed_server_certificate_is_shown_without_a_restart(enrolled: Study, coordinator: Path, tmp_path: Path) -> None:
    shown = []
    with sync_server(server_credentials(coordinator)) as port:
        shown.append(serial_at(port))
        replace_leaf(enrolled, coordinator, tmp_path / "renewed")
        shown.append(serial_at(port))
        (coordinator / "node.crt").write_bytes(b"half a certificate")
        shown.append(serial_at(port))  # the last whole one
        assert call(port, channel_credentials(enrolled.st_anna)).code is grpc.StatusCode.OK
    assert shown[0] != shown[1] == shown[2]


def replace_leaf(enrolled: Study, coordinator: Path, made: Path) -> None:
    issue(enrolled.ca, "secagg://lidc/coordinator/main", made)
    for name in ("node.key", "node.crt"):
        (made / name).replace(coordinator / name)


def serial_at(port: int) -> int:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 20) as raw, context.wrap_socket(raw) as secure:
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return load_pem_x509_certificate(ssl.DER_cert_to_PEM_cert(shown).encode()).serial_number
