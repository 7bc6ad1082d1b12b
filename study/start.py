"""The public start of a demonstration: pretraining on drawn volumes, kept by the digest of everything that shaped it.

No scan of any cohort enters, synthetic cohorts included, so the start costs no privacy. Two candidates are trained side by
side, one a core, and the one with the smaller loss on public volumes that neither has seen is kept: a small network now and
then learns poor features, and noisy private training cannot repair those.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hospital_node.durable import write_whole
from proto.modelfile import Model, encode_model, read_model
from proto.plan import written
from study import presets, shapes, temporal_lobe
from study.presets import Preset
from study.processes import Family

GENERATOR = "shapes v2, pretraining v4"  # raise it when the same seed gives another start
SEEDS = (3, 7)
HELD_OUT_SEED, HELD_OUT = 1_000_003, 48  # volumes for the choice
MARGIN_VOXELS = 8  # public volumes are a little larger than a patch, so that patches differ
LOSS_KEY = "held-out-loss"
WAIT_S = 0.1


def load_or_make(folder: Path, preset: Preset, family: Family, announce: Callable[[str], None]) -> Path:
    """Path of the start for `preset`; made now if it is not there. `announce` gets one sentence either way."""
    path = folder / f"{preset.name}-{_digest_of_recipe(preset)}.safetensors"
    if path.is_file():
        announce("Public start: kept from an earlier run")
        return path
    steps, volumes = preset.start.steps, preset.start.volumes
    announce(f"Public start: {len(SEEDS)} candidates, {steps} steps on {volumes} drawn volumes each, no scan of any cohort ...")
    folder.mkdir(parents=True, exist_ok=True)
    candidates = _candidates(folder, preset, family)
    best = min(candidates, key=lambda candidate: float(read_model(candidate).provenance[LOSS_KEY]))
    best.replace(path)
    for candidate in candidates:
        candidate.unlink(missing_ok=True)
    return path


def digest_of(path: Path) -> bytes:
    """Digest of the start's vector, for the plan."""
    return read_model(path).digest


def make_candidate(preset: Preset, seed: int) -> Model:
    """One candidate, trained on one thread, with its loss on held-out public volumes in the provenance."""
    from hospital_node import network
    from study import pretrain

    recipe, parts = preset.start, (preset.network, preset.preparation, preset.training)
    schedule = pretrain.Schedule(
        steps=recipe.steps, batch=recipe.batch, learning_rate=recipe.learning_rate, threads=1, seed=seed
    )
    vector = pretrain.pretrain(*parts, _volumes(preset, recipe.volumes, seed), schedule)
    loss = pretrain.held_out_loss(parts, vector, _volumes(preset, HELD_OUT, HELD_OUT_SEED), HELD_OUT_SEED)
    provenance = {"made-by": GENERATOR, "seed": str(seed), LOSS_KEY: repr(loss)}
    return Model(network.layout_of(network.build(preset.network)), vector, provenance)


def _digest_of_recipe(preset: Preset) -> str:
    """Of everything that shapes the start. Since two anatomies have two labels each, the network does not say which it was."""
    parts = [written(getattr(preset, table), table) for table in ("network", "preparation", "training")]
    recipe = {
        "generator": GENERATOR,
        "anatomy": preset.anatomy,
        "seeds": SEEDS,
        "parts": [*parts, preset.start.model_dump(mode="json")],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _candidates(folder: Path, preset: Preset, family: Family) -> list[Path]:
    paths = [folder / f"{preset.name}-candidate-{seed}.safetensors" for seed in SEEDS]
    children = [
        family.start(
            f"pretraining {seed}",
            [sys.executable, "-m", "study.start", preset.name, str(seed), str(path)],
            folder / f"pretraining-{seed}.log",
        )
        for seed, path in zip(SEEDS, paths, strict=True)
    ]
    while any(child.running for child in children):
        time.sleep(WAIT_S)
    family.raise_if_any_failed()
    family.children[:] = [child for child in family.children if child not in children]
    return paths


def _volumes(preset: Preset, count: int, seed: int) -> Iterator[shapes.Pair]:
    spacing = preset.preparation.spacing_xyz_mm
    if preset.anatomy == "temporal-lobe":  # a crop has its own size: how it lies in its crop is part of what is learned
        return temporal_lobe.public_hippocampi(count, seed, spacing)
    depth, height, width = (side + MARGIN_VOXELS for side in preset.preparation.patch_zyx)
    make = shapes.public_tubes if preset.anatomy == "hippocampus" else shapes.public_volumes
    return make(count, seed, spacing, (depth, height, width))


def main() -> None:
    """`python -m study.start TEMPLATE SEED FILE`: one candidate, as a process of its own."""
    template, seed, path = sys.argv[1:]
    write_whole(Path(path), encode_model(make_candidate(presets.load(template), int(seed))))


if __name__ == "__main__":
    main()
