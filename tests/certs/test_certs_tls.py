"""Real connections on loopback: who gets in, who does not, and where a caller's name comes from.

Every refusal stands beside the same connection with one thing right, so that none of them can pass for the wrong reason.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from enrolled_study import CLIENT, EVALUATOR, LAKESIDE, SERVER, ST_ANNA, Study, forge
from live_service import (
    METHOD,
    PATIENCE_S,
    REFUSED_BY_SERVICE,
    REFUSED_BY_TLS,
    SERVER_NAMES,
    Reply,
    aio_server,
    call,
    files_of,
    raw_channel,
    raw_server,
    sync_server,
)

from certs.authority import create_authority, issue
from certs.identity import load_identity
from certs.party import CertificateError, Party
from certs.peers import PeerList, peer_of
from certs.tls import channel_credentials, party_of, server_credentials

pytestmark = pytest.mark.sockets


@pytest.fixture(scope="module", params=[sync_server, aio_server], ids=["sync", "aio"])
def port(request: pytest.FixtureRequest, enrolled: Study) -> Iterator[int]:
    with request.param(server_credentials(enrolled.coordinator)) as port:
        yield port


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def root(enrolled: Study) -> bytes:
    return enrolled.authority.certificate_pem


def test_a_caller_is_named_by_its_certificate(enrolled: Study, port: int) -> None:
    for folder, uri in ((enrolled.st_anna, ST_ANNA), (enrolled.evaluator, EVALUATOR)):
        expected = f"{uri} {load_identity(folder).fingerprint.hex()}"
        assert call(port, channel_credentials(folder)) == Reply(grpc.StatusCode.OK, expected)
        assert call(port, channel_credentials(folder), host="127.0.0.1") == Reply(grpc.StatusCode.OK, expected)


def test_nothing_in_a_message_changes_the_name(enrolled: Study, port: int) -> None:
    metadata = (
        ("peer_uri", LAKESIDE),
        ("x509_subject_alternative_name", LAKESIDE),
        ("x-forwarded-client-cert", f"URI={LAKESIDE}"),
    )
    reply = call(port, channel_credentials(enrolled.st_anna), message=LAKESIDE.encode(), metadata=metadata)
    assert reply.text.split()[0] == ST_ANNA


def test_no_client_certificate(port: int, root: bytes) -> None:
    assert call(port, raw_channel(root, None)).code is REFUSED_BY_TLS


def test_plaintext(port: int) -> None:
    with grpc.insecure_channel(f"localhost:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD)(b"", timeout=PATIENCE_S)
    assert caught.value.code() is REFUSED_BY_TLS


def test_a_certificate_of_another_authority(port: int, root: bytes, tmp_path: Path) -> None:
    create_authority(tmp_path / "ca", "lidc")
    issue(tmp_path / "ca", ST_ANNA, tmp_path / "node")
    assert call(port, raw_channel(root, files_of(tmp_path / "node"))).code is REFUSED_BY_TLS


def test_a_self_signed_certificate(enrolled: Study, port: int, root: bytes) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert call(port, raw_channel(root, forge(enrolled.authority, key=key, signer=key))).code is REFUSED_BY_TLS
    assert call(port, raw_channel(root, forge(enrolled.authority, key=key))).code is grpc.StatusCode.OK


def test_an_expired_certificate(enrolled: Study, port: int, root: bytes) -> None:
    past = datetime.now(UTC) - timedelta(days=100)
    assert call(port, raw_channel(root, forge(enrolled.authority, start=past, days=99))).code is REFUSED_BY_TLS
    assert call(port, raw_channel(root, forge(enrolled.authority, start=past, days=101))).code is grpc.StatusCode.OK


def test_a_certificate_that_is_not_yet_valid(enrolled: Study, port: int, root: bytes) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert call(port, raw_channel(root, forge(enrolled.authority, start=tomorrow))).code is REFUSED_BY_TLS
    assert (
        call(port, raw_channel(root, forge(enrolled.authority, start=tomorrow - timedelta(days=2)))).code is grpc.StatusCode.OK
    )


def test_a_revoked_certificate_is_refused_by_the_list(enrolled: Study) -> None:
    confirmed = [load_identity(folder) for folder in (enrolled.st_anna, enrolled.lakeside)]
    both = PeerList(tuple(peer_of(Party(i.uri, i.fingerprint, i.public_key_der), "Dr. Adler", now()) for i in confirmed))
    allowed = [both]

    def admitted(_: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            allowed[0].check(party_of(context))
        except CertificateError as error:
            return context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return b"admitted"

    with sync_server(server_credentials(enrolled.coordinator), admitted) as port:
        assert call(port, channel_credentials(enrolled.st_anna)).text == "admitted"
        allowed[0] = both.without(ST_ANNA)
        revoked = call(port, channel_credentials(enrolled.st_anna))
        assert call(port, channel_credentials(enrolled.lakeside)).text == "admitted"
    assert (revoked.code, "not on the list of confirmed keys" in revoked.text) == (grpc.StatusCode.PERMISSION_DENIED, True)


def test_a_server_certificate_used_as_a_client(enrolled: Study, port: int, root: bytes) -> None:
    assert call(port, raw_channel(root, files_of(enrolled.coordinator))).code is REFUSED_BY_TLS
    assert call(port, raw_channel(root, forge(enrolled.authority, usage=(SERVER,)))).code is REFUSED_BY_TLS
    with pytest.raises(CertificateError, match="cannot stand on the client side"):
        channel_credentials(enrolled.coordinator)


def test_leaves_that_tls_accepts_and_the_service_refuses(enrolled: Study, port: int, root: bytes) -> None:
    coordinator = x509.UniformResourceIdentifier("secagg://lidc/coordinator/main")
    lies = {
        "RSA": (forge(enrolled.authority, key=rsa.generate_private_key(65537, 2048)), "only EC P-256"),
        "a client named coordinator": (forge(enrolled.authority, names=(coordinator,)), "not a server certificate"),
        "both purposes": (forge(enrolled.authority, usage=(CLIENT, SERVER)), "not a client certificate"),
        "no party": (forge(enrolled.authority, names=(x509.DNSName("st-anna"),)), "names 0 parties"),
    }
    for lie, (shown, reason) in lies.items():
        reply = call(port, raw_channel(root, shown))
        assert reply.code is REFUSED_BY_SERVICE, lie
        assert reason in reply.text, lie


def test_a_second_certificate_in_a_confirmed_name_is_stopped_by_the_pin(enrolled: Study, tmp_path: Path) -> None:
    anna = load_identity(enrolled.st_anna)
    confirmed = Party(anna.uri, anna.fingerprint, anna.public_key_der)
    allowed = PeerList((peer_of(confirmed, "Dr. Adler", datetime.now(UTC)),))

    def admitted(_: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            allowed.check(party_of(context))
        except CertificateError as error:
            return context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return b"admitted"

    issue(enrolled.ca, ST_ANNA, tmp_path / "double")  # the authority itself is the cheat
    with sync_server(server_credentials(enrolled.coordinator), admitted) as port:
        assert call(port, channel_credentials(enrolled.st_anna)) == Reply(grpc.StatusCode.OK, "admitted")
        double = call(port, channel_credentials(tmp_path / "double"))
    assert double.code is grpc.StatusCode.PERMISSION_DENIED
    assert "presents another key" in double.text


def test_a_hospital_certificate_used_as_a_server(enrolled: Study, root: bytes) -> None:
    name = x509.UniformResourceIdentifier(LAKESIDE)
    client = channel_credentials(enrolled.st_anna)
    with sync_server(raw_server(root, files_of(enrolled.lakeside))) as port:
        assert call(port, client).code is REFUSED_BY_TLS
    with sync_server(raw_server(root, forge(enrolled.authority, names=(name, *SERVER_NAMES), usage=(CLIENT,)))) as port:
        assert call(port, client).code is REFUSED_BY_TLS  # the host name is right, only the purpose is wrong
    with sync_server(raw_server(root, forge(enrolled.authority, names=(name, *SERVER_NAMES), usage=(SERVER,)))) as port:
        assert call(port, client).code is grpc.StatusCode.OK
    with pytest.raises(CertificateError, match="cannot stand on the server side"):
        server_credentials(enrolled.lakeside)


def test_a_server_of_another_authority_or_host(enrolled: Study, root: bytes, tmp_path: Path) -> None:
    create_authority(tmp_path / "ca", "lidc")
    issue(tmp_path / "ca", "secagg://lidc/coordinator/main", tmp_path / "other")
    with sync_server(raw_server(root, files_of(tmp_path / "other"))) as port:
        assert call(port, channel_credentials(enrolled.st_anna)).code is REFUSED_BY_TLS
    issue(enrolled.ca, "secagg://lidc/coordinator/main", tmp_path / "elsewhere", dns_names=("c.example.org",), ip=())
    with sync_server(server_credentials(tmp_path / "elsewhere")) as port:
        assert call(port, channel_credentials(enrolled.st_anna)).code is REFUSED_BY_TLS


def plain_tls(enrolled: Study, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(enrolled.st_anna / "ca.crt"))
    context.load_cert_chain(enrolled.st_anna / "node.crt", enrolled.st_anna / "node.key")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    return context


def first_bytes(enrolled: Study, port: int, version: ssl.TLSVersion) -> bytes:
    """What the server says first, which in TLS 1.3 is after it has accepted the client's certificate."""
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain,
        plain_tls(enrolled, version).wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.recv(9)


def test_tls_1_2_is_refused_and_1_3_accepted(enrolled: Study, port: int) -> None:
    settings_frame_type = 4  # the first frame of an HTTP/2 server, RFC 9113 section 3.4
    assert first_bytes(enrolled, port, ssl.TLSVersion.TLSv1_3)[3] == settings_frame_type
    with pytest.raises((ssl.SSLError, ConnectionError)):
        first_bytes(enrolled, port, ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize(("version", "agreed"), [(ssl.TLSVersion.TLSv1_2, None), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")])
def test_our_client_speaks_no_tls_1_2(enrolled: Study, version: ssl.TLSVersion, agreed: str | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(enrolled.coordinator / "node.crt", enrolled.coordinator / "node.key")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    outcome: list[str | None] = []

    def accept(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE_S)
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                outcome.append(secure.version())
        except (ssl.SSLError, OSError):
            outcome.append(None)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        call(listener.getsockname()[1], channel_credentials(enrolled.st_anna))
        thread.join(PATIENCE_S)
    assert outcome == [agreed]


FLOOR = """
import os, sys
{first}
import certs
print(os.environ["GRPC_SSL_CIPHER_SUITES"])
from certs import tls
"""


@pytest.mark.parametrize("preset", ["", "ALL"])
def test_the_floor_holds_whatever_the_environment_says(preset: str) -> None:
    done = run_python(FLOOR.format(first=""), GRPC_SSL_CIPHER_SUITES=preset)
    assert (done.returncode, done.stdout.strip()) == (0, "ECDHE-RSA-AES128-GCM-SHA256"), done.stderr


def test_importing_grpc_too_early_is_an_error_that_says_what_to_do() -> None:
    done = run_python(FLOOR.format(first="import grpc"))
    assert done.returncode != 0
    assert "put `import certs` into the __init__" in done.stderr


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "GRPC_SSL_CIPHER_SUITES"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=180, env=clean)


class Session:
    """A TLS session with anything in it."""

    def __init__(self, **properties: list[bytes]) -> None:
        self.properties = properties

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.properties


def test_sessions_that_name_nobody(enrolled: Study) -> None:
    leaf = (enrolled.st_anna / "node.crt").read_bytes()
    for session, reason in (
        (Session(), "is not TLS"),
        (Session(transport_security_type=[b"insecure"], x509_pem_cert=[leaf]), "is not TLS"),
        (Session(transport_security_type=[b"ssl"]), "no client certificate"),
        (Session(transport_security_type=[b"ssl"], x509_pem_cert=[leaf, leaf]), "no client certificate"),
        (Session(transport_security_type=[b"ssl"], x509_pem_cert=[b""]), "no readable certificate"),
        (Session(transport_security_type=[b"ssl"], peer_uri=[ST_ANNA.encode()]), "no client certificate"),
    ):
        with pytest.raises(CertificateError, match=reason):
            party_of(session)


def test_a_connection_that_outlives_its_certificate_is_refused(enrolled: Study) -> None:
    session = Session(transport_security_type=[b"ssl"], x509_pem_cert=[(enrolled.st_anna / "node.crt").read_bytes()])
    assert party_of(session).uri == ST_ANNA
    with pytest.raises(CertificateError, match="expired on"):
        party_of(session, now=datetime.now(UTC) + timedelta(days=91))


def test_a_coordinator_never_calls(enrolled: Study) -> None:
    session = Session(transport_security_type=[b"ssl"], x509_pem_cert=[(enrolled.coordinator / "node.crt").read_bytes()])
    with pytest.raises(CertificateError, match="is not a party that may call"):
        party_of(session)
