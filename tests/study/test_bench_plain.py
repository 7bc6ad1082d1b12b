"""The plain federated baseline against sums written out by hand, and ordinary training around a task that only counts."""

import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hospital_node.accounting import Mechanism, epsilon
from hospital_node.work import Interrupted, Scored, Workshop
from proto.layout import Layout
from proto.plan import Plan
from study.bench import ordinary
from study.bench.cell import Setting, planned_epsilon, release_of
from study.bench.cells import Cell, Data, Ordinary, Partition
from study.bench.plain import run_plain, weighted_mean
from study.bench.task import StudyError, Unit

LENGTH = 3
START = np.array([1.0, 2.0, 3.0], np.float32)
SILENT = {"noise_multiplier": 0.0, "no_guarantee": True}


def uri(name):
    return f"secagg://trial/hospital/{name}"


def plan_of(weights=(1, 2, 5), **changes):
    hospitals = [{"uri": uri(f"h{at}"), "declared_patients": 20, "weight": weight} for at, weight in enumerate(weights)]
    fields = {
        "study": "trial",
        "rounds": 4,
        "network": {"labels": ["near", "far"]},
        "preparation": {"modality": "MR", "spacing_xyz_mm": [1, 1, 1], "patch_zyx": [8, 8, 8]},
        "training": {"local_steps": 2},
        "privacy": {**SILENT, "inverse_sampling_rate": 4, "delta": 1e-3},
        "hospitals": hospitals,
    }
    return Plan.model_validate(fields | changes)


def units(name, count):
    return tuple(Unit(f"{name}-{at}", SimpleNamespace(key=f"{name}-{at}", cases=(float(at),))) for at in range(count))


def update_of(party, number, base, patients):
    """A made-up training: depends on hospital, round, model and patients."""
    return (0.1 * number * (1 + int(party[-1])) - 0.01 * base * len(patients)).astype(np.float32)


class Sums:
    """A task without learning: a model is three numbers, a case scores one of them."""

    name = "sums"
    metric = "value"

    def __init__(self):
        self.asked = Counter()
        self.on_step = lambda: None
        self.ordinary_units = []

    def workshop(self, held, draws):
        def train(plan, party, base, patients, **options):
            number = options["round"]
            draws(party, number)
            self.asked[party, number] += 1
            self.on_step()
            options["on_step"](None)
            return SimpleNamespace(update=update_of(party, number, base, patients), base_digest=b"")

        def scorer(plan, model, threads):
            return lambda case: Scored({"near": float(model[0]) + case, "far": None if case else float(model[2])}, None)

        return Workshop(self.layout, lambda plan, count: [unit.patient for unit in held], train, scorer)

    def layout(self, plan):
        return Layout((("w", (LENGTH,)),))

    def ordinary(self, plan, base, given, recipe, seed, count):
        self.ordinary_units.append([unit.name for unit in given])
        for step in range(recipe.steps):
            self.on_step()
            count(step + 1, recipe.steps)
        return base + np.float32(len(given))


DEALT = {uri("h0"): units("a", 2), uri("h1"): units("b", 3), uri("h2"): units("c", 4)}
TEST = units("t", 2)


def played(plan, dealt=DEALT, task=None, draws=lambda party, number: None, on_round=lambda row: None, stop=None):
    return run_plain(plan, START, dealt, TEST, task or Sums(), draws, on_round, stop or threading.Event())


def by_hand(plan, dealt=DEALT):
    """Models after each round: weighted mean in float64, then the server's step."""
    model, velocity, models = START, np.zeros(LENGTH, np.float32), [START]
    for number in range(1, plan.rounds + 1):
        chosen = [entry for entry in plan.hospitals if entry.uri in plan.selected(number)]
        sums = sum(one.weight * update_of(one.uri, number, model, dealt[one.uri]).astype(np.float64) for one in chosen)
        mean = (sums / sum(one.weight for one in chosen)).astype(np.float32)
        velocity = np.float32(plan.aggregation.momentum) * velocity + mean
        model = model + np.float32(plan.aggregation.learning_rate) * velocity
        models.append(model)
    return models


@pytest.mark.parametrize("aggregation", [{}, {"learning_rate": 0.5}, {"learning_rate": 0.7, "momentum": 0.9}])
def test_models_are_those_of_the_mean_written_out_by_hand(aggregation):
    plan = plan_of(aggregation=aggregation)
    models = by_hand(plan)
    done = played(plan)
    assert np.array_equal(done.model, models[-1])
    assert done.model.dtype == np.float32
    scores = [row.scores["near"] for row in done.rounds]
    assert scores == [[float(model[0]), float(model[0]) + 1] for model in models]


def test_rows_name_rounds_survivors_bytes_and_scores():
    told = []
    done = played(plan_of(), on_round=told.append)
    assert told == done.rounds
    assert [row.round for row in done.rounds] == [0, 1, 2, 3, 4]
    assert [row.survivors for row in done.rounds] == [0, 3, 3, 3, 3]
    assert [(row.upload_bytes, row.download_bytes) for row in done.rounds] == [(0, 0)] + 4 * [(3 * 4 * LENGTH, 3 * 4 * LENGTH)]
    assert all(len(row.scores["far"]) == 1 for row in done.rounds)  # the second case does not hold that label
    assert all(row.epsilon is None and row.seconds >= 0 for row in done.rounds)


def test_only_who_is_selected_trains_is_averaged_and_is_charged_bytes():
    plan = plan_of(weights=(1, 2, 5, 1, 3, 2), participants=3, rounds=5)
    dealt = {entry.uri: units(entry.uri[-2:], 2) for entry in plan.hospitals}
    task = Sums()
    done = played(plan, dealt, task)
    assert set(task.asked) == {(party, number) for number in range(1, 6) for party in plan.selected(number)}
    assert set(task.asked.values()) == {1}
    assert np.array_equal(done.model, by_hand(plan, dealt)[-1])
    assert [row.upload_bytes for row in done.rounds[1:]] == 5 * [3 * 4 * LENGTH]
    assert len({party for party, _ in task.asked}) > 3  # the selection did change


def test_each_training_takes_the_draws_of_its_hospital_and_round():
    taken = []
    played(plan_of(), draws=lambda party, number: taken.append((party, number)))
    assert sorted(taken) == sorted((party, number) for party in DEALT for number in range(1, 5))


def test_models_are_measured_in_the_rounds_that_a_coordinator_would_ask_for():
    done = played(plan_of(rounds=5, evaluate_every=2))
    assert [row.round for row in done.rounds if row.scores] == [0, 2, 4, 5]


def test_epsilon_is_that_of_the_hospital_that_trained_most():
    privacy = {"noise_multiplier": 1.5, "inverse_sampling_rate": 4, "delta": 1e-3}
    plan = plan_of(weights=(1, 1, 1, 1, 1), participants=3, privacy=privacy, rounds=4)
    done = played(plan, {entry.uri: units("x", 1) for entry in plan.hospitals})
    trained = Counter(party for number in range(1, 5) for party in plan.selected(number))
    most = max(trained.values())
    assert min(trained.values()) < most < 5
    assert done.rounds[-1].epsilon == planned_epsilon(plan, most)
    assert done.charged == release_of(plan, 2 * most, most)
    assert done.rounds[-1].epsilon == pytest.approx(epsilon([Mechanism(1.5, 0.25, 2 * most)], 1e-3), rel=0.01)
    assert done.rounds[0].epsilon == 0.0
    assert sorted(row.epsilon for row in done.rounds) == [row.epsilon for row in done.rounds]


def test_a_stop_ends_the_run_within_the_training_under_way():
    stop, task, told = threading.Event(), Sums(), []

    def second_round():
        if task.asked[uri("h1"), 2]:
            stop.set()

    task.on_step = second_round
    with pytest.raises(Interrupted):
        played(plan_of(), task=task, stop=stop, on_round=told.append)
    assert [row.round for row in told] == [0, 1]
    assert not task.asked[uri("h2"), 2]


def test_patients_of_other_hospitals_than_the_plans_are_refused():
    with pytest.raises(StudyError, match=r"other hospitals than the plan admits.*/h2"):
        played(plan_of(), {party: held for party, held in DEALT.items() if party != uri("h2")})


finite = st.floats(-10, 10, width=32)
vectors = st.lists(finite, min_size=LENGTH, max_size=LENGTH).map(lambda values: np.array(values, np.float32))


@given(st.lists(st.tuples(st.integers(1, 1 << 20), vectors), min_size=1, max_size=8))
def test_a_mean_lies_between_its_updates_and_rounds_once(pairs):
    mean = weighted_mean(pairs)
    every = np.stack([vector for _, vector in pairs])
    assert mean.dtype == np.float32
    assert (mean >= np.nextafter(every.min(0), np.float32(-np.inf))).all()
    assert (mean <= np.nextafter(every.max(0), np.float32(np.inf))).all()
    exact = np.average(every.astype(np.float64), axis=0, weights=[weight for weight, _ in pairs])
    assert mean == pytest.approx(exact, rel=2**-22, abs=1e-12)


@given(st.integers(1, 1 << 20), vectors)
def test_the_mean_of_one_is_that_one(weight, vector):
    assert np.array_equal(weighted_mean([(weight, vector)]), vector)


def setting_of(task):
    plan = plan_of()
    cell = Cell(
        study="trial",
        task="sums",
        method="pooled",
        seed=5,
        data=Data(),
        partition=Partition(),
        start="random",
        ordinary=Ordinary(steps=3),
        plan={},
        settings={},
    )
    return Setting(cell, task, plan, START, DEALT, TEST, lambda party, number: None)


def test_pooled_trains_once_on_everybody_and_measures_start_and_end():
    task, told = Sums(), []
    rows = ordinary.run_pooled(setting_of(task), told.append, threading.Event())
    assert task.ordinary_units == [["a-0", "a-1", "b-0", "b-1", "b-2", "c-0", "c-1", "c-2", "c-3"]]
    assert rows == told
    assert [(row.round, row.survivors) for row in rows] == [(0, 3), (4, 3)]
    assert [row.scores for row in rows] == [{"near": [1.0, 2.0], "far": [3.0]}, {"near": [10.0, 11.0], "far": [12.0]}]
    assert all((row.upload_bytes, row.download_bytes, row.epsilon) == (0, 0, None) for row in rows)


def test_local_trains_each_hospital_and_averages_each_cases_scores():
    task = Sums()
    rows = ordinary.run_local(setting_of(task), lambda row: None, threading.Event())
    assert [len(names) for names in task.ordinary_units] == [2, 3, 4]
    assert rows[1].scores == {"near": [4.0, 5.0], "far": [6.0]}  # each hospital's model is the start plus its patients


@pytest.mark.parametrize("run", [ordinary.run_pooled, ordinary.run_local])
def test_a_stop_ends_ordinary_training_at_its_next_step(run):
    stop, task, told = threading.Event(), Sums(), []
    task.on_step = stop.set
    with pytest.raises(Interrupted):
        run(setting_of(task), told.append, stop)
    assert len(told) == 1
    assert len(task.ordinary_units) == 1
