"""Convolutions of one patch at a time through oneDNN, which PyTorch keeps for larger batches.

Private training shows the network one patient at a time, often one patch. For a batch of one PyTorch's CPU dispatcher takes
its old im2col kernels wherever channels x depth x height is at most 20,480, several times slower and larger than oneDNN.
The layers changed here ask the dispatcher what it would do and, where it would do that, call oneDNN instead. The numbers are
those of the same sums in another order. Whatever else the dispatcher answers, this version or another, is left to it.

Two gradients are computed in another way than PyTorch would, because oneDNN's kernels work on 16 channels at a time:
- towards the input, where the stride is one and either side has fewer channels: a convolution with the mirrored kernel;
- of the weights in bfloat16, where fewer channels come out: zeros fill them up to 16.
Measured on an AVX-512 CPU with torch 2.13 (TRAINING.md, Speed). No derivative of a derivative.

In bfloat16 oneDNN's gradient of the weights is wrong where a side of the grid is shorter than the kernel: it reads and writes
memory that is not its own, so that one patient's gradient can hold what another left there (seen with oneDNN 3.12 on a CPU
with avx512_bf16, in PyTorch's own layers too). `float32_on_short_sides` keeps all such convolutions in float32.

In float16 no kernel of a CPU is used at all. PyTorch has im2col for it, 17 times slower than float32, and oneDNN's own, on CPUs
with avx512_fp16, come from the code with the fault above. `between_float16` multiplies and adds in float32 what lies in memory
in float16, as the matrix units of a GPU do, and rounds what goes on to the next layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

BLOCK_CHANNELS = 16  # float32 values in one AVX-512 register, and the channels of oneDNN's blocked layouts
PLAIN = (1, 1, 1)  # stride or dilation
IM2COL = {"Slow3d", "SlowTranspose3d"}  # the dispatcher's names for what is replaced
FEW_COLUMNS = 1 << 17  # values that im2col spreads out; below, starting oneDNN (0.1 ms a call) costs more than it saves
ONEDNN = "Mkldnn"  # its name for oneDNN
SHORT_SIDE = 2  # kernels long; wrong below one kernel, right in thousands of tried shapes of six voxels and more
PROBE_TOLERANCE = 1e-4  # of the norm; float32 sums in another order differ by 1e-6
PROBE_VOXELS = (1, 2, 18, 18, 18)  # enough columns for both layers tried

HALF = torch.float16

Sides = tuple[int, ...]
MaybeTensor = torch.Tensor | None


def prefer_onednn(module: nn.Module) -> int:
    """Let every plain 3D convolution inside `module` choose oneDNN for a lone patch; return how many were changed.

    Names, parameters and results stay. 0 where this torch has no such choice, or gave other numbers when tried.
    """
    layers = [layer for layer in module.modules() if type(layer) in OWN_KIND and _is_plain(layer)]
    if not layers or not _works_here():
        return 0
    for layer in layers:
        layer.__class__ = OWN_KIND[type(layer)]
    return len(layers)


def float32_on_short_sides(module: nn.Module) -> int:
    """Let every convolution inside `module` leave autocast where a side is short; return how many were changed."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.conv._ConvNd)]  # noqa: SLF001  of all kinds
    for layer in layers:
        kind: Any = type(layer)
        layer.__class__ = _guarded(kind)
    return len(layers)


def between_float16(module: nn.Module) -> int:
    """Let every convolution inside `module` compute in float32 under a float16 autocast, between float16; return how many."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.conv._ConvNd)]  # noqa: SLF001  of all kinds
    for layer in layers:
        kind: Any = type(layer)
        layer.__class__ = _wide_inside(kind)
    return len(layers)


@cache
def _guarded(kind: Any) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any) -> Any:
        sides = x.shape[-len(self.kernel_size) :]
        if not torch.is_autocast_enabled("cpu") or min(sides) >= SHORT_SIDE * max(self.kernel_size):
            return kind.forward(self, x, *args)
        with torch.autocast("cpu", enabled=False):
            return kind.forward(self, x.float(), *args)

    return type(kind.__name__, (kind,), {"forward": forward})


@cache
def _wide_inside(kind: Any) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any) -> Any:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != HALF:
            return kind.forward(self, x, *args)
        with torch.autocast("cpu", enabled=False):
            if not args and isinstance(self, tuple(OWN_KIND.values())) and x.dim() == 5:
                layer: Any = self
                geometry = _geometry(layer, x.new_empty(x.shape, dtype=torch.float32), layer.weight, layer.bias)
                return _Forward.apply(x.to(HALF), layer.weight, layer.bias, geometry)
            return kind.forward(self, x.to(HALF).float(), *args).to(HALF)

    return type(kind.__name__, (kind,), {"forward": forward})


@dataclass(frozen=True, slots=True)
class _Geometry:
    """What a convolution is besides its weights, and who computes it when left alone."""

    stride: Sides
    padding: Sides
    output_padding: Sides
    transposed: bool
    choice: str  # of the dispatcher

    @property
    def grid(self) -> tuple[Any, ...]:
        """In the order of torch's operators: stride, padding, dilation, transposed, output padding, groups."""
        return self.stride, self.padding, PLAIN, self.transposed, self.output_padding, 1


class _Convolution(nn.Conv3d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: MaybeTensor) -> torch.Tensor:
        x, weight, bias = _under_autocast(x, weight, bias)
        geometry = _geometry(self, x, weight, bias)
        if geometry.choice in {"Slow3d", ONEDNN}:
            return _Forward.apply(x, weight, bias, geometry)
        return super()._conv_forward(x, weight, bias)


class _TransposedConvolution(nn.ConvTranspose3d):
    """Forward as PyTorch chooses, which is as fast as oneDNN here; backward through oneDNN."""

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        if output_size is None and not torch.is_autocast_enabled("cpu"):
            geometry = _geometry(self, x, self.weight, self.bias)
            if geometry.choice == "SlowTranspose3d":
                return _Forward.apply(x, self.weight, self.bias, geometry)
        return super().forward(x, output_size)


OWN_KIND: dict[type[nn.Module], type[nn.Module]] = {nn.Conv3d: _Convolution, nn.ConvTranspose3d: _TransposedConvolution}


class _Forward(torch.autograd.Function):
    """x (N, C, z, y, x), weight (O, C, kz, ky, kx) or transposed (C, O, kz, ky, kx), bias (O) or None.

    In float16 only x, the result and their gradients are: what is kept for the gradient takes half the memory.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: MaybeTensor, geometry: _Geometry) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        if geometry.transposed or not geometry.choice:
            return torch.ops.aten.convolution(_wide(x), _wide(weight), bias, *geometry.grid).to(x.dtype)
        return _onednn(_wide(x), _wide(weight), bias, geometry.stride, geometry.padding).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, towards: torch.Tensor) -> tuple[MaybeTensor, MaybeTensor, MaybeTensor, None]:
        kept, weight = ctx.saved_tensors
        of_x_wanted, of_weight_wanted, of_bias_wanted = ctx.needs_input_grad[:3]
        x, weight, towards, geometry = _wide(kept), _wide(weight), _wide(towards.contiguous()), ctx.geometry
        of_x = _mirrored(towards, weight, geometry) if of_x_wanted else None
        of_weight = _filled_up(towards, x, weight, geometry) if of_weight_wanted else None
        left = (of_x_wanted and of_x is None, of_weight_wanted and of_weight is None)
        if any(left):
            others = _backward(towards, x, weight, geometry, *left)
            of_x, of_weight = (others[0] if left[0] else of_x), (others[1] if left[1] else of_weight)
        of_x = None if of_x is None else of_x.to(kept.dtype)
        return of_x, of_weight, towards.sum((0, 2, 3, 4), dtype=torch.float32) if of_bias_wanted else None, None


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == HALF else tensor


def _is_plain(layer: Any) -> bool:
    """A kernel of one voxel stays with PyTorch, whose matrix product is faster."""
    plain = (layer.groups, layer.padding_mode, layer.dilation) == (1, "zeros", PLAIN)
    return plain and isinstance(layer.padding, tuple) and max(layer.kernel_size) > 1


def _under_autocast(*tensors: MaybeTensor) -> tuple[Any, ...]:
    """What torch's own convolution would see; autocast does not look into ours."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def _geometry(layer: Any, x: torch.Tensor, weight: torch.Tensor, bias: MaybeTensor) -> _Geometry:
    """With the dispatcher's choice for a batch on a CPU; an empty choice where it is none of ours to change."""
    transposed = isinstance(layer, nn.ConvTranspose3d)
    extra = layer.output_padding if transposed else (0, 0, 0)
    choice = ""
    if x.dim() == 5 and x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in {torch.float32, torch.bfloat16}:
        asked = (layer.stride, layer.padding, PLAIN, transposed, extra, 1)
        choice = torch._C._select_conv_backend(x, weight, bias, *asked).name  # noqa: SLF001  the only way to ask
    if choice in IM2COL and _columns(x, weight, layer.stride, transposed=transposed) < FEW_COLUMNS:
        choice = ""
    return _Geometry(layer.stride, layer.padding, extra, transposed, choice)


def _columns(x: torch.Tensor, weight: torch.Tensor, stride: Sides, *, transposed: bool) -> int:
    """Values of the matrix that the im2col kernel makes, but for the border."""
    return math.prod(weight.shape[1:]) * (x[0, 0].numel() if transposed else x[0, 0].numel() // math.prod(stride))


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: MaybeTensor, stride: Sides, padding: Sides) -> torch.Tensor:
    return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, PLAIN, 1)


def _mirrored(towards: torch.Tensor, weight: torch.Tensor, geometry: _Geometry) -> MaybeTensor:
    """Gradient towards the input of a convolution of stride one, itself a convolution; None where that is not faster."""
    if geometry.transposed or geometry.stride != PLAIN or min(weight.shape[:2]) >= BLOCK_CHANNELS:
        return None
    turned = weight.transpose(0, 1).flip(2, 3, 4)
    around = tuple(side - 1 - width for side, width in zip(weight.shape[2:], geometry.padding, strict=True))
    return _onednn(towards, turned, None, PLAIN, around) if min(around) >= 0 else None


def _filled_up(towards: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: _Geometry) -> MaybeTensor:
    """Gradient of the weights with zeros as further outputs; None where that is not faster."""
    missing = BLOCK_CHANNELS - len(weight)
    if geometry.transposed or x.dtype != torch.bfloat16 or missing <= 0:
        return None
    filled = functional.pad(towards, (0, 0, 0, 0, 0, 0, 0, missing))
    wide = weight.new_empty((BLOCK_CHANNELS, *weight.shape[1:]))  # only its shape is looked at
    gradient = _backward(filled, x, wide, geometry, of_x=False, of_weight=True)[1]
    return None if gradient is None else gradient[: len(weight)]


def _backward(
    towards: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: _Geometry, of_x: bool, of_weight: bool
) -> tuple[MaybeTensor, MaybeTensor, MaybeTensor]:
    """Gradients by oneDNN: an input in oneDNN's own tensor is the only one for which the dispatcher keeps to it."""
    kept = x.to_mkldnn() if geometry.choice in IM2COL else x
    return torch.ops.aten.convolution_backward(towards, kept, weight, None, *geometry.grid, [of_x, of_weight, False])


@cache
def _works_here() -> bool:
    """Whether this torch has these operators, and they give its own numbers; tried once, on layers of a few voxels."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.random.fork_rng(devices=[]):  # the weights of the layers tried are nobody else's chance
            return _agrees(nn.Conv3d(2, 3, 3, padding=1)) and _agrees(nn.ConvTranspose3d(2, 3, 2, stride=2))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def _agrees(layer: nn.Module) -> bool:
    voxels, results = torch.arange(math.prod(PROBE_VOXELS), dtype=torch.float32).reshape(PROBE_VOXELS), []
    for kind in (type(layer), OWN_KIND[type(layer)]):
        layer.__class__ = kind
        x = torch.sin(voxels).requires_grad_()
        out = layer(x)
        gradients = torch.autograd.grad(torch.sin(out).sum(), [x, *layer.parameters()])
        results.append((out.detach(), *gradients))
    return all(float((a - b).norm()) <= PROBE_TOLERANCE * float(a.norm()) for a, b in zip(*results, strict=True))
