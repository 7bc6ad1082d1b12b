"""The product's own task in a study: 3D segmentation by the code that a hospital's node runs.

Patients come from the folders that the demonstration knows: MSD Hippocampus with its `split.csv`, a LUNA16 folder, or synthetic
chest CT where no folder is named. The test fold is what the evaluator of the demonstration measures on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hospital_node import economy, network
from hospital_node.cases import CohortError, discover
from hospital_node.cohort import Cohort
from hospital_node.network import NetworkError
from hospital_node.prepare import TooManySkipped, prepare
from hospital_node.prepared import PreparedCase, PreparedPatient
from hospital_node.prepared_cache import CacheError, PreparedCache
from hospital_node.train import TrainingError, train_round
from hospital_node.work import Count, Trained, WorkFailed, Workshop
from hospital_node.workshop import layout_of_plan, real_scorer
from proto.layout import Layout, LayoutError, Vector
from proto.modelfile import ModelFileError, read_model
from proto.plan import Network, Plan, Preparation, Training
from study import cast, presets, pretrain, start
from study.bench import shifts, startfile
from study.bench.cells import Cell, DataKind, Ordinary
from study.bench.task import Draws, Patients, StudyError, Unit, UnitCost
from study.cast import CastError, Role
from study.deal import DealError

PROBE_STEPS = 3  # after one that warms up
DATA_VARIABLE, DATA_DEFAULT = "SECAGG_DATA", "../shared/data"


@dataclass(frozen=True, slots=True)
class Segmentation:
    """See study.bench.task.Task."""

    name: str = "segmentation"
    metric: str = "Dice"

    def patients(self, cell: Cell, cache: Path, count: Count) -> Patients:
        """Every patient of the folder, prepared on the plan's grid."""
        preparation, labels = parts_of(cell)[1], len(parts_of(cell)[0].labels)
        roles = _roles(cell, cache, count)
        found = [_units(role, preparation, labels, cache, count) for role in roles]
        if not cell.data.folder:  # every synthetic hospital numbers its own people from 0
            found = [[_of_site(unit, role.name) for unit in units] for role, units in zip(roles, found, strict=True)]
        return Patients(tuple(unit for units in found[:-1] for unit in units), tuple(found[-1]))

    def shifted(self, units: Sequence[Unit], by: str, strength: float, seed: int) -> tuple[Unit, ...]:
        """The same patients with other noise, resolution or intensities; labels stay."""
        return tuple(_shifted(unit, by, strength, seed) for unit in units)

    def workshop(self, units: Sequence[Unit], draws: Draws) -> Workshop:
        """The real trainer and scorer over `units`."""

        def train(plan: Plan, uri: str, base: Vector, patients: Sequence[Any], **options: Any) -> Trained:
            try:
                return train_round(plan, uri, base, patients, rand=draws(uri, options["round"]), **options)
            except (TrainingError, NetworkError) as error:
                raise WorkFailed("training-failed", str(error)) from error

        return Workshop(self.layout, lambda _plan, _count: [unit.patient for unit in units], train, real_scorer)

    def layout(self, plan: Plan) -> Layout:
        """Of the plan's network."""
        return layout_of_plan(plan)

    def start(self, cell: Cell, plan: Plan, cache: Path) -> Vector:
        """Random weights by the cell's seed, the public start of the plan's template, or a file."""
        if cell.start == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(cell.seed)
                return network.vector_of(network.build(plan.network))
        path = _public_start(cell, cache) if cell.start == "public" else Path(os.path.expandvars(cell.start))
        try:
            return _fitting(path, self.layout(plan))
        except (ModelFileError, LayoutError) as error:
            raise StudyError(f"start {path}: {error}") from error

    def ordinary(self, plan: Plan, base: Vector, units: Sequence[Unit], recipe: Ordinary, seed: int, count: Count) -> Vector:
        """One-cycle AdamW on all scans, patches drawn by the node's own code; no clip per patient, no noise."""
        schedule = pretrain.Schedule(
            steps=recipe.steps, batch=recipe.batch, learning_rate=recipe.learning_rate, threads=1, seed=seed
        )
        parts = (plan.network, plan.preparation, plan.training)
        cases = [case for unit in units for case in unit.patient.cases]
        return pretrain.refine(parts, base, cases, schedule, count)

    def probe(self, cell: Cell) -> UnitCost:
        """One patient's gradient and one sliding window over two patches' worth of voxels, on random voxels."""
        plan_network, preparation, training = parts_of(cell)
        module = economy.economical(network.build(plan_network), training)
        rng = np.random.default_rng(0)
        shape = preparation.patch_zyx
        case = PreparedCase(
            rng.standard_normal(shape, dtype=np.float32), rng.integers(0, plan_network.classes, shape).astype(np.uint8)
        )
        torch.set_num_threads(1)
        patient_s = _timed(partial(_gradient, module, preparation, training, case))
        case_s = _timed(partial(_prediction, module, preparation, case))
        return UnitCost(patient_s, case_s, network.layout_of(module).length)


TASK = Segmentation()


def parts_of(cell: Cell) -> tuple[Network, Preparation, Training]:
    """The parts of the cell's plan that decide how patients look to the network. Raises pydantic.ValidationError."""
    parts = cell.plan
    return (
        Network.model_validate(parts["network"]),
        Preparation.model_validate(parts["preparation"]),
        Training.model_validate(parts["training"]),
    )


def expanded(folder: str) -> Path:
    """`folder` with environment variables filled in; SECAGG_DATA has a default."""
    if DATA_VARIABLE not in os.environ:
        folder = folder.replace(f"${{{DATA_VARIABLE}}}", DATA_DEFAULT).replace(f"${DATA_VARIABLE}", DATA_DEFAULT)
    return Path(os.path.expandvars(folder))


def _roles(cell: Cell, cache: Path, count: Count) -> list[Role]:
    """Training sites in the order of their names, then the test set."""
    folder = expanded(cell.data.folder) if cell.data.folder else None
    if folder is None and cell.data.kind is not DataKind.SYNTHETIC:
        raise StudyError('data.folder is empty, which means synthetic chest CT: say data.kind = "synthetic", or name a folder')
    if folder is not None and not folder.is_dir():
        where = "" if folder.is_absolute() else f" below {Path.cwd()}, where the command was typed"
        raise StudyError(f"data.folder: there is no folder {folder}{where}: correct the path in the study file")
    try:
        chosen = cast.choose(folder, cache / "cohort", lambda _name, done, total: count(done, total))
    except (CastError, DealError) as error:
        raise StudyError(f"data.folder: {error}") from error
    return [*chosen.hospitals, chosen.evaluator]


def _units(role: Role, preparation: Preparation, labels: int, cache: Path, count: Count) -> list[Unit]:
    folder = cache / "prepared"
    try:
        cohort = discover(role.data, site=role.site, fold=role.fold)
        prepared = prepare(cohort, preparation, labels, folder, count)
        key_of = PreparedCache.open(folder, preparation, labels).patient_key
    except (CohortError, CacheError, TooManySkipped) as error:
        raise StudyError(f"{role.data}: {error}") from error
    by_key = {patient.key: patient for patient in prepared.patients}
    kinds = _kinds(role.data, cohort)
    names = sorted({case.patient for case in cohort.cases})
    found = [(name, by_key.get(key_of(name))) for name in names]
    return [_unit(name, patient, role.name, labels, kinds.get(name, "")) for name, patient in found if patient is not None]


def _unit(name: str, patient: PreparedPatient, site: str, labels: int, kind: str) -> Unit:
    counts = sum(np.bincount(np.asarray(case.label).reshape(-1), minlength=labels + 1) for case in patient.cases)
    voxels = tuple(float(value) for value in np.asarray(counts)[1:])
    return Unit(name, PreparedPatient(name, patient.cases), site, voxels, kind)  # the same draws on every machine


def _of_site(unit: Unit, site: str) -> Unit:
    """The same patient under a name that no other site uses."""
    name = f"{site}/{unit.name}"
    return Unit(name, PreparedPatient(name, unit.patient.cases), unit.site, unit.label_counts, unit.kind)


def _kinds(folder: Path, cohort: Cohort) -> dict[str, str]:
    """Patient -> stored type of the images, where the folder's cases.csv says it: a stand-in for the scanner."""
    path = folder / "cases.csv"
    if not path.is_file():
        return {}
    known = {case.patient for case in cohort.cases}
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row.get("subject_guess") in known]
    return {row["subject_guess"]: row.get("image_type", "") for row in rows}


def _shifted(unit: Unit, by: str, strength: float, seed: int) -> Unit:
    cases = tuple(
        PreparedCase(
            shifts.shift_image(np.asarray(case.image), by, strength, shifts.rng_of(seed, unit.name, index)),
            np.asarray(case.label),
        )
        for index, case in enumerate(unit.patient.cases)
    )
    return Unit(unit.name, PreparedPatient(unit.name, cases), unit.site, unit.label_counts, unit.kind)


def _public_start(cell: Cell, cache: Path) -> Path:
    """The better of the candidates that the demonstration tries too, by loss on public shapes; kept for later cells."""
    preset = presets.Preset.of("study", dict(cell.plan))
    candidates = [_candidate(preset, seed, cache / "starts") for seed in start.SEEDS]
    return min(candidates, key=lambda path: float(read_model(path).provenance[start.LOSS_KEY]))


def _candidate(preset: presets.Preset, seed: int, folder: Path) -> Path:
    recipe = json.dumps(startfile.recipe_of(preset, seed), sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    return startfile.make_start(preset, seed=seed, volumes=None, steps=None, out=out, announce=lambda _: None)


def _fitting(path: Path, layout: Layout) -> Vector:
    model = read_model(path)
    if model.layout != layout:
        raise LayoutError("it was made for another network than the cell's plan names: make one with secagg-study pretrain")
    return model.vector


def _gradient(module: torch.nn.Module, preparation: Preparation, training: Training, case: PreparedCase) -> None:
    from hospital_node import patches
    from hospital_node.losses import loss_of

    pool = PreparedPatient("probe", (case,))
    images, labels = patches.draw(pool, preparation, training, np.random.default_rng(1))
    loss: Any = loss_of(training.loss)(economy.logits(module, images, training), labels)
    loss.backward()


def _prediction(module: torch.nn.Module, preparation: Preparation, case: PreparedCase) -> None:
    from hospital_node.inference import predict

    predict(module, case.image, preparation.patch_zyx)


def _timed(work: Callable[[], None]) -> float:
    """Median seconds of `work` after one call that warms up."""
    work()
    return float(np.median([_seconds(work) for _ in range(PROBE_STEPS)]))


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
