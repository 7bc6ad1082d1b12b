"""Vector layout: which tensor of the model lies where in the one flat vector that the federation handles.

The coordinator sees names and shapes, never a network. `tensors` are averaged: floating-point parameters. `not_averaged` are
named and nothing else: buffers of whole numbers and truth values (positions, counters such as num_batches_tracked), whose mean
means nothing. Their values never travel; each party's network makes its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float32]

LAYOUT_LABEL = b"hospital-secagg layout v1\n"
MODEL_LABEL = b"hospital-secagg model v1\n"
FINITE_RUN = 1 << 16
MAX_TENSORS = 1 << 16  # a plan with more is a mistake or an attack


class LayoutError(ValueError):
    """Tensors or bytes that do not fit the layout."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Ordered (name, shape) pairs. Raises LayoutError on a repeated name, an absurd count or a negative side."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    not_averaged: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        averaged = [name for name, _ in self.tensors]
        names = [*averaged, *self.not_averaged]
        if not averaged or len(names) > MAX_TENSORS or len(set(names)) != len(names):
            raise LayoutError(f"a layout needs 1 to {MAX_TENSORS} tensors with distinct names, got {len(names)}")
        if any(side < 0 for _, shape in self.tensors for side in shape):
            raise LayoutError("a side of a tensor is negative")

    @property
    def length(self) -> int:
        """Number of float32 values in the flat vector."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    def to_json(self) -> str:
        """Canonical JSON, also stored beside the tensors in a model file: what is averaged, where there is nothing else."""
        averaged = [[name, list(shape)] for name, shape in self.tensors]
        whole = {"averaged": averaged, "not_averaged": list(self.not_averaged)} if self.not_averaged else averaged
        return json.dumps(whole, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Inverse of `to_json`; LayoutError on anything else."""
        try:
            found = json.loads(text)
            pairs, others = (found["averaged"], found["not_averaged"]) if isinstance(found, dict) else (found, ())
            tensors = tuple((str(name), tuple(int(side) for side in shape)) for name, shape in pairs)
            return cls(tensors, tuple(str(name) for name in others))
        except LayoutError:
            raise
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise LayoutError("the layout is not a list of [name, shape] pairs") from error

    def digest(self) -> bytes:
        """32 bytes that name this layout."""
        return hashlib.sha256(LAYOUT_LABEL + self.to_json().encode()).digest()

    def flatten(self, tensors: Mapping[str, NDArray[np.float32]]) -> Vector:
        """One float32 vector; LayoutError where a tensor is missing or of another shape."""
        out = np.empty(self.length, dtype=np.float32)
        at = 0
        for name, shape in self.tensors:
            if name not in tensors or tensors[name].shape != shape:
                raise LayoutError(f"tensor '{name}' of shape {shape} is missing or of another shape")
            size = math.prod(shape)
            out[at : at + size] = tensors[name].reshape(-1)
            at += size
        return out

    def split(self, vector: Vector) -> dict[str, NDArray[np.float32]]:
        """Views into `vector` by tensor name; LayoutError on a wrong length."""
        if vector.shape != (self.length,):
            raise LayoutError(f"the vector has shape {vector.shape}, the layout needs ({self.length},)")
        out, at = {}, 0
        for name, shape in self.tensors:
            size = math.prod(shape)
            out[name] = vector[at : at + size].reshape(shape)
            at += size
        return out


def all_finite(vector: NDArray[Any]) -> bool:
    """Whether no value is infinite or NaN; in runs that stay in a core's cache, a third of the time for a large model."""
    finite = np.empty(FINITE_RUN, dtype=np.bool_)
    runs = (vector[at : at + FINITE_RUN] for at in range(0, len(vector), FINITE_RUN))
    return all(np.isfinite(run, out=finite[: len(run)]).all() for run in runs)


def model_digest(vector: Vector) -> bytes:
    """32 bytes that name a model: SHA-256 over a label, the length and the little-endian float32 values."""
    state = hashlib.sha256(MODEL_LABEL + len(vector).to_bytes(8, "little"))
    state.update(np.ascontiguousarray(vector, dtype="<f4").data)
    return state.digest()
