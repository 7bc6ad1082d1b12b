"""Model files: named float32 tensors in safetensors, with the vector layout in the metadata. Needs no torch.

A file holds public values only: a start, or a released model. Its digest is that of the flat vector, not of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hospital_node.durable import write_whole
from proto.layout import Layout, LayoutError, Vector, model_digest

LAYOUT_KEY = "layout"


class ModelFileError(ValueError):
    """A model file that cannot be used; the text names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Model:
    """A flat vector and what its parts are."""

    layout: Layout
    vector: Vector

    @property
    def digest(self) -> bytes:
        """32 bytes that name this model."""
        return model_digest(self.vector)


def write_model(path: Path, model: Model) -> None:
    """Write one model, replacing an older file at once."""
    write_whole(path, save(model.layout.split(model.vector), metadata={LAYOUT_KEY: model.layout.to_json()}))


def read_model(path: Path) -> Model:
    """Read one model. Raises ModelFileError where tensors and layout do not fit or a value is not finite."""
    try:
        with safe_open(path, framework="numpy") as file:
            layout = Layout.from_json((file.metadata() or {})[LAYOUT_KEY])
            vector = layout.flatten({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no model file {path}: make one with `secagg-node init-model`") from error
    except KeyError as error:
        raise ModelFileError(f"{path} names no layout: write it with `secagg-node init-model`") from error
    except (OSError, SafetensorError, LayoutError) as error:
        raise ModelFileError(f"{path} cannot be used as a model: {error}") from error
    if not np.isfinite(vector).all():
        raise ModelFileError(f"{path} holds values that are not finite: make it again")
    return Model(layout, vector)
