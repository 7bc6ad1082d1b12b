"""The command line: what people read, and that every mistake is one sentence on standard error and exit status 2."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node_world import LAYOUT, ME, NOW_S, FakeLink, Folders, approved_ledger, make_folders, make_plan
from safetensors.numpy import save

from certs.audit import Action
from certs.audit_file import AuditLog
from hospital_node import checks, cli, officer
from hospital_node.ledger import Ledger
from proto.modelfile import read_model
from proto.plan import Plan, load_toml

APPROVAL = ["--by", "Dr Keller", "--reason", "first study"]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


def write_plan(folders: Folders, plan: Plan) -> Path:
    path = folders.root / "plan.json"
    path.write_bytes(plan.canonical())
    return path


def call(folders: Folders, *words: Any) -> int:
    return cli.main([*(str(word) for word in words), "--config", str(folders.config_file)])


# ---- what people did ----


def test_the_audit_log_is_shown_verified_and_exported(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    log = AuditLog.within(folders.state.path)
    folders.state.create()
    assert call(folders, "audit-log") == 0
    assert "nothing was recorded yet" in capsys.readouterr().out
    log.append(Action(by="Dr Keller", kind="pause", reason="a question"), datetime.fromtimestamp(NOW_S, UTC))
    assert call(folders, "audit-log") == 0
    assert "Dr Keller  pause: a question" in capsys.readouterr().out
    out = folders.root / "audit.export"
    assert call(folders, "audit-log", "--verify", "--export", out) == 0
    assert "1 records in an unbroken chain" in capsys.readouterr().out
    log.path.write_bytes(log.path.read_bytes().replace(b"Keller", b"Kxller"))
    assert call(folders, "audit-log", "--verify", "--continues", out) == 2
    assert "line 1 of the audit log" in capsys.readouterr().err


# ---- decisions ----


def test_an_approval_makes_the_ledger_and_names_the_plan(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan()
    assert call(folders, "approve", "--plan", write_plan(folders, plan), *APPROVAL) == 0
    out = capsys.readouterr().out
    assert plan.digest().hex()[:12] in out
    assert "cost of all rounds" in out
    approved = Ledger.open(folders.state.ledger).approval(plan)
    assert approved is not None
    assert (approved.by, approved.cap.epsilon, approved.cap.delta) == ("Dr Keller", 8.0, 1e-5)


@pytest.mark.parametrize(("cap", "says"), [(0.01, "too small for even one more round"), (1000, None)])
def test_approve_says_at_once_where_the_cap_ends_the_plan_early(
    folders: Folders, cap: float, says: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(folders, make_plan())
    assert call(folders, "approve", "--plan", plan, *APPROVAL, "--epsilon", cap) == 0
    shown = " ".join(capsys.readouterr().out.split())
    if says:
        assert says in shown
    else:
        assert "stops by itself" not in shown


def test_an_approval_renewed_in_mid_study_counts_only_the_rounds_to_come(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan()
    approved_ledger(folders, plan)
    ledger = Ledger.open(folders.state.ledger)
    ledger.commit(ledger.authorize(plan, 1), bytes(32), bytes(16), datetime.now(UTC))
    cap = ledger.cap
    assert cap is not None
    assert ledger.budget(plan).stops_after_round is None
    again = ["--epsilon", cap.epsilon, "--delta", cap.delta]
    assert call(folders, "approve", "--plan", write_plan(folders, plan), *APPROVAL, *again) == 0
    assert "stops by itself" not in " ".join(capsys.readouterr().out.split())


def test_the_plan_offered_last_is_approved_where_none_is_named(folders: Folders) -> None:
    folders.state.create()
    folders.state.write_plan(make_plan())
    assert call(folders, "approve", *APPROVAL, "--epsilon", 3, "--delta", "1e-6") == 0
    cap = Ledger.open(folders.state.ledger).cap
    assert cap is not None
    assert (cap.epsilon, cap.delta) == (3.0, 1e-6)


def test_a_plan_without_noise_needs_two_flags(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(folders, make_plan(sigma=0))
    assert call(folders, "approve", "--plan", plan, *APPROVAL) == 2
    assert "--accept-no-guarantee" in capsys.readouterr().err
    assert call(folders, "approve", "--plan", plan, *APPROVAL, "--accept-no-guarantee", "--data-is-public") == 0
    assert "without any guarantee" in capsys.readouterr().out


def test_pause_and_resume_are_entries_of_the_ledger(folders: Folders) -> None:
    approved_ledger(folders, make_plan())
    assert call(folders, "pause", "--by", "Dr Keller", "--reason", "holidays") == 0
    assert Ledger.open(folders.state.ledger).budget().state == "paused"
    assert call(folders, "resume", "--by", "Dr Keller", "--reason", "back") == 0
    assert Ledger.open(folders.state.ledger).budget().state != "paused"


def test_one_person_lowers_a_cap_and_two_raise_it(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    approved_ledger(folders, make_plan())
    ledger = Ledger.open(folders.state.ledger)
    assert call(folders, "cap", "lower", "--epsilon", 2, "--by", "Dr Keller", "--reason", "careful") == 0
    assert ledger.cap is not None
    assert ledger.cap.epsilon == 2.0
    raising = ["cap", "raise", "--epsilon", 4, "--by", "Dr Keller", "--reason", "agreed"]
    assert call(folders, *raising, "--confirmed-by", "Ms Okafor") == 2
    assert "--confirmed-reason" in capsys.readouterr().err
    assert call(folders, *raising, "--confirmed-by", "Ms Okafor", "--confirmed-reason", " ") == 2
    assert ledger.cap.epsilon == 2.0
    capsys.readouterr()
    raising += ["--confirmed-reason", "the board agreed"]
    assert call(folders, *raising, "--confirmed-by", "dr keller") == 2
    assert "two different people" in capsys.readouterr().err
    assert call(folders, *raising, "--confirmed-by", "Ms Okafor") == 0
    assert ledger.cap.epsilon == 4.0
    last, kept = Ledger.open(folders.state.ledger).events()[-1], AuditLog.within(folders.state.path).read()
    assert [one.action.kind for one in kept] == ["cap-lowered", "cap-raised"]
    said = kept[-1].action
    assert (said.by, said.reason) == ("Dr Keller", "agreed")
    assert (said.fields["confirmed_by"], said.fields["confirmed_reason"]) == ("Ms Okafor", "the board agreed")
    assert said.fields["ledger digest"] == last.digest.hex()


def test_the_budget_is_a_table_or_json(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan()
    approved_ledger(folders, plan)
    folders.state.write_plan(plan)
    assert call(folders, "budget") == 0
    out = capsys.readouterr().out
    assert "what happens next" in out
    assert "forecast" in out
    assert call(folders, "budget", "--json") == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["state"], view["cap"], view["rounds_done"]) == ("within budget", 8.0, 0)


def test_no_guarantee_is_null_in_json_and_never_zero() -> None:
    assert officer._finite({"spent": float("inf"), "rows": [(1, float("inf"))]}) == {"spent": None, "rows": [[1, None]]}


# ---- mistakes ----


def one_line(capsys: pytest.CaptureFixture[str], status: int) -> str:
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("secagg-node: ")
    assert "Traceback" not in captured.err + captured.out
    return captured.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["approve", *APPROVAL], "no plan was received yet"),
        (["approve", *APPROVAL, "--plan", "nowhere.toml"], "cannot read the plan"),
        (["approve", *APPROVAL, "--plan", "nowhere.json"], "cannot read the plan"),
        (["approve", "--by", "x"], "Missing option '--reason'"),
        (["approve", *APPROVAL, "--epsilon", "much"], "--epsilon"),
        (["budget"], "ledger"),
        (["cap", "lower", "--epsilon", "2", "--by", "x", "--reason", "y"], "no cap yet"),
        (["data", "prepare"], "no plan was received yet"),
        (["data", "check"], "no known layout"),
        (["fetch-plan"], "127.0.0.1:9"),
        (["run", "--fast"], "No such option"),
        (["march"], "No such command"),
    ],
)
def test_a_mistake_is_one_line(folders: Folders, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert says in one_line(capsys, call(folders, *words))


def test_a_cap_too_small_for_anything_is_still_a_decision_and_a_bad_one_is_refused(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(folders, make_plan())
    for words in (["--epsilon", "0"], ["--epsilon", "inf"], ["--epsilon", "1", "--delta", "1"]):
        one_line(capsys, call(folders, "approve", "--plan", plan, *APPROVAL, *words))
    text = folders.config_file.read_text()
    folders.config_file.write_text(text[: text.index("[cap]")])
    assert "[cap]" in one_line(capsys, call(folders, "approve", "--plan", plan, *APPROVAL))


def test_an_unknown_key_in_the_configuration_is_one_line(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    folders.config_file.write_text("colour = 1\n" + folders.config_file.read_text())
    for command in ("run", "evaluate", "check", "budget"):
        assert "unknown key 'colour'" in one_line(capsys, call(folders, command))


def test_no_arguments_show_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert "approve" in captured.out + captured.err


# ---- looking ----


def test_check_finds_every_thing_that_is_missing(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folders, "check", "--json") == 1
    lines = {line["name"]: line for line in json.loads(capsys.readouterr().out)}
    assert lines["certificate"]["ok"]
    assert lines["peers"]["ok"]
    remedies = {"tcp": "is it running", "plan": "fetch-plan", "ledger": "approve", "data": "layout"}
    for name, remedy in remedies.items():
        assert not lines[name]["ok"]
        assert remedy in lines[name]["sentence"]


def test_check_of_a_node_that_is_ready(
    folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    approved_ledger(folders, plan)
    folders.state.write_plan(plan)
    (folders.root / "data" / "manifest.csv").write_text("image,label,patient\na.nii,b.nii,p1\n")
    for name in ("a.nii", "b.nii"):
        (folders.root / "data" / name).write_bytes(b"")
    monkeypatch.setattr(checks, "check_connection", lambda _config: [])
    assert call(folders, "check") == 0
    out = capsys.readouterr().out
    assert out.count("✓") == 10
    assert "✗" not in out
    assert "4 of 4 hospitals" in out


def test_check_of_an_expired_certificate_names_it(folders: Folders) -> None:
    from datetime import UTC, datetime, timedelta

    line = checks.check_certificate(folders.config, datetime.now(UTC) + timedelta(days=200))
    assert not line.ok
    assert "expired" in line.sentence
    soon = checks.check_certificate(folders.config, datetime.now(UTC) + timedelta(days=80))
    assert soon.ok
    assert "ends in 9 days" in soon.sentence or "ends in 10 days" in soon.sentence


def test_the_plan_can_be_fetched_and_read_before_it_is_approved(
    folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    monkeypatch.setattr(cli, "dial", lambda _config, _meter: FakeLink(plan))
    out = folders.root / "read-me.json"
    assert call(folders, "fetch-plan", "--out", out) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["study"] == "lidc"
    assert plan.digest().hex() in captured.err
    assert out.read_bytes() == plan.canonical()
    assert call(folders, "approve", "--plan", out, *APPROVAL) == 0


def test_a_start_is_made_and_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tomli_w

    plan = tmp_path / "plan.toml"
    fields = make_plan().model_dump(mode="json", exclude_none=True)
    fields["network"]["channels"] = [4, 4, 8]
    plan.write_text(tomli_w.dumps(fields))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert cli.main(["init-model", "--plan", str(plan), "--out", str(first)]) == 0
    digest = read_model(first).digest.hex()
    assert f'start_digest = "{digest}"' in capsys.readouterr().out
    assert load_toml(plan).start_digest is None
    assert cli.main(["init-model", "--plan", str(plan), "--out", str(second), "--from", str(first)]) == 0
    assert read_model(second).digest.hex() == digest
    capsys.readouterr()
    second.write_bytes(save({"a": np.zeros(LAYOUT.length, np.float32)}, metadata={"layout": f'[["a",[{LAYOUT.length}]]]'}))
    status = cli.main(["init-model", "--plan", str(plan), "--out", str(first), "--from", str(second)])
    assert "another network" in one_line(capsys, status)


# ---- a real process ----


def test_a_signal_ends_a_command_that_waits() -> None:
    ended: list[bool] = []
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        cli._until_signalled(lambda stop: ended.append(stop.wait(120)))
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
        gc.unfreeze()
    assert ended == [True]


@pytest.mark.sockets
def test_a_node_process_waits_for_its_coordinator_and_stops_cleanly(folders: Folders) -> None:
    approved_ledger(folders, make_plan())
    command = [sys.executable, "-m", "hospital_node.cli", "run", "--config", str(folders.config_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120  # patience with a machine that does other things as well
    while not folders.state.progress.exists() or "no connection" not in folders.state.progress.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "is it running" in err
    assert not list(folders.state.path.glob("*.partial"))
    assert Ledger.open(folders.state.ledger).hospital == ME.rsplit("/", 1)[-1]
    assert NOW_S > 0
