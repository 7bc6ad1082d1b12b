"""Training in float16: the same gradient to 11 bits, a range held open by a fixed scale, and a clip that sees none of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from training_world import SILENT, URI, people, person, plan, recorded_contributions, replayed

from hospital_node import economy, network
from hospital_node.convolution import between_float16, prefer_onednn
from hospital_node.noise import NormalStream, StepCoins
from hospital_node.train import SEGMENTATION, Segmentation, backward, private_optimizer, take_step, train_round

HALF_DIGITS = 5e-3  # of the norm; one float16 has 2**-11 = 5e-4, and a network rounds at every layer
SMOOTH = {"arguments": {"act_name": "elu"}}  # the kink of a rectifier would make much of a rounding
TINY = 1e-8  # float16 begins at 6e-8


def half(**training):
    return plan(network=SMOOTH, training={"precision": "fp16", **training})


def built(one):
    torch.manual_seed(3)
    return SEGMENTATION.build(one)


def gradient(one, patient, module=None, objective=SEGMENTATION):
    module = module or built(one)
    module.zero_grad(set_to_none=True)
    backward(module, one, patient, StepCoins.fresh(replayed(b"h")), objective)
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()]).double()


def apart(one, other):
    return float((one - other).norm() / other.norm())


# --- the gradient ---


@pytest.mark.parametrize("way", [{}, {"micro_batch": 1}, {"checkpointing": True}, {"micro_batch": 2, "checkpointing": True}])
def test_the_gradient_is_that_of_float32_to_the_digits_of_float16(way):
    patient = person("ann", scans=2)
    wanted = gradient(plan(network=SMOOTH, training={"patches_per_patient": 4}), patient)
    found = gradient(half(patches_per_patient=4, **way), patient)
    assert 1e-6 < apart(found, wanted) < HALF_DIGITS


@pytest.mark.parametrize("scale", [1, 64, 1 << 16])
def test_any_scale_in_range_gives_the_same_gradient(scale):
    patient = person("ann")
    assert apart(gradient(half(loss_scale=scale), patient), gradient(half(), patient)) < HALF_DIGITS


class Faint(Segmentation):
    """A loss whose gradient towards each logit is far below what float16 can say."""

    def loss(self, module, plan, patient, rng):
        images = torch.from_numpy(patient.cases[0].image[None, None, :8, :8, :8])
        return TINY * economy.logits(module, images, plan.training)[:, 1].sum()


def test_a_gradient_below_the_range_survives_by_the_scale_alone():
    wanted = gradient(plan(network=SMOOTH), person("ann"), objective=Faint())
    kept = gradient(half(), person("ann"), objective=Faint())
    lost = gradient(half(loss_scale=1), person("ann"), objective=Faint())
    assert float(wanted.norm()) > 0
    assert apart(kept, wanted) < 2 * HALF_DIGITS
    assert float(lost.norm()) == 0


def test_the_scale_leaves_no_trace_in_the_digits(monkeypatch):
    """Where the network itself is float32, scaling up and down again is the same gradient to the bit."""
    monkeypatch.setitem(economy.INSIDE, "fp16", None)
    assert torch.equal(gradient(half(loss_scale=1 << 24), person("ann")), gradient(half(loss_scale=1), person("ann")))


# --- the clip ---


def test_the_bound_holds_for_every_patient_in_the_units_of_the_clip(monkeypatch):
    contributions = recorded_contributions(monkeypatch)
    bound, cohort = 0.05, people(3)
    one = plan(
        network=SMOOTH,
        training={"precision": "fp16", "local_steps": 1, "optimizer": "sgd"},
        privacy={**SILENT, "inverse_sampling_rate": 1, "clip_norm": bound},
    )
    train_round(one, URI, network.vector_of(built(one)), cohort, rand=replayed(b"c"))
    norms = [np.linalg.norm(each.astype(np.float64)) for each in contributions]
    assert len(norms) == 3
    assert all(0.999 * bound < norm <= bound for norm in norms)


def test_a_gradient_below_the_clip_is_summed_as_it_is(monkeypatch):
    """Scaled by 4096 it would lie far above the clip."""
    contributions = recorded_contributions(monkeypatch)
    one = plan(
        network=SMOOTH,
        training={"precision": "fp16", "local_steps": 1, "optimizer": "sgd"},
        privacy={**SILENT, "inverse_sampling_rate": 1, "clip_norm": 100.0},
    )
    exact = one.model_copy(update={"training": one.training.model_copy(update={"precision": "fp32"})})
    base = network.vector_of(built(one))
    for each in (one, exact):
        train_round(each, URI, base, people(1), rand=replayed(b"c"))
    found, wanted = (torch.from_numpy(each).double() for each in contributions)
    assert 0 < apart(found, wanted) < HALF_DIGITS


def loud(name):
    """Voxels that float32 holds and float16 does not."""
    patient = person(name)
    patient.cases[0].image[:] *= 1e6
    return patient


def test_an_overflow_takes_that_patient_out_and_nobody_else(monkeypatch):
    contributions = recorded_contributions(monkeypatch)
    still = {"precision": "fp16", "local_steps": 2, "optimizer": "sgd", "learning_rate": 1e-30}
    one = plan(network=SMOOTH, training=still, privacy={"inverse_sampling_rate": 1})
    base, calm = network.vector_of(built(one)), people(2)
    result = train_round(one, URI, base, [calm[0], loud("loud"), calm[1]], rand=replayed(b"o"))
    with_it = list(contributions)
    contributions.clear()
    train_round(one, URI, base, calm, rand=replayed(b"o"))
    assert result.nonfinite == 2
    assert np.isfinite(result.update).all()
    assert not with_it[1].any()
    assert not with_it[4].any()
    others = [with_it[at] for at in (0, 2, 3, 5)]
    assert all(np.array_equal(*pair) for pair in zip(others, contributions, strict=True))
    assert all(each.any() for each in others)
    exact = one.model_copy(update={"training": one.training.model_copy(update={"precision": "fp32"})})
    assert train_round(exact, URI, base, [loud("loud")]).nonfinite == 0


def test_a_scale_that_is_too_large_costs_patients_and_is_never_lowered_for_them():
    one = half(loss_scale=1 << 24, local_steps=3)
    module = built(one)
    with torch.no_grad():
        for p in module.parameters():
            p *= 30  # gradients of tens of thousands
    every = one.model_copy(update={"privacy": one.privacy.model_copy(update={"inverse_sampling_rate": 1})})
    result = train_round(every, URI, network.vector_of(module), people(1))
    assert result.nonfinite == 3
    assert result.history == ((1.0, 1.0, 3),)


def test_parameters_sums_and_moments_stay_float32():
    one = half(optimizer="adam")
    module = built(one)
    optimizer = private_optimizer(module, one, URI, round=1, normals=NormalStream(replayed(b"m")))
    take_step(module, optimizer, one, people(2), StepCoins.fresh(replayed(b"m")))
    moments = [value for state in optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in moments} == {torch.float32}
    assert {p.dtype for p in module.parameters()} == {p.grad.dtype for p in module.parameters()} == {torch.float32}


# --- convolutions ---

LAYERS = [
    (nn.Conv3d(4, 6, 3, padding=1), (1, 4, 24, 24, 24)),
    (nn.Conv3d(4, 6, 3, padding=1), (2, 4, 8, 8, 8)),
    (nn.Conv3d(16, 12, 3, padding=1), (1, 16, 2, 4, 4)),
    (nn.Conv3d(8, 6, 3, stride=2, padding=1, bias=False), (1, 8, 16, 16, 16)),
    (nn.Conv3d(6, 4, 1), (1, 6, 8, 8, 8)),
    (nn.Conv3d(4, 4, 3, padding="same", dilation=2, groups=2), (1, 4, 8, 8, 8)),
    (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 9, 9)),
    (nn.ConvTranspose3d(8, 6, 2, stride=2), (1, 8, 16, 16, 16)),
    (nn.ConvTranspose3d(8, 6, 3, stride=2, padding=1, output_padding=1), (2, 8, 6, 6, 6)),
]


def passed_through(layer, x, towards):
    """Result and gradients of x, weight and bias."""
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(towards.to(out.dtype))
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    return out, x.grad, *gradients


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda one: one if isinstance(one, tuple) else str(one))
def test_convolutions_compute_in_float32_between_float16(layer, shape):
    torch.manual_seed(1)
    x = torch.randn(shape).half().float()
    module = nn.Sequential(layer)
    prefer_onednn(module)
    towards = torch.randn(module(x).shape).half().float()
    exact = passed_through(module, x, towards)
    assert between_float16(module) == 1
    with torch.autocast("cpu", torch.float16):
        near = passed_through(module, x, towards)
        assert torch.is_autocast_enabled("cpu")
    assert near[0].dtype == torch.float16
    assert {one.dtype for one in near[1:]} == {torch.float32}
    for one, other in zip(near, exact, strict=True):
        assert apart(one.detach().double(), other.detach().double()) < 5e-4
    for one, other in zip(near[2:], exact[2:], strict=True):
        assert apart(one.double(), other.double()) < 1e-6  # gradients of weights never were float16


def test_outside_such_an_autocast_nothing_changes():
    layer = nn.Conv3d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 8, 8, 8)
    wanted = layer(x)
    between_float16(nn.Sequential(layer))
    assert type(layer).__name__ == "Conv3d"
    assert torch.equal(layer(x), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_no_kernel_of_the_cpu_sees_float16_in_a_convolution(monkeypatch):
    """Neither im2col, seventeen times slower, nor oneDNN's, which nobody here could try."""
    seen = []
    module = built(half())
    aten = torch.ops.aten

    def noted(kernel):
        def call(*given):
            seen.extend(one.dtype for one in given if isinstance(one, torch.Tensor))
            return kernel(*given)

        return call

    names = ("convolution", "mkldnn_convolution", "convolution_backward")
    watched = SimpleNamespace(**{name: noted(getattr(aten, name)) for name in names})
    monkeypatch.setattr(torch.ops, "aten", watched)
    economy.backward(
        economy.logits(module, torch.randn(1, 1, 24, 24, 24), half().training).sum(), module.parameters(), half().training
    )
    assert len(seen) > 10
    assert set(seen) == {torch.float32}
