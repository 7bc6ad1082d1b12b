"""`secagg-node check`: one line for each thing that must be right before a node can take part, with the remedy where it is not.

Each check looks at one thing and returns; none changes anything, and none stops the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from certs.identity import load_identity
from certs.party import CertificateError
from certs.peers import load_peers
from hospital_node.cohort import CohortError
from hospital_node.config import ConfigError, NodeConfig
from hospital_node.ledger import Ledger, LedgerError
from hospital_node.reach import find_obstacle
from hospital_node.state import StateFolder, ledger_to_read
from hospital_node.study import policy_obstacle
from proto.plan import Plan, PlanError, role_of

WARN_DAYS = 30  # before a certificate expires


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `sentence` holds the finding, or the remedy."""

    name: str
    ok: bool
    sentence: str


def all_checks(config: NodeConfig, now: datetime) -> tuple[Check, ...]:
    """Every check that fits the role of this node, in the order in which a person would mend them."""
    first = check_certificate(config, now)
    plan_line, plan = check_plan(config)
    lines = [
        first,
        check_coordinator(config) if first.ok else _unchecked("coordinator", "the certificate comes first"),
        plan_line,
    ]
    if not first.ok or role_of(load_identity(config.identity, now).uri) == "hospital":
        lines += [check_peers(config, plan), check_ledger(config), check_approval(config, plan)]
    return (*lines, check_data(config))


def check_certificate(config: NodeConfig, now: datetime) -> Check:
    """Key, certificate and root fit each other and are valid."""
    try:
        identity = load_identity(config.identity, now)
    except CertificateError as error:
        return Check("certificate", ok=False, sentence=str(error))
    days = (identity.not_after - now).days
    soon = "; have a new one signed soon" if days < WARN_DAYS else ""
    return Check("certificate", ok=True, sentence=f"{identity.uri}, valid for {days} more days{soon}")


def check_coordinator(config: NodeConfig) -> Check:
    """Name, port, TLS, and whether the coordinator accepts this node's certificate."""
    obstacle = find_obstacle(config)
    if obstacle is not None:
        return Check("coordinator", ok=False, sentence=obstacle.sentence)
    return Check("coordinator", ok=True, sentence=f"{config.coordinator} answers over TLS 1.3 and accepts this certificate")


def check_plan(config: NodeConfig) -> tuple[Check, Plan | None]:
    """The plan that the coordinator offered last."""
    try:
        plan = StateFolder(config.state).read_plan()
    except PlanError as error:
        return Check("plan", ok=False, sentence=str(error)), None
    if plan is None:
        return Check("plan", ok=False, sentence="no plan was received yet: run `secagg-node fetch-plan` once"), None
    return Check(
        "plan", ok=True, sentence=f"study '{plan.study}', {plan.rounds} rounds, digest {plan.digest().hex()[:12]}"
    ), plan


def check_peers(config: NodeConfig, plan: Plan | None) -> Check:
    """Every hospital of the plan is on this node's own list of confirmed keys, or enough of them."""
    try:
        peers = load_peers(config.require_peers())
        me = load_identity(config.identity).uri
    except (CertificateError, ConfigError) as error:
        return Check("peers", ok=False, sentence=str(error))
    if plan is None:
        return Check("peers", ok=True, sentence=f"{len(peers.peers)} confirmed keys; compared with the plan once there is one")
    obstacle = policy_obstacle(plan, me, config.policy, peers.pinned)
    if obstacle is not None:
        return Check(
            "peers",
            ok=False,
            sentence=f"{obstacle}: compare the key words of the others, then add them with secagg-certs peers",
        )
    known = sum(hospital.uri in peers.pinned or hospital.uri == me for hospital in plan.hospitals)
    return Check("peers", ok=True, sentence=f"{known} of {len(plan.hospitals)} hospitals of the plan are known by their keys")


def check_ledger(config: NodeConfig) -> Check:
    """The chain verifies and nobody holds the node."""
    path = ledger_to_read(config.state, config.ledger)
    if not path.exists():
        return Check("ledger", ok=False, sentence="there is no ledger yet: `secagg-node approve` makes it")
    try:
        budget = Ledger.open_readonly(path, witness=config.ledger_counter).budget()
    except LedgerError as error:
        return Check("ledger", ok=False, sentence=str(error))
    return Check(
        "ledger", ok=budget.state != "paused", sentence=f"{budget.entries} entries verified; {budget.state}: {budget.sentence}"
    )


def check_approval(config: NodeConfig, plan: Plan | None) -> Check:
    """People at this hospital approved exactly the plan that the coordinator offers, and its next round fits."""
    path = ledger_to_read(config.state, config.ledger)
    if plan is None or not path.exists():
        return _unchecked("approval", "plan and ledger come first")
    try:
        ledger = Ledger.open_readonly(path, witness=config.ledger_counter)
        approved, budget = ledger.approval(plan), ledger.budget(plan)
    except LedgerError as error:
        return Check("approval", ok=False, sentence=str(error))
    if approved is None:
        return Check(
            "approval", ok=False, sentence=f"nobody approved study '{plan.study}' as it is now: run `secagg-node approve`"
        )
    over = budget.next_epsilon is None  # the plan has no further round: nothing has to fit any more
    outlook = f"{budget.rounds_left} rounds fit the budget" if budget.rounds_left else budget.sentence
    return Check("approval", ok=over or budget.rounds_left > 0, sentence=f"approved by {approved.by}; {outlook}")


def check_data(config: NodeConfig) -> Check:
    """The data folder holds studies in a known layout. Only lists are read; `data check` reads the voxels."""
    from hospital_node.cases import discover

    try:
        cohort = discover(config.data, site=config.site, fold=config.fold)
    except CohortError as error:
        return Check("data", ok=False, sentence=str(error))
    left_out = sum(cohort.skipped.values())
    skipped = f", {left_out} left out" if left_out else ""
    return Check(
        "data",
        ok=cohort.patients > 0,
        sentence=f"{cohort.layout}: {len(cohort.cases)} studies of {cohort.patients} patients{skipped}",
    )


def _unchecked(name: str, why: str) -> Check:
    return Check(name, ok=False, sentence=f"not checked: {why}")
