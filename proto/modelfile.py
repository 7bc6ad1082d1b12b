"""Model files: named float32 tensors in safetensors, with the vector layout in the metadata. Needs no torch.

A file holds public values only: a start, or a released model. Its digest is that of the flat vector, not of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from proto.layout import Layout, LayoutError, Vector, model_digest

LAYOUT_KEY = "layout"


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


def encode_model(model: Model) -> bytes:
    """Content of a model file; writing it durably is the caller's."""
    metadata = {**model.provenance, LAYOUT_KEY: model.layout.to_json()}
    tensors = {name: np.ascontiguousarray(part) for name, part in model.layout.split(model.vector).items()}
    return save(tensors, metadata=metadata)


def read_model(path: Path) -> Model:
    """Read one model. Raises ModelFileError where tensors and layout do not fit or a value is not finite."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            layout = Layout.from_json(metadata.pop(LAYOUT_KEY, ""))
            vector = layout.flatten({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no model file {path}: make one with `secagg-node init-model`") from error
    except (OSError, SafetensorError, LayoutError) as error:
        raise ModelFileError(f"{path} is not a model file of this software ({error}): make it again") from error
    if not np.isfinite(vector).all():
        raise ModelFileError(f"{path} holds values that are not finite: make it again")
    return Model(layout, vector, metadata)
