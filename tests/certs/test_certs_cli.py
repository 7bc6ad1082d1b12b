"""The command line: the whole enrolment as people type it, and one sentence with exit status 2 for every refusal."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from certs.audit_file import AuditLog
from certs.cli import main
from certs.enrol import create_request, install
from certs.peers import UNCONFIRMED, load_peers
from certs.words import words_of

ST_ANNA = "secagg://lidc/hospital/st-anna"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        return next(line.split()[-1] for line in self.out.splitlines() if line.startswith("key words"))


@pytest.fixture
def certs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `secagg-certs` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["secagg-certs", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        text = capsys.readouterr()
        return Outcome(caught.value.code or 0, text.out, text.err)

    return run


def test_two_machines_from_request_to_peer_list(certs, tmp_path: Path) -> None:
    root = certs("init-ca", "lidc", "--out", "ca")
    certs("issue", "secagg://lidc/coordinator/main", "--ca", "ca", "--out", "coordinator", "--dns", "c.example.org")
    key_words = words_of(create_request(Path("identity"), ST_ANNA))
    signed = certs("approve", "identity/node.csr", "--ca", "ca", "--out", "st-anna.pem", "--words", key_words)
    assert signed.words == root.words
    identity = install(tmp_path / "identity", tmp_path / "st-anna.pem", root.words)
    listed = certs("peers", "st-anna.pem", "--out", "peers.toml", "--confirmed-by", "Dr. Adler", "--words", key_words)
    assert [one.code for one in (root, signed, listed)] == [0] * 3
    assert dict(load_peers(tmp_path / "peers.toml").pinned) == {ST_ANNA: identity.fingerprint}
    recorded = [one.action for log in ("ca", ".") for one in AuditLog.within(tmp_path / log).read()]
    assert [(one.kind, one.fields["words"]) for one in recorded] == [
        ("request-approved", "compared"),
        ("key-confirmed", "compared"),
    ]
    assert recorded[1].by == "Dr. Adler"
    for shown in ("identity", "st-anna.pem", "identity/node.csr", "identity/node.crt"):
        assert certs("fingerprint", shown).words == key_words
    assert certs("fingerprint", "ca").words == certs("fingerprint", "identity/ca.crt").words == root.words


def test_no_command_shows_a_private_key(certs, tmp_path: Path) -> None:
    certs("init-ca", "lidc", "--out", "ca")
    shown = [
        certs("issue", ST_ANNA, "--ca", "ca", "--out", "a"),
        certs("issue", ST_ANNA, "--ca", "ca", "--out", "b"),
        certs("fingerprint", "b"),
    ]
    secrets = [line for folder in ("a", "b") for line in (tmp_path / folder / "node.key").read_text().splitlines()]
    assert len(secrets) > 4
    for outcome in shown:
        assert outcome.code == 0
        assert [secret for secret in secrets if secret in outcome.out + outcome.err] == []


def test_lists_are_extended_only_when_asked(certs, tmp_path: Path) -> None:
    certs("init-ca", "lidc", "--out", "ca")
    certs("issue", ST_ANNA, "--ca", "ca", "--out", "a")
    certs("issue", "secagg://lidc/evaluator/public", "--ca", "ca", "--out", "b")
    assert certs("peers", "a", "--out", "peers.toml", "--unconfirmed").code == 0
    refused = certs("peers", "b", "--out", "peers.toml", "--unconfirmed")
    assert (refused.code, "say --add" in refused.err) == (2, True)
    assert certs("peers", "b", "--out", "peers.toml", "--unconfirmed", "--add").code == 0
    assert [peer.confirmed_by for peer in load_peers(tmp_path / "peers.toml").peers] == [UNCONFIRMED] * 2


def test_a_removed_key_is_recorded_with_name_and_reason(certs, tmp_path: Path) -> None:
    certs("init-ca", "lidc", "--out", "ca")
    for name in ("a", "b"):
        certs("issue", f"secagg://lidc/hospital/{name}", "--ca", "ca", "--out", name)
    certs("peers", "a", "b", "--out", "peers.toml", "--unconfirmed")
    gone = ("revoke", "secagg://lidc/hospital/a", "--list", "peers.toml", "--by", "R. Weber", "--reason", "laptop stolen")
    assert certs(*gone).code == 0
    assert list(load_peers(tmp_path / "peers.toml").pinned) == ["secagg://lidc/hospital/b"]
    last = AuditLog.within(tmp_path).read()[-1].action
    assert (last.by, last.kind, last.reason) == ("R. Weber", "key-removed", "laptop stolen")


REFUSALS = {
    "a name that is none": (("issue", "st-anna", "--ca", "ca", "--out", "x"), "is not a party"),
    "words that nobody typed": (("approve", "c/node.csr", "--ca", "ca", "--out", "x"), "give them with --words"),
    "a party that is not listed": (("revoke", ST_ANNA, "--list", "peers.toml"), "is not on the list"),
    "no authority": (("issue", ST_ANNA, "--ca", "nowhere", "--out", "x"), "cannot read the root key nowhere/ca.key"),
    "a second root": (("init-ca", "lidc", "--out", "ca"), "ca/ca.key exists already"),
    "nobody compared": (("peers", "a", "--out", "p"), "say who compared the words"),
    "both said": (("peers", "a", "--out", "p", "--unconfirmed", "--confirmed-by", "X"), "say who compared the words"),
    "no words": (("peers", "a", "--out", "p", "--confirmed-by", "X"), "need 1 times --words, 0 were given"),
    "wrong words": (("peers", "a", "--out", "p", "--confirmed-by", "X", "--words", "acorn " * 8), "does not match this key"),
    "no file": (("fingerprint", "nowhere.crt"), "cannot read the certificate or request nowhere.crt"),
    "no certificate": (("fingerprint", "ca/issued.jsonl"), "is not a certificate request"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence_and_status_2(certs, case: str) -> None:
    certs("init-ca", "lidc", "--out", "ca")
    certs("issue", ST_ANNA, "--ca", "ca", "--out", "a")
    certs("issue", "secagg://lidc/evaluator/public", "--ca", "ca", "--out", "b")
    create_request(Path("c"), ST_ANNA)
    arguments, reason = REFUSALS[case]
    certs("peers", "b", "--out", "peers.toml", "--unconfirmed")
    outcome = certs(*arguments)
    assert (outcome.code, "Traceback" in outcome.out) == (2, False)
    assert outcome.err.startswith("secagg-certs: ")
    assert outcome.err.count("\n") == 1
    assert reason in outcome.err


def test_a_missing_option_is_a_usage_error(certs) -> None:
    outcome = certs("approve", "node.csr", "--ca", "ca")
    assert outcome.code == 2
    assert "--out" in outcome.err


def test_help_names_every_command(certs) -> None:
    outcome = certs("--help")
    assert outcome.code == 0
    for command in ("init-ca", "issue", "approve", "admit", "fingerprint", "peers", "revoke"):
        assert command in outcome.out
        assert certs(command, "--help").code == 0
