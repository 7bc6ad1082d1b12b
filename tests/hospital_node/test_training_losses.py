"""Losses: values worked out by hand or by MONAI, finite gradients where a patch holds nothing; the plan's choice is used."""

import math
from typing import get_args

import monai.losses
import pytest
import torch

from hospital_node.losses import FALSE_WEIGHT, FOCAL_POWER, LOSSES, MISSED_WEIGHT, dice, focal_tversky, loss_of
from hospital_node.train import SEGMENTATION
from proto.training import LossName, Training


def some(classes=3, patches=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(patches, classes, 4, 5, 6, generator=generator)
    return logits, torch.randint(0, classes, (patches, 4, 5, 6), generator=generator)


def certain(labels, classes=3):
    return 50.0 * torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def monai_of(kind, **options):
    return kind(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0, **options)


def test_every_loss_of_the_plan_is_there_and_no_other():
    assert set(LOSSES) == set(get_args(LossName))


@pytest.mark.parametrize("seed", range(3))
def test_dice_and_cross_entropy_are_monais(seed):
    logits, labels = some(seed=seed)
    theirs = monai_of(monai.losses.DiceLoss)(logits, labels[:, None])
    assert float(dice(logits, labels)) == pytest.approx(float(theirs), rel=1e-5)
    both = monai_of(monai.losses.DiceCELoss)(logits, labels[:, None])
    assert float(loss_of("dice_ce")(logits, labels)) == pytest.approx(float(both), rel=1e-5)
    assert float(loss_of("ce")(logits, labels)) == pytest.approx(float(both - theirs), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_focal_tversky_is_the_power_of_monais_tversky_of_each_label(seed):
    logits, labels = some(seed=seed)
    theirs = monai_of(monai.losses.TverskyLoss, alpha=FALSE_WEIGHT, beta=MISSED_WEIGHT, reduction="none")
    expected = (theirs(logits, labels[:, None]).flatten() ** FOCAL_POWER).mean()
    assert float(focal_tversky(logits, labels)) == pytest.approx(float(expected), rel=1e-5)


def test_a_missed_voxel_costs_more_than_a_false_one():
    truth = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    truth[0, 0] = 1  # four voxels
    missed, false = truth.clone(), truth.clone()
    missed[0, 0, 0, 0], false[0, 1, 0, 0] = 0, 1
    assert focal_tversky(certain(missed, 2), truth) > focal_tversky(certain(false, 2), truth)
    assert float(focal_tversky(certain(missed, 2), truth)) == pytest.approx((1 - 4 / 4.7) ** 0.75, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_answer_costs_next_to_nothing_and_every_gradient_is_finite(name):
    _, labels = some()
    empty = torch.zeros_like(labels)
    for truth in (labels, empty):
        for logits in (certain(truth), torch.zeros(2, 3, 4, 5, 6), certain(2 - labels)):
            logits.requires_grad_(requires_grad=True)
            loss = loss_of(name)(logits, truth)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert math.isfinite(float(loss.detach()))
            assert bool(torch.isfinite(gradient).all())
        assert float(loss_of(name)(certain(truth), truth)) < 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_training_uses_the_loss_of_the_plan(name, monkeypatch):
    from hospital_node import train

    used = []
    monkeypatch.setattr(train, "loss_of", lambda wanted: used.append(wanted) or LOSSES[wanted])
    logits, labels = some()
    monkeypatch.setattr(train.patches, "draw", lambda *_: (logits[:, :1], labels))
    monkeypatch.setattr(train.economy, "logits", lambda *_: logits)

    class Plan:
        training = Training(local_steps=1, loss=name)
        preparation = None

    loss = SEGMENTATION.loss(torch.nn.Identity(), Plan, None, None)
    assert used == [name]
    assert float(loss) == pytest.approx(float(LOSSES[name](logits, labels)))
