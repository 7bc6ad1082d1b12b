"""The tensors that a round trains, inside a module: the rest is frozen, and low-rank factors stand in where the plan has them.

Rule: the values come in the order of `proto.parts.update_layout`, whatever order the module keeps its parameters in. A tensor
with an adapter is W + up @ down with W frozen and up zero at first, so that the round begins with exactly the released model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from hospital_node.network import layout_of
from proto.layout import Vector
from proto.parts import Part, down, parts_of
from proto.plan import Training


class LowRank(nn.Module):
    """The effective value of a tensor: W + up @ down. `down` is public and no parameter."""

    down: torch.Tensor

    def __init__(self, part: Part, round_number: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(part.trained_shape))
        self.register_buffer("down", torch.from_numpy(down(part, round_number)), persistent=False)

    def forward(self, whole: torch.Tensor) -> torch.Tensor:
        """`whole` plus the adapter's product."""
        return whole + (self.up @ self.down).view_as(whole)


def choose(module: nn.Module, training: Training, round_number: int) -> tuple[nn.Parameter, ...]:
    """Freeze what the plan does not train, put adapters in, and return what is trained, in the order of an update.

    `module` holds the round's base model. Raises PlanError where the plan does not fit its network.
    """
    if training.trains_all:
        return tuple(module.parameters())
    layout, parameters = layout_of(module), dict(module.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad = False
    return tuple(_trained(module, part, parameters[part.name], round_number) for part in parts_of(layout, training))


def values_of(trained: tuple[nn.Parameter, ...]) -> Vector:
    """A copy of all values as one float32 vector: their change over a round is the update."""
    return np.concatenate([one.detach().to("cpu", torch.float32).reshape(-1).numpy() for one in trained])


def _trained(module: nn.Module, part: Part, parameter: nn.Parameter, round_number: int) -> nn.Parameter:
    if part.rank is None:
        parameter.requires_grad = True
        return parameter
    owner, _, name = part.name.rpartition(".")
    adapter = LowRank(part, round_number).to(parameter.device)
    parametrize.register_parametrization(module.get_submodule(owner), name, adapter)
    return adapter.up
