"""The digits: a public split, one image a privacy unit, and the product's own private training around another loss."""

import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hospital_node import network
from hospital_node.train import TrainingError, train_round
from hospital_node.work import WorkFailed
from proto.modelfile import Model, encode_model
from proto.plan import Plan
from study.bench import grid
from study.bench.cell import complete_plan, task_of
from study.bench.cells import Cell, Data, Ordinary, Partition
from study.bench.draws import draws_for, seeded
from study.bench.plain import run_plain
from study.bench.task import StudyError, scores_of
from study.examples import digits_model
from study.examples.digits import TASK, is_test
from study.examples.digits_model import CLASSES, OBJECTIVE, SIDE, views

pytest.importorskip("sklearn", reason="scikit-learn brings the digits")

EXAMPLES = Path(grid.__file__).parents[1] / "examples"
URI = "secagg://digits/hospital/h1"
SILENT = {"noise_multiplier": 0.0, "no_guarantee": True}
DECLARED = 40


def template():
    return tomllib.loads((EXAMPLES / "digits-plan.toml").read_text())


def plan_of(rounds=1, hospitals=3, **changes):
    fields = {**template(), "rounds": rounds, "evaluate_every": rounds}
    for table, values in changes.items():
        fields[table] = {**fields[table], **values}
    admitted = [{"uri": f"secagg://digits/hospital/h{at}", "declared_patients": DECLARED} for at in range(hospitals)]
    return Plan.model_validate({**fields, "study": "digits", "hospitals": admitted})


def cell_of(start="random", seed=1, **data):
    return Cell(
        study="digits",
        task="digits",
        method="plain",
        seed=seed,
        data=Data(**data),
        partition=Partition(kind="iid", hospitals=10),
        start=start,
        plan=template(),
        settings={},
    )


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    return TASK.patients(cell_of(), tmp_path_factory.mktemp("cache"), lambda done, total: None)


@pytest.fixture
def base(tmp_path):
    return TASK.start(cell_of(), plan_of(), tmp_path)


def no_draws(party, number):
    return seeded(f"{party} {number}")


# ---- patients ----


def test_the_split_is_by_image_stratified_and_the_same_every_time(patients, tmp_path):
    training, test = ({unit.name for unit in part} for part in (patients.training, patients.test))
    assert not training & test
    assert len(training) + len(test) == 1797
    assert len(test) == 355
    for digit in range(CLASSES):
        held_out = sum(unit.kind == str(digit) for unit in patients.test)
        assert held_out == sum(unit.kind == str(digit) for unit in patients.test + patients.training) // 5
    again = TASK.patients(cell_of(), tmp_path, lambda done, total: None)
    assert [unit.name for unit in again.test] == [unit.name for unit in patients.test]


@given(st.lists(st.integers(0, 9), max_size=80))
def test_every_fifth_image_of_a_digit_is_a_test_case(digits):
    test = is_test(np.array(digits, np.int64))
    for digit in set(digits):
        at = [index for index, one in enumerate(digits) if one == digit]
        assert [index for index in at if test[index]] == at[4::5]


def test_a_unit_is_one_image_and_says_what_partitions_need(patients):
    for unit in patients.training[:20] + patients.test[:20]:
        (case,) = unit.patient.cases
        assert unit.patient.key == unit.name
        assert case.image.shape == case.label.shape == (1, SIDE, SIDE)
        assert case.image.dtype == np.float32
        assert -1 <= case.image.min() < case.image.max() <= 1
        assert unit.label_counts == tuple(float(case.digit == digit) for digit in range(CLASSES))
        assert unit.kind == str(case.digit)
        assert unit.name not in repr(unit)


def test_shifted_images_change_and_digits_do_not(patients):
    chosen = patients.training[:3]
    worse = TASK.shifted(chosen, "noise", 0.5, seed=3)
    assert [unit.name for unit in worse] == [unit.name for unit in chosen]
    for unit, other in zip(chosen, worse, strict=True):
        assert not np.array_equal(unit.patient.cases[0].image, other.patient.cases[0].image)
        assert unit.patient.cases[0].digit == other.patient.cases[0].digit
        assert (unit.label_counts, unit.kind) == (other.label_counts, other.kind)
    same = TASK.shifted(chosen[::-1], "noise", 0.5, seed=3)[::-1]
    assert all(np.array_equal(a.patient.cases[0].image, b.patient.cases[0].image) for a, b in zip(worse, same, strict=True))


@pytest.mark.parametrize("data", [{"folder": "scans"}, {"kind": "private"}, {"kind": "synthetic"}])
def test_digits_come_from_nowhere_else(data, tmp_path):
    with pytest.raises(StudyError, match=r"remove data\.folder and say data\.kind = 'public'"):
        TASK.patients(cell_of(**data), tmp_path, lambda done, total: None)


def test_without_scikit_learn_the_command_to_install_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(StudyError, match=r"needs scikit-learn: pip install"):
        TASK.patients(cell_of(), tmp_path, lambda done, total: None)


# ---- private training ----


def trained(plan, base, units, rand="fixed"):
    return train_round(plan, URI, base, [unit.patient for unit in units], objective=OBJECTIVE, rand=seeded(rand))


def test_an_empty_draw_is_noise_alone_and_nothing_without_noise(base):
    silent = trained(plan_of(), base, [])
    assert not silent.update.any()
    assert silent.history == ((0.0, 0.25, 4),)
    step = {"optimizer": "sgd", "learning_rate": 1.0, "local_steps": 1}
    privacy = {"noise_multiplier": 2.0, "no_guarantee": False, "clip_norm": 0.5, "inverse_sampling_rate": 1}
    noised = trained(plan_of(training=step, privacy=privacy), base, [])
    assert noised.update.std() == pytest.approx(2.0 * 0.5 / DECLARED, rel=0.05)


def test_one_unit_moves_the_model_by_its_clipped_gradient_over_the_declared_size(base, patients):
    step = {"optimizer": "sgd", "learning_rate": 1.0, "local_steps": 1}
    for clip, bound in ((0.01, True), (1e6, False)):
        one = plan_of(training=step, privacy={"clip_norm": clip, "inverse_sampling_rate": 1})
        norms = [np.linalg.norm(trained(one, base, [unit]).update * DECLARED) for unit in patients.training[:5]]
        assert all(0 < norm <= clip * (1 + 1e-5) for norm in norms)  # the difference of two models is rounded
        assert all(norm > 0.99 * clip for norm in norms) is bound


def test_training_follows_from_plan_patients_and_draws(base, patients):
    some = patients.training[:30]
    first, again, other = (trained(plan_of(), base, some, rand).update for rand in ("a", "a", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (TASK.layout(plan_of()).length,)
    assert len(first) < 10_000


def test_the_loss_is_cross_entropy_of_the_one_image(patients):
    plan, unit = plan_of(), patients.training[0]
    module = OBJECTIVE.build(plan)
    loss = OBJECTIVE.loss(module, plan, unit.patient, np.random.default_rng(0))
    logits = module(torch.from_numpy(unit.patient.cases[0].image[None]))[0].detach()
    assert float(loss.detach()) == pytest.approx(
        float(torch.logsumexp(logits, 0) - logits[unit.patient.cases[0].digit]), rel=1e-5
    )


def test_views_are_the_image_moved_by_at_most_one_pixel_by_its_own_generator():
    image = np.zeros((1, SIDE, SIDE), np.float32)
    image[0, 3, 4] = 1
    shown = views(image, 40, np.random.default_rng(1))
    assert shown.shape == (40, 1, SIDE, SIDE)
    at = {(int(y), int(x)) for _, _, y, x in np.argwhere(shown)}
    assert at == {(y, x) for y in (2, 3, 4) for x in (3, 4, 5)}
    assert np.array_equal(shown, views(image, 40, np.random.default_rng(1)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "task:other"}, r"need network\.architecture = 'task:digits'"),
        ({"labels": ["lesion"]}, r"network\.labels = \['accuracy'\]"),
        ({"channels": [16, 32, 64]}, "two multiples of 4"),
        ({"channels": [16, 30]}, "two multiples of 4"),
    ],
)
def test_a_plan_of_another_network_is_refused_with_the_remedy(changes, reason, base, patients):
    plan = plan_of(network=changes)
    with pytest.raises(TrainingError, match=reason):
        OBJECTIVE.check(plan)
    with pytest.raises(StudyError, match=reason):
        TASK.layout(plan)
    with pytest.raises(WorkFailed, match=reason):
        TASK.workshop(patients.training[:2], no_draws).train(plan, URI, base, [], round=1)


# ---- start, score, ordinary training ----


def test_a_random_start_follows_from_the_seed(tmp_path):
    first, again, other = (TASK.start(cell_of(seed=seed), plan_of(), tmp_path) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_start_from_a_file_must_fit(base, tmp_path):
    path = tmp_path / "start.safetensors"
    path.write_bytes(encode_model(Model(TASK.layout(plan_of()), base + 1)))
    assert np.array_equal(TASK.start(cell_of(str(path)), plan_of(), tmp_path), base + 1)
    with pytest.raises(StudyError, match="made for another network"):
        TASK.start(cell_of(str(path)), plan_of(network={"channels": [4, 8]}), tmp_path)
    with pytest.raises(StudyError, match="missing"):
        TASK.start(cell_of(str(tmp_path / "missing.safetensors")), plan_of(), tmp_path)
    with pytest.raises(StudyError, match="no public start"):
        TASK.start(cell_of("public"), plan_of(), tmp_path)


def test_a_case_scores_one_where_the_likeliest_digit_is_right_and_zero_elsewhere(base, patients):
    plan, cases = plan_of(), [unit.patient.cases[0] for unit in patients.test[:40]]
    module = OBJECTIVE.build(plan)
    network.load_vector(module, network.layout_of(module), base)
    logits = module(torch.from_numpy(np.stack([case.image for case in cases])))
    right = [float(int(row.argmax()) == case.digit) for row, case in zip(logits, cases, strict=True)]
    assert scores_of(TASK, plan, base, patients.test[:40], no_draws) == {"accuracy": right}
    assert 0 < sum(right) < 40
    scored = TASK.workshop((), no_draws).scorer(plan, base, 1)(cases[0])
    assert scored.prediction.shape == cases[0].label.shape


def test_ordinary_training_learns_and_tells_its_steps(base, patients):
    told, plan, recipe = [], plan_of(), Ordinary(steps=120, batch=16)
    model = TASK.ordinary(plan, base, patients.training, recipe, 3, lambda done, steps: told.append((done, steps)))
    assert told == [(step, 120) for step in range(1, 121)]
    assert np.mean(scores_of(TASK, plan, model, patients.test, no_draws)["accuracy"]) > 0.9
    assert np.array_equal(model, TASK.ordinary(plan, base, patients.training, recipe, 3, lambda done, steps: None))


def test_a_few_rounds_of_private_training_learn_the_digits(base, patients):
    plan = plan_of(rounds=12)
    dealt = {entry.uri: patients.training[at::36] for at, entry in enumerate(plan.hospitals)}  # 40 images each
    done = run_plain(plan, base, dealt, patients.test, TASK, draws_for("public", 1), lambda row: None, threading.Event())
    first, last = (float(np.mean(done.rounds[at].scores["accuracy"])) for at in (0, -1))
    assert first < 0.3
    assert last > 0.6


def test_unit_costs_are_measured():
    cost = TASK.probe(cell_of())
    assert 1e-6 < cost.case_s < cost.patient_s < 1
    assert cost.length == TASK.layout(plan_of()).length


# ---- the study file ----


def test_the_study_file_holds_every_baseline_and_the_sparse_federation():
    study = grid.load_study(EXAMPLES / "digits.toml")
    kinds = {(cell.method.value, cell.partition.hospitals, cell.epsilon) for cell in study.cells()}
    assert {("pooled", 10), ("local", 100), ("plain", 100), ("masked", 100), ("masked", 10)} <= {kind[:2] for kind in kinds}
    assert ("masked", 100, 8.0) in kinds
    federated = [cell for cell in study.cells() if cell.method in {"plain", "masked"}]
    assert {(cell.partition.hospitals, cell.plan["participants"]) for cell in federated} == {(10, None), (100, 10)}
    for cell in study.cells():
        assert task_of(cell.task) is TASK
        plan = complete_plan(cell, {f"h{at:03d}": 14 for at in range(cell.partition.hospitals)})
        digits_model.check(plan.network)
