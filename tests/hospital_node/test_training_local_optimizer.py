"""Optimizers, learning rates over the rounds, FedProx: each is what its formula says, and none touches a patient's gradient."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training_objective import SLOPE, Drawn
from torch import nn
from training_world import SILENT, URI, people, plan, replayed

from hospital_node import network
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.local_optimizer import learning_rate, local_optimizer
from hospital_node.train import train_round
from proto.plan import Plan, PlanError, from_canonical

NOISELESS = {**SILENT, "inverse_sampling_rate": 1, "clip_norm": 5.0}
SGD = {"optimizer": "sgd", "learning_rate": 0.5}


def base_of(plan_, seed=3):
    torch.manual_seed(seed)
    return network.vector_of(network.build(plan_.network))


def drawn_round(training, seed=b"x", privacy=NOISELESS, start=0.0):
    """A round of the exact little objective from a model of equal values."""
    one = plan(training=training, privacy=privacy)
    base = np.full(SLOPE, start, np.float32)
    return train_round(one, URI, base, people(3), objective=Drawn(), rand=replayed(seed))


def refused(**tables):
    fields = plan().model_dump(mode="json")
    for table, changes in tables.items():
        fields[table] = {**fields[table], **changes} if isinstance(changes, dict) else changes
    with pytest.raises(PlanError) as caught:
        from_canonical(json.dumps(fields, sort_keys=True).encode())
    return str(caught.value)


# ---- the rate over the rounds ----


@pytest.mark.parametrize(
    ("training", "rates"),
    [
        ({}, [0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "constant"}, [0.1, 0.1, 0.1, 0.1]),
        ({"learning_rate_decay": 0.5}, [0.1, 0.05, 0.025, 0.0125]),
        ({"schedule": "cosine"}, [0.1, 0.05 * (1 + 2**-0.5), 0.05, 0.05 * (1 - 2**-0.5)]),
        ({"schedule": "constant", "warmup_rounds": 2}, [0.1 / 3, 0.2 / 3, 0.1, 0.1]),
        ({"schedule": "cosine", "warmup_rounds": 2}, [0.1 / 3, 0.2 / 3, 0.1, 0.05]),
        ({"learning_rate_decay": 0.5, "warmup_rounds": 1}, [0.05, 0.1, 0.05, 0.025]),
    ],
)
def test_rates_by_hand(training, rates):
    one = plan(training={"learning_rate": 0.1, **training})
    assert [learning_rate(one, number) for number in range(1, 5)] == pytest.approx(rates)


@given(
    rounds=st.integers(1, 40),
    share=st.floats(0, 0.99),
    schedule=st.sampled_from(["exponential", "constant", "cosine"]),
    rate=st.floats(1e-6, 10),
)
def test_every_rate_is_above_zero_and_at_most_the_plans_and_falls_after_the_warm_up(rounds, share, schedule, rate):
    warm = int(share * rounds)
    decay = {"learning_rate_decay": 0.9} if schedule == "exponential" else {}
    fields = plan(training={"learning_rate": rate, "schedule": schedule, **decay}).model_dump(mode="json")
    fields["training"]["warmup_rounds"] = warm
    one = Plan.model_validate({**fields, "rounds": rounds})
    rates = [learning_rate(one, number) for number in range(1, rounds + 1)]
    assert all(0 < found <= rate for found in rates)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


def test_the_rate_of_the_round_is_the_one_that_trains():
    one = plan(training={**SGD, "local_steps": 1, "schedule": "cosine"}, privacy=NOISELESS)
    base = base_of(one)
    first, third = (train_round(one, URI, base, people(2), round=n, rand=replayed(b"lr")).update for n in (1, 3))
    assert np.linalg.norm(first) > 0
    assert third == pytest.approx(first / 2, abs=1e-7)


# ---- the optimizer ----


def stepped(training, gradients, start=1.0):
    """One parameter, led through given noised means."""
    one = plan(training=training)
    p = nn.Parameter(torch.full((2,), start, dtype=torch.float64))
    optimizer = local_optimizer([p], one, 1)
    for gradient in gradients:
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    return float(p[0].detach())


def test_weight_decay_shrinks_the_weights_apart_from_the_gradient():
    decayed = stepped({"optimizer": "adamw", "weight_decay": 0.1, "learning_rate": 0.5}, [0.0])
    assert decayed == pytest.approx(1 - 0.5 * 0.1)
    assert stepped({"optimizer": "adam", "learning_rate": 0.5}, [0.0]) == 1.0


def test_nesterov_looks_ahead_along_the_momentum():
    heavy = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.5}
    assert stepped(heavy, [1.0]) == pytest.approx(1 - 0.1)
    assert stepped({**heavy, "nesterov": True}, [1.0]) == pytest.approx(1 - 0.1 * (1 + 0.5))


@pytest.mark.parametrize("training", [{"optimizer": "adamw", "weight_decay": 0.05}, {**SGD, "momentum": 0.9, "nesterov": True}])
def test_each_optimizer_gives_another_update_and_starts_anew_in_every_round(training):
    plain = {key: value for key, value in training.items() if key not in {"weight_decay", "nesterov"}}
    plain["optimizer"] = plain["optimizer"].replace("adamw", "adam")
    first, again = (drawn_round({**training, "local_steps": 3}, start=1.0).update for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, drawn_round({**plain, "local_steps": 3}, start=1.0).update)


# ---- FedProx ----


def test_the_pull_is_added_to_the_noised_mean_by_hand():
    """sgd on w: w <- w - rate * (g + mu * (w - w_base)), the base being the model of the round."""
    found = stepped({"optimizer": "sgd", "learning_rate": 0.1, "proximal": 2.0}, [1.0, 1.0, 0.0], start=5.0)
    w = 5.0
    for gradient in (1.0, 1.0, 0.0):
        w -= 0.1 * (gradient + 2.0 * (w - 5.0))
    assert found == pytest.approx(w)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_stronger_pull_keeps_the_model_nearer_to_its_base(optimizer):
    rounds = [
        drawn_round({"optimizer": optimizer, "learning_rate": 0.05, "local_steps": 6, "proximal": mu}).update
        for mu in (0.0, 1.0, 10.0)
    ]
    norms = [np.linalg.norm(update) for update in rounds]
    assert norms[0] > 1.05 * norms[1] > 1.05**2 * norms[2] > 0


def test_the_pull_takes_no_room_inside_the_clip(monkeypatch):
    """Clipped contributions of the first step after the model has moved: the same to the bit with and without the pull."""
    seen = []
    original = PatientOptimizer.clip_and_accumulate

    def recorded(self):
        seen.append([p.grad.clone() for p in self.params])
        original(self)

    monkeypatch.setattr(PatientOptimizer, "clip_and_accumulate", recorded)
    gradients = []
    for mu in (0.0, 1.9):
        seen.clear()
        drawn_round({**SGD, "local_steps": 3, "proximal": mu}, privacy={**NOISELESS, "clip_norm": 0.01})
        gradients.append([grad.numpy().tobytes() for unit in seen for grad in unit])
    assert gradients[0] == gradients[1]
    assert len(gradients[0]) == 9


def test_the_pull_leaves_the_noise_and_the_history_alone():
    noisy = {"noise_multiplier": 2.0, "clip_norm": 0.5, "inverse_sampling_rate": 2}
    plain, pulled = (drawn_round({**SGD, "local_steps": 2, "proximal": mu}, privacy=noisy) for mu in (0.0, 1.0))
    assert plain.history == pulled.history == ((2.0, 0.5, 2),)
    # linear in the model: the second step of sgd sees the same noised mean, less the pull of what the first one moved
    assert not np.allclose(plain.update, pulled.update)
    rate, mu = SGD["learning_rate"], 1.0
    first = drawn_round({**SGD, "local_steps": 2, "learning_rate": rate}, privacy=noisy).update
    assert np.allclose(first, plain.update)
    one_step = drawn_round({**SGD, "local_steps": 1}, privacy=noisy).update
    assert pulled.update == pytest.approx(plain.update - rate * mu * one_step, abs=1e-6)


# ---- what makes no sense ----


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"momentum": 0.9}, "momentum is for sgd, adam keeps moments of its own"),
        ({"optimizer": "sgd", "nesterov": True}, "nesterov looks ahead along the momentum, and there is none"),
        ({"optimizer": "adamw"}, "adamw and weight_decay go together"),
        ({"weight_decay": 0.1}, "adamw and weight_decay go together"),
        ({"schedule": "cosine", "learning_rate_decay": 0.9}, "learning_rate_decay is for schedule exponential"),
        ({"warmup_rounds": 4}, "warmup_rounds 4 leaves none of the 4 rounds at the full learning rate"),
        ({"proximal": 0.1, "local_steps": 1}, "local_steps is 1: leave it out"),
        ({"proximal": 20.0, "optimizer": "sgd", "learning_rate": 0.1}, "proximal 20 times learning_rate 0.1 is 1 or more"),
        ({"proximal": math.nan}, "proximal"),
        ({"schedule": "linear"}, "'training.schedule'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_a_sentence(training, says):
    sentence = refused(training=training)
    assert says in sentence
    assert "\n" not in sentence


def test_fields_that_came_later_are_in_the_digest_where_they_are_used_and_nowhere_else():
    plain = plan()
    assert not {b"weight_decay", b"nesterov", b"schedule", b"warmup", b"proximal"} & set(plain.canonical().split(b'"'))
    used = [
        plan(training=changes)
        for changes in (
            {"optimizer": "adamw", "weight_decay": 0.1},
            {"optimizer": "sgd", "momentum": 0.5},
            {"optimizer": "sgd", "momentum": 0.5, "nesterov": True},
            {"schedule": "cosine"},
            {"warmup_rounds": 1},
            {"proximal": 0.1},
        )
    ]
    assert len({one.digest() for one in [plain, *used]}) == 7
    assert all(isinstance(from_canonical(one.canonical()), Plan) for one in used)
