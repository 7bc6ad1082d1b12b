"""Where a network runs: the processor, or a CUDA device. Processes that share a hospital get a device each.

Rule: a device is asked for by name and never guessed, so that a node computes the same way from one start to the next. What is
random is drawn on the processor in either case.
"""

from __future__ import annotations

import os
from enum import StrEnum

import torch
import torch.distributed as dist
from torch import nn

LOCAL_INDEX, LOCAL_COUNT = "LOCAL_RANK", "LOCAL_WORLD_SIZE"  # torchrun sets both: this process among those of this machine
GLOO = "gloo"
NCCL_BESIDE_GLOO = "cpu:gloo,cuda:nccl"  # sums go from device to device, the conversation stays between processors

PROCESSOR = torch.device("cpu")


class DeviceName(StrEnum):
    """What people may ask for."""

    CPU = "cpu"
    CUDA = "cuda"


class DeviceMissingError(ValueError):
    """A device was asked for that this machine, or this torch, does not have."""


def chosen(name: str) -> torch.device:
    """The device of this process, a CUDA device by its place among the processes of this machine. Raises DeviceMissingError."""
    if name == DeviceName.CPU:
        return PROCESSOR
    if not torch.cuda.is_available():
        raise DeviceMissingError(
            f"this torch ({torch.__version__}) finds no CUDA device: install torch {torch.__version__.partition('+')[0]} built "
            "for CUDA and look at nvidia-smi, or take device cpu"
        )
    return torch.device("cuda", int(os.environ.get(LOCAL_INDEX, "0")) % torch.cuda.device_count())


def backend(device: torch.device) -> str:
    """What torch.distributed sums with: NCCL where every process of this machine has a CUDA device to itself, else gloo."""
    own = int(os.environ.get(LOCAL_COUNT, "1")) <= torch.cuda.device_count()
    return NCCL_BESIDE_GLOO if device.type == "cuda" and own and dist.is_nccl_available() else GLOO


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters lie; the processor for a module without any."""
    first = next(module.parameters(), None)
    return PROCESSOR if first is None else first.device
