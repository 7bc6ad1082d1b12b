"""A model's values in fewer bytes: bfloat16, or integers of 8 bits with a scale for each output channel. Needs no torch.

Rule: what is lost is rounding and nothing else. bfloat16 is rounded to nearest, ties to even. Of the integers each is the
nearest of 255 even steps between minus and plus the largest value of its output channel; norms and biases, which have one axis,
stay float32 beside them. Values are packed into few flat tensors, because names and places of many small ones take more room
than is saved; the layout, which a model file holds anyway, says where each lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from proto.layout import Layout, LayoutError, Vector

ValuesName = Literal["fp32", "bf16", "int8"]
VALUES: tuple[ValuesName, ...] = get_args(ValuesName)
STEPS = 127  # of an integer on either side of zero; -128 is not used, so that zero is in the middle
WHOLE = -1  # axis of a tensor that stays float32

Arrays = Mapping[str, NDArray[Any]]
Axes = Sequence[int]  # of each tensor of the layout: the axis of its output channels, or WHOLE


def to_bfloat16(vector: Vector) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest, ties to even. ValueError where one is not finite or becomes so."""
    bits = np.ascontiguousarray(vector, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if not np.isfinite(from_bfloat16(rounded)).all():
        raise ValueError("a value is not finite, or too large for bfloat16")
    return rounded


def from_bfloat16(bits: NDArray[np.uint16]) -> Vector:
    """Exactly what the bits say."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_int8(tensor: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers in the tensor's shape, and the step of each channel along `axis`."""
    others = tuple(one for one in range(tensor.ndim) if one != axis)
    steps = (np.abs(tensor).max(axis=others).astype(np.float64) / STEPS).astype(np.float32)
    width = np.where(steps > 0, steps, np.float32(1))
    scaled = tensor / _along(width, tensor.ndim, axis)
    return np.clip(np.rint(scaled), -STEPS, STEPS).astype(np.int8), steps


def from_int8(integers: NDArray[np.int8], steps: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The values again, to half a step."""
    return integers.astype(np.float32) * _along(steps, integers.ndim, axis)


def packed(layout: Layout, vector: Vector, axes: Axes) -> dict[str, NDArray[Any]]:
    """All kernels as integers, their steps, and all else: three flat tensors. LayoutError where `axes` does not fit."""
    check_axes(layout, axes)
    parts: dict[str, list[NDArray[Any]]] = {"kernels": [], "steps": [], "rest": []}
    for (name, _), axis in zip(layout.tensors, axes, strict=True):
        tensor = layout.split(vector)[name]
        if axis == WHOLE:
            parts["rest"].append(tensor.reshape(-1))
            continue
        integers, steps = to_int8(tensor, axis)
        parts["kernels"].append(integers.reshape(-1))
        parts["steps"].append(steps)
    kinds = {"kernels": np.int8, "steps": np.float32, "rest": np.float32}
    return {name: np.concatenate([*arrays, np.empty(0, kinds[name])]).astype(kinds[name]) for name, arrays in parts.items()}


def unpacked(layout: Layout, arrays: Arrays, axes: Axes) -> Vector:
    """The flat vector of what `packed` made. LayoutError where anything is missing, left over or of another kind."""
    check_axes(layout, axes)
    takers = {name: _taker(name, arrays, kind) for name, kind in (("kernels", "i1"), ("steps", "f4"), ("rest", "f4"))}
    out = np.empty(layout.length, np.float32)
    at = 0
    for (_, shape), axis in zip(layout.tensors, axes, strict=True):
        size = math.prod(shape)
        if axis == WHOLE:
            out[at : at + size] = takers["rest"].take(size)
        else:
            integers = takers["kernels"].take(size).reshape(shape)
            out[at : at + size] = from_int8(integers, takers["steps"].take(shape[axis]), axis).reshape(-1)
        at += size
    for name, taker in takers.items():
        if len(taker.take(None)):
            raise LayoutError(f"'{name}' holds more values than the layout has places")
    return out


def check_axes(layout: Layout, axes: Axes) -> None:
    """Return if there is an axis, or WHOLE, for every tensor; otherwise raise LayoutError."""
    if len(axes) != len(layout.tensors):
        raise LayoutError(f"{len(axes)} axes for {len(layout.tensors)} tensors")
    for (name, shape), axis in zip(layout.tensors, axes, strict=True):
        if axis != WHOLE and not 0 <= axis < len(shape):
            raise LayoutError(f"tensor '{name}' of shape {shape} has no axis {axis}")


def _along(values: NDArray[np.float32], axes: int, axis: int) -> NDArray[np.float32]:
    return values.reshape([-1 if one == axis else 1 for one in range(axes)])


class _Taker:
    """Consecutive pieces of one flat array."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self._array, self._at = name, array, 0

    def take(self, count: int | None) -> NDArray[Any]:
        """The next `count` values, or all that are left. LayoutError where there are fewer."""
        end = len(self._array) if count is None else self._at + count
        if end > len(self._array):
            raise LayoutError(f"'{self._name}' holds fewer values than the layout has places")
        piece = self._array[self._at : end]
        self._at = end
        return piece


def _taker(name: str, arrays: Arrays, kind: str) -> _Taker:
    array = arrays.get(name)
    if array is None or array.ndim != 1 or array.dtype != np.dtype(kind):
        raise LayoutError(f"'{name}' is missing or no flat tensor of {np.dtype(kind)}")
    return _Taker(name, array)
