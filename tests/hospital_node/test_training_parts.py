"""Training a part of the network: what moves, what the clip and the noise cover, and what comes of it in the whole model."""

import numpy as np
import pytest
import torch
from test_training_architectures import small_plan
from torch import nn
from training_world import SILENT, URI, people, person, plan, replayed

from hospital_node import network
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.noise import StepCoins
from hospital_node.train import backward, private_optimizer, train_round
from hospital_node.trained_parts import choose, values_of
from proto.parts import down, parts_of, spread, update_layout
from proto.plan import PlanError

SGD = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 1}
NOISELESS = {**SILENT, "inverse_sampling_rate": 1}
CHOICES = {
    "norms and biases": {"parts": "norms-and-biases"},
    "the end of the network": {"parts": ["output_block", "upsamples.1"]},
    "adapters": {"adapter_rank": 2},
    "adapters of a part": {"parts": ["input_block", "output_block"], "adapter_rank": 3},
}
choices = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


def built(one, seed=3):
    torch.manual_seed(seed)
    module = network.build(one.network)
    return module, network.layout_of(module), network.vector_of(module)


@choices
def test_an_update_holds_what_was_trained_in_the_order_of_the_layout(choice):
    one = plan(training={**SGD, **choice}, privacy=NOISELESS)
    _, layout, base = built(one)
    kept = base.copy()
    trained = train_round(one, URI, base, people(3))
    sent = update_layout(layout, one.training)
    assert trained.update.shape == (sent.length,)
    assert sent.length < layout.length / 2
    assert all(np.abs(part).sum() > 0 for part in sent.split(trained.update).values())
    assert np.array_equal(base, kept)


@choices
def test_the_round_begins_with_exactly_the_released_model(choice):
    one = plan(training=choice)
    module, _, base = built(one)
    images = torch.randn(2, 1, 8, 8, 8)
    expected = module(images).detach()
    trained = choose(module, one.training, 4)
    assert torch.equal(module(images), expected)
    assert {id(p) for p in module.parameters() if p.requires_grad} == {id(p) for p in trained}
    assert len(base) > len(values_of(trained))


@choices
def test_the_spread_update_is_the_model_that_the_hospital_ended_with(choice, monkeypatch):
    """The network as trained, adapters and all, against the plain network with the coordinator's arithmetic."""
    one = plan(training={**SGD, "local_steps": 2, **choice}, privacy=NOISELESS)
    plain, layout, base = built(one)
    ended = []

    def remembered(module, *rest):
        ended.append(module)
        return choose(module, *rest)

    monkeypatch.setattr("hospital_node.train.choose", remembered)
    update = train_round(one, URI, base, people(3), round=2).update
    change = spread(one, layout, update, 2)
    network.load_vector(plain, layout, base + change)
    images = torch.randn(2, 1, 8, 8, 8)
    assert torch.allclose(plain(images), ended[0](images), atol=1e-4)
    assert float(np.abs(change).max()) > 1e-4


def test_the_gradient_of_a_factor_is_the_tensors_gradient_seen_through_the_signs():
    one = plan(training={"parts": ["output_block"], "adapter_rank": 3, "augment": False})
    coins, patient = StepCoins.fresh(replayed(b"u")), person("ann")
    whole, layout, base = built(one)
    backward(whole, one, patient, coins)
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    module, _, _ = built(one)
    network.load_vector(module, layout, base)
    trained = choose(module, one.training, 5)
    backward(module, one, patient, coins)
    for part, factor in zip(parts_of(layout, one.training), trained, strict=True):
        expected = gradients[part.name]
        if part.rank is not None:
            expected = expected.reshape(part.rows_and_columns) @ torch.from_numpy(down(part, 5)).T
        assert torch.allclose(factor.grad, expected, atol=1e-5), part.name
    assert sum(part.rank is not None for part in parts_of(layout, one.training)) == 1


@choices
def test_the_clip_bounds_the_trained_values_of_a_patient_together(choice, monkeypatch):
    norms = []
    original = PatientOptimizer.clip_and_accumulate

    def recorded(self):
        for p in self.params:
            p.summed_grad = None
        original(self)
        norms.append(float(torch.cat([p.summed_grad.reshape(-1) for p in self.params]).double().norm()))

    monkeypatch.setattr(PatientOptimizer, "clip_and_accumulate", recorded)
    one = plan(training={**SGD, **choice}, privacy={**NOISELESS, "clip_norm": 1e-3})
    train_round(one, URI, built(one)[2], people(3))
    assert len(norms) == 3
    assert all(0.99e-3 < norm <= 1e-3 for norm in norms)


@choices
def test_noise_of_the_planned_deviation_lies_on_every_trained_value_and_on_no_other(choice):
    one = plan(
        training={**SGD, "learning_rate": 1.0, **choice},
        privacy={"noise_multiplier": 3.0, "clip_norm": 0.5, "inverse_sampling_rate": 2},
    )
    _, layout, base = built(one)
    update = train_round(one, URI, base, []).update
    assert update.std() == pytest.approx(3.0 * 0.5 / 10, rel=5 / (2 * len(update)) ** 0.5)
    assert (update != 0).all()
    change = layout.split(spread(one, layout, update, 1))
    trained = {part.name for part in parts_of(layout, one.training)}
    assert all(not values.any() for name, values in change.items() if name not in trained)


@choices
def test_the_history_is_that_of_training_everything(choice):
    one = plan(training=choice)
    assert train_round(one, URI, built(one)[2], people(2)).history == ((1.0, 0.5, 3),)


def test_training_everything_is_untouched_by_the_choice_of_parts_to_the_bit():
    everything, named = plan(), plan(training={"parts": ["input", "down", "bottle", "up", "output"]})
    _, layout, base = built(everything)
    update = train_round(everything, URI, base, people(3), rand=replayed(b"same")).update
    again = train_round(named, URI, base, people(3), rand=replayed(b"same")).update
    assert update_layout(layout, named.training) == layout
    assert np.array_equal(update, again)


@pytest.mark.parametrize("name", ["AttentionUnet", "SegResNet", "UNet"])
def test_other_networks_take_adapters_in_every_kind_of_convolution(name):
    one = small_plan(name, training={**SGD, "adapter_rank": 2}, privacy=NOISELESS)
    module, layout, base = built(one)
    update = train_round(one, URI, base, people(2)).update
    sent = update_layout(layout, one.training).split(update)
    transposed = [n for n, layer in module.named_modules() if isinstance(layer, nn.ConvTranspose3d)]
    assert transposed
    assert all(np.abs(sent[f"{name}.weight.up"]).sum() > 0 for name in transposed)


def test_parts_that_the_network_lacks_are_refused_before_anything_is_trained():
    one = plan(training={"parts": ["decoder"]})
    with pytest.raises(PlanError, match="begins with 'decoder'; names begin with "):
        train_round(one, URI, built(one)[2], people(1))


def test_a_pull_towards_the_base_holds_the_factors_too():
    loose, held = (
        plan(training={**SGD, "local_steps": 4, "adapter_rank": 2, "proximal": mu}, privacy=NOISELESS) for mu in (0.0, 1.9)
    )
    base = built(loose)[2]
    far, near = (train_round(one, URI, base, people(3), rand=replayed(b"p")).update for one in (loose, held))
    assert 0 < np.linalg.norm(near) < 0.8 * np.linalg.norm(far)


def test_private_optimizers_hold_what_requires_a_gradient():
    one = plan(training={"parts": "norms-and-biases"})
    module, _, _ = built(one)
    trained = choose(module, one.training, 1)
    optimizer = private_optimizer(module, one, URI, round=1, normals=None)
    assert [id(p) for p in optimizer.params] == [id(p) for p in trained]


@choices
@pytest.mark.parametrize(
    "economy",
    [{"patches_per_patient": 1}, {"micro_batch": 1, "checkpointing": True}],
    ids=["one patch", "in small pieces"],
)
def test_frozen_layers_go_through_every_way_of_running_the_network(choice, economy, monkeypatch):
    """The update against the plain network of MONAI, run as it is."""
    one = plan(training={**SGD, "augment": False, **choice, **economy}, privacy={**NOISELESS, "clip_norm": 1e3})
    base = built(one)[2]
    update = train_round(one, URI, base, people(2), rand=replayed(b"e")).update
    as_it_is = plan(
        training={**SGD, "augment": False, **choice, "patches_per_patient": one.training.patches_per_patient},
        privacy={**NOISELESS, "clip_norm": 1e3},
    )
    monkeypatch.setattr("hospital_node.economy.prefer_onednn", lambda module: 0)
    plain = train_round(as_it_is, URI, base, people(2), rand=replayed(b"e")).update
    assert np.linalg.norm(update - plain) < 1e-3 * np.linalg.norm(plain)


def test_a_factor_is_trained_in_half_precision_too():
    one = plan(training={**SGD, "adapter_rank": 2, "precision": "bf16"}, privacy={**NOISELESS, "clip_norm": 1e3})
    exact = plan(training={**SGD, "adapter_rank": 2}, privacy={**NOISELESS, "clip_norm": 1e3})
    base = built(one)[2]
    rough, fine = (train_round(each, URI, base, people(2), rand=replayed(b"e")).update for each in (one, exact))
    assert rough.dtype == np.float32
    assert 0 < np.linalg.norm(rough - fine) < 0.1 * np.linalg.norm(fine)
