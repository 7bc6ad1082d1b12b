"""A round of local training: what depends on whom, what is recorded, and what remains when it is thrown away."""

import math

import numpy as np
import pytest
import torch
from training_world import SILENT, URI, Person, people, person, plan, recorded_contributions, replayed

from hospital_node import network, patches
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.losses import dice_ce
from hospital_node.noise import StepCoins
from hospital_node.train import StepProgress, TrainingError, backward, check_history, train_round
from proto.layout import model_digest
from proto.plan import Plan, PlanError


def base_of(plan_, seed=3):
    torch.manual_seed(seed)
    return network.vector_of(network.build(plan_.network))


@pytest.fixture
def contributions(monkeypatch):
    return recorded_contributions(monkeypatch)


def test_update_history_and_progress_are_those_of_the_plan():
    steps = []
    plan_ = plan(training={"local_steps": 4}, privacy={"noise_multiplier": 1.3, "inverse_sampling_rate": 3})
    base = base_of(plan_)
    kept = base.copy()
    result = train_round(plan_, URI, base, people(4), on_step=steps.append)
    assert result.history == ((1.3, 1 / 3, 4),)
    assert result.update.dtype == np.float32
    assert result.update.shape == base.shape
    assert np.linalg.norm(result.update) > 0
    assert result.base_digest == model_digest(kept)
    assert result.nonfinite == 0
    assert steps == [StepProgress(number, 4) for number in (1, 2, 3, 4)]
    assert np.array_equal(base, kept)


def test_a_hospital_takes_its_own_steps_and_no_other_number_passes():
    fields = plan(privacy={"inverse_sampling_rate": 3}).model_dump(mode="json")
    fields["hospitals"][0]["local_steps"] = 5
    one, steps = Plan.model_validate(fields), []
    assert [one.local_steps(hospital.uri) for hospital in one.hospitals] == [5, 3, 3]
    result = train_round(one, URI, base_of(one), people(2), on_step=steps.append)
    assert result.history == ((1.0, 1 / 3, 5),)
    assert steps[-1] == StepProgress(5, 5)
    with pytest.raises(TrainingError, match="the update was discarded"):
        check_history(result.history, one, one.hospitals[1].uri)
    check_history(((1.0, 1 / 3, 3),), one, one.hospitals[1].uri)


@pytest.mark.parametrize("inverse_rate", [49, 93, 99, 105])
def test_rates_that_opacus_own_loader_would_change_are_kept(inverse_rate):
    plan_ = plan(training={"local_steps": 1}, privacy={"inverse_sampling_rate": inverse_rate})
    assert train_round(plan_, URI, base_of(plan_), people(1)).history == ((1.0, 1 / inverse_rate, 1),)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"augment_rotation_deg": 20, "augment_scale": 0.2, "balance_labels": True},
        {"loss": "dice"},
        {"loss": "ce"},
        {"loss": "focal_tversky"},
    ],
)
def test_removing_one_patient_leaves_every_other_contribution_the_same_to_the_bit(contributions, training):
    plan_ = plan(training={"local_steps": 1, **training}, privacy={"inverse_sampling_rate": 1})
    cohort = people(5)
    base = base_of(plan_)
    train_round(plan_, URI, base, cohort, rand=replayed(b"same"))
    everyone = [one.copy() for one in contributions]
    contributions.clear()
    train_round(plan_, URI, base, cohort[:2] + cohort[3:], rand=replayed(b"same"))
    assert len(everyone) == 5
    for kept, alone in zip(everyone[:2] + everyone[3:], contributions, strict=True):
        assert np.array_equal(kept, alone)
    assert not np.array_equal(everyone[2], everyone[1])


def test_a_patient_adds_the_same_in_every_step_that_shows_it_the_same(contributions):
    # one patch that is the whole scan, no augmentation, and a rate too small to move the model: nothing differs but the step
    changes = {"local_steps": 3, "optimizer": "sgd", "learning_rate": 1e-30, "augment": False, "foreground_share": 0.0}
    plan_ = plan(preparation={"patch_zyx": (16, 16, 16)}, training=changes, privacy={"inverse_sampling_rate": 1})
    train_round(plan_, URI, base_of(plan_), people(3))
    first, *later = (contributions[at : at + 3] for at in (0, 3, 6))
    for step in later:
        assert all(np.array_equal(one, again) for one, again in zip(first, step, strict=True))


def test_who_is_drawn_does_not_depend_on_the_others():
    cohort, k = people(30), 3
    coins = StepCoins.fresh(replayed(b"coins"))
    drawn = {one.key for one in cohort if coins.drawn(one.key, k)}
    assert 0 < len(drawn) < 30
    assert {one.key for one in cohort[10:] if coins.drawn(one.key, k)} == drawn & {one.key for one in cohort[10:]}


def test_each_patient_adds_one_clipped_gradient_however_many_scans_and_patches(contributions):
    clip = 0.05
    plan_ = plan(
        training={"local_steps": 1, "patches_per_patient": 6}, privacy={**SILENT, "inverse_sampling_rate": 1, "clip_norm": clip}
    )
    cohort = [person("one", scans=1), person("many", scans=5), Person("twice", person("one").cases * 4)]
    train_round(plan_, URI, base_of(plan_), cohort)
    assert len(contributions) == 3
    for one in contributions:
        assert np.linalg.norm(one.astype(np.float64)) <= clip
        assert np.linalg.norm(one) > 0.9 * clip  # it was indeed clipped, so the bound is not idle


def test_the_unit_gradient_is_that_of_the_mean_loss_over_its_patches():
    plan_ = plan(training={"patches_per_patient": 3, "augment": False})
    module = network.build(plan_.network)
    coins, patient = StepCoins.fresh(replayed(b"u")), person("ann", scans=2)
    images, labels = patches.draw(patient, plan_.preparation, plan_.training, coins.generator("ann"))
    assert images.shape == (3, 1, 8, 8, 8)
    backward(module, plan_, patient, coins)
    whole = [p.grad.clone() for p in module.parameters()]
    for p in module.parameters():
        p.grad = None
    dice_ce(module(images), labels).backward()
    assert all(torch.equal(p.grad, first) for p, first in zip(module.parameters(), whole, strict=True))


def test_the_divisor_is_the_declared_size_not_the_true_one(contributions):
    plan_ = plan(
        training={"local_steps": 1, "optimizer": "sgd", "learning_rate": 0.5}, privacy={**SILENT, "inverse_sampling_rate": 1}
    )
    base = base_of(plan_)
    result = train_round(plan_, URI, base, people(7))
    expected = -0.5 * np.sum(contributions, axis=0) / 20  # declared 20, present 7
    assert result.update == pytest.approx(expected, abs=1e-7)


def test_without_noise_the_gradient_is_still_clipped_and_the_history_still_kept(contributions):
    plan_ = plan(training={"local_steps": 2}, privacy={**SILENT, "inverse_sampling_rate": 1, "clip_norm": 0.01})
    result = train_round(plan_, URI, base_of(plan_), people(2))
    assert result.history == ((0.0, 1.0, 2),)
    assert all(np.linalg.norm(one) <= 0.01 for one in contributions)


def test_noise_has_the_planned_size_in_the_update():
    changes = {"training": {"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0}}
    plan_ = plan(**changes, privacy={"noise_multiplier": 3.0, "clip_norm": 0.5, "inverse_sampling_rate": 2})
    update = train_round(plan_, URI, base_of(plan_), []).update
    assert update.std() == pytest.approx(3.0 * 0.5 / 10, rel=5 / (2 * len(update)) ** 0.5)


def test_a_patient_with_a_broken_voxel_is_contained():
    broken = person("broken")
    broken.cases[0].image[:] = np.nan
    plan_ = plan(privacy={"inverse_sampling_rate": 1})
    result = train_round(plan_, URI, base_of(plan_), [*people(2), broken])
    assert np.isfinite(result.update).all()
    assert result.nonfinite == 3  # once in each of three steps


def test_a_discarded_round_leaves_no_trace(monkeypatch):
    plan_, cohort = plan(), people(3)
    base = base_of(plan_)
    before = [one.cases[0].image.copy() for one in cohort]
    undisturbed = train_round(plan_, URI, base, cohort, rand=replayed(b"r"))

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_round(plan_, URI, base, cohort, rand=replayed(b"other"), on_step=stop)
    assert all(np.array_equal(one.cases[0].image, image) for one, image in zip(cohort, before, strict=True))
    again = train_round(plan_, URI, base, cohort, rand=replayed(b"r"))
    assert np.array_equal(undisturbed.update, again.update)


@pytest.mark.parametrize(
    "history",
    [(), ((1.0, 0.5, 2),), ((1.0, 0.25, 3),), ((0.9, 0.5, 3),), ((1.0, 0.5, 2), (1.0, 0.5, 1)), ((1.0, 1.5, 3),)],
)
def test_any_other_history_than_the_plans_discards_the_update(history):
    with pytest.raises(TrainingError, match="the update was discarded"):
        check_history(history, plan(), URI)
    check_history(((1.0, 0.5, 3),), plan(), URI)


def test_a_step_that_the_accountant_misses_discards_the_update(monkeypatch):
    monkeypatch.setattr(PatientOptimizer, "accumulated_iterations", property(lambda _: 2))
    plan_ = plan()
    with pytest.raises(TrainingError, match=r"\(1\.0, 1\.0, 3\)"):
        train_round(plan_, URI, base_of(plan_), people(1))


def test_learning_rate_falls_by_round():
    changes = {"optimizer": "sgd", "learning_rate": 0.1, "learning_rate_decay": 0.5, "local_steps": 1}
    plan_ = plan(training=changes, privacy={**SILENT, "inverse_sampling_rate": 1})
    base = base_of(plan_)
    first, third = (train_round(plan_, URI, base, people(2), round=n, rand=replayed(b"lr")).update for n in (1, 3))
    assert third == pytest.approx(first / 4, abs=1e-7)


def test_momentum_is_used_and_is_new_in_every_round():
    changes = {"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 2}
    silent = {**SILENT, "inverse_sampling_rate": 1}
    plain, heavy = plan(training=changes, privacy=silent), plan(training={**changes, "momentum": 0.9}, privacy=silent)
    base = base_of(plain)
    first, with_momentum, again = (
        train_round(one, URI, base, people(2), rand=replayed(b"m")).update for one in (plain, heavy, heavy)
    )
    assert np.linalg.norm(with_momentum) > 1.3 * np.linalg.norm(first)
    assert np.array_equal(with_momentum, again)


def test_two_runs_differ_because_the_operating_system_decides():
    plan_ = plan()
    base = base_of(plan_)
    first, second = (train_round(plan_, URI, base, people(3)).update for _ in range(2))
    assert not np.array_equal(first, second)


def test_what_cannot_be_trained_is_refused_in_a_sentence():
    plan_ = plan()
    base = base_of(plan_)
    with pytest.raises(TrainingError, match="same patient key"):
        train_round(plan_, URI, base, [person("a"), person("a")])
    with pytest.raises(PlanError, match="not among the hospitals"):
        train_round(plan_, "secagg://trial/hospital/z", base, people(1))
    with pytest.raises(TrainingError, match="multiples of 4"):
        train_round(plan(preparation={"patch_zyx": (8, 10, 8)}), URI, base, people(1))
    huge = plan(training={"optimizer": "sgd", "learning_rate": 3e38}, privacy={"noise_multiplier": 1e3})
    with pytest.raises(TrainingError, match="not finite"):
        train_round(huge, URI, base, people(1))


def test_loss_of_a_patch_without_the_label_is_finite_and_falls_as_the_label_is_left_out():
    labels = torch.zeros(2, 8, 8, 8, dtype=torch.long)
    logits = torch.zeros(2, 3, 8, 8, 8, requires_grad=True)
    loss = dice_ce(logits, labels)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(logits.grad).all()
    sure = torch.stack([torch.full((2, 8, 8, 8), 20.0), torch.zeros(2, 8, 8, 8), torch.zeros(2, 8, 8, 8)], dim=1)
    assert float(dice_ce(sure, labels)) < 1e-4 < float(loss.detach())


def test_loss_by_hand():
    # (1 patch, 2 classes, 1x1x2): probabilities of class 1 are 0.5 and 0.8; truth is 0 and 1
    logits = torch.tensor([0.0, 0.0, 0.0, math.log(4)]).reshape(1, 2, 1, 1, 2)
    cross_entropy = -(math.log(0.5) + math.log(0.8)) / 2
    dice = (2 * 0.8 + 1) / (1.3 + 1 + 1)
    assert float(dice_ce(logits, torch.tensor([[[[0, 1]]]]))) == pytest.approx(cross_entropy + 1 - dice, rel=1e-5)
