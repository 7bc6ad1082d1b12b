"""The whole ceremony between machines: hospitals, a coordinator and an attacker, each in a network namespace of its own.

Real processes and real commands. One hospital is enrolled by the study's authority with a certificate in its last third, which
renews itself while round 1 runs; one has its own CA (openssl), which then mints an impostor; one is revoked while round 2 runs.
Where that comes after the survivor list was made, round 2 ends without a sum, and round 3 is opened without the hospital.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from netns import Network, why_not
from small_federation import HOSPITALS, SCRIPTS, STUDY, SmallFederation

from certs.audit_file import AuditLog
from certs.identity import load_identity
from certs.peers import Peer, PeerList, load_peers, write_peers
from certs.succession import load_successions
from coordinator.expiry import read_ends
from study import presets
from study.processes import Family

REASON = why_not() if shutil.which("openssl") else "openssl is not installed: it plays a hospital's own CA"
pytestmark = [pytest.mark.slow, pytest.mark.sockets, pytest.mark.skipif(bool(REASON), reason=REASON or "it can")]

PORT = 8443
COORDINATOR = "coordinator"
OWN_CA, RENEWS, REVOKED = "west", "north", "east"
WORDS = re.compile(r"^key words +(\S+)$", re.MULTILINE)
PATIENCE_S = 900  # with a machine that does other things as well
TIMED_OUT = 124  # exit status of timeout(1)
LIFE_DAYS = 20  # in the last third of 90: the node renews it as soon as it is connected


class Play:
    """Parties on their machines, and what they read to each other by telephone."""

    def __init__(self, folder: Path, family: Family, network: Network) -> None:
        self.network = network
        self.federation = SmallFederation(folder, family, rounds=3, drill_pause_s=1.0)
        self.folder, self.family, self.world = folder, family, self.federation.world
        self.address = f"{network.address(COORDINATOR)}:{PORT}"

    def home(self, party: str) -> Path:
        return self.folder / party

    def type(self, party: str, *words: str) -> str:
        done = self.run(party, *words)
        assert done.returncode == 0, f"{party}: {words}\n{done.stdout}{done.stderr}"
        return done.stdout

    def run(self, party: str, *words: str) -> subprocess.CompletedProcess[str]:
        script = SCRIPTS / words[0]
        typed = [str(script) if script.exists() else words[0], *words[1:]]
        return self.network.run(party, typed, self.home(party))

    def start(self, party: str, *words: str) -> None:
        command = self.network.command(party, [str(SCRIPTS / words[0]), *words[1:]])
        in_folder = ["sh", "-c", 'cd "$0" && exec "$@"', str(self.home(party)), *command]
        self.federation.nodes[party] = self.family.start(party, in_folder, self.folder / f"{party}.log")

    def log(self, party: str) -> str:
        return (self.folder / f"{party}.log").read_text(encoding="utf-8")


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    with Network((COORDINATOR, *HOSPITALS, "attacker")) as network, Family(1) as family:
        (tmp_path / "attacker").mkdir()
        yield Play(tmp_path, family, network)


def enrol_coordinator(play: Play) -> str:
    """Its own certificate for the address that hospitals dial, and a configuration that signs renewals; returns root words."""
    home = play.home(COORDINATOR)
    shutil.rmtree(home / "identity")
    where = ("--ip", play.network.address(COORDINATOR))
    play.type(
        COORDINATOR, "secagg-certs", "issue", f"secagg://{STUDY}/coordinator/main", "--ca", "../ca", "--out", "identity", *where
    )
    fields = {
        "listen": f"{play.network.address(COORDINATOR)}:{PORT}",
        "identity": "identity",
        "allow": "peers.toml",
        "authority": "../ca",
        "plan": "plan.toml",
        "start": str(play.federation.start_model),
        "state": "state",
        "drill_pause_s": 1.0,
    }
    (home / "coordinator.toml").write_text(tomli_w.dumps(fields))
    presets.write_toml(play.federation.plan, home / "plan.toml")
    return WORDS.findall(play.type(COORDINATOR, "secagg-certs", "fingerprint", "../ca"))[0]


def enrol_by_the_study(play: Play, root_words: str) -> str:
    """request -> approve -> install, as three people type it. Returns the hospital's key words."""
    home = play.home(RENEWS)
    shutil.rmtree(home / "identity")
    asked = play.type(RENEWS, "secagg-node", "request", "--study", STUDY, "--hospital", RENEWS)
    [words] = WORDS.findall(asked)
    shutil.copy(home / "identity" / "node.csr", play.home(COORDINATOR) / "north.csr")
    approve = ("secagg-certs", "approve", "north.csr", "--ca", "../ca", "--out", "north.crt", "--days", str(LIFE_DAYS))
    refused = play.run(COORDINATOR, *approve, "--words", "-".join(["acorn"] * 8))
    assert (refused.returncode, "does not match this key" in refused.stderr) == (2, True)
    assert play.run(COORDINATOR, *approve).returncode == 2, "nobody typed the words"
    play.type(COORDINATOR, *approve, "--words", words)
    shutil.copy(play.home(COORDINATOR) / "north.crt", home / "north.crt")
    refused = play.run(RENEWS, "secagg-node", "install", "north.crt", "--root-words", "-".join(["acorn"] * 8))
    assert (refused.returncode, "does not match this key" in refused.stderr) == (2, True)
    play.type(RENEWS, "secagg-node", "install", "north.crt", "--root-words", root_words)
    assert (home / "identity" / "node.key").stat().st_mode & 0o777 == 0o600
    return words


def enrol_by_its_own_ca(play: Play, root_words: str) -> str:
    """openssl signs the same request; the coordinator admits the CA and confirms the key. Returns the hospital's key words."""
    home = play.home(OWN_CA)
    shutil.rmtree(home / "identity")
    [words] = WORDS.findall(play.type(OWN_CA, "secagg-node", "request", "--study", STUDY, "--hospital", OWN_CA))
    make_ca(play, home)
    sign_with_openssl(play, home, "identity/node.csr", "west.crt")
    shutil.copy(play.folder / "ca" / "ca.crt", home / "root.crt")
    trusted = ("--issuer", "own-ca.crt", "--root", "root.crt", "--root-words", root_words)
    play.type(OWN_CA, "secagg-node", "install", "west.crt", *trusted)
    for name in ("west.crt", "own-ca.crt"):
        shutil.copy(home / name, play.home(COORDINATOR) / name)
    admit = ("secagg-certs", "admit", "west.crt", "--issuer", "own-ca.crt", "--identity", "identity")
    play.type(COORDINATOR, *admit, "--words", words)
    return words


def make_ca(play: Play, folder: Path) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", str(folder / "own-ca.key"))
    rights = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    subject = ("-subj", "/O=West/CN=West CA", "-days", "400", "-out", str(folder / "own-ca.crt"))
    play.type(OWN_CA, "openssl", "req", "-x509", *curve, *rights, *subject)


def sign_with_openssl(play: Play, folder: Path, request: str, out: str) -> None:
    ca = (
        "-CA",
        str(folder / "own-ca.crt"),
        "-CAkey",
        str(folder / "own-ca.key"),
        "-CAcreateserial",
        "-copy_extensions",
        "copyall",
    )
    play.type(OWN_CA, "openssl", "x509", "-req", "-in", request, "-out", out, "-days", "90", *ca)


def confirm_keys(play: Play, words: dict[str, str]) -> None:
    """Every list by its own people: north's and west's keys by the words just read, the others as the federation made them."""
    at = load_peers(play.home(COORDINATOR) / "peers.toml").peers[0].confirmed_at
    others = [load_identity(play.home(name) / "identity") for name in HOSPITALS if name not in words]
    for party in (COORDINATOR, *HOSPITALS):
        listed = [
            Peer(one.uri, one.fingerprint, "Dr. Adler", at) for one in others if play.home(party) != play.home(one.name.name)
        ]
        write_peers(play.home(party) / "peers.toml", PeerList(tuple(listed)))
        for name, spoken in words.items():
            if name != party:
                certificate = str(play.home(name) / "identity" / "node.crt")
                confirmed = ("--confirmed-by", "Dr. Adler", "--words", spoken, "--out", "peers.toml", "--add")
                play.type(party, "secagg-certs", "peers", certificate, *confirmed)


def attack(play: Play) -> None:
    """Nothing from the attacker's machine is served: no certificate, TLS 1.2, a self-signed one, an impostor of west's CA."""
    home, target = play.home("attacker"), play.address
    shutil.copy(play.folder / "ca" / "ca.crt", home / "root.crt")
    client = ("openssl", "s_client", "-connect", target, "-CAfile", "root.crt", "-alpn", "h2", "-ign_eof")
    assert is_refused(play, *client), "no certificate"
    stolen = play.home(RENEWS) / "identity"
    shown = ("-cert", str(stolen / "node.crt"), "-key", str(stolen / "node.key"))
    assert not is_refused(play, *client, *shown, "-tls1_3"), "what is refused otherwise is refused for its own reason"
    assert is_refused(play, *client, *shown, "-tls1_2")
    own = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "self.key", "-out", "self.crt")
    play.type("attacker", "openssl", "req", "-x509", *own, "-subj", "/CN=north", "-days", "9")
    assert is_refused(play, *client, "-cert", "self.crt", "-key", "self.key")
    impostor(play, target)


def is_refused(play: Play, *words: str) -> bool:
    """Whether the server ends the connection of openssl at once; one that it accepts stays open until the timeout."""
    done = play.network.run("attacker", ["timeout", "10", *words], play.home("attacker"))
    text = done.stdout + done.stderr
    assert "Certificate chain" in text or "no peer certificate available" in text, text
    return done.returncode != TIMED_OUT


def impostor(play: Play, target: str) -> None:
    """West's CA signs a second north: the handshake stands, the list of keys refuses it in a sentence."""
    home = play.home("attacker")
    play.type("attacker", "secagg-node", "request", "--study", STUDY, "--hospital", RENEWS)
    sign_with_openssl(play, play.home(OWN_CA), str(home / "identity" / "node.csr"), str(home / "identity" / "node.crt"))
    shutil.copy(home / "root.crt", home / "identity" / "ca.crt")
    shutil.copy(play.home(OWN_CA) / "own-ca.crt", home / "identity" / "issuer.crt")
    (home / "data").mkdir()
    (home / "node.toml").write_text(f'coordinator = "{target}"\nidentity = "identity"\nstate = "state"\ndata = "data"\n')
    done = play.run("attacker", "secagg-node", "fetch-plan", "--config", "node.toml")
    assert done.returncode == 2
    assert "presents another key than the confirmed one" in done.stderr


def test_ceremony_rotation_revocation_and_an_attacker(play: Play) -> None:
    federation = play.federation
    root_words = enrol_coordinator(play)
    words = {RENEWS: enrol_by_the_study(play, root_words), OWN_CA: enrol_by_its_own_ca(play, root_words)}
    confirm_keys(play, words)
    federation.approve()
    before = load_identity(play.home(RENEWS) / "identity").fingerprint
    play.start(COORDINATOR, "secagg-coordinator", "run", "--config", "coordinator.toml")
    federation.wait((play.home(COORDINATOR) / "state" / "address").is_file, PATIENCE_S, "the coordinator listens")
    attack(play)
    for role in play.world.cast.hospitals:
        config = {
            "coordinator": play.address,
            "identity": "identity",
            "state": "state",
            "data": str(role.data),
            "peers": "peers.toml",
        }
        (play.home(role.name) / "node.toml").write_text(tomli_w.dumps(config))
    play.type(RENEWS, "secagg-node", "fetch-plan", "--config", "node.toml")
    checked = play.type(RENEWS, "secagg-node", "check", "--config", "node.toml")
    assert "✗" not in checked
    for name in HOSPITALS:
        play.start(name, "secagg-node", "run", "--config", "node.toml")

    federation.wait(lambda: opened(play) >= 1, PATIENCE_S, "round 1 is opened")
    assert [play.network.listening(name) for name in HOSPITALS] == [0, 0, 0, 0], "hospitals only dial out"
    gone = ("--reason", "laptop stolen", "--by", "R. Weber")
    play.type(COORDINATOR, "secagg-certs", "revoke", f"secagg://{STUDY}/hospital/{REVOKED}", "--list", "peers.toml", *gone)
    federation.wait(lambda: opened(play) >= 2, PATIENCE_S, "a round is opened without the revoked hospital")

    check_rounds(play)
    check_rotation(play, before)
    assert "the list of confirmed keys" in play.log(REVOKED)


def opened(play: Play) -> int:
    with play.federation.store() as store:
        return sum(row.state == "opened" for row in store.rounds())


def check_rounds(play: Play) -> None:
    with play.federation.store() as store:
        rounds = [row for row in store.rounds() if row.state == "opened"]
    names = [{uri.rsplit("/", 1)[-1] for uri in row.survivors} for row in rounds]
    assert (rounds[0].number, names[0]) == (1, set(HOSPITALS)), "no round was lost by the rotation"
    assert names[1] == set(HOSPITALS) - {REVOKED}, "whenever it came: never in a sum that is opened afterwards"


def check_rotation(play: Play, before: bytes) -> None:
    """North has another key, its peers pin it on the old key's word, and every log says so."""
    now = load_identity(play.home(RENEWS) / "identity")
    assert now.fingerprint != before
    assert "certificate taken up" in play.log(RENEWS)
    for party in (COORDINATOR, "south"):
        [link] = load_successions(play.home(party) / "state" / "successions.jsonl")
        assert (link.old_sha256, link.new_sha256) == (before, now.fingerprint), party
        kinds = {one.action.kind for one in AuditLog.within(play.home(party) / "state").read()}
        assert kinds & {"key-renewed", "peer-key-renewed"}, party
    assert read_ends(play.home(COORDINATOR) / "state")[now.uri] == now.not_after
