"""Federations that train a part of the network: what travels, and that everybody still gets a whole model."""

from __future__ import annotations

import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
from test_examples_digits import cell_of, no_draws

from proto.modelfile import Model, encode_model, read_model
from proto.parts import update_layout
from proto.plan import Plan
from study.bench import grid
from study.bench.federation import Seats, run_federation
from study.bench.plain import run_plain
from study.bench.task import Draws, scores_of
from study.examples.digits import TASK

pytest.importorskip("sklearn", reason="scikit-learn brings the digits")

TEMPLATE = tomllib.loads((Path(grid.__file__).parents[1] / "examples" / "digits-plan.toml").read_text())
ROUNDS, HOSPITALS = 2, 3
CHOICES = {
    "everything": {},
    "norms and biases": {"parts": "norms-and-biases"},
    "the last layer": {"parts": ["9."]},
    "adapters": {"adapter_rank": 2},
}


def plan_of(**training) -> Plan:
    admitted = [{"uri": f"secagg://digits/hospital/h{at}", "declared_patients": 20} for at in range(HOSPITALS)]
    fields = {**TEMPLATE, "rounds": ROUNDS, "evaluate_every": ROUNDS, "study": "digits", "hospitals": admitted}
    fields["training"] = {**fields["training"], "local_steps": 2, **training}
    fields["privacy"] = {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 2, "clip_norm": 10.0}
    return Plan.model_validate({**fields, "evaluators": ["secagg://digits/evaluator/public-test"]})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Patients of each hospital, test patients and a start, the same for every choice."""
    folder = tmp_path_factory.mktemp("cache")
    patients = TASK.patients(cell_of(), folder, lambda done, total: None)
    dealt = {f"secagg://digits/hospital/h{at}": patients.training[20 * at : 20 * at + 20] for at in range(HOSPITALS)}
    return dealt, patients.test[:20], TASK.start(cell_of(), plan_of(), folder)


def masked(folder, plan, world, draws: Draws = no_draws):
    dealt, test, start = world
    seats = Seats({uri: TASK.workshop(units, draws) for uri, units in dealt.items()}, TASK.workshop(test, draws))
    model = Model(TASK.layout(plan), start, {})
    return run_federation(
        folder, plan, model, seats, cap=None, data_is_public=True, on_round=lambda _: None, stop=threading.Event()
    )


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_what_travels_up_shrinks_and_the_released_model_is_whole(tmp_path, world, choice):
    plan, start = plan_of(**choice), world[2]
    layout = TASK.layout(plan)
    sent = update_layout(layout, plan.training)
    done = masked(tmp_path, plan, world)
    values = 8 * -(-sent.length // plan.masking.lanes) * HOSPITALS  # bytes of the packed words alone
    overhead = 40_000  # of certificates, shares, signatures and framing; the same for each choice
    assert values <= done.rounds[1].upload_bytes < values + overhead
    assert 4 * layout.length * HOSPITALS < done.rounds[1].download_bytes
    assert done.model.shape == start.shape
    before, after = layout.split(start), layout.split(done.model)
    trained = {name.removesuffix(".up") for name, _ in sent.tensors}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == trained
    assert done.rounds[-1].scores == scores_of(TASK, plan, done.model, world[1], no_draws)
    path = tmp_path / "released.safetensors"
    path.write_bytes(encode_model(Model(layout, done.model, {})))
    assert np.array_equal(read_model(path).vector, done.model)


@pytest.mark.parametrize("choice", [CHOICES["norms and biases"], CHOICES["adapters"]], ids=["norms and biases", "adapters"])
def test_masks_change_the_mean_of_a_part_by_rounding_alone(tmp_path, world, choice):
    plan = plan_of(**choice)
    dealt, test, start = world
    plain = run_plain(plan, start, dealt, test, TASK, no_draws, lambda _: None, threading.Event())
    hidden = masked(tmp_path, plan, world)
    change = np.linalg.norm(plain.model - start)
    assert 0 < np.linalg.norm(plain.model - hidden.model) < 1e-3 * change
    sent = update_layout(TASK.layout(plan), plan.training).length
    assert plain.rounds[1].upload_bytes == 4 * sent * HOSPITALS
    assert plain.rounds[1].download_bytes == 4 * len(start) * HOSPITALS


def test_momentum_at_the_coordinator_keeps_what_is_not_trained(tmp_path, world):
    fields = plan_of(parts=["9."]).model_dump(mode="json")
    fields["aggregation"] = {"learning_rate": 1.0, "momentum": 0.9}
    plan, start = Plan.model_validate(fields), world[2]
    layout = TASK.layout(plan)
    before, after = layout.split(start), layout.split(masked(tmp_path, plan, world).model)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["9.weight", "9.bias"]
