"""Model files: named float32 tensors in safetensors, with the vector layout in the metadata. Needs no torch.

A file holds public values only: a start, or a released model. Its digest is that of the flat vector, not of the file. A model
for use may be packed into fewer bytes (packed.py); what is read from it is another vector with another digest, and `digest` in
its provenance still names the one that was released.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from proto.layout import Layout, LayoutError, Vector, model_digest
from proto.packed import VALUES, WHOLE, ValuesName, from_bfloat16, packed, to_bfloat16, unpacked

LAYOUT_KEY = "layout"
PACKED_LAYOUT_KEY = "layout_deflated"  # in its place in a packed file, where it would be a part of the size: zlib, base64
MAX_LAYOUT_BYTES = 1 << 24  # of one unpacked: 65,536 tensors with names of 200 characters
VALUES_KEY, AXES_KEY = "values", "axes"  # of a packed file: how values are kept, and the axis of each tensor's steps
OF_THE_FILE = {LAYOUT_KEY, PACKED_LAYOUT_KEY, VALUES_KEY, AXES_KEY}
BFLOAT16 = "values"  # the one tensor of a file of bfloat16
HEADER_ALIGNMENT = 8  # bytes; safetensors asks for it


class ModelFileError(ValueError):
    """A model file that cannot be used; the text names the file, the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Model:
    """A flat vector, what its parts are, and where it comes from (no paths, no names of people)."""

    layout: Layout
    vector: Vector
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> bytes:
        """32 bytes that name this model."""
        return model_digest(self.vector)


def encode_model(model: Model, values: ValuesName = "fp32", axes: Sequence[int] = ()) -> bytes:
    """Content of a model file; writing it durably is the caller's.

    `values` other than fp32 pack it; int8 needs `axes` (kernel_axes), one for each tensor of the layout. Raises LayoutError
    where they do not fit, ModelFileError where a value cannot be packed.
    """
    metadata = {**model.provenance, LAYOUT_KEY: model.layout.to_json()}
    if values == "fp32":
        parts = model.layout.split(model.vector)
        tensors = {name: np.ascontiguousarray(part).reshape(part.shape) for name, part in parts.items()}  # a scalar stays one
        return save(tensors, metadata=metadata)
    if not np.isfinite(model.vector).all():
        raise ModelFileError(f"the model holds values that are not finite, which cannot be kept as {values}: make it again")
    metadata[PACKED_LAYOUT_KEY] = base64.b64encode(zlib.compress(metadata.pop(LAYOUT_KEY).encode(), 9)).decode()
    metadata[VALUES_KEY] = values
    if values == "int8":
        return save(packed(model.layout, model.vector, axes), metadata={**metadata, AXES_KEY: json.dumps(list(axes))})
    try:
        return _of_bfloat16(to_bfloat16(model.vector), metadata)
    except ValueError as error:
        raise ModelFileError(f"the model cannot be kept as bfloat16 ({error}): keep it as fp32") from error


def read_model(path: Path) -> Model:
    """Read one model, packed or not. Raises ModelFileError where tensors and layout do not fit or a value is not finite."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            layout = _layout(metadata.pop(LAYOUT_KEY, ""), metadata.pop(PACKED_LAYOUT_KEY, ""))
            vector = _vector(path, file, layout, metadata.pop(VALUES_KEY, "fp32"), metadata.pop(AXES_KEY, "[]"))
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no model file {path}: make one with `secagg-node init-model`") from error
    except (OSError, SafetensorError, LayoutError) as error:
        raise ModelFileError(f"{path} is not a model file of this software ({error}): make it again") from error
    if not np.isfinite(vector).all():
        raise ModelFileError(f"{path} holds values that are not finite: make it again")
    return Model(layout, vector, metadata)


def read_provenance(path: Path) -> dict[str, str]:
    """Where a model file says that it comes from, its values unread. Raises ModelFileError."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path} is not a model file of this software ({error}): make it again") from error
    return {key: value for key, value in metadata.items() if key not in OF_THE_FILE}


def _vector(path: Path, file: Any, layout: Layout, values: str, axes: str) -> Vector:
    names = list(file.keys())
    if values == "fp32":
        return layout.flatten(_arrays(file, {"F32"}))
    if values not in VALUES:
        raise LayoutError(f"its values are kept as '{values[:20]}', none of {', '.join(VALUES)}")
    if values == "int8":
        return unpacked(layout, _arrays(file, {"F32", "I8"}), _axes(axes))
    if names != [BFLOAT16] or file.get_slice(BFLOAT16).get_dtype() != "BF16":
        raise LayoutError(f"it holds {len(names)} tensors instead of one of bfloat16")
    return from_bfloat16(_last_words(path, layout.length))


def _layout(plain: str, deflated: str) -> Layout:
    """The one that is there. LayoutError."""
    if plain or not deflated:
        return Layout.from_json(plain)
    try:
        text = zlib.decompressobj().decompress(base64.b64decode(deflated, validate=True), MAX_LAYOUT_BYTES).decode()
    except (ValueError, zlib.error) as error:
        raise LayoutError("its layout cannot be unpacked") from error
    return Layout.from_json(text)


def _arrays(file: Any, kinds: set[str]) -> dict[str, NDArray[Any]]:
    """All tensors, of these types alone; numpy has no type for some others."""
    strange = {file.get_slice(name).get_dtype() for name in file.keys()} - kinds  # noqa: SIM118  (not a dict)
    if strange:
        raise LayoutError(f"it holds tensors of {', '.join(sorted(strange))}, not of {' or '.join(sorted(kinds))}")
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _axes(text: str) -> list[int]:
    try:
        return [int(axis) for axis in json.loads(text)]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise LayoutError("its axes are not a list of whole numbers") from error


def _of_bfloat16(bits: NDArray[np.uint16], metadata: Mapping[str, str]) -> bytes:
    """A file of safetensors with one tensor, which numpy has no type for: length of the header, header, values."""
    data = bits.astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [len(bits)], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": dict(metadata), BFLOAT16: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    return len(header).to_bytes(8, "little") + header + data


def _last_words(path: Path, count: int) -> NDArray[np.uint16]:
    """The file's last `count` words of 16 bits: the values of its only tensor, as the library has found the header to say."""
    with path.open("rb") as file:
        start = int.from_bytes(file.read(8), "little") + 8
        file.seek(start)
        words = np.frombuffer(file.read(), "<u2")
    if len(words) != count:
        raise LayoutError(f"it holds {len(words)} values, the layout has {count}")
    return words.astype(np.uint16)


def kernel_axes(layout: Layout, transposed: Collection[str]) -> list[int]:
    """Each tensor's axis of output channels: the first, or the second in kernels named `transposed`; WHOLE with one axis."""
    return [WHOLE if len(shape) < 2 else int(name in transposed) for name, shape in layout.tensors]
