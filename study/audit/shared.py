"""The audited hospital under shared noise: its own whole-number sum, and of the noise what its attacker does not know.

Rules. The sum is `hospital_node.train.train_round` as it is installed. On top comes what the honest hospitals that are left add
to an opened sum, drawn by the sampler of the masks for exactly the components that stay; what colluders add they take out
again, and so does the attack. That nothing else is in an opened sum is tested where sums are opened, to the integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from hospital_node import train
from hospital_node.accounting import Mechanism, noise_multiplier_for
from hospital_node.integer_sums import IntegerSum
from hospital_node.ledger_rules import shares_of_plan
from hospital_node.noise import Rand
from hospital_node.shared_accounting import Shares
from hospital_node.train import Keyed, TrainedUpdate
from proto import shared_noise
from proto.plan import Plan
from secagg.discrete_gaussian import NoiseStream
from secagg.noise_shares import NoiseShares
from secagg.params import Integers
from study.audit.canaries import STUDY, Reals, Setting, World, linear_world, reported
from study.audit.faults import SUBTLE, Fault

NORM_STEPS = 1 << 16  # noise of a fiftieth of it still has hundreds of steps
MEMBERS, MAY_DROP, MAY_COLLUDE = 5, 1, 1
KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class SharedWorld(World):
    """A world whose noise is shared; `lost` of the hospitals are."""

    lost: int = 0

    def train(self, canaries: Sequence[Keyed], rand: Rand) -> TrainedUpdate:
        """One round as the attack sees it: the opened sum without what colluders know."""
        trained = World.train(self, canaries, rand)
        noise = unknown_noise(shared_noise.shares_of(self.plan), self.lost, len(self.base), rand)
        return replace(trained, update=trained.update + noise)

    def sums(self, trained: TrainedUpdate) -> Reals:
        """In clip norms; gradients are summed with the other sign."""
        return -trained.update.astype(np.float64) / shared_noise.scale(self.plan, len(self.base))

    def reported(self, trained: TrainedUpdate) -> tuple[Mechanism, ...]:
        """What a ledger would charge: the same, shared."""
        return tuple(replace(one, shares=shares_of_plan(self.plan)) for one in reported(trained))


def unknown_noise(shares: NoiseShares, lost: int, length: int, rand: Rand) -> Integers:
    """What the honest survivors leave in an opened sum."""
    stays = shares.components()[: shares.kept(lost)]
    total: Integers = np.zeros(length, dtype=np.int64)
    for _ in range(shares.members - lost - shares.may_collude):
        for variance in stays:
            total += NoiseStream(rand(KEY_BYTES), variance).values(length)
    return total


def shared_world(setting: Setting, noise_multiplier: float | None = None, empty: int = 0, lost: int = 0) -> SharedWorld:
    """`linear_world` with shared noise: one step, and the noise that makes whole orders report the setting's epsilon."""
    sigma = noise_multiplier or noise_of(setting)
    local = linear_world(setting, sigma, empty)
    given = {field.name: getattr(local, field.name) for field in fields(World)}
    return SharedWorld(**{**given, "plan": _sharing(local.plan)}, lost=lost)


def noise_of(setting: Setting) -> float:
    """The noise multiplier that reports the setting's epsilon by whole orders."""
    shares = Shares(NORM_STEPS, MEMBERS, MAY_DROP, MAY_COLLUDE)
    return noise_multiplier_for(setting.epsilon, setting.delta, 1 / setting.inverse_rate, setting.steps, shares=shares)


def _sharing(plan: Plan) -> Plan:
    parts = plan.model_dump(mode="json")
    shared = {"noise_mode": "shared", "norm_steps": NORM_STEPS, "may_drop": MAY_DROP, "may_collude": MAY_COLLUDE}
    first = parts["hospitals"][0]
    others = [{**first, "uri": f"secagg://{STUDY}/hospital/other-{number}"} for number in range(1, MEMBERS)]
    changed = {"privacy": {**parts["privacy"], **shared}, "masking": {**parts["masking"], "lanes": 2}}
    return Plan.model_validate({**parts, **changed, "hospitals": [first, *others]})


class _Unclipped(IntegerSum):
    def add(self, rounding_key: bytes) -> None:  # noqa: ARG002  the point of this fault
        gradient = np.concatenate([one.grad.reshape(-1).numpy() for one in self._trained if one.grad is not None])
        for one in self._trained:
            one.grad = None
        self.values -= np.rint(gradient.astype(np.float64) * self._scale / self._clip_norm).astype(np.int64)


def _as_if_all_were_honest(shares: NoiseShares) -> tuple[Any, ...]:
    later = (shares.variance / ((shares.members - k) * (shares.members - k + 1)) for k in range(1, shares.may_drop + 1))
    return (shares.variance / shares.members, *later)


SHARED_GROSS = (
    Fault("all taken out", "What must stay is taken out with the surplus.", lambda: patch.object(NoiseShares, "kept", _fewer)),
    Fault(
        "no clip", "A patient weighs as much as its gradient is long.", lambda: patch.object(train, "IntegerSum", _Unclipped)
    ),
)
SHARED_SUBTLE = (
    Fault(
        "colluders forgotten",
        "Shares are cut as if nobody told the coordinator its own.",
        lambda: patch.object(NoiseShares, "components", _as_if_all_were_honest),
    ),
)


SHARED_BROKEN = (
    *SHARED_SUBTLE,
    *(one for one in SUBTLE if one.name in {"doubled rate", "one coin for all"}),
)  # what also applies


def _fewer(_shares: NoiseShares, lost: int) -> int:
    return lost
