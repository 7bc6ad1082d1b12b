"""`secagg-study pretrain`: a public start as a file, made from drawn volumes, with everything that shaped it written inside.

Rules: volumes come from the seeded generators of study/shapes.py and study/temporal_lobe.py and from no cohort, real or
synthetic, so a start costs no privacy; one seed on one thread gives one digest; the file is written whole or not at all, and
never over a start that something else shaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from hospital_node.durable import write_whole
from proto.frozen import explain, read_toml
from proto.modelfile import Model, ModelFileError, encode_model, read_model
from proto.plan import written
from study import presets, start
from study.bench.task import StudyError
from study.presets import Preset, StartRecipe

ANATOMY_BY_LABELS: Final = MappingProxyType({1: ("chest",), 2: ("hippocampus", "temporal-lobe")})  # the first is the usual one
USUAL_RECIPE: Final = MappingProxyType({"volumes": 300, "steps": 400, "batch": 6})  # for a plan without [start]
MIN_STEPS: Final = 10  # fewer leave the learning rate no room to rise and fall
NOT_OF_THE_RECIPE: Final = frozenset({start.LOSS_KEY, "torch", "statement"})  # what came of it, with what, and in which words
NO_COHORT: Final = "no scan of any cohort entered: pretrained on volumes drawn by a seeded generator, so it costs no privacy"

Announce = Callable[[str], None]


def pretrain_to_file(plan: str, out: Path, seed: int, steps: int | None, volumes: int | None, announce: Announce) -> Path:
    """Make the start of `plan`, a template's name or the path of a plan or template in TOML, and write it to `out`.

    `steps` and `volumes` replace the template's own. `announce` gets one sentence at a time. Raises StudyError.
    """
    return make_start(preset_of(plan), seed=seed, volumes=volumes, steps=steps, out=out, announce=announce)


def make_start(preset: Preset, *, seed: int, volumes: int | None, steps: int | None, out: Path, announce: Announce) -> Path:
    """Pretrain by `preset` on one thread and write the start; what the same recipe made before is kept. Raises StudyError."""
    _refuse_strange_seed(seed)
    asked = _with_recipe(preset, steps, volumes)
    recipe = recipe_of(asked, seed)
    if _is_kept(out, recipe):
        announce(f"{out} was made by exactly this recipe before and is kept")
        return out
    steps_on = f"{asked.start.steps} steps on {asked.start.volumes} drawn volumes"
    announce(f"Pretraining with seed {seed}: {steps_on}, no scan of any cohort ...")
    model = _pretrained(asked, seed)
    loss = model.provenance[start.LOSS_KEY]
    made = {**recipe, start.LOSS_KEY: loss, "torch": version("torch")}
    _write(out, encode_model(Model(model.layout, model.vector, made)))
    announce(f"{out}: {model.layout.length} values, loss {float(loss):.3f} on drawn volumes that were not trained on")
    announce(f'start_digest = "{model.digest.hex()}"')
    return out


def preset_of(plan: str) -> Preset:
    """A template by name, or a plan or template from a TOML file. Raises StudyError.

    A plan has neither anatomy nor [start]: its number of labels decides the one, USUAL_RECIPE is the other.
    """
    names = sorted(path.stem for path in presets.PLANS.glob("*.toml"))
    path = presets.PLANS / f"{plan}.toml" if plan in names else Path(plan)
    if plan not in names and path.suffix != ".toml":
        raise StudyError(f"there is no plan template '{plan}': choose one of {', '.join(names)}, or name a .toml file")
    fields = read_toml(path, "the plan or template", StudyError)
    missing = sorted({"network", "preparation", "training"} - fields.keys())
    if missing:
        raise StudyError(f"{path} is no plan: [{missing[0]}] is missing")
    usual = {"anatomy": _usual_anatomy(fields["network"]), "start": dict(USUAL_RECIPE)}
    try:
        preset = Preset.of(path.stem, {**usual, **fields})
    except ValidationError as error:
        raise StudyError(explain(error, str(path))) from error
    _refuse_strange_labels(path, preset)
    return preset


def recipe_of(preset: Preset, seed: int) -> dict[str, str]:
    """Everything that decides the vector, as it is written into the file."""
    return {
        "made-by": start.GENERATOR,
        "statement": NO_COHORT,
        "anatomy": preset.anatomy,
        "seed": str(seed),
        **{key: str(value) for key, value in preset.start.model_dump().items()},
        **{table: _as_json(written(getattr(preset, table), table)) for table in ("network", "preparation", "training")},
    }


def _as_json(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def _usual_anatomy(network: Any) -> str:
    labels = network.get("labels") if isinstance(network, dict) else None
    return ANATOMY_BY_LABELS.get(len(labels) if isinstance(labels, list) else 1, ("chest",))[0]


def _refuse_strange_labels(path: Path, preset: Preset) -> None:
    labels = len(preset.network.labels)
    if preset.anatomy not in ANATOMY_BY_LABELS.get(labels, ()):
        known = ", ".join(
            f"{' or '.join(names)} shapes for {count} label{'s'[: count - 1]}" for count, names in ANATOMY_BY_LABELS.items()
        )
        raise StudyError(f"{path}: anatomy '{preset.anatomy}' and {labels} labels do not fit: the generator knows {known}")


def _with_recipe(preset: Preset, steps: int | None, volumes: int | None) -> Preset:
    given = {"steps": steps, "volumes": volumes}
    changes = {key: value for key, value in given.items() if value is not None}
    try:
        recipe = StartRecipe.model_validate({**preset.start.model_dump(), **changes})
    except ValidationError as error:
        raise StudyError(explain(error, "the start's recipe")) from error
    if recipe.steps < MIN_STEPS:
        raise StudyError(f"the start's recipe: {recipe.steps} steps are too few: pretrain for {MIN_STEPS} or more")
    return preset.model_copy(update={"start": recipe})


def _refuse_strange_seed(seed: int) -> None:
    if seed < 0 or seed == start.HELD_OUT_SEED:
        raise StudyError(f"seed {seed} cannot be used: choose another one from 0 on, not that of the measured volumes")


def _pretrained(preset: Preset, seed: int) -> Model:
    from hospital_node.network import NetworkError

    try:
        return start.make_candidate(preset, seed)
    except NetworkError as error:
        raise StudyError(f"plan {preset.name}: {error}") from error


def _is_kept(out: Path, recipe: Mapping[str, str]) -> bool:
    """Whether `out` holds what would be made. Raises StudyError where it holds anything else."""
    if not out.exists():
        return False
    remedy = "name another file, or remove it first"
    try:
        found = read_model(out).provenance
    except ModelFileError as error:
        raise StudyError(f"{out} exists and is no model file: {remedy}") from error
    if _deciding(found) != _deciding(recipe):
        raise StudyError(f"{out} exists and was made by another recipe: {remedy}")
    return True


def _deciding(provenance: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in provenance.items() if key not in NOT_OF_THE_RECIPE}


def _write(out: Path, content: bytes) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, content)
    except OSError as error:
        raise StudyError(f"cannot write the start {out}: {error.strerror}; name a file in a folder of yours") from error
