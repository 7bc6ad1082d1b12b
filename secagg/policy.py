"""What a party demands of a session before it takes part, whatever the coordinator and the plan say.

Rule: these checks read only the public parameters, the party's own policy and a list of names. The bounds are those of
README, Bounds: fewer than 2t - n colluders, two honest updates in every sum, no weight that hides in nobody, and a
sparse graph that holds against the party's own number of colluders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from secagg.bounds import ALLOWED_LOG2, is_private
from secagg.errors import UNKNOWN, LocalError, RemoteError, TooFewSurvivors
from secagg.params import PROTOCOL_VERSION, RoundParams, collusion_bound


@dataclass(frozen=True, slots=True)
class Policy:
    """One party's own policy.

    `pinned` maps each peer's name to the SHA-256 of its public key as people confirmed it; `minimum_cohort` is the
    smallest cohort to be summed with; `max_colluders` how many peers may work for the coordinator.
    `minimum_effective` bounds the effective cohort of the honest rest, (sum w)^2 / sum w^2; None stands for
    max(2, minimum_cohort - max_colluders), the honest rest of an evenly weighted cohort of the minimum size.
    """

    pinned: Mapping[str, bytes]
    minimum_cohort: int
    max_colluders: int
    minimum_effective: float | None = None

    def __post_init__(self) -> None:
        if self.minimum_cohort < 2 or self.max_colluders < 0:
            raise LocalError("a policy needs a minimum cohort of at least 2 and at least 0 colluders")

    @property
    def effective_floor(self) -> float:
        """The least effective cohort without the colluders."""
        if self.minimum_effective is not None:
            return self.minimum_effective
        return float(max(2, self.minimum_cohort - self.max_colluders))


def policy_of(params: RoundParams) -> Policy:
    """The plan's own demands as a policy, with the members' given keys as pins: for the coordinator and rehearsals."""
    pinned = {party: params.fingerprint(party) for party in params.participants}
    return Policy(pinned, params.minimum_cohort, params.max_colluders)


def check_session(params: RoundParams, me: str, policy: Policy) -> None:
    """README, step 1.1: pins, size, threshold, colluders, graph, weights. RemoteError (policy, unpinned-key) otherwise."""
    if params.protocol_version != PROTOCOL_VERSION:
        _refuse(f"the session speaks protocol version {params.protocol_version}, this software {PROTOCOL_VERSION}")
    for party in params.participants:
        if party != me and policy.pinned.get(party) != params.fingerprint(party):
            text = f"the session's key of {party} is not the one that people confirmed here: compare fingerprints and pin it"
            raise RemoteError(UNKNOWN, "unpinned-key", text)
    bases = set(params.base_digests)
    if len(bases) > 1 and params.noise_mode != "local":
        _refuse("members trained on different models, which only local noise allows")
    if params.shared is not None and policy.max_colluders > params.shared.may_collude:
        _refuse(
            f"the session's noise is shared against {params.shared.may_collude} colluders, this party demands "
            f"{policy.max_colluders}: what it charges would not hold"
        )
    _check_colluders(params, policy)
    check_cohort(params, params.participants, me, policy, phase="advertise")


def _check_colluders(params: RoundParams, policy: Policy) -> None:
    """Threshold and graph withstand those whom this party demands, and those whom its ledger charges against."""
    members = len(params.participants)
    charged = params.shared.may_collude if params.shared else 0
    demanded = max(policy.max_colluders, charged)
    who = "this party demands" if demanded == policy.max_colluders else "its shared noise is charged against"
    bound = collusion_bound(members, params.threshold)
    if demanded > bound:
        _refuse(f"a threshold of {params.threshold} of {members} withstands {max(bound, 0)} colluders, {who} {demanded}")
    if not is_private(members, params.threshold, demanded, params.graph):
        text = f"shows more than a sum to {demanded} colluders with a probability above 2**{ALLOWED_LOG2:g}"
        _refuse(f"the sparse graph of {members} members {text}")


def check_cohort(params: RoundParams, cohort: Sequence[str], me: str | None, policy: Policy, phase: str) -> None:
    """README, step 4.1: enough members, enough of them on my own base model, no dominating weight. TooFewSurvivors otherwise.

    With `me` None (the coordinator) every member counts, whatever its base.
    """
    own_base = None if me is None else params.base_digests[params.place(me)]
    kin = [party for party in cohort if own_base is None or params.base_digests[params.place(party)] == own_base]
    need = max(params.threshold, policy.minimum_cohort)
    if len(kin) < need:
        of_others = len(cohort) - len(kin)  # whom a coordinator may have parked on a dead model, to open the rest
        beside = f" with this member's own model, beside {of_others} with others," if of_others else ""
        raise TooFewSurvivors(phase, f"{len(kin)} members are left{beside} where threshold and policy need {need}")
    effective = effective_cohort([params.weight(party) for party in kin], policy.max_colluders)
    if effective < policy.effective_floor:
        text = (
            f"without {policy.max_colluders} colluders the weights amount to {effective:.2f} equal members, "
            f"the policy needs {policy.effective_floor:g}"
        )
        raise TooFewSurvivors(phase, text)


def effective_cohort(weights: Sequence[int], colluders: int) -> float:
    """Least (sum w)^2 / sum w^2 over all ways to remove `colluders` members; 0 if none would be left.

    The ratio is quasi-concave in each weight, so exchanging a kept weight with a more extreme removed one never raises
    it: some worst choice removes a contiguous run of the sorted weights, and only those runs are tried.
    """
    kept = len(weights) - colluders
    if kept <= 0:
        return 0.0
    ordered = sorted(weights)
    sums = [0, *accumulate(ordered)]
    squares = [0, *accumulate(weight * weight for weight in ordered)]
    ratios = []
    for start in range(kept + 1):
        total = sums[-1] - (sums[start + colluders] - sums[start])
        square = squares[-1] - (squares[start + colluders] - squares[start])
        ratios.append(total * total / square)
    return min(ratios)


def _refuse(text: str) -> None:
    raise RemoteError(UNKNOWN, "policy", text)
