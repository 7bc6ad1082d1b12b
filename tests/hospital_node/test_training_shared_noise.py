"""A round of training with shared noise: one step, whole numbers, a bound in integers, nothing of anybody else."""

import numpy as np
import pytest
from torch import nn
from training_world import URI, people, person, plan, replayed

from hospital_node.integer_sums import IntegerSum
from hospital_node.network import build, layout_of, load_vector, vector_of
from hospital_node.noise import StepCoins
from hospital_node.ranks import OneProcess
from hospital_node.train import SEGMENTATION, TrainingError, sum_up, train_round
from hospital_node.trained_parts import choose
from proto import shared_noise

SHARED = {"noise_mode": "shared", "norm_steps": 400, "may_drop": 0, "may_collude": 1}
PLAIN = {"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0}


def shared_plan(**privacy):
    return plan(training=PLAIN, privacy={**SHARED, **privacy})


def base_of(made) -> np.ndarray:
    return vector_of(build(made.network))


def at_one_model(made) -> nn.Module:
    module = build(made.network)
    load_vector(module, layout_of(module), np.full(layout_of(module).length, 0.05, np.float32))
    return module


def total(made, patients, key: bytes) -> np.ndarray:
    module = at_one_model(made)
    sums = IntegerSum(choose(module, made.training, 1), made)
    sum_up(module, sums, made, patients, StepCoins(key))
    return sums.values


def alone(made, patient, key: bytes) -> np.ndarray:
    """What one patient adds."""
    return total(made, [patient], key)


def test_the_sum_is_whole_numbers_of_the_models_length_and_has_no_noise():
    made = shared_plan(inverse_sampling_rate=1)
    base = base_of(made)
    one = train_round(made, URI, base, people(3), rand=replayed(b"a"))
    again = train_round(made, URI, base, people(3), rand=replayed(b"a"))
    assert one.update.dtype == np.int64
    assert one.update.shape == base.shape
    assert np.array_equal(one.update, again.update)
    assert one.history == ((1.0, 1.0, 1),)
    assert train_round(made, URI, base, [], rand=replayed(b"a")).update.any() == np.False_


def test_every_patient_stays_within_the_norm_in_integers_whatever_the_gradient():
    made = shared_plan(inverse_sampling_rate=1, clip_norm=1e-6)  # every gradient is far longer: all are clipped
    for number in range(4):
        added = alone(made, person(f"q{number}"), bytes([number]) * 32)
        length = np.sqrt(np.dot(added, added))
        assert length <= 400
        assert length > 0.9 * shared_noise.scale(made, len(added))


def test_removing_a_patient_takes_away_exactly_what_that_patient_adds():
    made = shared_plan(inverse_sampling_rate=1)
    key, cohort = b"k" * 32, people(4)
    assert np.array_equal(total(made, cohort, key) - total(made, cohort[1:], key), alone(made, cohort[0], key))


def test_the_sum_is_the_clipped_gradient_in_steps_of_clip_over_scale_with_the_other_sign():
    made = shared_plan(inverse_sampling_rate=1, clip_norm=0.5)
    key, patient = b"g" * 32, person("p0")
    module = at_one_model(made)
    loss = SEGMENTATION.loss(module.train(), made, patient, StepCoins(key).generator(patient.key))
    loss.backward()
    gradient = np.concatenate([p.grad.reshape(-1).numpy() for p in module.parameters()]).astype(np.float64)
    gradient *= min(1.0, 0.5 / np.linalg.norm(gradient))
    scale = shared_noise.scale(made, len(gradient))
    assert np.abs(alone(made, patient, key) + gradient * scale / 0.5).max() <= 1.0


def test_a_gradient_that_is_not_finite_adds_nothing_and_is_counted():
    made = shared_plan(inverse_sampling_rate=1)
    broken = person("bad")
    broken.cases[0].image[:] = np.inf
    trained = train_round(made, URI, base_of(made), [broken], rand=replayed(b"b"))
    assert trained.nonfinite == 1
    assert not trained.update.any()


def test_several_processes_and_a_grid_too_coarse_are_refused_in_words():
    made = shared_plan()
    with pytest.raises(TrainingError, match="one process"):
        train_round(made, URI, base_of(made), people(1), ranks=OneProcess())
    coarse = shared_plan(norm_steps=16)
    with pytest.raises(TrainingError, match="norm_steps do not fit"):
        train_round(coarse, URI, base_of(coarse), people(1))


def test_patients_are_drawn_by_their_own_coins_at_the_plans_rate():
    made = shared_plan(inverse_sampling_rate=2)
    key = b"c" * 32
    cohort = [person(f"d{number}", side=12) for number in range(6)]
    drawn = [one for one in cohort if StepCoins(key).drawn(one.key, 2)]
    assert 0 < len(drawn) < 6
    expected = sum(alone(shared_plan(inverse_sampling_rate=1), one, key) for one in drawn)
    assert np.array_equal(total(made, cohort, key), expected)
