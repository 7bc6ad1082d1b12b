"""Networks by name, and the one way between a module and the flat vector of the federation.

Rule: a patient's gradient must not depend on another patient, so a layer that normalises across patients, or keeps a
running statistic of them, is refused; within one scan any normalisation is fine. Only parameters travel, in the order of
`named_parameters`; there are no buffers to average because every layer that has some is refused.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from monai.networks.nets import DynUNet, UNet
from torch import nn

from proto.layout import Layout, Vector
from proto.plan import Network

GROUPS = 4  # groups of GroupNorm: divides every channel count offered and stays meaningful at 4 channels
MAX_LEVELS = 10  # each halves every side: an eleventh would leave nothing of 512 voxels
MAX_PARAMETERS = 100_000_000  # 400 MB as float32, three times the largest nnU-Net; a layout is made before anybody approved
MIN_LEVELS = {"DynUNet": 3, "UNet": 2}  # fewer cannot be built by MONAI; these are all that a node trains
CROSS_PATIENT = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001  the public classes do not share a public base


class NetworkError(ValueError):
    """A network that cannot be built or may not be trained; the text says why and what to use instead."""


def build(network: Network) -> nn.Module:
    """The plan's network with fresh weights. Raises NetworkError where it cannot be built or is refused."""
    _check_channels(network)
    strides = [1, *[2] * (len(network.channels) - 1)]
    module = _dyn_unet(network, strides) if network.architecture == "DynUNet" else _unet(network, strides)
    refuse_shared_statistics(module)
    return module


def parameters_at_most(network: Network) -> int:
    """No fewer than the network has, from the plan's numbers alone; twice as many for usual ones.

    Either architecture has at most four convolutions of 3 x 3 x 3 that keep a level's channels, and four to the next level.
    """
    levels, classes = network.channels, network.classes
    convolutions = sum(4 * count * count + count for count in levels)
    convolutions += sum(4 * count * deeper for count, deeper in pairwise(levels))
    convolutions += classes * (classes + sum(levels[:2]))
    return 3**3 * convolutions


def divisor(network: Network) -> int:
    """Every side of a patch must be a multiple of this many voxels."""
    return int(2 ** (len(network.channels) - 1))


def refuse_shared_statistics(module: nn.Module) -> None:
    """Return if no layer mixes patients; otherwise raise NetworkError naming the layer, the reason and the replacement."""
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, CROSS_PATIENT):
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


def layout_of(module: nn.Module) -> Layout:
    """Names and shapes of the parameters, in order."""
    return Layout(tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters()))


def vector_of(module: nn.Module) -> Vector:
    """A copy of all parameters as one float32 vector."""
    parts = [parameter.detach().to("cpu", torch.float32).reshape(-1).numpy() for parameter in module.parameters()]
    return np.concatenate(parts)


def load_vector(module: nn.Module, layout: Layout, vector: Vector) -> None:
    """Copy `vector` into the module. LayoutError where the length is wrong, NetworkError where the layout is another's."""
    if layout != layout_of(module):
        raise NetworkError("the model's layout is not that of the plan's network: it was made for another network")
    tensors = layout.split(vector)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(np.array(tensors[name], dtype=np.float32)))


def _check_channels(network: Network) -> None:
    if network.architecture not in MIN_LEVELS:
        raise NetworkError(
            f"network.architecture '{network.architecture}' belongs to a task of a study on one machine; a node trains "
            f"segmentation networks only: use {' or '.join(MIN_LEVELS)}"
        )
    if len(network.channels) > MAX_LEVELS:
        raise NetworkError(f"network.channels lists {len(network.channels)} levels, more than {MAX_LEVELS} fit no scan")
    levels = MIN_LEVELS[network.architecture]
    if len(network.channels) < levels:
        raise NetworkError(
            f"network.channels lists {len(network.channels)} levels, {network.architecture} needs {levels} or more"
        )
    if min(network.channels) < 1:
        raise NetworkError("network.channels must be positive")
    if network.norm == "group" and any(count % GROUPS for count in network.channels):
        raise NetworkError(f"network.channels must be multiples of {GROUPS} with norm = 'group'; or use norm = 'instance'")
    if parameters_at_most(network) > MAX_PARAMETERS:
        raise NetworkError(
            f"network.channels and labels make up to {parameters_at_most(network):,} parameters, a node builds at most "
            f"{MAX_PARAMETERS:,}: use fewer channels"
        )


def _norm(network: Network) -> tuple[str, dict[str, int | bool]]:
    if network.norm == "group":
        return "GROUP", {"num_groups": GROUPS, "affine": True}
    return "INSTANCE", {"affine": True}


def _dyn_unet(network: Network, strides: list[int]) -> nn.Module:
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=network.classes,
        kernel_size=[3] * len(strides),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=list(network.channels),
        norm_name=_norm(network),
    )


def _unet(network: Network, strides: list[int]) -> nn.Module:
    # MONAI's UNet normalises its last up-sampling block, which has as many channels as the output has classes.
    if network.norm == "group" and network.classes % GROUPS:
        raise NetworkError(
            f"MONAI's UNet with GroupNorm needs a multiple of {GROUPS} classes, the plan has {network.classes}; "
            "use norm = 'instance' or architecture = 'DynUNet'"
        )
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=network.classes,
        channels=network.channels,
        strides=strides[1:],
        num_res_units=1,
        norm=_norm(network),
    )
