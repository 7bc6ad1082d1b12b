"""Approvals that code records for hospitals which exist on one machine only, into ledgers of their own.

In a demonstration one cap is low on purpose: the last hospital's lies between two rounds, so that one sees a node stop by
itself while the others go on.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from hospital_node.cap import Cap, stated
from hospital_node.config import NodeConfig
from hospital_node.ledger import Ledger
from hospital_node.ledger_rules import planned
from hospital_node.people import carry_out
from hospital_node.state import StateFolder
from proto.control import Approve
from proto.plan import Plan, short_name
from study.cast import Role
from study.sites import Sites

OFFICER = "Demo officer"
REASON = "demonstration on synthetic or public data"
USUAL_CAP = 8.0
NOWHERE = "localhost:1"  # nothing is asked there
LOW_CAP_SHARE = 0.6  # of the plan's rounds fit under the low cap


def approve_all(world: Sites, plan: Plan, console: Console) -> None:
    """Each hospital's officer approves as people do: in ledger and audit log. Raises what people.REFUSALS names."""
    low, unguarded = low_cap(plan), plan.privacy.no_guarantee
    for role in world.cast.hospitals:
        is_low = not unguarded and role == world.cast.hospitals[-1]
        request = Approve(
            by=OFFICER,
            reason=REASON,
            plan=plan.digest().hex(),
            epsilon=low if is_low else USUAL_CAP,
            accept_no_guarantee=unguarded,
            data_is_public=unguarded,
        )
        carry_out(_node(world, role), request, plan, datetime.now(UTC), "command line")
        if is_low:
            console.print(f"{role.name} has a low cap on purpose (epsilon {low:g}): watch it stop by itself")


def _node(world: Sites, role: Role) -> NodeConfig:
    """The node as far as an approval asks: its configuration file is written once the coordinator has an address."""
    home = world.home(role)
    return NodeConfig(coordinator=NOWHERE, identity=home / "identity", state=world.state(role), data=role.data)


def approve(state: Path, uri: str, plan: Plan, cap: Cap, by: str, reason: str, *, data_is_public: bool) -> None:
    """Create the ledger of `uri` in its state folder and record that `by` agrees to `plan`. Raises LedgerError, StateError."""
    folder = StateFolder(state)
    folder.create()
    now = datetime.now(UTC)
    Ledger.create(folder.ledger, uri, now).approve(
        plan, by, reason, cap, now, accept_no_guarantee=plan.privacy.no_guarantee, data_is_public=data_is_public
    )


def low_cap(plan: Plan) -> float:
    """A cap of the last hospital that `LOW_CAP_SHARE` of the rounds fit under and one more round does not."""
    fits = max(1, math.floor(plan.rounds * LOW_CAP_SHARE))
    if plan.privacy.no_guarantee:
        return USUAL_CAP
    last = short_name(plan.hospitals[-1].uri)
    below, above = (stated(planned(plan, last, count), plan.privacy.delta) for count in (fits, fits + 1))
    return round((below + above) / 2, 3)
