"""Federations with control variates: real trainer, masks, state folders and coordinator, against algorithm 1 in float64."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_world import Case, Step
from torch import nn

from hospital_node.train import train_round
from hospital_node.variates import Variates
from hospital_node.work import Scored, WorkFailed, Workshop
from proto.layout import Layout
from proto.modelfile import Model
from proto.plan import Plan
from study.bench.draws import seeded
from study.bench.federation import Federated, Seats, run_federation

LAYOUT = Layout((("x", (4,)),))
STEPS, RATE, ROUNDS = 5, 0.2, 6
CURVATURE = np.random.default_rng(5).uniform(0.3, 2.5, (4, 4))
LEAST = np.random.default_rng(6).uniform(-1, 1, (4, 4))
START = np.array([0.5, -0.5, 0.0, 1.0], np.float32)


def make_plan(clip: float = 4.0, **fields: Any) -> Plan:
    base: dict[str, Any] = {
        "study": "bowl",
        "rounds": ROUNDS,
        "network": {"labels": ["x"]},
        "preparation": {"modality": "CT", "spacing_xyz_mm": [1, 1, 1], "patch_zyx": [8, 8, 8]},
        "training": {"local_steps": STEPS, "optimizer": "sgd", "learning_rate": RATE},
        "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 1, "clip_norm": 1e3},
        "masking": {"update_clip": clip},
        "aggregation": {"rule": "scaffold"},
        "hospitals": [{"uri": f"secagg://bowl/hospital/h{n}", "declared_patients": 1} for n in range(4)],
        "evaluators": ["secagg://bowl/evaluator/public-test"],
    }
    return Plan.model_validate({**base, **fields})


@dataclass
class Bowl:
    key: str
    at: int
    cases: tuple[Case, ...]


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(4))


class Descent:
    """What is learned: the least point of the hospital's own quadratic."""

    def check(self, plan: Plan) -> None:
        del plan

    def build(self, plan: Plan) -> nn.Module:
        del plan
        return Point()

    def loss(self, module: nn.Module, plan: Plan, patient: Any, rng: np.random.Generator) -> torch.Tensor:
        del plan, rng
        away = module.x - torch.tensor(LEAST[patient.at], dtype=torch.float32)
        return (torch.tensor(CURVATURE[patient.at], dtype=torch.float32) * away * away).sum() / 2


@dataclass
class Clinic:
    """The workshop of one hospital, or of the evaluator (`at` -1)."""

    at: int
    lengths: set[int]
    fails_in: int = 0
    log: Any = None

    def workshop(self) -> Workshop:
        return Workshop(lambda _: LAYOUT, self.prepare, self.train, self.scorer)

    def prepare(self, plan: Plan, count: Any) -> list[Bowl]:
        del plan
        count(1, 1)
        volume = np.zeros((2, 2, 2), np.uint8)
        return [Bowl("patient", self.at, (Case(volume, volume),))]

    def train(self, plan: Plan, uri: str, base: Any, patients: Any, **options: Any) -> Any:
        options["on_step"](Step(1, 1))
        if options["round"] == self.fails_in:
            raise WorkFailed("training-failed", "a drill")
        return train_round(plan, uri, base, patients, objective=Descent(), **options)

    def scorer(self, plan: Plan, model: Any, threads: int) -> Any:
        del plan, threads
        self.lengths.add(len(model))
        return lambda case: Scored({"x": 0.5}, case.label)


def play(folder: Path, plan: Plan, fails: dict[int, int] | None = None) -> tuple[Federated, set[int]]:
    lengths: set[int] = set()
    clinics = {h.uri: Clinic(at, lengths, (fails or {}).get(at, 0)).workshop() for at, h in enumerate(plan.hospitals)}
    seats = Seats(clinics, Clinic(-1, lengths).workshop())
    start = Model(LAYOUT, START, {})
    stop = threading.Event()
    done = run_federation(folder, plan, start, seats, cap=None, data_is_public=True, on_round=lambda _: None, stop=stop)
    return done, lengths


def printed(cohorts: list[list[int]], clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1, option II, in float64, with the clip of what is sent; the model and every c_i."""
    x, own, common = START.astype(np.float64), np.zeros((4, 4)), np.zeros(4)
    for cohort in cohorts:
        fresh, moved = own.copy(), []
        for at in cohort:
            y = x.copy()
            for _ in range(STEPS):
                y = y - RATE * (CURVATURE[at] * (y - LEAST[at]) - own[at] + common)
            sent = np.clip(y - x, -clip, clip)
            fresh[at] = own[at] - common - sent / (STEPS * RATE)
            moved.append(sent)
        x = x + np.mean(moved, axis=0)
        common = common + (fresh - own).sum(axis=0) / 4
        own = fresh
    return x, own


def own_variates(folder: Path, plan: Plan) -> np.ndarray:
    found = []
    for at in range(4):
        state = folder / f"h{at}" / "state"
        found.append(Variates(state / "variate.safetensors", state / "variate-proposed.safetensors", plan, LAYOUT).own())
    return np.array(found)


@pytest.mark.parametrize("clip", [4.0, 0.3])
def test_a_federation_follows_the_printed_algorithm_also_where_the_session_clips(tmp_path: Path, clip: float) -> None:
    plan = make_plan(clip)
    done, lengths = play(tmp_path, plan)
    model, own = printed([[0, 1, 2, 3]] * ROUNDS, clip)
    np.testing.assert_allclose(done.model, model, atol=2e-4)
    np.testing.assert_allclose(own_variates(tmp_path, plan), own, atol=2e-4)
    assert lengths == {LAYOUT.length}  # evaluators measure the model alone
    assert not list(tmp_path.rglob("variate-proposed.safetensors"))


def test_hospitals_that_a_round_does_not_ask_keep_their_variates(tmp_path: Path) -> None:
    plan = make_plan(participants=3)
    done, _ = play(tmp_path, plan)
    place = {hospital.uri: at for at, hospital in enumerate(plan.hospitals)}
    cohorts = [[place[uri] for uri in plan.selected(number)] for number in range(1, ROUNDS + 1)]
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    model, own = printed(cohorts, 4.0)
    np.testing.assert_allclose(done.model, model, atol=2e-4)
    np.testing.assert_allclose(own_variates(tmp_path, plan), own, atol=2e-4)


def test_a_round_whose_training_failed_at_one_hospital_leaves_its_variate(tmp_path: Path) -> None:
    plan = make_plan(rounds=3)
    done, _ = play(tmp_path, plan, fails={2: 2})
    model, own = printed([[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3]], 4.0)
    np.testing.assert_allclose(done.model, model, atol=2e-4)
    np.testing.assert_allclose(own_variates(tmp_path, plan), own, atol=2e-4)


def test_the_drift_is_added_outside_of_clip_and_noise_and_changes_no_charge() -> None:
    """With one step and the same secret chance, updates with and without drift differ by eta times the drift, however large."""
    privacy = {"noise_multiplier": 2.0, "inverse_sampling_rate": 1, "clip_norm": 0.1}
    training = {"local_steps": 1, "optimizer": "sgd", "learning_rate": RATE}
    plan = make_plan(privacy=privacy, training=training)
    drift = np.array([50.0, -50.0, 0.25, 0.0], np.float32)
    bowl = Clinic(0, set()).prepare(plan, lambda *_: None)

    def trained(**more: Any) -> Any:
        return train_round(plan, plan.hospitals[0].uri, START, bowl, objective=Descent(), rand=seeded("one draw"), **more)

    plain, drifted = trained(), trained(drift=drift)
    np.testing.assert_allclose(drifted.update - plain.update, -RATE * drift, rtol=1e-5, atol=1e-6)
    assert drifted.history == plain.history == ((2.0, 1.0, 1),)
