"""The real heavy parts of a node: imaging, network and training, with their errors in the node's two kinds.

The only file between the node's loop and torch; importing it loads torch, MONAI and SimpleITK.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from hospital_node.cases import CohortError
from hospital_node.config import ConfigError, NodeConfig
from hospital_node.device import PROCESSOR, DeviceMissingError, chosen
from hospital_node.inference import dice, predict
from hospital_node.ledger import LedgerError
from hospital_node.network import NetworkError, build, layout_of, load_vector, vector_of
from hospital_node.prepare import PreparedCase, PreparedCohort, TooManySkipped, prepare
from hospital_node.prepared_cache import CacheError
from hospital_node.state import StateFolder
from hospital_node.studies import usable_studies
from hospital_node.terminal import counted
from hospital_node.train import TrainingError, train_round
from hospital_node.work import Count, Score, Scored, Trained, Trainer, WorkFailed, Workshop, drifting
from proto.layout import Layout, Vector
from proto.modelfile import Model
from proto.plan import Plan, PlanError


def real_workshop(config: NodeConfig, train: Trainer | None = None) -> Workshop:
    """What a node works with. `train` may wrap the real one. At a terminal a bar shows how preparing goes.

    Raises ConfigError where the configured device is not there.
    """
    device = configured_device(config)

    def prepared(plan: Plan, count: Count) -> Sequence[Any]:
        with counted("preparing studies") as bar:

            def both(done: int, total: int) -> None:
                count(done, total)
                bar(done, total)

            return prepare_studies(config, plan, both).patients

    trainer = partial(train_round, device=device) if train is None else train
    return Workshop(layout_of_plan, prepared, _with_known_errors(trainer), partial(real_scorer, device=device))


def configured_device(config: NodeConfig) -> torch.device:
    """The device of the key `device`. Raises ConfigError where it is not there."""
    try:
        return chosen(config.device)
    except DeviceMissingError as error:
        raise ConfigError(f"the node's configuration says device = '{config.device}', but {error}") from error


def prepare_studies(config: NodeConfig, plan: Plan, count: Count) -> PreparedCohort:
    """All usable studies (studies.py) on the plan's grid, from the cache where it has them. Raises WorkFailed."""
    labels, folder = len(plan.network.labels), StateFolder(config.state)
    try:
        cohort = usable_studies(config)
        secret = folder.patient_secret
        return prepare(cohort, plan.preparation, labels, folder.cache, count, threads=config.threads, secret=secret)
    except (CohortError, CacheError) as error:
        raise WorkFailed("data-unusable", str(error)) from error
    except LedgerError as error:
        raise WorkFailed(error.code, str(error)) from error
    except TooManySkipped as error:
        raise WorkFailed(error.code, str(error)) from error


def layout_of_plan(plan: Plan) -> Layout:
    """The vector layout of the plan's network. Raises PlanError where it cannot be built."""
    return random_model(plan).layout


def random_model(plan: Plan) -> Model:
    """Fresh weights for the plan's network."""
    try:
        module = build(plan.network)
    except NetworkError as error:
        raise PlanError(f"the network of study '{plan.study}' cannot be built: {error}") from error
    return Model(layout_of(module), vector_of(module))


def real_scorer(plan: Plan, model: Vector, threads: int, device: torch.device = PROCESSOR) -> Score:
    """How well `model` segments one prepared case."""
    torch.set_num_threads(threads)
    module = build(plan.network)
    load_vector(module.to(device), layout_of(module), model)

    def score(case: PreparedCase) -> Scored:
        prediction = predict(module, case.image, plan.preparation.patch_zyx)
        truth = np.asarray(case.label)
        values = {name: dice(prediction, truth, value) for value, name in enumerate(plan.network.labels, start=1)}
        return Scored(values, prediction)

    return score


def _with_known_errors(train: Trainer) -> Trainer:
    def run(
        plan: Plan,
        uri: str,
        base: Vector,
        patients: Sequence[Any],
        *,
        threads: int = 1,
        round: int = 1,  # noqa: A002  (the plan's word)
        on_step: Callable[[Any], None] = lambda _: None,
        drift: Vector | None = None,
    ) -> Trained:
        try:
            return train(plan, uri, base, patients, threads=threads, round=round, on_step=on_step, **drifting(drift))
        except (TrainingError, NetworkError, PlanError) as error:
            raise WorkFailed("training-failed", str(error)) from error

    return run
