"""A patient withdraws: a code that only the hospital resolves, no volume read again, no message changed, a certificate."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from node_world import (
    FakeLink,
    Folders,
    Rehearsal,
    Trainer,
    approved_ledger,
    make_folders,
    make_plan,
    train_order,
    until,
    words_of,
)
from report_world import NOW, changed_plan, entries_of, reporting_node
from test_node_runner import Node, play

from certs.audit_file import AuditLog
from certs.identity import load_identity
from certs.signed_file import sign_file
from certs.words import words_of as key_words
from hospital_node import cli, loop
from hospital_node.cohort import Case, Cohort, Nodules
from hospital_node.ledger import Charge, DecisionRefused, Ledger, LedgerDamaged
from hospital_node.ledger_schema import PatientWithdrawn
from hospital_node.reporting.model import ReportError, ReportTampered
from hospital_node.scans import ScansError
from hospital_node.withdraw_cli import verify
from hospital_node.withdrawal import Withdrawals, code_of, withdrawal_entry
from hospital_node.withdrawing import bytes_of, eligible_rounds, read_certificate, sentences, show, spent, withdraw
from hospital_node.workshop import prepare_studies
from proto import federation_pb2 as pb
from proto.bulk import Words
from proto.plan import Plan

PATIENT, OTHER = "MRN-0042", "MRN-0043"
WHO = ("Dr Keller", "asked by letter")
KEY = bytes(range(32))
IDS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=("C", "Z")), min_size=12, max_size=20)


# ---- codes ----


def entry_for(patient: str, salt: bytes = bytes(16), known: Sequence[PatientWithdrawn] = ()) -> PatientWithdrawn:
    return withdrawal_entry(Withdrawals(tuple(known), KEY), patient, salt, "Dr K", "-")


@given(patient=IDS, other=IDS, salt=st.binary(min_size=16, max_size=16))
def test_a_code_is_found_for_its_patient_and_for_nobody_else(patient: str, other: str, salt: bytes) -> None:
    entry = entry_for(patient, salt)
    known = Withdrawals((entry,), KEY)
    assert known.entry_of(patient) == entry
    assert known.entry_of(f" {patient}\n") == entry
    assert (known.entry_of(other) is None) == (other != patient)
    assert Withdrawals((entry,), KEY[::-1]).entry_of(patient) is None


def test_equal_patients_have_unlike_codes_under_other_salts() -> None:
    codes = {code_of(KEY, bytes([salt] * 16).hex(), PATIENT) for salt in range(20)}
    assert len(codes) == 20


def test_a_cohort_loses_all_scans_of_the_patient_and_nothing_else() -> None:
    cases = tuple(Case(who, Path(f"{place}.mhd"), Nodules(())) for place, who in enumerate([PATIENT, OTHER, PATIENT, "x"]))
    kept, gone = Withdrawals((entry_for(PATIENT),), KEY).without(Cohort("manifest", cases, {"blank": 1}))
    assert [case.patient for case in kept.cases] == [OTHER, "x"]
    assert [case.patient for case in gone.cases] == [PATIENT, PATIENT]
    assert kept.skipped == {"blank": 1}


@pytest.mark.parametrize(("by", "reason"), [(PATIENT, "asked"), ("Dr K", "wish of mrn-0042"), ("Dr K", f"({PATIENT})")])
def test_the_id_is_written_nowhere_not_even_by_mistake(by: str, reason: str) -> None:
    with pytest.raises(DecisionRefused, match="written nowhere") as refused:
        withdrawal_entry(Withdrawals((), KEY), PATIENT, bytes(16), by, reason)
    assert PATIENT not in str(refused.value)


@pytest.mark.parametrize("text", ["", "  \n", "a\nb", "a\0"])
def test_no_id_or_several_are_refused(text: str) -> None:
    with pytest.raises(DecisionRefused, match="id of one patient"):
        entry_for(text)


def test_nobody_withdraws_twice() -> None:
    with pytest.raises(DecisionRefused, match="has withdrawn already"):
        entry_for(PATIENT, bytes([1] * 16), [entry_for(PATIENT)])


# ---- the ledger ----


@pytest.fixture
def plan() -> Plan:
    return make_plan()


def test_a_withdrawal_outlives_a_restart_and_an_export(tmp_path: Path, plan: Plan) -> None:
    folders, ledger = reporting_node(tmp_path, charged=1)
    ledger.withdraw_patient(PATIENT, *WHO, NOW)
    again = Ledger.open(folders.state.ledger)
    assert again.withdrawals().entry_of(PATIENT) is not None
    assert again.withdrawals().entry_of(OTHER) is None
    assert all(PATIENT not in row.body for row in again.rows())
    spent_before = ledger.budget(plan).spent
    assert again.budget(plan).spent == spent_before


def test_another_key_than_that_of_the_codes_stops_the_node(tmp_path: Path) -> None:
    folders, ledger = reporting_node(tmp_path, charged=0)
    ledger.withdraw_patient(PATIENT, *WHO, NOW)
    key = folders.state.ledger.with_name("ledger.key")
    key.write_bytes(os.urandom(32))
    with pytest.raises(LedgerDamaged, match=r"bring back ledger\.key"):
        ledger.withdrawals()


# ---- volumes ----


def write_studies(folder: Path, patients: Sequence[str]) -> None:
    """A manifest with one small volume for each entry."""
    rows = ["image,label,patient"]
    for place, patient in enumerate(patients):
        voxels = np.random.default_rng(place).integers(-900, 300, (12, 12, 12)).astype(np.int16)
        for name, content in (("image", voxels), ("label", (voxels > 200).astype(np.uint8))):
            sitk.WriteImage(sitk.GetImageFromArray(content), str(folder / f"{name}{place}.mhd"))
        rows.append(f"image{place}.mhd,label{place}.mhd,{patient}")
    (folder / "manifest.csv").write_text("\n".join(rows))


@pytest.fixture
def studied(tmp_path: Path) -> tuple[Folders, Plan]:
    plan = changed_plan(make_plan(), preparation__hounsfield_check=False, preparation__window_hu=[-1000, 400])
    folders, _ = reporting_node(tmp_path, charged=2, plan=plan)
    write_studies(folders.root / "data", [PATIENT, OTHER, PATIENT, "MRN-0044"])
    return folders, plan


def prepared(folders: Folders, plan: Plan) -> tuple[int, int, dict[str, int]]:
    cohort = prepare_studies(folders.config, plan, lambda _done, _total: None)
    return len(cohort.patients), cohort.cases, dict(cohort.skipped)


def test_volumes_of_the_patient_are_never_read_again(studied: tuple[Folders, Plan], capsys: pytest.CaptureFixture[str]) -> None:
    folders, plan = studied
    assert prepared(folders, plan) == (3, 4, {})
    files = len(list(folders.state.cache.rglob("*.npy")))
    withdraw(folders.config, PATIENT, *WHO, datetime.now(UTC))
    assert len(list(folders.state.cache.rglob("*.npy"))) == files - 4, "what was prepared of the patient is deleted"
    for place in (0, 2):  # whoever reads one of these now would have to skip it, and count that
        (folders.root / "data" / f"image{place}.mhd").write_bytes(b"no header")
        (folders.root / "data" / f"label{place}.raw").write_bytes(b"")
    assert prepared(folders, plan) == (2, 2, {})
    shutil.rmtree(folders.state.cache)
    assert prepared(folders, plan) == (2, 2, {})
    assert cli.main(["data", "check", "--config", str(folders.config_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["studies"], found["patients"], found["left_out"]) == (2, 2, {})


def test_the_others_are_prepared_to_the_bit_as_before(studied: tuple[Folders, Plan]) -> None:
    folders, plan = studied

    def voxels() -> dict[str, list[bytes]]:
        cohort = prepare_studies(folders.config, plan, lambda _done, _total: None)
        return {one.key: [np.asarray(case.image).tobytes() for case in one.cases] for one in cohort.patients}

    before = voxels()
    withdraw(folders.config, PATIENT, *WHO, datetime.now(UTC))
    after = voxels()
    assert len(after) == len(before) - 1
    assert after.items() <= before.items()


# ---- what is shown, recorded, certified ----


def test_it_is_shown_first_and_changes_nothing(studied: tuple[Folders, Plan]) -> None:
    folders, plan = studied
    ledger = Ledger.open(folders.state.ledger)
    head = ledger.head
    shown = show(folders.config, PATIENT)
    assert ([one.round for one in shown.eligible], shown.studies, shown.withdrawn) == ([1, 2], 2, None)
    assert shown.spent.epsilon == ledger.budget(plan).spent
    assert ledger.head == head
    assert AuditLog.within(folders.state.path).read() == ()


def test_an_id_that_nobody_has_is_refused_unless_it_is_meant(studied: tuple[Folders, Plan]) -> None:
    folders, _ = studied
    with pytest.raises(RuntimeError, match="look at the id"):
        withdraw(folders.config, "MRN-9999", *WHO, datetime.now(UTC))
    assert Ledger.open(folders.state.ledger).withdrawals().entries == ()
    withdraw(folders.config, "MRN-9999", *WHO, datetime.now(UTC), although_absent=True)
    assert len(Ledger.open(folders.state.ledger).withdrawals().entries) == 1


def command(folders: Folders, *words: str) -> str:
    config = () if words[0] == "verify" else ("--config", str(folders.config_file))
    assert cli.main(["withdraw", *words, *config]) == 0
    return ""


def test_the_commands_take_the_id_from_standard_input_or_a_file(
    studied: tuple[Folders, Plan], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folders, _ = studied
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PATIENT}\n"))
    command(folders, "show")
    said = capsys.readouterr().out
    assert "Studies of this patient in the data folder: 2." in said
    assert "Eligible for 2 charged releases" in said
    (tmp_path / "id").write_text(PATIENT)
    command(folders, "confirm", "--by", WHO[0], "--reason", WHO[1], "--id-file", str(tmp_path / "id"))
    said = capsys.readouterr().out
    assert "Recorded by Dr Keller" in said
    (folder,) = (folders.state.path / "withdrawals").iterdir()
    command(folders, "verify", str(folder))
    assert "The certificate verifies: h0" in capsys.readouterr().out
    record = AuditLog.within(folders.state.path).read()[-1].action
    assert (record.by, record.kind, record.reason) == (WHO[0], "patient-withdrawn", WHO[1])
    for path in (*folders.state.path.rglob("*.log"), *folder.iterdir(), *folders.state.path.glob("ledger*")):
        assert PATIENT.encode() not in path.read_bytes(), path


@pytest.fixture
def certificate(studied: tuple[Folders, Plan], monkeypatch: pytest.MonkeyPatch) -> Path:
    folders, _ = studied
    withdraw(folders.config, PATIENT, *WHO, datetime.now(UTC))
    (folder,) = (folders.state.path / "withdrawals").iterdir()
    return folder


def test_a_withdrawal_that_was_cut_off_is_completed_once(
    studied: tuple[Folders, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, plan = studied
    prepared(folders, plan)
    scans = folders.state.path / "scans"

    def power_cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hospital_node.people.record", power_cut)
        with pytest.raises(KeyboardInterrupt):
            withdraw(folders.config, PATIENT, *WHO, datetime.now(UTC))
    scans.mkdir(exist_ok=True)
    files = len(list(folders.state.cache.rglob("*.npy")))
    with pytest.raises(DecisionRefused, match="written nowhere"):
        withdraw(folders.config, PATIENT, "Dr Okoro", f"cut off: {PATIENT}", datetime.now(UTC))
    made = withdraw(folders.config, PATIENT, "Dr Okoro", "cut off", datetime.now(UTC))
    assert (made.recorded_by, not scans.exists()) == (WHO[0], True)
    assert len(list(folders.state.cache.rglob("*.npy"))) == files - 4
    assert len(Ledger.open(folders.state.ledger).withdrawals().entries) == 1
    (folder,) = (folders.state.path / "withdrawals").iterdir()
    verify(folder)
    assert [one.action.kind for one in AuditLog.within(folders.state.path).read()] == ["withdrawal-completed"]
    with pytest.raises(DecisionRefused, match="has withdrawn already"):
        withdraw(folders.config, PATIENT, *WHO, datetime.now(UTC))


def test_pictures_that_cannot_be_deleted_are_said_and_nothing_is_certified_before_they_are_gone(
    studied: tuple[Folders, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, _ = studied
    scans = folders.state.path / "scans"
    scans.mkdir()

    def refused(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("hospital_node.scans.shutil.rmtree", refused)
        with pytest.raises(ScansError, match=r"cannot delete the pictures in .*scans \(Permission denied\): correct"):
            withdraw(folders.config, PATIENT, *WHO, datetime.now(UTC))
    assert not (folders.state.path / "withdrawals").exists()
    assert withdraw(folders.config, PATIENT, "Dr Okoro", "pictures deleted by hand", datetime.now(UTC)).recorded_by == WHO[0]
    assert not scans.exists()


def test_a_node_without_the_pages_library_certifies_all_the_same(
    studied: tuple[Folders, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> str:
        raise ReportError("Jinja2 is not installed")

    folders, _ = studied
    monkeypatch.setattr("hospital_node.reporting.html.page", missing)
    withdraw(folders.config, PATIENT, *WHO, datetime.now(UTC))
    (folder,) = (folders.state.path / "withdrawals").iterdir()
    verify(folder)
    assert sorted(one.name for one in folder.iterdir()) == ["withdrawal.crt", "withdrawal.json", "withdrawal.json.sig"]


def test_openssl_alone_verifies_a_certificate(certificate: Path) -> None:
    public = ["openssl", "x509", "-in", "withdrawal.crt", "-pubkey", "-noout"]
    key = subprocess.run(public, cwd=certificate, capture_output=True, check=True)
    (certificate / "key.pem").write_bytes(key.stdout)
    check = ["openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "withdrawal.json.sig", "withdrawal.json"]
    assert subprocess.run(check, cwd=certificate, capture_output=True, text=True, check=False).stdout == "Verified OK\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "item"),
    [
        ("withdrawal.json", b'"round": 2', b'"round": 1', "signature"),
        ("withdrawal.json", b'"hospital"', b'"hospitel"', "schema"),
        ("withdrawal.html", b"eligible", b"ineligible", "withdrawal.html"),
    ],
)
def test_a_tampered_certificate_is_named(certificate: Path, file: str, old: bytes, new: bytes, item: str) -> None:
    path = certificate / file
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ReportTampered) as refused:
        verify(certificate)
    assert refused.value.item == item


def test_a_certificate_with_words_of_another_key_is_refused(certificate: Path, studied: tuple[Folders, Plan]) -> None:
    """Even where the key that it does name signed it."""
    folders, _ = studied
    found = read_certificate((certificate / "withdrawal.json").read_bytes())
    signer = found.signer.model_copy(update={"key_words": key_words(bytes(32))})
    data = bytes_of(found.model_copy(update={"signer": signer}))
    (certificate / "withdrawal.json").write_bytes(data)
    (certificate / "withdrawal.json.sig").write_bytes(sign_file(load_identity(folders.config.identity).key, data))
    with pytest.raises(ReportTampered, match="the words of the key are not those of this key"):
        verify(certificate)


def test_each_sentence_follows_from_the_facts() -> None:
    plan = make_plan()
    events, more = entries_of(plan, 1), entries_of(plan, 2)
    said, later = (sentences(eligible_rounds(one, {}), spent(one), one[-1]) for one in (events, more))
    assert "eligible for 1 charged release before" in said[0]
    assert "eligible for 2 charged releases before" in later[0]
    assert f"ε = {spent(events).stated_epsilon}, δ = 1e-5" in said[1]
    assert said[1] != later[1]
    assert f"entry {events[-1].seq} of the ledger" in said[3]
    nothing = entries_of(plan, 0)
    assert sentences((), spent(nothing), nothing[-1])[0] == "Nothing computed from this patient has left the hospital."
    bare = entries_of(make_plan(sigma=0), 1)
    assert "nothing limits" in sentences(eligible_rounds(bare, {}), spent(bare), bare[-1])[1]


# ---- the node at work ----


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Node]]:
    monkeypatch.setattr(loop, "FIRST_WAIT_S", 0.001)
    made: list[Node] = []
    for name in ("without", "with"):
        folders = make_folders(tmp_path / name)
        ledger = approved_ledger(folders, make_plan())
        if name == "with":
            ledger.withdraw_patient(PATIENT, *WHO, NOW)
        made.append(Node(folders, FakeLink(make_plan()), Trainer()))
    yield made
    for node in made:
        if node.future.running() or node.future.done():
            node.end()


def as_read(message: Any) -> Any:
    """A message as protobuf reads what crosses, where it was made without protobuf."""
    return pb.UploadChunk.FromString(message.SerializeToString()) if isinstance(message, Words) else message


def test_no_message_to_the_coordinator_changes_or_carries_anything_of_it(nodes: list[Node]) -> None:
    words, shapes = [], []
    for node in nodes:
        node.start()
        node.link.put(train=train_order())
        node.link.wait_for(2)
        words.append(words_of(play(node, Rehearsal(make_plan(), node.folders), 3)))
        until(lambda node=node: any(event.kind == "verified" for event in node.ledger.events()))
        node.end()
        flat = [as_read(part) for sent in node.link.sent for part in (sent if isinstance(sent, list) else [sent])]
        shapes.append([(type(part).__name__, sorted(name.name for name, _ in part.ListFields())) for part in flat])
        content = b"".join(part.SerializeToString() for part in flat)
        for entry in node.ledger.withdrawals().entries:
            for secret in (PATIENT, entry.code, entry.salt):
                assert secret.encode() not in content
            assert bytes.fromhex(entry.code) not in content
    assert words[0] == words[1]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("moment", "code"), [("in training", "no-update"), ("in the session", "paused")])
def test_an_update_that_was_trained_before_is_not_released_and_the_round_is_trained_anew(
    nodes: list[Node], moment: str, code: str
) -> None:
    """Under codes that nodes without a withdrawal give at the same places."""
    node = nodes[0]
    prepared: list[int] = []

    def prepare(plan: Plan, count: Any) -> tuple[()]:
        prepared.append(1)
        return ()

    node.prepare = prepare
    node.trainer.gate = threading.Event()
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(1)
    if moment == "in training":
        node.ledger.withdraw_patient(PATIENT, *WHO, NOW)
    node.trainer.gate.set()
    node.link.wait_for(2)
    coordinator = Rehearsal(make_plan(), node.folders)
    node.link.put(open=coordinator.order)
    sent = 3
    if moment == "in the session":
        node.link.put(share=coordinator.take_advert(node.link.wait_for(3)))
        mask = coordinator.take_shares(node.link.wait_for(4))
        node.ledger.withdraw_patient(PATIENT, *WHO, NOW)
        node.link.put(mask=mask)
        sent = 5
    assert node.link.wait_for(sent).refusal.code == code
    assert node.charges == []
    node.link.put(train=train_order())
    node.link.wait_for(sent + 2)
    assert node.trainer.rounds == [1, 1]
    assert len(prepared) == 2
    play(node, Rehearsal(make_plan(), node.folders, session=b"\x02" * 16), sent + 3)
    until(lambda: len(node.charges) == 1)
    assert isinstance(node.charges[0], Charge)
