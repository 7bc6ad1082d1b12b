"""MONAI's networks by name: how the fields of a plan become the keyword arguments of a class.

Rule: the closed table `KINDS` decides what can be built. Channels, norm, image channels and classes follow from the plan's own
fields and cannot be said a second time; everything else that the class takes is `network.arguments`. Two classes normalise
across patients without asking (AttentionUnet, VNet): there the plan's norm takes that layer's place.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from monai.networks import nets
from monai.utils import OptionalImportError
from torch import nn
from torch.overrides import TorchFunctionMode

from proto.plan import Network

MAX_PARAMETERS = 100_000_000  # 400 MB as float32, three times the largest nnU-Net; a layout is made before anybody approved
MAX_TENSORS = 1 << 12  # ten times the most of any class as MONAI sets it; four times as many take ten seconds to build
REMEMBERED = 16  # networks of one process: a plan has one
MAX_NUMBER = 1 << 16  # in an argument: a width, a depth, a side
MAX_LEVELS = 10  # each halves every side: an eleventh would leave nothing of 512 voxels
GROUPS = 4  # groups of GroupNorm: divides every channel count offered and stays meaningful at 4 channels
OF_THE_PLAN = frozenset({"spatial_dims", "in_channels", "out_channels"})
FIXED_CHANNELS = Network.model_fields["channels"].default
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001  the public classes do not share a public base
UNBUILDABLE = (  # what MONAI and torch raise for arguments that do not fit
    AssertionError,
    AttributeError,
    KeyError,
    NotImplementedError,
    OptionalImportError,
    RuntimeError,
    TypeError,
    ValueError,
)

TENSOR_MAKERS = {torch.empty, torch.ones, torch.zeros}  # as layers make their parameters
TOO_LARGE = (
    f"network.channels, labels and arguments make more than {MAX_PARAMETERS:,} parameters or {MAX_TENSORS:,} tensors, which no "
    "node builds: use fewer channels"
)

Options = dict[str, Any]


class NetworkError(ValueError):
    """A network that cannot be built or may not be trained; the text says why and what to use instead."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of monai.networks.nets."""

    options: Callable[[Network], Options]  # what the plan's fields decide, under the class's own names
    levels: range  # how many channels the plan lists; empty: none, the widths are the class's own
    divisor: Callable[[Network], int] = lambda _: 1  # every side of a patch is a multiple of this many voxels
    fixed: frozenset[str] = frozenset()  # those of `options` that a plan cannot replace


def made(network: Network) -> nn.Module:
    """The class with the plan's arguments and fresh weights. Raises NetworkError where MONAI cannot build it."""
    given = arguments_of(network)
    try:
        _size_of(network)
        module: nn.Module = getattr(nets, network.architecture)(**given)
    except NetworkError:
        raise
    except UNBUILDABLE as error:
        raise _refusal(error, f"MONAI cannot build {network.architecture} of this plan: {_first_line(error)}") from error
    if not says_its_norm(given):
        _replace_batch_norm(module, network)
    if isinstance(module, nets.VNet):  # MONAI hands dropout_prob_up to the two other levels only
        module.up_tr64.dropout2.p = module.up_tr32.dropout2.p = 0.0
    return module


def arguments_of(network: Network) -> Options:
    """Every keyword argument of the class. Raises NetworkError where the plan's fields do not fit it."""
    kind = kind_of(network)
    _check_channels(network, kind)
    _check_arguments(network, kind)
    arguments = {name: _as_monai(value) for name, value in network.arguments.items()}
    return {"spatial_dims": 3, "in_channels": 1, "out_channels": network.classes, **kind.options(network), **arguments}


def says_its_norm(given: Options) -> bool:
    """Whether the class takes its norm as an argument; otherwise `made` replaces layers of what MONAI builds."""
    return bool({"norm", "norm_name"} & given.keys())


def counted(network: Network, given: Options) -> int:
    """Values that building the network takes, found without taking memory. Raises NetworkError where they are absurdly many."""
    size = _Size()
    with torch.random.fork_rng(devices=[]), torch.device("meta"), size:
        getattr(nets, network.architecture)(**given)
    return size.values


@lru_cache(maxsize=REMEMBERED)
def _size_of(network: Network) -> int:
    """`counted`, once for each network: every round builds it anew, and its size follows from the plan alone."""
    return counted(network, arguments_of(network))


class _Size(TorchFunctionMode):
    """Context manager: counts the tensors that are made inside, and ends with NetworkError what makes too many."""

    def __init__(self) -> None:
        super().__init__()
        self.values = self.tensors = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See TorchFunctionMode."""
        del types
        given = dict(kwargs or {})
        if func is torch.linspace:  # of drop path, whose values are read
            given["device"] = "cpu"
        made_now = func(*args, **given)
        if func in TENSOR_MAKERS:
            self.values += made_now.numel()
            self.tensors += 1
        if self.values > MAX_PARAMETERS or self.tensors > MAX_TENSORS:
            raise NetworkError(TOO_LARGE)
        return made_now


def kind_of(network: Network) -> Kind:
    """The entry of the table. NetworkError for a task's own network, which no node builds."""
    if network.architecture not in KINDS:
        raise NetworkError(
            f"network.architecture '{network.architecture}' belongs to a task of a study on one machine; a node trains "
            f"segmentation networks only: use {', '.join(KINDS)}"
        )
    return KINDS[network.architecture]


@lru_cache(maxsize=REMEMBERED)
def check_patch(network: Network, patches: int, patch_zyx: tuple[int, int, int]) -> None:
    """Return if so many patches go in and logits of every class on their grid come out; otherwise NetworkError.

    Shapes only: on torch's meta device nothing is computed, and torch's own generator is left as it was, so that it does not
    show who asked first. What went through is remembered, a refusal is not.
    """
    with torch.random.fork_rng(devices=[]):
        module = made(network).to("meta").train()
    try:
        with torch.no_grad():
            out = module(torch.empty(patches, 1, *patch_zyx, device="meta"))
    except UNBUILDABLE as error:
        sides, why = list(patch_zyx), _first_line(error)
        sentence = f"{network.architecture} of this plan cannot take patches of {sides} voxels ({why})"
        raise _refusal(error, f"{sentence}: change preparation.patch_zyx or the network") from error
    wanted = (patches, network.classes, *patch_zyx)
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != wanted:
        given = f"a tensor of shape {list(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise NetworkError(
            f"{network.architecture} of this plan gives {given} for {patches} patches, training needs one of shape "
            f"{list(wanted)}: change network.arguments"
        )


def _check_channels(network: Network, kind: Kind) -> None:
    name, channels = network.architecture, network.channels
    if len(channels) > MAX_LEVELS:
        raise NetworkError(f"network.channels lists {len(channels)} levels, more than {MAX_LEVELS} fit no scan")
    if max(channels, default=0) > MAX_PARAMETERS:
        raise NetworkError(TOO_LARGE)
    if not kind.levels:
        if channels != FIXED_CHANNELS:
            raise NetworkError(f"the widths of {name} are fixed by MONAI: leave network.channels out")
        return
    if len(channels) not in kind.levels:
        least = kind.levels.start
        needed = f"exactly {least}" if len(kind.levels) == 1 else f"{least} or more"
        raise NetworkError(f"network.channels lists {len(channels)} levels, {name} needs {needed}")
    if min(channels) < 1:
        raise NetworkError("network.channels must be positive")
    if network.norm == "group" and any(count % GROUPS for count in channels):
        raise NetworkError(f"network.channels must be multiples of {GROUPS} with norm = 'group'; or use norm = 'instance'")


def _check_arguments(network: Network, kind: Kind) -> None:
    name = network.architecture
    known = inspect.signature(getattr(nets, name)).parameters
    for argument in network.arguments:
        if argument in OF_THE_PLAN or argument in kind.fixed:
            raise NetworkError(f"network.arguments.{argument} follows from the plan's other fields: remove it")
        if argument not in known:
            free = ", ".join(sorted(set(known) - kind.fixed - OF_THE_PLAN))
            raise NetworkError(f"network.arguments.{argument} is no argument of MONAI's {name}, which takes {free}")
        largest = max((abs(number) for number in _numbers(network.arguments[argument])), default=0)
        if largest > MAX_NUMBER:
            raise NetworkError(
                f"network.arguments.{argument} holds {largest:g}: no network that a node builds has so much of it"
            )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)
    elif isinstance(value, int | float):
        yield value


def _as_monai(value: Any) -> Any:
    """Lists as tuples: MONAI takes (name, options) pairs only as such."""
    if isinstance(value, list):
        return tuple(_as_monai(one) for one in value)
    return {name: _as_monai(one) for name, one in value.items()} if isinstance(value, dict) else value


def _refusal(error: BaseException, sentence: str) -> NetworkError:
    """Some classes import a further package when they are built, some when they are first used."""
    if isinstance(error, OptionalImportError):
        return NetworkError(f"the network needs a package that is not here ({_first_line(error)}): pip install '.[node]'")
    return NetworkError(sentence)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _replace_batch_norm(module: nn.Module, network: Network) -> None:
    """The plan's norm in the place of every batch normalisation, with the same channels."""
    for parent, name, layer in list(_layers(module)):
        if isinstance(layer, BATCH_NORMS):
            setattr(parent, name, _plain_norm(network, layer.num_features))


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in module.modules():
        for name, layer in parent.named_children():
            yield parent, name, layer


def _plain_norm(network: Network, channels: int) -> nn.Module:
    if network.norm == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)  # attention gates have one channel


def _norm(network: Network) -> tuple[str, dict[str, int | bool]]:
    if network.norm == "group":
        return "GROUP", {"num_groups": GROUPS, "affine": True}
    return "INSTANCE", {"affine": True}


def _strides(network: Network) -> list[int]:
    return [2] * (len(network.channels) - 1)


def _halvings(network: Network) -> int:
    return int(2 ** (len(network.channels) - 1))


def _attention_unet(network: Network) -> Options:
    return {"channels": network.channels, "strides": _strides(network)}


def _basic_unet(network: Network) -> Options:
    return {"features": network.channels, "norm": _norm(network)}


def _dyn_unet(network: Network) -> Options:
    strides = [1, *_strides(network)]
    return {
        "kernel_size": [3] * len(strides),
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "filters": list(network.channels),
        "norm_name": _norm(network),
    }


def _seg_res_net(network: Network) -> Options:
    first, levels = network.channels[0], len(network.channels)
    if network.channels != tuple(first * 2**level for level in range(levels)):
        raise NetworkError("SegResNet doubles its channels from level to level: network.channels must do so too")
    return {
        "init_filters": first,
        "blocks_down": (1,) * levels,
        "blocks_up": (1,) * (levels - 1),
        "norm": _norm(network),
    }


def _transformer(network: Network) -> Options:
    return {"feature_size": network.channels[0], "norm_name": _norm(network)}


def _unet(network: Network) -> Options:
    # MONAI's UNet normalises its last up-sampling block, which has as many channels as the output has classes.
    if network.norm == "group" and network.classes % GROUPS:
        raise NetworkError(
            f"MONAI's UNet with GroupNorm needs a multiple of {GROUPS} classes, the plan has {network.classes}; "
            "use norm = 'instance' or architecture = 'DynUNet'"
        )
    return {"channels": network.channels, "strides": _strides(network), "num_res_units": 1, "norm": _norm(network)}


def _vnet(_: Network) -> Options:
    return {"dropout_prob_down": 0.0, "dropout_prob_up": (0.0, 0.0)}


KINDS: dict[str, Kind] = {
    "AttentionUnet": Kind(_attention_unet, range(2, MAX_LEVELS + 1), _halvings, frozenset({"channels", "strides"})),
    "BasicUNet": Kind(_basic_unet, range(6, 7), fixed=frozenset({"features", "norm"})),
    "DynUNet": Kind(
        _dyn_unet, range(3, MAX_LEVELS + 1), _halvings, frozenset({"strides", "upsample_kernel_size", "filters", "norm_name"})
    ),
    "SegResNet": Kind(
        _seg_res_net, range(2, MAX_LEVELS + 1), _halvings, frozenset({"init_filters", "norm", "norm_name", "num_groups"})
    ),
    "SwinUNETR": Kind(_transformer, range(1, 2), lambda _: 32, frozenset({"feature_size", "norm_name"})),
    "UNETR": Kind(_transformer, range(1, 2), lambda _: 16, frozenset({"feature_size", "norm_name"})),
    "UNet": Kind(_unet, range(2, MAX_LEVELS + 1), _halvings, frozenset({"channels", "strides", "norm"})),
    "VNet": Kind(_vnet, range(0), lambda _: 16),
}
