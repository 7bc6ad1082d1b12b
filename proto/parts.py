"""What a round trains and sends: the whole model, some of its tensors, or low-rank factors of them.

Rule: what travels follows from the plan and from names and shapes in the model's layout, so that hospital and coordinator agree
without a network. The model stays whole: hospitals receive it, release an update of what was trained, and the coordinator
adds the spread mean to it. Spreading is linear, so the mean of spread updates is the spread mean.

Low rank: a tensor of rows x columns (further axes flattened) is trained as W + up @ down. `down` holds public signs over the
root of the rank, drawn anew for each round from a hash, and is not trained: with noise on both factors their product would
carry noise times noise, and a mean of products is no product of means (Sun et al. 2024, FFA-LoRA, arXiv 2403.12313). Only
`up` travels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proto import precision
from proto.layout import Layout, Vector
from proto.plan import Plan, PlanError, Training

SIGNS_LABEL = b"hospital-secagg adapter signs v1\n"
UP = ".up"  # ends the name of a tensor's trained factor
SHOWN = 8  # names in an error

Signs = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """One trained tensor of the model. `rank` is None where its own values are trained."""

    name: str
    shape: tuple[int, ...]
    start: int  # of its values in the model
    rank: int | None

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The tensor as a matrix: its first axis against all others."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def trained_shape(self) -> tuple[int, ...]:
        """Of what travels."""
        return self.shape if self.rank is None else (self.shape[0], self.rank)


def parts_of(layout: Layout, training: Training) -> tuple[Part, ...]:
    """Everything that is trained, in the order of the model. Raises PlanError where the plan does not fit the network."""
    found, start = [], 0
    for name, shape in layout.tensors:
        if _is_trained(name, shape, training):
            found.append(Part(name, shape, start, _rank(shape, training.adapter_rank)))
        start += math.prod(shape)
    _refuse_idle(layout, training, found)
    return tuple(found)


def update_layout(layout: Layout, training: Training) -> Layout:
    """The layout of an update: of the model itself where everything is trained. Raises PlanError."""
    parts = parts_of(layout, training)
    return Layout(tuple((part.name + (UP if part.rank else ""), part.trained_shape) for part in parts), layout.not_averaged)


def sent_layout(plan: Plan, layout: Layout) -> Layout:
    """What a hospital sends in a round: the update, behind it as many precisions where the plan has them. Raises PlanError."""
    sent = update_layout(layout, plan.training)
    if not precision.is_used(plan):
        return sent
    certain = tuple((precision.PREFIX + name, shape) for name, shape in sent.tensors)
    return Layout(sent.tensors + certain, sent.not_averaged)


def spread(plan: Plan, layout: Layout, update: Vector, round_number: int) -> Vector:
    """An update of one round as a change of the whole model, 0 where nothing was trained.

    Only IEEE + and x in a fixed order, so that everyone with the same inputs has the same model digest.
    """
    if plan.training.trains_all:
        return update
    change = np.zeros(layout.length, dtype=np.float32)
    parts = parts_of(layout, plan.training)
    for part, values in zip(parts, update_layout(layout, plan.training).split(update).values(), strict=True):
        change[part.start : part.start + math.prod(part.shape)] = _whole(part, values, round_number)
    return change


def down(part: Part, round_number: int) -> Signs:
    """The public factor of a part in one round: (rank, columns), signs over the root of the rank.

    In expectation down.T @ down is the identity, so that learning rate and clip norm mean what they mean without adapters.
    """
    assert part.rank is not None
    columns = part.rows_and_columns[1]
    label = SIGNS_LABEL + f"{round_number} {part.rank} {columns} {part.name}".encode()
    data = hashlib.shake_256(label).digest(-(-part.rank * columns // 8))
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=part.rank * columns).reshape(part.rank, columns)
    return (bits.astype(np.float32) * 2 - 1) * np.float32(part.rank**-0.5)


def _whole(part: Part, values: NDArray[np.float32], round_number: int) -> Vector:
    if part.rank is None:
        return values.reshape(-1)
    product = np.zeros(part.rows_and_columns, dtype=np.float32)
    for column, signs in zip(values.T, down(part, round_number), strict=True):
        product += np.multiply.outer(column, signs)
    return product.reshape(-1)


def _is_trained(name: str, shape: tuple[int, ...], training: Training) -> bool:
    if training.parts == "norms-and-biases":
        return len(shape) < 2
    return training.parts == "all" or any(name.startswith(prefix) for prefix in training.parts)


def _rank(shape: tuple[int, ...], wanted: int | None) -> int | None:
    """The rank of a tensor's adapter; None where it has too few columns to be worth one."""
    return wanted if wanted is not None and len(shape) >= 2 and wanted < math.prod(shape[1:]) else None


def _refuse_idle(layout: Layout, training: Training, found: list[Part]) -> None:
    """Raise PlanError for a setting that fits nothing in the network."""
    names = [name for name, _ in layout.tensors]
    prefixes = training.parts if isinstance(training.parts, tuple) else ()
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            known = list(dict.fromkeys(name.split(".")[0] for name in names))
            more = " ..." if len(known) > SHOWN else ""
            raise PlanError(
                f"training.parts: no tensor of the plan's network has a name that begins with '{prefix}'; names begin with "
                f"{', '.join(known[:SHOWN])}{more}"
            )
    if not found:
        raise PlanError(f"training.parts '{training.parts}' leaves nothing of the plan's network to train: choose other parts")
    if training.adapter_rank is not None and not any(part.rank for part in found):
        raise PlanError(
            f"training.adapter_rank {training.adapter_rank} is not below the columns of any tensor that is trained: lower it"
        )
