"""The DP step: equal to Opacus' own, indifferent to how many patients were drawn, unharmed by a broken scan."""

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer
from torch import nn
from training_world import normals

from benchmarks.dp_training_steps import opacus_hooks
from hospital_node import network
from hospital_node.convolution import prefer_onednn
from hospital_node.dp_optimizer import PatientOptimizer, _norm
from hospital_node.losses import dice_ce
from hospital_node.noise import BLOCK_VALUES
from proto.plan import Network

EXPECTED = 2.5


def tiny(seed: int = 0, architecture: str = "DynUNet") -> nn.Module:
    torch.manual_seed(seed)
    norm = "group" if architecture == "DynUNet" else "instance"
    return network.build(Network(architecture=architecture, channels=(4, 4, 8), labels=("lesion",), norm=norm))


def private(module: nn.Module, sigma: float = 0.0, clip: float = 1.0, rate: float = 0.1) -> PatientOptimizer:
    return PatientOptimizer(
        torch.optim.SGD(module.parameters(), lr=rate),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        expected_batch_size=EXPECTED,
        normals=normals(),
    )


def batch(count: int, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`count` patients with two patches each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(2, 1, 8, 8, 8, generator=generator), (torch.rand(2, 8, 8, 8, generator=generator) < 0.1).long())
        for _ in range(count)
    ]


def feed(module: nn.Module, optimizer: PatientOptimizer, units: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for images, labels in units:
        dice_ce(module(images), labels).backward()
        optimizer.clip_and_accumulate()
    optimizer.step()


def gradient_norm(module: nn.Module) -> float:
    return float(torch.linalg.vector_norm(torch.cat([p.grad.reshape(-1) for p in module.parameters()])))


def hooked_kind() -> nn.Module:
    """Layers for which Opacus has hooks of its own: strided, plain and grouped convolutions, normalisations, a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.LeakyReLU(),
        nn.Conv3d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.InstanceNorm3d(8, affine=True),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4**3, 3),
    )


def opacus_step(module: nn.Module, units: list[tuple[torch.Tensor, torch.Tensor]], clip: float) -> None:
    """One step of Opacus' default hooks on all units as one batch, the loss a mean of theirs."""
    hooked = opacus_hooks(module)
    stock = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.1), noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=EXPECTED
    )
    logits = hooked(torch.cat([images for images, _ in units]))
    losses = [dice_ce(one[None], labels) for one, (_, labels) in zip(logits, units, strict=True)]
    torch.stack(losses).mean().backward()
    stock.step()


@pytest.mark.parametrize(("architecture", "clip"), [("DynUNet", 0.5), ("DynUNet", 1e3), ("UNet", 0.5)])
def test_the_products_own_networks_and_convolutions_equal_opacus_hooks(architecture, clip):
    reference, own = tiny(architecture=architecture), tiny(architecture=architecture)
    before = network.vector_of(own)
    generator = torch.Generator().manual_seed(1)
    units = [
        (torch.randn(1, 1, 24, 24, 24, generator=generator), (torch.rand(1, 24, 24, 24, generator=generator) < 0.1).long())
        for _ in range(3)
    ]
    opacus_step(reference, units, clip)
    assert prefer_onednn(own) > 5
    feed(own, private(own, clip=clip), units)
    step = network.vector_of(reference) - before
    assert np.linalg.norm(step) > 0
    assert np.linalg.norm(network.vector_of(own) - network.vector_of(reference)) < 1e-4 * np.linalg.norm(step)


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e3])
def test_one_patient_at_a_time_equals_opacus_hooks(clip):
    images, labels = torch.randn(5, 1, 8, 8, 8), torch.randint(3, (5,))
    reference, own = hooked_kind(), hooked_kind()
    hooked = GradSampleModule(reference)
    stock = DPOptimizer(
        torch.optim.SGD(reference.parameters(), lr=0.1), noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=EXPECTED
    )
    nn.functional.cross_entropy(hooked(images), labels).backward()
    stock.step()
    optimizer = private(own, clip=clip)
    for image, label in zip(images, labels, strict=True):
        nn.functional.cross_entropy(own(image[None]), label[None]).backward()
        optimizer.clip_and_accumulate()
    optimizer.step()
    step = network.vector_of(reference) - network.vector_of(hooked_kind())
    assert np.linalg.norm(step) > 0
    assert np.linalg.norm(network.vector_of(own) - network.vector_of(reference)) < 1e-4 * np.linalg.norm(step)


@pytest.mark.parametrize("architecture", ["DynUNet", "UNet"])
def test_the_networks_of_the_plan_equal_the_slow_sum_of_clipped_gradients(architecture):
    # Opacus has no hooks for transposed convolutions and activations in place; here the obvious computation is the reference.
    clip, module, units = 0.3, tiny(architecture=architecture), batch(4)
    expected = np.zeros(len(network.vector_of(module)))
    for images, labels in units:
        gradient = torch.autograd.grad(dice_ce(module(images), labels), list(module.parameters()))
        flat = torch.cat([part.reshape(-1) for part in gradient]).double().numpy()
        expected += flat * min(1, clip / np.linalg.norm(flat))
    before = network.vector_of(module).astype(np.float64)
    feed(module, private(module, clip=clip), units)
    step = before - network.vector_of(module)
    assert np.linalg.norm(step - 0.1 * expected / EXPECTED) < 1e-4 * np.linalg.norm(step)


@pytest.mark.parametrize("drawn", [0, 1, 7])
def test_divisor_and_history_do_not_depend_on_the_draw(drawn):
    module = tiny()
    optimizer, accountant = private(module, sigma=1.5, clip=1e-3), RDPAccountant()
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(0.25))
    seen = {}
    noise = normals().draw(sum(p.numel() for p in module.parameters()))
    optimizer.original_optimizer.register_step_pre_hook(lambda *_: seen.update(norm=module_gradient(module)))
    feed(module, optimizer, batch(drawn))
    signal = seen["norm"] - torch.from_numpy(noise) * 1.5e-3 / EXPECTED
    # each clipped patient adds at most C over the public divisor, and patients of one kind of scan nearly agree
    assert float(torch.linalg.vector_norm(signal)) <= drawn * 1e-3 / EXPECTED * 1.0001 + 1e-8
    assert (float(torch.linalg.vector_norm(signal)) > 0.3 * 1e-3 / EXPECTED) == (drawn > 0)
    assert accountant.history == [(1.5, 0.25, 1)]


def module_gradient(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()]).double()


def test_an_empty_draw_is_noise_of_the_planned_deviation():
    module = nn.Linear(400, 400)
    optimizer = private(module, sigma=2.0, clip=0.5)
    optimizer.step()
    values = module_gradient(module).numpy()
    planned = 2.0 * 0.5 / EXPECTED
    assert values.std() == pytest.approx(planned, rel=5 / (2 * len(values)) ** 0.5)
    assert ((values / planned) ** 4).mean() == pytest.approx(3, abs=5 * (96 / len(values)) ** 0.5)


def test_noise_is_new_in_every_step_and_every_tensor():
    module = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    optimizer = private(module, sigma=1.0)
    drawn = []
    for _ in range(2):
        optimizer.step()
        drawn += [p.grad.clone().reshape(-1) for p in module.parameters()]
    everything = torch.cat(drawn)
    assert len(torch.unique(everything)) > 0.999 * len(everything)


def test_noise_is_one_stream_over_all_tensors_and_blocks():
    module = nn.Sequential(nn.Linear(301, 301), nn.Linear(301, 1), nn.Linear(1, 70_000))
    optimizer = private(module, sigma=2.0, clip=0.5)
    optimizer.step()
    total = sum(p.numel() for p in module.parameters())
    assert total > 3 * BLOCK_VALUES
    expected = (normals().draw(total) * 1.0).astype(np.float32) / np.float32(EXPECTED)
    assert np.array_equal(module_gradient(module).numpy(), expected.astype(np.float64))


@pytest.mark.parametrize("count", [1, 7, 1 << 16, (1 << 16) + 1, 200_000])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_norm_is_that_of_float64(count, scale):
    gradients = [torch.randn(count) * scale, torch.randn(3, 5) * scale, torch.zeros(2, 0)]
    wanted = np.linalg.norm(np.concatenate([g.reshape(-1).double().numpy() for g in gradients]) / scale) * scale
    assert _norm(gradients) == pytest.approx(wanted, rel=1e-12)
    gradients[0][count // 2] = float("nan")
    assert not _norm(gradients) < float("inf")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_broken_patient_contributes_nothing_and_is_counted(bad):
    whole, hurt = tiny(), tiny()
    good, both = private(whole), private(hurt)
    units = batch(2)
    images, labels = batch(1, seed=5)[0]
    images[0, 0, 3, 3, 3] = bad
    feed(whole, good, units)
    feed(hurt, both, [units[0], (images, labels), units[1]])
    assert np.isfinite(network.vector_of(hurt)).all()
    assert both.nonfinite == 1
    assert good.nonfinite == 0
    assert np.array_equal(network.vector_of(whole), network.vector_of(hurt))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 7.0, 1e10, 1e30])
def test_a_contribution_never_exceeds_the_clip_norm(scale):
    module = nn.Linear(300, 300)
    optimizer = private(module, clip=0.7)
    for p in module.parameters():
        p.grad = torch.randn_like(p) * scale
    before = gradient_norm(module)
    optimizer.clip_and_accumulate()
    summed = torch.cat([p.summed_grad.reshape(-1) for p in module.parameters()]).double()
    norm = float(torch.linalg.vector_norm(summed))
    assert norm <= 0.7
    assert norm == pytest.approx(min(0.7, before), rel=1e-5)


def test_the_gradient_is_taken_once():
    module = nn.Linear(3, 3)
    optimizer = private(module)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.clip_and_accumulate()
    assert all(p.grad is None for p in module.parameters())
    optimizer.clip_and_accumulate()  # nobody in between: adds zero, not the same patient again
    assert float(sum((p.summed_grad**2).sum() for p in module.parameters())) <= 1.0


def test_what_a_step_left_is_never_taken_for_a_patient():
    module = tiny()
    optimizer = private(module, sigma=1.0)
    feed(module, optimizer, batch(2))
    (images, labels), *_ = batch(1)
    dice_ce(module(images), labels).backward()  # onto the noised mean
    with pytest.raises(RuntimeError, match="zero_grad"):
        optimizer.clip_and_accumulate()
    optimizer.zero_grad(set_to_none=True)
    feed(module, optimizer, batch(1))


def test_the_sum_is_spent_by_the_step():
    module = nn.Linear(3, 3)
    optimizer = private(module)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.clip_and_accumulate()
    optimizer.step()
    after = network.vector_of(module)
    optimizer.step()
    assert np.array_equal(network.vector_of(module), after)


def test_opacus_still_has_the_hooks_that_are_overridden():
    # If a new release renames one of these, the override would silently do nothing.
    for name in ("accumulated_iterations", "clip_and_accumulate", "add_noise", "scale_grad", "pre_step"):
        assert hasattr(DPOptimizer, name)
    assert PatientOptimizer.step is DPOptimizer.step
    assert private(tiny()).accumulated_iterations == 1
