"""Prediction of whole scans and Dice, and that training on shapes teaches something."""

import numpy as np
import pytest
import torch
from torch import nn
from training_world import SILENT, URI, Scan, people, person, plan

from hospital_node import inference, network
from hospital_node.train import train_round
from study import pretrain as pretraining
from study.pretrain import Schedule, class_weights, pretrain


class Threshold(nn.Module):
    """Calls a voxel label 1 above 0 and label 2 above 1."""

    def forward(self, images):
        return torch.cat([torch.zeros_like(images), images, 2 * images - 1], dim=1)


@pytest.mark.parametrize("shape", [(5, 8, 3), (8, 8, 8), (9, 17, 30)])
def test_prediction_has_the_grid_of_the_scan(shape):
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = inference.predict(Threshold(), image, (8, 8, 8))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.where(image > 1, 2, np.where(image > 0, 1, 0)))


def test_a_scan_of_one_window_is_predicted_as_in_a_batch():
    module = network.build(plan().network)
    image = np.random.default_rng(0).standard_normal((8, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(image)[None, None].repeat(3, 1, 1, 1, 1))[0].argmax(0)
    assert np.array_equal(inference.predict(module, image, (8, 8, 8)), expected.numpy())


def test_prediction_reads_a_read_only_array_and_leaves_it():
    image = np.zeros((8, 8, 8), np.float32)
    image.setflags(write=False)
    assert not inference.predict(Threshold(), image, (8, 8, 8)).any()


def test_dice_by_hand():
    truth, found = np.zeros((1, 1, 6), np.uint8), np.zeros((1, 1, 6), np.uint8)
    truth[..., :3] = 1
    found[..., 1:3] = 1
    found[..., 3] = 2
    assert inference.dice(found, truth, 1) == pytest.approx(2 * 2 / 5)
    assert inference.dice(truth, truth, 1) == 1.0
    assert inference.dice(np.zeros_like(truth), truth, 1) == 0.0
    assert inference.dice(found, truth, 2) is None  # nothing to find


def test_scores_are_per_case_that_holds_the_label():
    image = np.full((8, 8, 8), -1, np.float32)
    image[0], image[1] = 0.5, 2.0
    whole = Scan(image, np.where(image > 1, 2, np.where(image > 0, 1, 0)).astype(np.uint8))
    half = Scan(image, (whole.label == 1).astype(np.uint8))
    none = Scan(image, np.zeros_like(whole.label))
    scores = inference.dice_per_label(Threshold(), [whole, half, none], ("head", "tail"), (8, 8, 8))
    assert scores == {"head": [1.0, 1.0], "tail": [1.0]}


@pytest.fixture
def short_trials(monkeypatch):
    monkeypatch.setattr(pretraining, "TRIAL_STEPS", 4)


def test_pretraining_on_public_volumes_teaches_the_shape(short_trials):
    one = plan(preparation={"patch_zyx": (16, 16, 16)})
    volumes = [(scan.image, scan.label) for index in range(6) for scan in person(f"v{index}").cases]
    start = pretrain(one.network, one.preparation, one.training, iter(volumes), Schedule(steps=40, threads=1, seed=4))
    module = network.build(one.network)
    network.load_vector(module, network.layout_of(module), start)
    unseen = [person(f"u{index}").cases[0] for index in range(3)]
    assert np.mean(inference.dice_per_label(module, unseen, ("lesion",), (16, 16, 16))["lesion"]) > 0.3


def test_pretraining_repeats_and_follows_its_seed(short_trials):
    one = plan()
    volumes = [(scan.image, scan.label) for scan in person("v", scans=3).cases]
    first, again, other = (
        pretrain(one.network, one.preparation, one.training, volumes, Schedule(steps=3, threads=1, seed=seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pretraining_goes_on_from_the_best_of_its_random_starts(short_trials, monkeypatch):
    # Two starts of three cannot learn: all their biases and normalisations are dead and fixed.
    built = []
    fresh = pretraining._fresh

    def with_dead_ones(plan_network, seed, number):
        module = fresh(plan_network, seed, number)
        if number != 1:
            for p in module.parameters():
                p.requires_grad_(requires_grad=p.ndim > 1)
                p.data.mul_(0 if p.ndim == 1 else 1)
        built.append(module)
        return module

    monkeypatch.setattr(pretraining, "_fresh", with_dead_ones)
    one = plan()
    volumes = [(scan.image, scan.label) for scan in person("v", scans=3).cases]
    vector = pretrain(one.network, one.preparation, one.training, volumes, Schedule(steps=2, threads=1))
    assert len(built) == pretraining.CANDIDATES
    assert np.array_equal(vector, network.vector_of(built[1]))


def test_class_weights_by_hand():
    labels = torch.tensor([0] * 12 + [1] * 4)
    assert class_weights(labels, 3, 0.5).tolist() == pytest.approx([(16 / 12) ** 0.5, 2.0, 0.0])
    assert class_weights(labels, 2, 0.0).tolist() == [1.0, 1.0]


def test_rounds_of_training_teach_the_shape():
    one = plan(
        preparation={"patch_zyx": (16, 16, 16)},
        training={"local_steps": 20, "learning_rate": 1e-2},
        privacy={**SILENT, "inverse_sampling_rate": 4, "clip_norm": 1.0},
    )
    torch.manual_seed(0)
    module = network.build(one.network)
    layout = network.layout_of(module)
    unseen = [person(f"u{index}").cases[0] for index in range(3)]
    start = network.vector_of(module)
    before = np.mean(inference.dice_per_label(module, unseen, ("lesion",), (16, 16, 16))["lesion"])
    model = start + train_round(one, URI, start, people(12)).update
    network.load_vector(module, layout, model)
    after = np.mean(inference.dice_per_label(module, unseen, ("lesion",), (16, 16, 16))["lesion"])
    assert after > before + 0.2
