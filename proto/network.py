"""The network of a plan: a class of MONAI by name with its arguments, or a task's own.

What a name builds is decided where networks are built (hospital_node/architectures.py); this is what may be written.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from proto.frozen import Frozen

ARCHITECTURES = (  # classes of monai.networks.nets that a hospital's node trains (hospital_node/architectures.py)
    "AttentionUnet",
    "BasicUNet",
    "DynUNet",
    "SegResNet",
    "SwinUNETR",
    "UNETR",
    "UNet",
    "VNet",
)
ARGUMENT_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
ARGUMENT_DEPTH = 4  # of lists and tables in one argument; MONAI's own have two
TASK_NETWORK = re.compile(r"task:[a-z0-9][a-z0-9-]{0,62}")  # a study's own task brings its network; no node builds it


def _architecture(name: str) -> str:
    if name not in ARCHITECTURES and not TASK_NETWORK.fullmatch(name):
        raise ValueError(f"'{name}' is none of {', '.join(ARCHITECTURES)} and not of the form task:<name>")
    return name


def _norm(name: object) -> object:
    if isinstance(name, str) and "batch" in name.casefold():
        raise ValueError(
            f"'{name}' normalises one patient by the others of the batch, so that clipping one patient no longer bounds what "
            "that patient changes: use 'group' or 'instance'"
        )
    return name


def _arguments(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name, value in arguments.items():
        if not ARGUMENT_NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no name of a keyword argument")
        if not _is_plain(value, ARGUMENT_DEPTH):
            raise ValueError(f"'{name}' must be a text, a finite number, true, false, or a list or table of these")
    return arguments


def _is_plain(value: JsonValue, depth: int) -> bool:
    if isinstance(value, list | dict):
        inside = value if isinstance(value, list) else list(value.values())
        return depth > 0 and all(_is_plain(one, depth - 1) for one in inside)
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


Architecture = Annotated[str, AfterValidator(_architecture)]
Arguments = Annotated[dict[str, JsonValue], AfterValidator(_arguments)]
Norm = Annotated[Literal["group", "instance"], BeforeValidator(_norm)]


class Network(Frozen):
    """A MONAI network by name, or `task:<name>`: that task's own. Normalisation across patients is not offered.

    `arguments`: further keyword arguments of the MONAI class, beside those that follow from the other fields.
    """

    architecture: Architecture = "DynUNet"
    channels: tuple[int, ...] = (8, 16, 32)
    labels: tuple[str, ...] = Field(min_length=1)  # foreground labels in the order of their values 1, 2, ...
    norm: Norm = "group"
    arguments: Arguments = Field(default={})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.arguments and self.architecture not in ARCHITECTURES:
            raise ValueError(f"arguments are for MONAI's networks, {self.architecture} is a task's own: leave them out")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # a dictionary has none

    @property
    def classes(self) -> int:
        """Output channels: background and one for each label."""
        return len(self.labels) + 1
