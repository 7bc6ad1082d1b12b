"""The public start of a demonstration: pretraining on abstract shapes, kept by the digest of everything that shaped it.

No scan of any cohort enters, synthetic cohorts included, so the start costs no privacy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from hospital_node.durable import write_whole
from proto.modelfile import Model, encode_model, read_model
from study.presets import Preset

GENERATOR = "shapes v1, pretraining v2"  # raise it when the same seed gives another start
SEED = 7
MARGIN_VOXELS = 8  # public volumes are a little larger than a patch, so that patches differ


def load_or_make(folder: Path, anatomy: str, preset: Preset, announce: Callable[[str], None]) -> Path:
    """Path of the start for `preset`; made now if it is not there. `announce` gets one sentence either way."""
    recipe = {
        "generator": GENERATOR,
        "anatomy": anatomy,
        "parts": [part.model_dump(mode="json") for part in (preset.network, preset.preparation, preset.training, preset.start)],
    }
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{anatomy}-{name}.safetensors"
    if path.is_file():
        announce("Public start: kept from an earlier run")
        return path
    steps, volumes = preset.start.steps, preset.start.volumes
    announce(f"Public start: pretraining {steps} steps on {volumes} abstract volumes, no scan of any cohort ...")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, encode_model(_pretrained(anatomy, preset)))
    return path


def digest_of(path: Path) -> bytes:
    """Digest of the start's vector, for the plan."""
    return read_model(path).digest


def _pretrained(anatomy: str, preset: Preset) -> Model:
    from hospital_node import network
    from study import pretrain, shapes

    depth, height, width = (side + MARGIN_VOXELS for side in preset.preparation.patch_zyx)
    make = shapes.public_tubes if anatomy == "hippocampus" else shapes.public_volumes
    pairs = make(preset.start.volumes, SEED, preset.preparation.spacing_xyz_mm, (depth, height, width))
    recipe = preset.start
    schedule = pretrain.Schedule(steps=recipe.steps, batch=recipe.batch, learning_rate=recipe.learning_rate, seed=SEED)
    vector = pretrain.pretrain(preset.network, preset.preparation, preset.training, pairs, schedule)
    return Model(network.layout_of(network.build(preset.network)), vector)
