"""A second task: the handwritten digits that come with scikit-learn (1,797 images of 8 x 8), one image a privacy unit.

The example for whoever brings a learning problem to a study (study.bench.task.Task): patients, a network and its loss
(digits_model.py), a score, ordinary training. Node, ledger, DP-SGD, quantizer, masks and coordinator are the product's own.
The images are public and come from 13 writers who are not named, so test writers may also be training writers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from hospital_node import network
from hospital_node.network import NetworkError
from hospital_node.train import TrainingError, train_round
from hospital_node.work import Count, Score, Scored, Trained, WorkFailed, Workshop
from proto.layout import Layout, Vector
from proto.modelfile import ModelFileError, read_model
from proto.plan import Network, Plan, Training
from study.bench.cells import Cell, DataKind, Ordinary
from study.bench.task import Draws, Patients, StudyError, Unit, UnitCost
from study.examples import digits_model
from study.examples.digits_model import CLASSES, LABEL, SIDE, DigitCase, DigitPatient

TEST_EVERY = 5  # of each digit's images, in the order of the file, every fifth is a test case
WHITE = 16.0  # brightest value of the file
INSTALL = "pip install 'hospital-secagg[test]', or pip install scikit-learn"
PROBE_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Digits:
    """See study.bench.task.Task."""

    name: str = "digits"
    metric: str = "accuracy"

    def patients(self, cell: Cell, cache: Path, count: Count) -> Patients:  # noqa: ARG002  nothing to prepare
        """All images, split by the public rule of `is_test`."""
        if cell.data.folder or cell.data.kind is not DataKind.PUBLIC:
            raise StudyError(
                "the digits come with scikit-learn and are public: remove data.folder and say data.kind = 'public'"
            )
        images, digits = _bundled()
        units = [_unit(index, image, int(digit)) for index, (image, digit) in enumerate(zip(images, digits, strict=True))]
        test = is_test(digits)
        return Patients(
            tuple(unit for unit, held_out in zip(units, test, strict=True) if not held_out),
            tuple(unit for unit, held_out in zip(units, test, strict=True) if held_out),
        )

    def shifted(self, units: Sequence[Unit], by: str, strength: float, seed: int) -> tuple[Unit, ...]:
        """The same digits as another scanner would show them."""
        return tuple(_shifted(unit, by, strength, seed) for unit in units)

    def workshop(self, units: Sequence[Unit], draws: Draws) -> Workshop:
        """The product's DP-SGD with this task's network and loss, over `units`."""

        def train(plan: Plan, uri: str, base: Vector, patients: Sequence[Any], **options: Any) -> Trained:
            rand = draws(uri, options["round"])
            try:
                return train_round(plan, uri, base, patients, objective=digits_model.OBJECTIVE, rand=rand, **options)
            except (TrainingError, NetworkError) as error:
                raise WorkFailed("training-failed", str(error)) from error

        return Workshop(self.layout, lambda _plan, _count: [unit.patient for unit in units], train, scorer)

    def layout(self, plan: Plan) -> Layout:
        """Of the plan's network. Raises StudyError."""
        return network.layout_of(_build(plan.network))

    def start(self, cell: Cell, plan: Plan, cache: Path) -> Vector:  # noqa: ARG002  nothing is kept
        """Random weights by the cell's seed, or a file."""
        if cell.start == "public":
            raise StudyError("the digits have no public start: say start = 'random', or name a safetensors file")
        if cell.start == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(cell.seed)
                return network.vector_of(_build(plan.network))
        return _from_file(Path(os.path.expandvars(cell.start)), self.layout(plan))

    def ordinary(self, plan: Plan, base: Vector, units: Sequence[Unit], recipe: Ordinary, seed: int, count: Count) -> Vector:
        """Adam with a one-cycle schedule over batches drawn with replacement; the views of the federated training."""
        torch.set_num_threads(1)
        module = _loaded(plan, base)
        optimizer = Adam(module.parameters(), lr=recipe.learning_rate)
        schedule = OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
        cases = [case for unit in units for case in unit.patient.cases]
        rng = np.random.default_rng(seed)
        for step in range(recipe.steps):
            batch = [cases[at] for at in rng.integers(len(cases), size=recipe.batch)]
            optimizer.zero_grad()
            _batch_loss(module, batch, plan.training, rng).backward()
            optimizer.step()
            schedule.step()
            count(step + 1, recipe.steps)
        return network.vector_of(module)

    def probe(self, cell: Cell) -> UnitCost:
        """One gradient and one prediction, each the mean over made-up images."""
        plan_network = Network.model_validate(cell.plan["network"])
        training = Training.model_validate(cell.plan["training"])
        torch.set_num_threads(1)
        module = _build(plan_network)
        rng = np.random.default_rng(0)
        patients = [_unit(at, rng.uniform(0, WHITE, (SIDE, SIDE)), at % CLASSES).patient for at in range(PROBE_IMAGES)]
        began_s = time.perf_counter()
        for patient in patients:
            digits_model.image_loss(module, training, patient, rng).backward()
        trained_s = time.perf_counter()
        for patient in patients:
            predicted(module, patient.cases[0])
        measured_s = time.perf_counter()
        length = network.layout_of(module).length
        return UnitCost((trained_s - began_s) / PROBE_IMAGES, (measured_s - trained_s) / PROBE_IMAGES, length)


TASK = Digits()


def is_test(digits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images are test cases: of each digit every fifth, counted in the order of the file. The same everywhere."""
    test = np.zeros(len(digits), dtype=np.bool_)
    for digit in range(CLASSES):
        test[np.flatnonzero(digits == digit)[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return test


def scorer(plan: Plan, model: Vector, threads: int) -> Score:
    """1.0 for a digit that `model` reads right, else 0.0."""
    torch.set_num_threads(threads)
    module = _loaded(plan, model)
    module.eval()

    def score(case: DigitCase) -> Scored:
        digit = predicted(module, case)
        return Scored({LABEL: float(digit == case.digit)}, np.full(case.label.shape, digit, np.uint8))

    return score


def predicted(module: torch.nn.Module, case: DigitCase) -> int:
    """The likeliest digit."""
    with torch.inference_mode():
        return int(module(torch.from_numpy(case.image[None])).argmax())


def _bundled() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (1797, 8, 8) from 0 to WHITE, and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise StudyError(f"the digits example needs scikit-learn: {INSTALL}") from error
    bundle = load_digits()
    return bundle.images, bundle.target


def _unit(index: int, image: NDArray[np.float64], digit: int) -> Unit:
    name = f"digit-{index:04d}"
    pixels = (2 * image / WHITE - 1).astype(np.float32)[None]
    patient = DigitPatient(name, (DigitCase(pixels, np.full(pixels.shape, digit, np.uint8)),))
    counts = tuple(float(digit == other) for other in range(CLASSES))
    return Unit(name, patient, label_counts=counts, kind=str(digit))


def _shifted(unit: Unit, by: str, strength: float, seed: int) -> Unit:
    from study.bench import shifts

    case = unit.patient.cases[0]
    image = shifts.shift_image(case.image[0], by, strength, shifts.rng_of(seed, unit.name, 0))[None]
    patient = DigitPatient(unit.name, (DigitCase(image, case.label),))
    return Unit(unit.name, patient, unit.site, unit.label_counts, unit.kind)


def _build(plan_network: Network) -> torch.nn.Module:
    try:
        return digits_model.build(plan_network)
    except TrainingError as error:
        raise StudyError(str(error)) from error


def _loaded(plan: Plan, vector: Vector) -> torch.nn.Module:
    module = _build(plan.network)
    network.load_vector(module, network.layout_of(module), vector)
    return module


def _from_file(path: Path, layout: Layout) -> Vector:
    try:
        model = read_model(path)
    except ModelFileError as error:
        raise StudyError(f"start {path}: {error}") from error
    if model.layout != layout:
        raise StudyError(f"start {path} was made for another network than the cell's plan names")
    return model.vector


def _batch_loss(
    module: torch.nn.Module, batch: Sequence[DigitCase], training: Training, rng: np.random.Generator
) -> torch.Tensor:
    images = [digits_model.views(case.image, 1, rng)[0] if training.augment else case.image for case in batch]
    return functional.cross_entropy(module(torch.from_numpy(np.stack(images))), torch.tensor([case.digit for case in batch]))
