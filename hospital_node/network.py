"""Networks by name, and the one way between a module and the flat vector of the federation.

Rule: a patient's gradient must not depend on another patient, so a layer that normalises across patients, keeps a running
statistic of them, or draws from one random sequence for all of them, is refused; within one scan any normalisation is fine.
Only parameters travel, in the order of `named_parameters`. Floating-point buffers are refused; other buffers are named in the
layout as not averaged, and stay what the network makes them. What can be built by name is the table of architectures.py.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.networks.layers import DropPath
from torch import nn

from hospital_node.architectures import BATCH_NORMS, NetworkError, check_patch, kind_of, made
from proto.layout import Layout, Vector
from proto.plan import Network

__all__ = [
    "NetworkError",
    "build",
    "check_patch",
    "divisor",
    "layout_of",
    "load_vector",
    "refuse_own_chance",
    "refuse_shared_statistics",
    "transposed_kernels",
    "vector_of",
]


def build(network: Network) -> nn.Module:
    """The plan's network with fresh weights. Raises NetworkError where it cannot be built or is refused."""
    module = made(network)
    refuse_shared_statistics(module)
    refuse_own_chance(module)
    return module


def divisor(network: Network) -> int:
    """Every side of a patch must be a multiple of this many voxels."""
    return kind_of(network).divisor(network)


def refuse_shared_statistics(module: nn.Module) -> None:
    """Return if no layer mixes patients; otherwise raise NetworkError naming the layer, the reason and the replacement."""
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, BATCH_NORMS):
            raise NetworkError(
                f"layer '{name}' is {kind}: it normalises one patient by the others of the batch and keeps their mean, "
                "so clipping one patient no longer bounds what that patient changes; use GroupNorm or affine InstanceNorm"
            )
        if getattr(layer, "track_running_stats", False):
            raise NetworkError(
                f"layer '{name}' ({kind}) keeps a running mean over patients, which would leave the hospital without "
                "noise; set track_running_stats=False"
            )
    stray = next((name for name, buffer in module.named_buffers() if buffer.is_floating_point()), None)
    if stray is not None:
        raise NetworkError(
            f"buffer '{stray}' could carry patients' statistics past the noise; make it a constant or a parameter"
        )


def refuse_own_chance(module: nn.Module) -> None:
    """Return if no layer draws random numbers of its own; otherwise raise NetworkError naming the layer and the reason."""
    for name, layer in module.named_modules():
        if _share_dropped(layer) > 0:
            raise NetworkError(
                f"layer '{name}' is {type(layer).__name__}: it draws from torch's own generator, one sequence for all "
                "patients, so that removing one patient changes what the others contribute; set its share to 0 (augmentation "
                "and noise regularise already)"
            )


def _share_dropped(layer: nn.Module) -> float:
    if isinstance(layer, nn.modules.dropout._DropoutNd):  # noqa: SLF001  the public classes do not share a public base
        return float(layer.p)
    if isinstance(layer, nn.RReLU):
        return layer.upper - layer.lower
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return float(layer.dropout)
    return float(layer.drop_prob or 0.0) if isinstance(layer, DropPath) else 0.0


def layout_of(module: nn.Module) -> Layout:
    """Names and shapes of the parameters, in order; behind them the names of buffers, none of which is averaged."""
    parameters = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    return Layout(parameters, tuple(name for name, _ in module.named_buffers()))


def vector_of(module: nn.Module) -> Vector:
    """A copy of all parameters as one float32 vector."""
    parts = [parameter.detach().to("cpu", torch.float32).reshape(-1).numpy() for parameter in module.parameters()]
    return np.concatenate(parts)


def transposed_kernels(module: nn.Module) -> frozenset[str]:
    """Names of the kernels of transposed convolutions, which have their output channels on the second axis."""
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return frozenset(f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, kinds))


def load_vector(module: nn.Module, layout: Layout, vector: Vector) -> None:
    """Copy `vector` into the module. LayoutError where the length is wrong, NetworkError where the layout is another's."""
    if layout != layout_of(module):
        raise NetworkError("the model's layout is not that of the plan's network: it was made for another network")
    tensors = layout.split(vector)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(np.array(tensors[name], dtype=np.float32)))
