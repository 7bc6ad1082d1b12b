"""The command line: the whole enrolment as people type it, and one sentence with exit status 2 for every refusal."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from certs.cli import main
from certs.identity import load_identity
from certs.peers import UNCONFIRMED, load_peers

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
    asked = certs("request", ST_ANNA, "--out", "identity")
    signed = certs("sign", "identity/node.csr", "--ca", "ca", "--out", "st-anna.pem", "--words", asked.words)
    assert signed.words == root.words
    installed = certs("install", "st-anna.pem", "--identity", "identity", "--root-words", root.words)
    listed = certs("peers", "st-anna.pem", "--out", "peers.toml", "--confirmed-by", "Dr. Adler", "--words", asked.words)
    assert [one.code for one in (root, asked, signed, installed, listed)] == [0] * 5
    identity = load_identity(tmp_path / "identity")
    assert dict(load_peers(tmp_path / "peers.toml").pinned) == {ST_ANNA: identity.fingerprint}
    for shown in ("identity", "st-anna.pem", "identity/node.csr", "identity/node.crt"):
        assert certs("fingerprint", shown).words == asked.words
    assert certs("fingerprint", "ca").words == certs("fingerprint", "identity/ca.crt").words == root.words


def test_no_command_shows_a_private_key(certs, tmp_path: Path) -> None:
    certs("init-ca", "lidc", "--out", "ca")
    shown = [
        certs("request", ST_ANNA, "--out", "a"),
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


REFUSALS = {
    "a name that is none": (("request", "st-anna", "--out", "x"), "is not a party"),
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
    arguments, reason = REFUSALS[case]
    outcome = certs(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("secagg-certs: ")
    assert outcome.err.count("\n") == 1
    assert reason in outcome.err


def test_a_missing_option_is_a_usage_error(certs) -> None:
    outcome = certs("sign", "node.csr", "--ca", "ca", "--out", "x")
    assert outcome.code == 2
    assert "--words" in outcome.err


def test_help_names_every_command(certs) -> None:
    outcome = certs("--help")
    assert outcome.code == 0
    for command in ("init-ca", "issue", "request", "sign", "install", "fingerprint", "peers"):
        assert command in outcome.out
        assert certs(command, "--help").code == 0
