"""`secagg-node report`: written, numbered, kept, verified, with openssl too; whatever is tampered with is named."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from node_world import Folders, make_plan
from report_world import NOW, release, reporting_node

from certs.authority import create_authority, issue
from certs.signed_file import chain_of, sign_file
from certs.words import words_of
from hospital_node import cli
from hospital_node.ledger_store import DDL
from hospital_node.reporting import kept
from hospital_node.reporting.model import Body, ReportError, ReportTampered, bytes_of, read_report, sealed
from hospital_node.reporting.verify import verify
from hospital_node.reporting.write import write_report

ALL = {
    *("privacy-report.json", "privacy-report.json.sig", "privacy-report.crt"),
    *("privacy-report.html", "privacy-report.pdf", "registry.yaml"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A node with two charged rounds and one report, for tests that read."""
    folders, _ = reporting_node(tmp_path_factory.mktemp("reports"))
    write_report(folders.config, datetime.now(UTC))
    return folders


@pytest.fixture
def given(world: Folders, tmp_path: Path) -> Path:
    """A report as it was handed over."""
    return Path(shutil.copytree(world.state.path / "reports" / "0001", tmp_path / "given"))


def test_a_report_is_written_whole_and_verifies(world: Folders, given: Path) -> None:
    assert {path.name for path in given.iterdir()} == ALL
    checked = verify(given)
    assert checked.report.report_id == "h0-lidc-0001"
    assert set(checked.compared) == {"privacy-report.html", "registry.yaml"}
    assert checked.not_compared == ("privacy-report.pdf carries the signed file; its pages were not compared",)
    assert checked.trusted_root is None
    assert verify(given / "privacy-report.json", world.root / "h0" / "ca.crt").trusted_root
    assert checked.report.governance.legal_basis == "Article 6(1)(e)"


def test_openssl_alone_verifies(given: Path) -> None:
    def run(*words: str) -> str:
        return subprocess.run(["openssl", *words], cwd=given, capture_output=True, text=True, check=False).stdout

    (given / "key.pem").write_text(run("x509", "-in", "privacy-report.crt", "-pubkey", "-noout"))
    check = ("dgst", "-sha256", "-verify", "key.pem", "-signature", "privacy-report.json.sig", "privacy-report.json")
    assert run(*check) == "Verified OK\n"
    (given / "privacy-report.json").write_bytes((given / "privacy-report.json").read_bytes().replace(b"lidc", b"lidd", 1))
    assert run(*check) == "Verification failure\n"


# ---- tampering, each named by its first bad item ----


def edit(folder: Path, change: Callable[[dict[str, Any]], None], *, digests: bool = False) -> None:
    """Change fields of the JSON as a clever hand would: in the same form, and with right digests where `digests`."""
    fields = json.loads((folder / kept.JSON_FILE).read_bytes())
    change(fields)
    if digests:
        fields.pop("digests")
        data = bytes_of(sealed(Body.model_validate(fields)))
    else:
        data = json.dumps(fields, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n"
    (folder / kept.JSON_FILE).write_bytes(data)


def smaller_epsilon(fields: dict[str, Any]) -> None:
    fields["guarantee"]["stated_epsilon"] = "0.10"


def another_number(fields: dict[str, Any]) -> None:
    fields["number"] = 7


def stranger_signs(folder: Path) -> None:
    """Somebody else signs it whole, with a certificate of a CA of their own."""
    create_authority(folder / "own", "lidc")
    other = issue(folder / "own", "secagg://lidc/hospital/h0", folder / "other")
    data = (folder / kept.JSON_FILE).read_bytes()
    (folder / kept.SIGNATURE_FILE).write_bytes(sign_file(other.key, data))
    (folder / kept.CHAIN_FILE).write_bytes(chain_of(other, folder / "other"))


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "a figure": (lambda f: edit(f, smaller_epsilon), "digest of 'guarantee'"),
    "a figure and its digest": (lambda f: edit(f, smaller_epsilon, digests=True), "signature"),
    "a plain field": (lambda f: edit(f, another_number), "signature"),
    "an unknown field": (lambda f: edit(f, lambda fields: fields.update(note="x")), "schema"),
    "a missing field": (lambda f: edit(f, lambda fields: fields.pop("trust")), "schema"),
    "another schema": (lambda f: edit(f, lambda fields: fields.update(schema_version="9.0")), "schema"),
    "a byte between fields": (
        lambda f: (f / kept.JSON_FILE).write_bytes((f / kept.JSON_FILE).read_bytes().replace(b": ", b":  ", 1)),
        "schema",
    ),
    "cut short": (lambda f: (f / kept.JSON_FILE).write_bytes((f / kept.JSON_FILE).read_bytes()[:900]), "schema"),
    "the signature": (lambda f: (f / kept.SIGNATURE_FILE).write_bytes(b"0" * 70), "signature"),
    "another signer": (stranger_signs, "certificate"),
    "no root": (
        lambda f: (f / kept.CHAIN_FILE).write_text(
            (f / kept.CHAIN_FILE).read_text().split("-----BEGIN")[1].join(["-----BEGIN", ""])
        ),
        "certificate",
    ),
    "the page": (
        lambda f: (f / kept.HTML_FILE).write_text((f / kept.HTML_FILE).read_text().replace("does not cover", "covers")),
        "privacy-report.html",
    ),
    "the registry's entry": (
        lambda f: (f / kept.REGISTRY_FILE).write_text((f / kept.REGISTRY_FILE).read_text().replace("epsilon: ", "epsilon: 0.")),
        "registry.yaml",
    ),
    "another PDF": (lambda f: (f / kept.PDF_FILE).write_bytes(b"%PDF-1.7\nstream\nnothing\nendstream"), "privacy-report.pdf"),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_what_was_tampered_with_is_named(given: Path, name: str) -> None:
    tamper, item = TAMPERING[name]
    tamper(given)
    with pytest.raises(ReportTampered) as refused:
        verify(given)
    assert refused.value.item == item


def test_a_certificate_of_another_root_than_the_readers_is_refused(given: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "mine", "lidc")
    with pytest.raises(ReportTampered, match=r"certificate: .*did not sign"):
        verify(given, tmp_path / "mine" / "ca.crt")


def whole_forgery(folder: Path, *, words: str | None = None) -> None:
    """A stranger puts their own key into the file, and `words` of a key beside it, and signs it with their own CA."""
    create_authority(folder / "own", "lidc")
    other = issue(folder / "own", "secagg://lidc/hospital/h0", folder / "other")
    named = {"uri": other.uri, "key_sha256": other.fingerprint.hex(), "key_words": words or words_of(other.fingerprint)}
    edit(folder, lambda fields: fields["signer"].update(named), digests=True)
    data = (folder / kept.JSON_FILE).read_bytes()
    (folder / kept.SIGNATURE_FILE).write_bytes(sign_file(other.key, data))
    (folder / kept.CHAIN_FILE).write_bytes(chain_of(other, folder / "other"))


@pytest.mark.parametrize("line_break", [b"\n", b"\r\n", b"\r"])
def test_a_strangers_root_is_refused_however_its_lines_end(world: Folders, given: Path, line_break: bytes) -> None:
    whole_forgery(given)
    chain = given / kept.CHAIN_FILE
    chain.write_bytes(chain.read_bytes().replace(b"\n", line_break))
    with pytest.raises(ReportTampered, match=r"^certificate: "):
        verify(given, world.root / "h0" / "ca.crt")


def test_words_of_another_key_than_signed_are_refused(given: Path) -> None:
    genuine = json.loads((given / kept.JSON_FILE).read_bytes())["signer"]["key_words"]
    whole_forgery(given, words=genuine)
    with pytest.raises(ReportTampered, match="certificate: the words of the key are not those of this key"):
        verify(given)


def test_a_missing_file_is_named(given: Path) -> None:
    (given / kept.SIGNATURE_FILE).unlink()
    with pytest.raises(ReportError, match=r"cannot read .*privacy-report\.json\.sig"):
        verify(given)


# ---- numbers, changes, damage ----


@pytest.fixture
def own(tmp_path: Path) -> Folders:
    return reporting_node(tmp_path, charged=1)[0]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Numbers and damage need no PDF."""
    if "own" in request.fixturenames:
        monkeypatch.setattr("hospital_node.reporting.pdf.render", lambda *_: b"%PDF")


def test_numbers_follow_each_other_and_changes_are_told(own: Folders) -> None:
    first = write_report(own.config, datetime.now(UTC))
    release(own.state.open_ledger("secagg://lidc/hospital/h0", NOW), make_plan(), 2)
    second = write_report(own.config, datetime.now(UTC) + timedelta(minutes=1))
    assert (first.kept.number, second.kept.number) == (1, 2)
    changes = second.kept.report.changes
    assert (changes.since, changes.since_sha256) == ("h0-lidc-0001", first.kept.sha256)
    assert changes.lines[0] == "1 further release charged, 2 in all."
    assert kept.numbers(own.state.path) == (1, 2)


def test_a_last_report_that_was_changed_is_not_passed_over(own: Folders) -> None:
    folder = write_report(own.config, datetime.now(UTC)).kept.folder
    edit(folder, smaller_epsilon)
    with pytest.raises(ReportTampered, match=r"digest of 'guarantee': the last kept report, .*0001, does not verify"):
        write_report(own.config, datetime.now(UTC))
    assert kept.numbers(own.state.path) == (1,)


def test_a_damaged_ledger_refuses_with_the_first_bad_row(own: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(own.state.ledger)) as database:
        for name in ("events_grow_at_the_end", "events_never_change", "events_never_vanish"):
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE events SET body = replace(body, '4.0', '9.0') WHERE seq = 3")
        for statement in (one for one in DDL if one.startswith("CREATE TRIGGER")):
            database.execute(statement)
        database.commit()
    assert cli.main(["report", "write", "--config", str(own.config_file)]) == 2
    assert "entry 3" in capsys.readouterr().err
    assert kept.numbers(own.state.path) == ()


def test_what_cannot_be_rendered_is_left_out_with_its_sentence(own: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> bytes:
        raise ReportError("WeasyPrint is not installed: run pip install '.[reports]'")

    monkeypatch.setattr("hospital_node.reporting.pdf.render", missing)
    written = write_report(own.config, datetime.now(UTC))
    assert set(written.left_out) == {kept.PDF_FILE}
    assert not (written.kept.folder / kept.PDF_FILE).exists()
    assert verify(written.kept.folder).compared == (kept.HTML_FILE, kept.REGISTRY_FILE)


def test_a_page_of_another_version_is_not_compared(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = given / kept.HTML_FILE
    page.write_text(page.read_text().replace("<h2>1. Fields</h2>", "<h2>Fields</h2>"))
    made = read_report((given / kept.JSON_FILE).read_bytes()).software
    newer = made.model_copy(update={"version": "0.2.0"})
    monkeypatch.setattr("hospital_node.reporting.write.software", lambda: newer)
    checked = verify(given)
    assert kept.HTML_FILE not in checked.compared
    assert any("another one" in why for why in checked.not_compared)


def test_the_command_line_writes_lists_and_verifies(own: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = str(own.config_file), tmp_path / "out"
    assert cli.main(["report", "list", "--config", config]) == 0
    assert "No report was written yet" in capsys.readouterr().out
    assert cli.main(["report", "write", "--config", config, "--out", str(out)]) == 0
    assert "Report h0-lidc-0001: within budget" in capsys.readouterr().out
    assert cli.main(["report", "write", "--config", config, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["report", "list", "--config", config]) == 0
    assert capsys.readouterr().out.startswith("h0-lidc-0001")
    (out / kept.PDF_FILE).unlink()
    assert cli.main(["report", "verify", str(out)]) == 0
    assert "Report h0-lidc-0001 verifies" in capsys.readouterr().out
    edit(out, smaller_epsilon)
    assert cli.main(["report", "verify", str(out)]) == 2
    assert "digest of 'guarantee'" in capsys.readouterr().err
