"""A hospital's half of the ceremony as it is typed: the key stays, words are compared, each step is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from certs.audit_file import AuditLog
from certs.authority import create_authority
from certs.enrol import sign_request
from certs.identity import load_identity
from certs.words import words_of
from hospital_node import cli

WRONG = "-".join(["acorn"] * 8)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_request_and_install(capsys: pytest.CaptureFixture[str]) -> None:
    authority = create_authority(Path("ca"), "lidc")
    assert cli.main(["request", "--study", "lidc", "--hospital", "st-anna", "--by", "IT"]) == 0
    shown = capsys.readouterr().out
    key = Path("identity/node.key")
    assert key.stat().st_mode & 0o777 == 0o600
    assert not [line for line in key.read_text().splitlines() if line in shown]
    words = shown.split()[-1]
    sign_request(Path("ca"), Path("identity/node.csr"), Path("st-anna.crt"), words)
    root_words = words_of(authority.fingerprint)
    assert cli.main(["install", "st-anna.crt", "--root-words", WRONG]) == 2
    assert "does not match this key" in capsys.readouterr().err
    assert not Path("identity/node.crt").exists()
    assert cli.main(["install", "st-anna.crt"]) == 2
    assert "nobody typed the eight words: give them with --root-words" in capsys.readouterr().err
    assert cli.main(["install", "st-anna.crt", "--root-words", root_words, "--by", "IT"]) == 0
    assert load_identity(Path("identity")).uri == "secagg://lidc/hospital/st-anna"
    recorded = [(one.action.by, one.action.kind) for one in AuditLog.within(Path("identity")).read()]
    assert recorded == [("IT", "key-made"), ("IT", "certificate-installed")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["request", "--study", "lidc"], "--hospital NAME or --evaluator NAME"),
        (["request", "--study", "lidc", "--hospital", "a", "--evaluator", "b"], "--hospital NAME or --evaluator NAME"),
        (["request", "--study", "lidc", "--hospital", "St Anna"], "is not a party"),
        (["install", "nowhere.crt", "--root-words", WRONG], "cannot read the signed certificate"),
        (["install", "x.crt", "--root-words", WRONG, "--issuer", "own-ca.crt"], "needs both --issuer"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert (said.count("\n"), says in said) == (1, True), said


def test_an_evaluator_asks_in_its_own_name() -> None:
    assert cli.main(["request", "--study", "lidc", "--evaluator", "public", "--identity", "there"]) == 0
    assert AuditLog.within(Path("there")).read()[0].action.fields["party"] == "secagg://lidc/evaluator/public"
