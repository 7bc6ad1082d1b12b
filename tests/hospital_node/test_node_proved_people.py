"""Decisions of people who signed in: the account is kept with every one, and a higher cap takes two accounts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from node_world import NOW_S, Folders, make_folders, make_plan

from certs.audit_file import AuditLog
from hospital_node import cli, people, proposals
from hospital_node.ledger import Cap, Ledger
from proto.control import Answer, Approve, Confirm, ControlError, Decision, Decline, Pause, Proved, Resume, decision
from proto.plan import Plan

NOW = datetime.fromtimestamp(NOW_S, UTC)
ISSUER = "https://login.hospital.example"
KELLER = Proved(issuer=ISSUER, subject="keller-1", role="officer")
LIND = Proved(issuer=ISSUER, subject="lind-2", role="officer")
OPERATOR = Proved(issuer=ISSUER, subject="okoro-3", role="operator")
WHO = {"by": "Dr Keller", "reason": "board decision 12", "proved": KELLER}


@pytest.fixture
def plan() -> Plan:
    return make_plan()


@pytest.fixture
def folders(tmp_path: Path, plan: Plan) -> Folders:
    made = make_folders(tmp_path)
    made.state.create()
    made.state.write_plan(plan)
    return made


def asked(folders: Folders, request: Decision, at: datetime = NOW) -> Answer:
    return people.answer(folders.config, request.model_dump_json().encode(), at)


def records(folders: Folders):
    return AuditLog.within(folders.state.path).read()


def cap_of(folders: Folders) -> float:
    cap = Ledger.open(folders.state.ledger).cap
    assert cap is not None
    return cap.epsilon


def propose(folders: Folders, plan: Plan) -> str:
    """A first approval at 6, and the wish for 9: the digest of the proposal."""
    assert asked(folders, Approve(plan=plan.digest().hex(), epsilon=6.0, **WHO)).done
    said = asked(folders, Approve(plan=plan.digest().hex(), epsilon=9.0, **WHO), NOW + timedelta(minutes=1))
    assert said.done
    assert "waits for a second person" in said.sentence
    found = proposals.standing(records(folders), NOW + timedelta(minutes=1))
    assert found is not None
    assert (found.by, found.cap.epsilon, found.proved) == ("Dr Keller", 9.0, KELLER)
    return found.digest


def test_the_account_is_kept_in_the_ledger_and_in_the_audit_log(folders: Folders, plan: Plan) -> None:
    assert asked(folders, Approve(plan=plan.digest().hex(), epsilon=6.0, **WHO)).done
    approved = Ledger.open(folders.state.ledger).approval(plan)
    assert approved is not None
    assert approved.proved == KELLER
    (record,) = records(folders)
    assert record.action.fields["subject"] == "keller-1"
    assert record.action.fields["signed in at"] == ISSUER
    assert record.action.fields["user"].isdigit()


def test_a_higher_cap_waits_for_another_account(folders: Folders, plan: Plan) -> None:
    digest, later = propose(folders, plan), NOW + timedelta(hours=1)
    assert cap_of(folders) == 6.0
    own = asked(folders, Confirm(proposal=digest, **WHO), later)
    assert (own.done, "you proposed it yourself" in own.sentence) == (False, True)
    renamed = asked(folders, Confirm(proposal=digest, by="Dr Lind", reason="yes", proved=KELLER), later)
    assert not renamed.done
    typed = asked(folders, Confirm(proposal=digest, by="Dr Lind", reason="yes"), later)
    assert (typed.done, "only a person who has signed in" in typed.sentence) == (False, True)
    assert cap_of(folders) == 6.0
    said = asked(folders, Confirm(proposal=digest, by="Dr Lind", reason="I agree", proved=LIND), later)
    assert said.done, said.sentence
    assert cap_of(folders) == 9.0
    approved = Ledger.open(folders.state.ledger).approval(plan)
    assert approved is not None
    assert (approved.by, approved.confirmed_by) == ("Dr Keller", "Dr Lind")
    assert (approved.proved, approved.confirmed_proved, approved.confirmed_reason) == (KELLER, LIND, "I agree")
    last = records(folders)[-1].action
    assert (last.by, last.kind, last.fields["proposed by: subject"]) == ("Dr Lind", "confirm", "keller-1")
    again = asked(folders, Confirm(proposal=digest, by="Dr Lind", reason="I agree", proved=LIND), later)
    assert "stands no more" in again.sentence


def test_two_people_of_one_name_are_two_people_where_their_accounts_are(folders: Folders, plan: Plan) -> None:
    digest = propose(folders, plan)
    assert asked(folders, Confirm(proposal=digest, by="Dr Keller", reason="yes", proved=LIND), NOW + timedelta(hours=1)).done
    assert cap_of(folders) == 9.0


def test_a_typed_second_name_is_not_accepted_from_who_signed_in(folders: Folders, plan: Plan) -> None:
    with pytest.raises(ControlError, match="a typed name is not accepted"):
        decision(Approve, plan=plan.digest().hex(), epsilon=9.0, confirmed_by="Dr Lind", **WHO)


@pytest.mark.parametrize(
    ("request_of", "later"),
    [
        (lambda plan: Decline(plan=plan, **WHO), timedelta(minutes=2)),
        (lambda plan: Approve(plan=plan, epsilon=5.0, **WHO), timedelta(minutes=2)),
        (lambda plan: Approve(plan=plan, epsilon=10.0, **WHO), timedelta(minutes=2)),
        (None, timedelta(days=3, minutes=2)),
    ],
    ids=["declined", "approved lower", "proposed anew", "three days later"],
)
def test_a_proposal_ends(folders: Folders, plan: Plan, request_of, later: timedelta) -> None:
    digest = propose(folders, plan)
    if request_of is not None:
        assert asked(folders, request_of(plan.digest().hex()), NOW + later).done
    said = asked(folders, Confirm(proposal=digest, by="Dr Lind", reason="yes", proved=LIND), NOW + later + timedelta(minutes=1))
    assert "stands no more" in said.sentence
    assert cap_of(folders) <= 6.0


@pytest.mark.parametrize("way", ["lower", "raise"])
def test_a_cap_that_an_officer_sets_ends_what_was_proposed_before(folders: Folders, plan: Plan, way: str) -> None:
    digest = propose(folders, plan)
    who = ["--by", "Dr Meyer", "--reason", "an incident", "--epsilon", {"lower": "2", "raise": "7"}[way]]
    second = ["--confirmed-by", "Dr Lind", "--confirmed-reason", "I agree"] if way == "raise" else []
    assert cli.main(["cap", way, *who, *second, "--config", str(folders.config_file)]) == 0
    set_to = cap_of(folders)
    at = NOW + timedelta(minutes=3)
    assert proposals.standing(records(folders), at) is None
    said = asked(folders, Confirm(proposal=digest, by="Dr Lind", reason="yes", proved=LIND), at)
    assert "stands no more" in said.sentence
    assert cap_of(folders) == set_to < 9.0


def test_one_request_is_carried_out_at_a_time(folders: Folders, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    decide = people.carry_out

    def watched(*given: Any) -> str:
        seen.append(people.DECIDING.locked())
        return decide(*given)

    monkeypatch.setattr(people, "carry_out", watched)
    approve = {"plan": plan.digest().hex(), "epsilon": 6.0}
    assert not asked(folders, Approve(**approve, **WHO | {"proved": OPERATOR})).done  # and the next one is heard all the same
    assert asked(folders, Approve(**approve, **WHO)).done
    assert seen == [True, True]
    assert not people.DECIDING.locked()


def test_what_two_people_could_not_do_is_not_proposed(folders: Folders, plan: Plan) -> None:
    assert asked(folders, Approve(plan=plan.digest().hex(), epsilon=6.0, **WHO)).done
    said = asked(folders, Approve(plan=plan.digest().hex(), epsilon=9.0, delta=0.5, **WHO), NOW + timedelta(minutes=1))
    assert not said.done
    assert [one.action.kind for one in records(folders)] == ["approve", "approve-refused"]


def test_a_forged_proposal_is_nothing_to_confirm(folders: Folders, plan: Plan) -> None:
    propose(folders, plan)
    forged = records(folders)[-1].action
    bare = type(forged)(forged.by, forged.kind, forged.reason, {"plan": plan.digest().hex()})
    AuditLog.within(folders.state.path).append(bare, NOW + timedelta(minutes=2))
    assert proposals.standing(records(folders), NOW + timedelta(minutes=3)) is None


def test_an_operator_pauses_and_decides_nothing_else(folders: Folders, plan: Plan) -> None:
    who = {"by": "B. Okoro", "reason": "maintenance", "proved": OPERATOR}
    for request in (
        Approve(plan=plan.digest().hex(), epsilon=6.0, **who),
        Decline(plan=plan.digest().hex(), **who),
        Resume(**who),
    ):
        said = asked(folders, request)
        assert (said.done, "only an officer decides this" in said.sentence) == (False, True)
    assert not folders.state.ledger.exists()
    assert asked(folders, Pause(**who)).done
    assert Ledger.open(folders.state.ledger).events()[-1].entry.proved == OPERATOR


def test_an_entry_of_before_reads_and_hashes_as_it_did(folders: Folders, plan: Plan) -> None:
    """A typed name leaves no trace of a sign-in in an entry's bytes."""
    assert asked(folders, Approve(plan=plan.digest().hex(), epsilon=6.0, by="Dr Keller", reason="board")).done
    kept = folders.state.ledger.read_bytes()
    assert b'"reason"' in kept
    assert b'proved":' not in kept
    assert cap_of(folders) == Cap(epsilon=6.0, delta=1e-5).epsilon
