"""What a node knows of the study it is in: the plan as offered, and whether this node could ever agree to a session of it.

Nothing here reads a clock, a disk or a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hospital_node.config import NodePolicy
from hospital_node.link import LinkRefused
from proto import federation_pb2 as pb
from proto.layout import Layout
from proto.plan import PROTOCOL_VERSION, Plan, from_canonical
from secagg import collusion_bound


@dataclass(frozen=True, slots=True)
class Study:
    """One plan, its digest and its vector layout."""

    plan: Plan
    digest: bytes
    layout: Layout


def plan_offered(reply: pb.JoinReply, me: str, wanted: str | None = None) -> Plan:
    """The plan in a join reply; `wanted` is the digest of the one that this node serves, where its people named one.

    Raises LinkRefused where versions, names or plans do not fit, PlanError where the plan is unusable.
    """
    if reply.protocol_version != PROTOCOL_VERSION:
        raise LinkRefused(
            f"the coordinator speaks protocol version {reply.protocol_version} (software {reply.software_version}), this node "
            f"{PROTOCOL_VERSION}: update the older of the two"
        )
    if reply.identity != me:
        raise LinkRefused(
            f"the coordinator sees this node as '{reply.identity}', its certificate says {me}: something between them replaces"
            " certificates, or the wrong identity folder is configured"
        )
    plan = from_canonical(reply.plan)
    if wanted is not None and plan.digest().hex() != wanted:
        raise LinkRefused(
            f"the coordinator offers plan {plan.digest().hex()[:12]}, the key 'plan' of this node's configuration names"
            f" {wanted[:12]}: ask which of the two is meant"
        )
    if me not in plan.evaluators:
        plan.hospital(me)
    return plan


def policy_obstacle(
    plan: Plan, me: str, policy: NodePolicy, pinned: Mapping[str, bytes], round_number: int | None = None
) -> str | None:
    """Why no session of this plan, or of one round of it, can meet this node's policy. The session itself is checked again."""
    asked = [hospital.uri for hospital in plan.hospitals] if round_number is None else plan.selected(round_number)
    if round_number is not None and me not in asked:
        return f"it asks {len(asked)} hospitals for round {round_number} and this one is not among them"
    known = [uri for uri in asked if uri == me or uri in pinned]
    unknown = len(asked) - len(known)
    missing = "" if not unknown else f" ({unknown} of {len(asked)} hospitals are not on this node's list of confirmed keys)"
    most = min(len(known), plan.largest_cohort)
    if most < policy.minimum_cohort:
        return f"at most {most} hospitals can take part and this node demands {policy.minimum_cohort}{missing}"
    sizes = [size for size in range(policy.minimum_cohort, most + 1) if plan.threshold_of(size) <= size]
    if not sizes:
        return f"its threshold is {plan.threshold_of(most)} and at most {most} hospitals can take part{missing}"
    if plan.fewest_updates < policy.minimum_cohort and plan.buffer is not None:
        return f"its sums open with {plan.fewest_updates} updates and this node demands {policy.minimum_cohort}"
    if plan.privacy.may_collude is not None and plan.privacy.may_collude < policy.max_colluders:
        return (
            f"its noise is shared against {plan.privacy.may_collude} colluders and this node demands {policy.max_colluders}: "
            "what the ledger charges would not hold"
        )
    best = max((collusion_bound(size, plan.threshold_of(size)), size) for size in sizes)
    demanded = max(policy.max_colluders, plan.privacy.may_collude or 0)
    if best[0] < demanded:
        who = "this node demands" if demanded == policy.max_colluders else "its shared noise is charged against"
        return (
            f"no cohort of the plan withstands the {demanded} colluders that {who}"
            f" (the best, of {best[1]}, withstands {max(best[0], 0)}){missing}"
        )
    return None
