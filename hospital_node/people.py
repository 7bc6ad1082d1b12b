"""What people decide at a node, by command line or in the app: one function for each decision, whoever asks for it.

The ledger decides and keeps; the audit log says who asked, when and why, names the ledger's entry by number and digest, and
keeps what was refused. Nothing is asked of the node itself: it reads its ledger before every round and every release.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Literal, TypeAlias, assert_never

from certs.audit import Action, AuditError, Record
from certs.audit_file import AuditLog
from certs.identity import load_identity
from certs.party import CertificateError
from hospital_node import proposals
from hospital_node.cap import Cap
from hospital_node.config import CapSetting, ConfigError, NodeConfig
from hospital_node.crosscheck import prv_epsilon
from hospital_node.ledger import Ledger, LedgerError
from hospital_node.ledger_decisions import Confirmation
from hospital_node.offer import if_approved
from hospital_node.reporting.model import ReportError
from hospital_node.reporting.write import write_report
from hospital_node.state import StateError, StateFolder
from proto.control import (
    Answer,
    Approve,
    Confirm,
    ControlError,
    Decision,
    Decline,
    Leave,
    Pause,
    Resume,
    WriteReport,
    node_request,
)
from proto.plan import Plan, PlanError

Via: TypeAlias = Literal["command line", "app"]
Recorded: TypeAlias = Approve | Confirm | Decline | Pause | Resume | WriteReport  # what is decided with the ledger
DECIDING = threading.Lock()  # of this process: what one request reads, no other changes before it is recorded
REFUSALS = (AuditError, CertificateError, ConfigError, ControlError, LedgerError, PlanError, ReportError, StateError)


def ledger_of(node: NodeConfig, at: datetime) -> Ledger:
    """The hospital's ledger; a new one where there never was any. Raises LedgerError, StateError, CertificateError."""
    folder = StateFolder(node.state, node.ledger_counter)
    folder.create()
    folder.share_ledger(node.ledger)
    return folder.open_ledger(load_identity(node.identity).uri, at)


def answer(node: NodeConfig, data: bytes, at: datetime, leave: Callable[[], None] = lambda: None) -> Answer:
    """One request over the control socket: carried out, or refused in the sentence that says why; `leave` ends the node."""
    try:
        request = node_request(data)
        with DECIDING:
            if isinstance(request, Leave):
                return _leaving(node, request, at, leave)
            plan = _plan_asked(node, request, at)
            return Answer(done=True, sentence=carry_out(node, request, plan, at, "app"))
    except REFUSALS as error:
        return Answer(done=False, sentence=str(error))


def _plan_asked(node: NodeConfig, request: Recorded, at: datetime) -> Plan | None:
    """The plan that a request is about. Raises ControlError, PlanError, AuditError."""
    match request:
        case Approve() | Decline():
            return _plan_meant(node, request.plan)
        case Confirm():
            return _plan_meant(node, proposals.meant(AuditLog.within(node.state).read(), request, at).plan)
        case _:
            return None


def _leaving(node: NodeConfig, request: Leave, at: datetime, leave: Callable[[], None]) -> Answer:
    """Recorded first; the ledger has no part in it. Only a running node can be asked. Raises AuditError, ControlError."""
    _check_role(request)
    AuditLog.within(node.state).append(Action(request.by, request.action, request.reason), at)
    leave()
    return Answer(done=True, sentence=f"Asked by {request.by}: the node ends the round that it is in, says goodbye and stops.")


def carry_out(node: NodeConfig, request: Recorded, plan: Plan | None, at: datetime, via: Via) -> str:
    """Decide, record, and say what was done. `plan` is that of an approval or a refusal. Raises what REFUSALS names."""
    _check_role(request)
    ledger = ledger_of(node, at)
    log = AuditLog.within(node.state)
    # a damaged log refuses what lets the node do more, never what holds it
    records = () if isinstance(request, Pause | Decline) else log.read()
    fields: dict[str, str] = {"by way of": via}
    if request.proved is not None:  # the app's word; the socket answers nobody but this process's own user
        fields |= {"user": str(os.getuid()), **request.proved.fields()}
    try:
        if isinstance(request, Approve) and plan is not None and (cap := _waits(node, ledger, plan, request, at)) is not None:
            return _propose(log, plan, request, cap, at, fields)
        said = _decide(node, ledger, request, plan, at, fields, records)
    except LedgerError as error:
        log.append(Action(request.by, f"{request.action}-refused", request.reason, {**fields, "because": error.code}), at)
        raise
    log.append(Action(request.by, request.action, request.reason, {**fields, **_kept_in(ledger, at)}), at)
    return said


def _decide(
    node: NodeConfig,
    ledger: Ledger,
    request: Recorded,
    plan: Plan | None,
    at: datetime,
    fields: dict[str, str],
    records: Sequence[Record],
) -> str:
    if plan is not None:
        fields |= {"study": plan.study, "plan": plan.digest().hex()}
    match request:
        case Approve():
            assert plan is not None, "the caller has found the plan that an approval names"
            return _approve(node, ledger, plan, request, at)
        case Confirm():
            assert plan is not None, "the caller has found the plan that the proposal names"
            return _confirm(ledger, plan, request, proposals.meant(records, request, at), at, fields)
        case Decline():
            assert plan is not None, "the caller has found the plan that a refusal names"
            return _decline(ledger, plan, request, at)
        case Pause():
            ledger.pause(request.by, request.reason, at, proved=request.proved)
            return f"Paused by {request.by}: the node declines from its next question to the ledger on."
        case Resume():
            ledger.resume(request.by, request.reason, at, proved=request.proved)
            return f"Resumed by {request.by}."
        case WriteReport():
            return _report(node, at)
        case _:
            assert_never(request)


def _report(node: NodeConfig, at: datetime) -> str:
    written = write_report(node, at, prv_epsilon)
    report = written.kept.report
    left_out = "".join(f" {name} is left out: {why}." for name, why in written.left_out.items())
    return f"Report {report.report_id} is written and signed: epsilon {report.guarantee.stated_epsilon}.{left_out}"


def _approve(node: NodeConfig, ledger: Ledger, plan: Plan, request: Approve, at: datetime) -> str:
    cap = cap_for(plan, node.cap, request.epsilon, request.delta)
    ledger.approve(
        plan,
        request.by,
        request.reason,
        cap,
        at,
        confirmed_by=request.confirmed_by,
        accept_no_guarantee=request.accept_no_guarantee,
        data_is_public=request.data_is_public,
        proved=request.proved,
    )
    what = "without any guarantee" if plan.privacy.no_guarantee else f"under the cap {cap}"
    return f"Approved by {request.by}: plan {plan.digest().hex()[:12]} of study '{plan.study}', {what}."


def _waits(node: NodeConfig, ledger: Ledger, plan: Plan, request: Approve, at: datetime) -> Cap | None:
    """The cap that a person who signed in cannot set alone; None where one person suffices. Raises DecisionRefused."""
    if request.proved is None or plan.privacy.no_guarantee or ledger.cap is None:
        return None
    cap = cap_for(plan, node.cap, request.epsilon, request.delta)
    if cap.at_most(ledger.cap):
        return None
    if_approved(ledger.events(), ledger.hospital, plan, cap, at)  # what two people could not do either is refused now
    return cap


def _propose(log: AuditLog, plan: Plan, request: Approve, cap: Cap, at: datetime, fields: Mapping[str, str]) -> str:
    assert request.proved is not None, "only who has signed in proposes"
    log.append(proposals.proposed(request, request.proved, cap, {**fields, "study": plan.study}), at)
    return f"Proposed by {request.by}: the cap {cap} waits for a second person, who confirms it in a sign-in of their own."


def _confirm(
    ledger: Ledger, plan: Plan, request: Confirm, found: proposals.Proposal, at: datetime, fields: dict[str, str]
) -> str:
    assert request.proved is not None, "checked where the proposal was found"
    fields |= {"proposed by": found.by, "proposal": found.digest, **found.proved.fields("proposed by: ")}
    ledger.approve(
        plan,
        found.by,
        found.reason,
        found.cap,
        at,
        confirmed_by=request.by,
        proved=found.proved,
        confirmation=Confirmation(request.proved, request.reason),
    )
    return f"Approved by {found.by} and {request.by}: plan {plan.digest().hex()[:12]} of study '{plan.study}', cap {found.cap}."


def _check_role(request: Recorded | Leave) -> None:
    """Whoever signed in needs the role for it here, too: the app has checked the same. Raises ControlError."""
    if request.proved is not None and request.proved.role != "officer" and not isinstance(request, Pause):
        raise ControlError("only an officer decides this: an operator may pause the node")


def _decline(ledger: Ledger, plan: Plan, request: Decision, at: datetime) -> str:
    """An approval is taken back in the ledger; a plan that was never approved leaves no entry there, only in the audit log."""
    if ledger.approval(plan) is None:
        return f"Declined by {request.by}: this hospital takes no part in study '{plan.study}'."
    ledger.withdraw(plan, request.by, request.reason, at, proved=request.proved)
    return f"Taken back by {request.by}: this hospital takes no part in study '{plan.study}' any more; what was spent is spent."


def record(node: NodeConfig, ledger: Ledger, at: datetime, kind: str, by: str, reason: str, **fields: str) -> None:
    """What the ledger decided at `at`, also in the audit log, with the ledger's entry by number and digest."""
    AuditLog.within(node.state).append(Action(by, kind, reason, {**fields, **_kept_in(ledger, at)}), at)


def _kept_in(ledger: Ledger, at: datetime) -> Mapping[str, str]:
    """The ledger's entry of this moment, which keeps the decision itself; nothing where it made none."""
    made = next((event for event in reversed(ledger.events()) if event.at == at), None)
    return {} if made is None else {"ledger entry": str(made.seq), "ledger digest": made.digest.hex()}


def _plan_meant(node: NodeConfig, digest: str) -> Plan:
    """The plan offered last, if it is the one that was read. Raises ControlError, PlanError."""
    offered = StateFolder(node.state).read_plan()
    if offered is None:
        raise ControlError("the coordinator has offered no plan yet: there is nothing to decide")
    if offered.digest().hex() != digest:
        raise ControlError("another plan is offered now than the one that was read: read the new one, and decide again")
    return offered


def cap_for(plan: Plan, setting: CapSetting | None, epsilon: float | None, delta: float | None) -> Cap:
    """The cap that an approval means: as named, or as the configuration proposes. Raises ConfigError."""
    if epsilon is None and setting is None:
        if not plan.privacy.no_guarantee:
            raise ConfigError("no cap is named: give --epsilon, or write a [cap] into the node's configuration")
        return Cap(epsilon=1.0, delta=plan.privacy.delta)  # recorded, and without effect: a plan without noise has no reading
    chosen = epsilon if epsilon is not None else setting.epsilon if setting is not None else 0.0
    usual = setting.delta if setting is not None and epsilon is None else plan.privacy.delta
    return new_cap(chosen, usual if delta is None else delta)


def new_cap(epsilon: float, delta: float) -> Cap:
    """A cap from two figures. Raises ConfigError."""
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise ConfigError(f"a cap needs a finite epsilon above 0 and a delta in (0, 1), got {epsilon:g} and {delta:g}")
    return Cap(epsilon=epsilon, delta=delta)
