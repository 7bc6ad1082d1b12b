"""Precision, micro-batches and checkpointing: what they save, and that nothing else changes."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from training_world import SILENT, URI, people, person, plan, recorded_contributions, replayed

from hospital_node import economy, network, patches
from hospital_node.losses import dice_ce
from hospital_node.noise import StepCoins
from hospital_node.train import SEGMENTATION, backward, train_round

ROUNDING = 2e-5  # of the norm, between float32 sums in another order
NETWORKS = {  # smooth: the kink of a rectifier would make much of a rounding
    "DynUNet": {"arguments": {"act_name": "elu"}},
    "UNet": {"architecture": "UNet", "norm": "instance", "arguments": {"act": "elu"}},
}
WAYS = [{"micro_batch": 1}, {"micro_batch": 2}, {"checkpointing": True}, {"micro_batch": 2, "checkpointing": True}]


def built(one, seed=3):
    torch.manual_seed(seed)
    return SEGMENTATION.build(one)


def gradient(one, patient, coins, module=None):
    """Of one patient, as `train.backward` leaves it."""
    module = module or built(one)
    module.zero_grad(set_to_none=True)
    backward(module, one, patient, coins)
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()]).double()


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_is_that_of_all_patches_at_once(architecture, way):
    plain = plan(network=NETWORKS[architecture], training={"patches_per_patient": 5})
    thrifty = plan(network=NETWORKS[architecture], training={"patches_per_patient": 5, **way})
    coins, patient = StepCoins.fresh(replayed(b"k")), person("ann", scans=2)
    assert relative(gradient(thrifty, patient, coins), gradient(plain, patient, coins)) < ROUNDING


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_round_does_not_depend_on_the_size_of_a_micro_batch(precision):
    common = {"patches_per_patient": 4, "optimizer": "sgd", "local_steps": 2, "precision": precision}
    silent = {**SILENT, "inverse_sampling_rate": 1}
    sizes = (None, 1, 2, 3, 4, 9)
    plans = [plan(network=NETWORKS["DynUNet"], training={**common, "micro_batch": n}, privacy=silent) for n in sizes]
    base = network.vector_of(built(plans[0]))
    first, *others = (train_round(one, URI, base, people(2), rand=replayed(b"r")).update for one in plans)
    limit = ROUNDING if precision == "fp32" else 0.05  # bfloat16 rounds each micro-batch's gradient to 8 bits
    assert np.linalg.norm(first) > 0
    assert all(np.linalg.norm(one - first) < limit * np.linalg.norm(first) for one in others)
    assert np.array_equal(others[-1], first)  # more than there are patches is all of them
    assert not np.array_equal(others[0], first)  # the others did run apart


def test_the_loss_of_a_micro_batch_is_not_what_is_added_up():
    """The mean of losses of single patches, which plain accumulation would take, has another gradient."""
    one = plan(training={"patches_per_patient": 4, "augment": False})
    coins, patient, module = StepCoins.fresh(replayed(b"u")), person("ann"), built(one)
    whole = gradient(one, patient, coins, module)
    images, labels = patches.draw(patient, one.preparation, one.training, coins.generator("ann"))
    module.zero_grad(set_to_none=True)
    for image, label in zip(images, labels, strict=True):
        (dice_ce(module(image[None]), label[None]) / 4).backward()
    assert relative(torch.cat([p.grad.reshape(-1) for p in module.parameters()]).double(), whole) > 0.01


def kept_bytes(one, patient):
    """What the forward pass leaves for the gradient, each storage once; parameters do not count."""
    module, kept = built(one), {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(tensor):
        if not tensor.is_mkldnn and tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = SEGMENTATION.loss(module, one, patient, np.random.default_rng(1))
    loss.backward()
    return sum(kept.values())


def test_what_is_kept_for_the_gradient_shrinks():
    def bytes_of(**training):
        one = plan(preparation={"patch_zyx": (16, 16, 16)}, training={"patches_per_patient": 4, **training})
        return kept_bytes(one, person("ann", side=32))

    whole = bytes_of()
    assert bytes_of(precision="bf16") < 0.75 * whole
    assert bytes_of(precision="fp16") < 0.75 * whole
    assert bytes_of(checkpointing=True) < 0.6 * whole
    assert bytes_of(micro_batch=1) < 0.15 * whole


@pytest.mark.parametrize("architecture", NETWORKS)
def test_blocks_hold_two_layers_or_more_and_no_other_block(architecture):
    module = network.build(plan(network=NETWORKS[architecture]).network)
    found = list(economy.blocks(module))
    assert len(found) >= 4
    for one, other in itertools.permutations(found, 2):
        assert all(one is not part for part in other.modules())
    sizes = [sum(isinstance(part, nn.Conv3d | nn.ConvTranspose3d) for part in one.modules()) for one in found]
    assert min(sizes) >= 2
    assert max(sizes) <= 4


def test_computing_a_block_again_repeats_its_chance():
    def gradient_of(*, checkpointing):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 6), nn.Dropout(0.5), nn.Linear(6, 1))
        economy.economical(module, plan(training={"checkpointing": checkpointing}).training)
        assert (type(module) is not nn.Sequential) == checkpointing
        torch.manual_seed(2)
        module(torch.randn(3, 6)).square().sum().backward()
        return torch.cat([p.grad.reshape(-1) for p in module.parameters()])

    assert torch.equal(gradient_of(checkpointing=True), gradient_of(checkpointing=False))


def test_names_layout_and_class_names_stay():
    one = plan(training={"checkpointing": True})
    plain, thrifty = network.build(one.network), built(one)
    assert network.layout_of(thrifty) == network.layout_of(plain)
    kinds = [type(part).__name__.lstrip("_").replace("TransposedConvolution", "ConvTranspose3d") for part in thrifty.modules()]
    assert [kind for kind in kinds if "Convolution" not in kind and "Conv" not in kind] == [
        type(part).__name__ for part in plain.modules() if "Conv" not in type(part).__name__
    ]


# --- bfloat16 ---


def test_bfloat16_changes_the_network_alone():
    exact, rough = plan(), plan(training={"precision": "bf16"})
    coins, patient = StepCoins.fresh(replayed(b"b")), person("ann")
    wanted, near = gradient(exact, patient, coins), gradient(rough, patient, coins)
    assert 1e-6 < relative(near, wanted) < 0.2
    assert float(near @ wanted / (near.norm() * wanted.norm())) > 0.98
    images, _ = patches.draw(patient, rough.preparation, rough.training, coins.generator("ann"))
    assert economy.logits(built(rough), images, rough.training).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_noise_is_the_same_to_the_bit_in_every_precision():
    base = network.vector_of(built(plan()))
    exact, rough, half = (
        train_round(plan(training={"precision": precision}), URI, base, [], rand=replayed(b"n")).update
        for precision in ("fp32", "bf16", "fp16")
    )
    assert np.array_equal(exact, rough)
    assert np.array_equal(exact, half)
    assert len(np.unique(exact.view(np.uint32) & 0xFFFF)) > 1000  # float32 all the way: low bits are in use


# --- what privacy rests on, in every way to save ---


@pytest.fixture
def contributions(monkeypatch):
    return recorded_contributions(monkeypatch)


ROUGH = [{"precision": "bf16"}, {"precision": "fp16"}]
ALL_WAYS = [*WAYS, *ROUGH, *({**one, "micro_batch": 1, "checkpointing": True} for one in ROUGH)]


@pytest.mark.parametrize("way", ALL_WAYS)
def test_removing_one_patient_changes_no_other_contribution_in_any_step(contributions, way):
    still = {"local_steps": 2, "optimizer": "sgd", "learning_rate": 1e-30, "patches_per_patient": 3, **way}
    one = plan(training=still, privacy={"inverse_sampling_rate": 1, "clip_norm": 0.05})
    base, cohort = network.vector_of(built(one)), people(4)
    train_round(one, URI, base, cohort, rand=replayed(b"same"))
    everyone = list(contributions)
    contributions.clear()
    train_round(one, URI, base, cohort[:1] + cohort[2:], rand=replayed(b"same"))
    left = everyone[:1] + everyone[2:5] + everyone[6:]
    assert len(contributions) == len(left) == 6
    assert all(np.array_equal(*pair) for pair in zip(left, contributions, strict=True))
    assert all(0.9 * 0.05 < np.linalg.norm(each.astype(np.float64)) <= 0.05 for each in everyone)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_history_and_a_broken_scan_are_treated_alike(way):
    broken = person("broken")
    broken.cases[0].image[:] = np.nan
    one = plan(training=way, privacy={"inverse_sampling_rate": 1})
    base = network.vector_of(built(one))
    result = train_round(one, URI, base, [*people(1), broken])
    assert result.history == ((1.0, 1.0, 3),)
    assert result.nonfinite == 3
    assert np.isfinite(result.update).all()
    assert train_round(one, URI, base, []).history == ((1.0, 1.0, 3),)  # a draw of nobody is a real step
