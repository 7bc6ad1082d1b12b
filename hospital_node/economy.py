"""How a network is run on one patient's patches: in which precision, how many at a time, and what is computed twice.

Rule: nothing here changes what is learned. Micro-batches and checkpointing give the same gradient but for the rounding of
sums in another order; precision rounds inside the network alone. Parameters, gradients, norms, the clip, the loss and the
noise are float32 or wider in every case.

The loss of a patient looks at all patches together (the Dice of a patient is no mean over patches), so micro-batches cannot
each have a loss of their own. Each is run once without keeping anything, the loss is taken over all logits, and on the way
back each is run again by itself: checkpointing of the whole network (Chen et al. 2016, arXiv 1604.06174). `torch`'s
non-reentrant kind repeats autocast and the state of torch's generator.

float16 ends at 65,504 and begins at 6e-8, so in it a patient's loss is multiplied by the plan's `loss_scale` before the way
back and the gradient, by then float32, divided again (Micikevicius et al. 2018, arXiv 1710.03740). The scale is a power of two:
dividing is exact, and the norm and the clip see the gradient itself. It never moves: one that followed overflows, as
`torch.amp.GradScaler`'s does, would let one patient change what the others contribute, and no clip bounds that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hospital_node.convolution import between_float16, float32_on_short_sides, prefer_onednn
from proto.plan import Training

LAYERS_OF_A_BLOCK = 2  # with a matrix or kernel; inside a block only its input is kept
INSIDE = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # what the network computes in, other than float32


def economical(module: nn.Module, training: Training) -> nn.Module:
    """`module` itself, with the faster convolutions, and with the plan's checkpointing. Its parameters stay as they are."""
    prefer_onednn(module)
    if training.precision == "bf16":
        float32_on_short_sides(module)
    if training.precision == "fp16":
        between_float16(module)
    if training.checkpointing:
        for block in list(blocks(module)):
            kind: Any = type(block)
            block.__class__ = _recomputing(kind)
    return module


def logits(module: nn.Module, images: torch.Tensor, training: Training) -> torch.Tensor:
    """What `module` says of all patches (K, ...) of one patient, in float32."""
    at_once = training.micro_batch or len(images)
    if at_once >= len(images):
        return _run(module, images, training)
    return torch.cat([checkpoint(_run, module, part, training, use_reentrant=False) for part in images.split(at_once)])


def backward(loss: torch.Tensor, parameters: Iterable[nn.Parameter], training: Training) -> None:
    """Leave the gradient of `loss`, unscaled, in `p.grad` of `parameters`, which must have none yet."""
    scale = training.scale_of_loss
    (loss * scale if scale != 1 else loss).backward()
    if scale != 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(scale)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The smallest parts of a network that hold two layers with a matrix or kernel, each once."""
    seen: set[int] = set()
    yield from _blocks(module, seen)


def _blocks(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    if id(module) in seen:
        return
    seen.add(id(module))
    inner = [part for part in module.children() if _kernels(part) >= LAYERS_OF_A_BLOCK]
    for part in inner:
        yield from _blocks(part, seen)
    if not inner and _kernels(module) >= LAYERS_OF_A_BLOCK:
        yield module


def _kernels(module: nn.Module) -> int:
    return sum(any(p.dim() >= 2 for p in layer.parameters(recurse=False)) for layer in module.modules())


def _run(module: nn.Module, images: torch.Tensor, training: Training) -> torch.Tensor:
    inside = INSIDE[training.precision]
    with torch.autocast(images.device.type, inside or torch.bfloat16, enabled=inside is not None):
        out: torch.Tensor = module(images)
    return out.float()


@cache
def _recomputing(kind: Any) -> Any:
    """The class `kind`, which keeps its input instead of what it computes, and computes it again when the gradient comes."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return kind.forward(self, *args, **kwargs)
        return checkpoint(kind.forward, self, *args, use_reentrant=False, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward})  # of the same name: refusals name the layer's class
