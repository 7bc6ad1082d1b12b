"""`secagg-node check` looked at for a healthy node and for broken ones: which line, which words; and through HTTP proxies."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from node_world import ME, Folders, approved_ledger, make_folders, make_plan

from certs.authority import Leaf, issue, load_authority, sign_leaf
from certs.identity import load_identity
from certs.peers import load_peers, write_peers
from certs.tls import party_of, server_credentials
from hospital_node import checks, cli
from hospital_node.ledger import Cap, Ledger
from hospital_node.link import LinkLost, dial
from hospital_node.proxy import ProxyRefused, proxy_for
from hospital_node.traffic import ByteMeter
from proto import federation_pb2 as pb
from proto import federation_pb2_grpc as rpc

pytestmark = pytest.mark.sockets

PROXY = Path(__file__).with_name("connect_proxy.py")
LINES = [
    "certificate", "names", "dns", "tcp", "tls", "identity", "clock", "plan", "peers", "ledger", "budget", "approval", "data",
    "disk", "gpu",
]  # fmt: skip


@dataclass
class Coordinator(rpc.FederationServicer):
    """Says who calls, and what a test wants it to say."""

    refusal: str = ""
    clock_off_s: float = 0.0
    key: bytes | None = None
    calls: list[str] = field(default_factory=list)

    def Identify(self, request: pb.IdentifyRequest, context: grpc.ServicerContext) -> pb.IdentifyReply:
        party = party_of(context)
        self.calls.append(party.uri)
        return pb.IdentifyReply(
            protocol_version=request.protocol_version,
            identity=party.uri,
            key_sha256=self.key or party.fingerprint,
            refusal=self.refusal,
            time_s=time.time() + self.clock_off_s,
        )


@contextmanager
def serving(identity: Path, says: Coordinator, host: str = "127.0.0.1") -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    rpc.add_FederationServicer_to_server(says, server)
    port = server.add_secure_port(f"{host}:0", server_credentials(identity))
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """A node that is ready."""
    made = make_folders(tmp_path)
    plan = make_plan()
    approved_ledger(made, plan)
    made.state.write_plan(plan)
    (made.root / "data" / "manifest.csv").write_text("image,label,patient\na.nii,b.nii,p1\n")
    for name in ("a.nii", "b.nii"):
        (made.root / "data" / name).write_bytes(b"")
    return made


def at(folders: Folders, address: str) -> None:
    text = folders.config_file.read_text()
    old = next(line for line in text.splitlines() if line.startswith("coordinator"))
    folders.config_file.write_text(text.replace(old, f'coordinator = "{address}"'))


def lines(folders: Folders, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]]]:
    capsys.readouterr()
    status = cli.main(["check", "--json", "--config", str(folders.config_file)])
    return status, {line["name"]: line for line in json.loads(capsys.readouterr().out)}


def test_a_healthy_node_has_a_tick_on_every_line(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(folders.root / "main", Coordinator()) as port:
        at(folders, f"localhost:{port}")
        status, found = lines(folders, capsys)
        assert cli.main(["check", "--config", str(folders.config_file)]) == 0
    assert (status, list(found)) == (0, LINES), found
    assert all(line["ok"] for line in found.values()), found
    shown = capsys.readouterr().out
    assert (shown.count("✓"), shown.count("✗")) == (len(LINES), 0)
    assert "issued by lidc, secagg study root" in found["tls"]["sentence"]
    assert "1 studies of 1 patients" in found["data"]["sentence"]
    assert ME in found["identity"]["sentence"]
    assert "p1" not in json.dumps(found), "counts, never ids"


# ---- broken ones: what is done to the node, which lines are crossed first, and in which words ----


def expired(folders: Folders) -> None:
    """A certificate that the authority signed a hundred days ago."""
    authority, then = load_authority(folders.root / "ca"), datetime.now(UTC) - timedelta(days=100)
    own = authority.certificate
    builder = x509.CertificateBuilder().subject_name(own.subject).issuer_name(own.subject).public_key(own.public_key())
    builder = builder.serial_number(1).not_valid_before(then - timedelta(days=1)).not_valid_after(then + timedelta(days=3000))
    root = builder.sign(authority.key, hashes.SHA256())
    leaf = Leaf(ME, load_identity(folders.root / "h0").key.public_key())
    (folders.root / "h0" / "node.crt").write_bytes(sign_leaf(replace(authority, certificate=root), leaf, then))


def open_key(folders: Folders) -> None:
    (folders.root / "h0" / "node.key").chmod(0o644)


def no_peers(folders: Folders) -> None:
    path = folders.root / "peers.toml"
    write_peers(path, load_peers(path).without(ME.replace("h0", "h1")).without(ME.replace("h0", "h2")))


def damaged_ledger(folders: Folders) -> None:
    with sqlite3.connect(folders.state.ledger) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE events SET body = replace(body, 'Keller', 'Kessel')")


def unapproved(folders: Folders) -> None:
    folders.state.write_plan(make_plan(rounds=6))


def spent(folders: Folders) -> None:
    ledger = Ledger.open(folders.state.ledger)
    ledger.lower_cap(Cap(epsilon=0.01, delta=1e-6), "Dr Keller", "careful", datetime.now(UTC))


def no_data(folders: Folders) -> None:
    shutil.rmtree(folders.root / "data")
    (folders.root / "data").mkdir()


def many_threads(folders: Folders) -> None:
    text = folders.config_file.read_text()
    folders.config_file.write_text("threads = 100000\n" + text)


def foreign_plan(folders: Folders) -> None:
    plan = make_plan()
    others = tuple(one for one in plan.hospitals if one.uri != ME)
    folders.state.write_plan(plan.model_copy(update={"hospitals": others}))


BROKEN: dict[str, tuple[Callable[[Folders], None], str, str]] = {
    "an expired certificate": (expired, "certificate", "expired on"),
    "a key that others can read": (open_key, "certificate", "run chmod 600"),
    "a plan without this hospital": (foreign_plan, "names", "is not named in the plan"),
    "peers that nobody confirmed": (no_peers, "peers", "compare the key words of the others"),
    "a ledger that was edited": (damaged_ledger, "ledger", "restore"),
    "a budget that is used up": (spent, "budget", "cap"),
    "a plan that nobody approved": (unapproved, "approval", "run `secagg-node approve`"),
    "no scans": (no_data, "data", "layout"),
    "more threads than cores": (many_threads, "gpu", "lower key 'threads'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_node_is_told_what_and_what_to_do(case: str, folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    break_it, name, says = BROKEN[case]
    with serving(folders.root / "main", Coordinator()) as port:
        at(folders, f"localhost:{port}")
        break_it(folders)
        status, found = lines(folders, capsys)
    assert status == 1
    crossed = [line for line in found.values() if not line["ok"] and not str(line["sentence"]).startswith("not checked")]
    assert name in [line["name"] for line in crossed], crossed
    assert says in str(found[name]["sentence"]), found[name]
    assert set(found) == set(LINES), "every line is there, also the ones that could not be looked at"


SAYS: dict[str, tuple[Coordinator, str, str]] = {
    "a revoked key": (
        Coordinator(refusal=f"{ME} is not on the list"),
        "identity",
        "knows this key and refuses it",
    ),
    "another version": (
        Coordinator(refusal="install the same software version"),
        "identity",
        "install the same software version",
    ),
    "another key on the way": (Coordinator(key=bytes(32)), "identity", "something between replaces certificates"),
    "a clock that is behind": (Coordinator(clock_off_s=900), "clock", "s behind the coordinator's"),
    "a clock that is ahead": (Coordinator(clock_off_s=-900), "clock", "s ahead of the coordinator's"),
}


@pytest.mark.parametrize("case", SAYS)
def test_what_the_coordinator_sees_is_said(case: str, folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    says, name, words = SAYS[case]
    with serving(folders.root / "main", says) as port:
        at(folders, f"localhost:{port}")
        status, found = lines(folders, capsys)
    assert (status, [line["name"] for line in found.values() if not line["ok"]]) == (1, [name])
    assert words in str(found[name]["sentence"])


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "name", "says"),
    [
        (lambda: "coordinator.invalid:8443", "dns", "cannot be resolved"),
        (lambda: f"localhost:{closed_port()}", "tcp", "is it running, and is the port open outwards"),
    ],
)
def test_a_coordinator_that_is_not_there(
    address: Callable[[], str], name: str, says: str, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    at(folders, address())
    status, found = lines(folders, capsys)
    assert status == 1
    assert says in str(found[name]["sentence"])
    assert str(found["tls"]["sentence"]) == f"not checked: {name} comes first"


def inspecting_ca(folder: Path) -> Path:
    """The certificate of a proxy that opens TLS: right host, its own CA."""
    key, ca_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hospital Web Gateway CA")])
    now = datetime.now(UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "cert.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    return folder


@contextmanager
def raw_tls(folder: Path, version: str) -> Iterator[int]:
    """Shows a certificate to whoever comes, until the end."""
    code = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1] + "/cert.pem", sys.argv[1] + "/key.pem")
context.maximum_version = getattr(ssl.TLSVersion, sys.argv[2])
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        raw, _ = listener.accept()
        try:
            context.wrap_socket(raw, server_side=True).close()
        except OSError:
            pass
"""
    with running([sys.executable, "-c", code, str(folder), version]) as process:
        yield int(first_line(process))


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(120)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("version", ["TLSv1_3", "TLSv1_2"])
def test_a_proxy_that_breaks_tls_is_named_by_its_issuer(
    version: str, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    with raw_tls(inspecting_ca(folders.root / "gateway"), version) as port:
        at(folders, f"localhost:{port}")
        status, found = lines(folders, capsys)
    assert status == 1
    assert "was issued by 'Hospital Web Gateway CA', not by the root 'lidc, secagg study root'" in str(found["tls"]["sentence"])
    assert "breaks TLS on the way" in str(found["tls"]["sentence"])


def test_a_coordinator_under_another_name_is_told_apart(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(folders.root / "main", Coordinator(), "127.0.0.2") as port:
        at(folders, f"127.0.0.2:{port}")
        _, found = lines(folders, capsys)
    assert "is not for the name 127.0.0.2" in str(found["tls"]["sentence"])


def test_a_full_disk_is_said(folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 29))
    line = checks.check_disk(folders.config)
    assert (line.ok, "free space, or name another folder" in line.sentence) == (False, True)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    assert checks.check_disk(folders.config).ok


# ---- HTTP proxies ----


@pytest.fixture
def far(folders: Folders) -> Iterator[tuple[str, Coordinator]]:
    """A coordinator at an address that is not loopback in the eyes of the link."""
    says = Coordinator()
    issue(folders.root / "ca", "secagg://lidc/coordinator/main", folders.root / "far", ip=("127.0.0.2",), dns_names=())
    with serving(folders.root / "far", says, "127.0.0.2") as port:
        yield f"127.0.0.2:{port}", says


@contextmanager
def proxy(kind: str, monkeypatch: pytest.MonkeyPatch, user: str = "") -> Iterator[subprocess.Popen[str]]:
    with running([sys.executable, str(PROXY), kind]) as process:
        monkeypatch.setenv("https_proxy", f"http://{user}127.0.0.1:{first_line(process)}")
        for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield process


@pytest.mark.parametrize(("kind", "user"), [("open", ""), ("password", "user:secret@")])
def test_probe_and_node_go_through_a_proxy_by_connect(
    kind: str,
    user: str,
    folders: Folders,
    far: tuple[str, Coordinator],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at(folders, far[0])
    with proxy(kind, monkeypatch, user) as process:
        status, found = lines(folders, capsys)
        assert process.stdout is not None
        asked = [process.stdout.readline().strip() for _ in range(2)]
    assert status == 0, found
    assert "through the proxy 127.0.0.1" in str(found["tcp"]["sentence"])
    assert asked == [f"CONNECT {far[0]} HTTP/1.1"] * 2, "once for the probe, once for gRPC itself"
    assert far[1].calls == [ME]
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize(("kind", "says"), [("closed", "403 Forbidden"), ("password", "407 Proxy Authentication")])
def test_a_proxy_that_opens_no_way_is_named(
    kind: str,
    says: str,
    folders: Folders,
    far: tuple[str, Coordinator],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at(folders, far[0])
    with proxy(kind, monkeypatch):
        _, found = lines(folders, capsys)
        link = dial(folders.config, ByteMeter())
        with pytest.raises(LinkLost):
            link.identify()
        link.close()
    assert says in str(found["tcp"]["sentence"])
    assert "ask your network people" in str(found["tcp"]["sentence"])


ENVIRONMENTS = [
    ({}, None),
    ({"https_proxy": "http://p:3128"}, ("p", 3128)),
    ({"http_proxy": "http://p"}, ("p", 80)),
    ({"grpc_proxy": "http://a:1", "https_proxy": "http://b:2"}, ("a", 1)),
    ({"HTTPS_PROXY": "http://p:3128"}, None),
    ({"https_proxy": "http://p:3128", "no_proxy": "other.org, example.org"}, None),
    ({"https_proxy": "http://p:3128", "no_proxy": "other.org"}, ("p", 3128)),
    ({"https_proxy": "http://p:3128", "no_grpc_proxy": "other.org", "no_proxy": "example.org"}, ("p", 3128)),
]


@pytest.mark.parametrize(("environment", "expected"), ENVIRONMENTS)
def test_the_environment_is_read_as_grpc_reads_it(environment: dict[str, str], expected: tuple[str, int] | None) -> None:
    found = proxy_for("c.example.org", environment)
    assert (None if found is None else (found.host, found.port)) == expected


def test_a_network_can_be_excepted_and_other_proxies_are_refused() -> None:
    assert proxy_for("10.1.2.3", {"https_proxy": "http://p", "no_proxy": "10.0.0.0/8"}) is None
    with pytest.raises(ProxyRefused, match="names no http:// proxy"):
        proxy_for("c.example.org", {"https_proxy": "socks5://p:1"})
