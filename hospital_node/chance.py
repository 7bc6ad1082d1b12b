"""No chance but the patient's own: a loss that draws from torch's global generator is refused when it first does.

Why: that generator is one sequence for everybody. A patient who is added, and drawn from it, shifts what all later patients
draw and so changes their gradients too; clipping each patient then no longer bounds what one patient changes. It is also no
cipher, and anybody who knows its seed knows the draws. Chance belongs to the generator that `Objective.loss` is given.

A layer of such a kind can be seen before training, a call inside `forward` or `loss` only while it runs. The first loss of a
round is watched, and a draw ends the round before anything was released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hospital_node.network import NetworkError
from proto.plan import Plan

if TYPE_CHECKING:
    from hospital_node.train import Objective

DROPOUT_SHARE = "dropout_p"  # of attention: such an operation draws only where it is above 0


class OwnChanceOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager: NetworkError for every operation of this thread that draws from torch's global generator."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See TorchDispatchMode."""
        del types
        given = dict(kwargs or {})
        if _draws(func, args, given):
            raise NetworkError(
                f"the loss of a patient draws from torch's own generator ({func.name()}), one sequence for all patients, so "
                "that adding one patient changes what the others contribute; take dropout and the like out of the network, "
                "and draw what chance the loss needs from the generator that it is given"
            )
        return func(*args, **given)


class FirstLossWatched:
    """An Objective for one round: as the one given, its first loss under OwnChanceOnly."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._watched = False

    def check(self, plan: Plan) -> None:
        """See Objective."""
        self._objective.check(plan)

    def build(self, plan: Plan) -> nn.Module:
        """See Objective."""
        return self._objective.build(plan)

    def loss(self, module: nn.Module, plan: Plan, patient: Any, rng: np.random.Generator) -> torch.Tensor:
        """See Objective. Raises NetworkError where the first patient's loss draws."""
        if self._watched:
            return self._objective.loss(module, plan, patient, rng)
        self._watched = True
        with OwnChanceOnly():  # type: ignore[no-untyped-call]
            return self._objective.loss(module, plan, patient, rng)


def _draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
        return False
    names = [argument.name for argument in func._schema.arguments]  # noqa: SLF001  the only way to read an argument by name
    if DROPOUT_SHARE not in names:
        return True
    at = names.index(DROPOUT_SHARE)
    default = func._schema.arguments[at].default_value  # noqa: SLF001
    return bool((args[at] if at < len(args) else kwargs.get(DROPOUT_SHARE, default)) or 0.0)
