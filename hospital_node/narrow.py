"""A network of convolutions whose weights are bfloat16 themselves: the fastest way to run it on a processor, never to train it.

Autocast keeps float32 weights, converts them for every window, and lets grids lie channel by channel; oneDNN's bfloat16 kernels
turn such grids over and back around every convolution. Here weights are bfloat16 once and a voxel's channels lie together
(`channels_last_3d`). Kernels and norms add up in float32 inside. Measured with torch 2.13 on an AVX-512 CPU that multiplies
bfloat16 (`python -m benchmarks.inference`).
"""

from __future__ import annotations

import torch
from torch import nn

AT_ONCE = 3  # windows: what oneDNN does to weights before it multiplies is shared, and three still fit in the cache
NORMS = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)  # noqa: SLF001  the public classes do not share a public base
WEIGHTED = (nn.modules.conv._ConvNd, *NORMS, nn.PReLU)  # noqa: SLF001  the same


def fits(module: nn.Module) -> bool:
    """Whether everything in `module` that has weights is a convolution, a norm of its channels, or a PReLU.

    Attention and the like take autocast, which knows what of them has to stay float32.
    """
    return all(isinstance(layer, WEIGHTED) for layer in module.modules() if any(True for _ in layer.parameters(recurse=False)))


def narrowed(module: nn.Module) -> nn.Module:
    """`module` itself with bfloat16 weights, channels last, in evaluation mode."""
    return module.eval().to(torch.bfloat16).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def is_narrowed(module: nn.Module) -> bool:
    """Whether `narrowed` made it."""
    return any(parameter.dtype is torch.bfloat16 for parameter in module.parameters())


def logits(module: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """What a narrowed network says of a batch of windows (K, 1, z, y, x): float32 (K, C, z, y, x)."""
    found: torch.Tensor = module(windows.to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d))
    return found.to(torch.float32, memory_format=torch.contiguous_format)
