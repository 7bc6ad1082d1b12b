"""What people decide at a node: one function whoever asks, the ledger decides, the audit log says who, when and why."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from node_world import NOW_S, Folders, approved_ledger, make_folders, make_plan

from certs.audit_file import AuditLog
from hospital_node import people
from hospital_node.ledger import DecisionRefused, Ledger
from proto.control import Answer, Approve, Decision, Decline, Pause, Resume
from proto.control_socket import ask, runs
from proto.plan import Plan

NOW = datetime.fromtimestamp(NOW_S, UTC)
WHO = {"by": "Dr Keller", "reason": "board decision 12"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan() -> Plan:
    return make_plan()


@pytest.fixture
def folders(tmp_path: Path, plan: Plan) -> Folders:
    """A node to which the coordinator has offered the plan."""
    made = make_folders(tmp_path)
    made.state.create()
    made.state.write_plan(plan)
    return made


def asked(folders: Folders, request: Decision) -> Answer:
    return people.answer(folders.config, request.model_dump_json().encode(), NOW)


def audit(folders: Folders) -> list[tuple[str, str, str]]:
    records = AuditLog.within(folders.state.path).read()
    return [(one.action.by, one.action.kind, one.action.reason) for one in records]


def test_an_approval_in_the_app_is_the_one_of_the_command_line_and_is_recorded(folders: Folders, plan: Plan) -> None:
    said = asked(folders, Approve(plan=plan.digest().hex(), epsilon=6.0, **WHO))
    what = f"plan {plan.digest().hex()[:12]} of study 'lidc', under the cap epsilon 6 at delta 1e-5."
    assert said == Answer(done=True, sentence=f"Approved by Dr Keller: {what}")
    ledger = Ledger.open(folders.state.ledger)
    approved = ledger.approval(plan)
    assert approved is not None
    assert (approved.by, approved.reason, approved.cap.epsilon) == ("Dr Keller", "board decision 12", 6.0)
    (record,) = AuditLog.within(folders.state.path).read()
    assert record.action.kind == "approve"
    assert record.at == NOW
    assert record.action.fields["plan"] == plan.digest().hex()
    assert record.action.fields["ledger entry"] == "2"
    assert record.action.fields["ledger digest"] == ledger.head.hex()
    assert record.action.fields["by way of"] == "app"


def test_without_an_epsilon_the_cap_of_the_configuration_is_meant(folders: Folders, plan: Plan) -> None:
    assert asked(folders, Approve(plan=plan.digest().hex(), **WHO)).done
    cap = Ledger.open(folders.state.ledger).cap
    assert cap is not None
    assert cap.epsilon == 8.0


def test_a_plan_that_nobody_read_is_not_approved(folders: Folders) -> None:
    said = asked(folders, Approve(plan="ab" * 32, **WHO))
    assert not said.done
    assert "another plan is offered now than the one that was read" in said.sentence
    assert not folders.state.ledger.exists()
    folders.state.plan.unlink()
    assert "offered no plan yet" in asked(folders, Approve(plan="ab" * 32, **WHO)).sentence


def test_one_person_cannot_raise_the_cap_and_the_attempt_is_kept(folders: Folders, plan: Plan) -> None:
    digest = plan.digest().hex()
    assert asked(folders, Approve(plan=digest, epsilon=2.0, **WHO)).done
    said = asked(folders, Approve(plan=digest, epsilon=9.0, confirmed_by="dr keller", **WHO))
    assert not said.done
    assert "needs two different people" in said.sentence
    assert [kind for _, kind, _ in audit(folders)] == ["approve", "approve-refused"]
    assert asked(folders, Approve(plan=digest, epsilon=9.0, confirmed_by="Dr Lind", **WHO)).done


def test_declining_takes_an_approval_back_and_a_plan_never_approved_is_declined_in_the_log(
    folders: Folders, plan: Plan
) -> None:
    request = Decline(plan=plan.digest().hex(), **WHO)
    assert asked(folders, request).sentence == "Declined by Dr Keller: this hospital takes no part in study 'lidc'."
    entries = len(Ledger.open(folders.state.ledger).events())
    assert entries == 1  # nothing but its making
    asked(folders, Approve(plan=plan.digest().hex(), **WHO))
    assert asked(folders, request).sentence.startswith("Taken back by Dr Keller")
    assert Ledger.open(folders.state.ledger).approval(plan) is None
    assert [kind for _, kind, _ in audit(folders)] == ["decline", "approve", "decline"]


def test_a_pause_is_taken_although_the_log_is_damaged_and_an_approval_is_not(folders: Folders, plan: Plan) -> None:
    approved_ledger(folders, plan)
    assert asked(folders, Resume(**WHO)).done
    log = AuditLog.within(folders.state.path)
    log.path.write_bytes(log.path.read_bytes().replace(b"Keller", b"Kxller"))
    entries = len(Ledger.open(folders.state.ledger).events())
    said = asked(folders, Approve(plan=plan.digest().hex(), epsilon=1.0, **WHO))
    assert not said.done
    assert "line 1 of the audit log" in said.sentence
    assert len(Ledger.open(folders.state.ledger).events()) == entries
    assert "line 1 of the audit log" in asked(folders, Pause(**WHO)).sentence
    assert Ledger.open(folders.state.ledger).budget(plan).state == "paused"


def test_a_refusal_of_the_ledger_reaches_the_command_line_as_it_is(folders: Folders, plan: Plan) -> None:
    request = Approve(plan=plan.digest().hex(), epsilon=2.0, delta=0.5, **WHO)
    with pytest.raises(DecisionRefused, match="below 1/20"):
        people.carry_out(folders.config, request, plan, NOW, "command line")
    assert audit(folders) == [("Dr Keller", "approve-refused", "board decision 12")]


@pytest.mark.sockets
def test_a_running_node_is_paused_over_its_socket(folders: Folders, plan: Plan) -> None:
    approved_ledger(folders, plan)
    code = f"import sys; from hospital_node.cli import main; sys.exit(main(['run', '--config', {str(folders.config_file)!r}]))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        limit_s = time.monotonic() + 180
        while not runs(folders.state.path):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < limit_s
            time.sleep(0.1)
        said = ask(folders.state.path, Pause(**WHO), "this hospital's node")
        assert said == Answer(
            done=True, sentence="Paused by Dr Keller: the node declines from its next question to the ledger on."
        )
    finally:
        process.terminate()
        _, said_log = process.communicate(timeout=120)
    assert "Keller" not in said_log
    assert Ledger.open(folders.state.ledger).budget(plan).state == "paused"
    assert audit(folders) == [("Dr Keller", "pause", "board decision 12")]
    assert not runs(folders.state.path)
