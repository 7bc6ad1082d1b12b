"""Every MONAI network of the table: one DP step of it, and what of its arguments is refused and why."""

import json

import numpy as np
import pytest
import torch
from monai.utils import OptionalImportError
from torch import nn
from training_world import SILENT, URI, normals, people, person, plan, replayed

from hospital_node import architectures, network, patches
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.losses import dice_ce
from hospital_node.network import NetworkError
from hospital_node.noise import StepCoins
from hospital_node.train import SEGMENTATION, TrainingError, backward, train_round
from proto.plan import ARCHITECTURES, Network, Plan, PlanError, from_canonical

TRANSFORMER = {"hidden_size": 16, "mlp_dim": 16, "num_heads": 2}
SWIN = {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
SMALL = {  # name -> (fields of the network, side of a patch)
    "AttentionUnet": ({"channels": (4, 8)}, 8),
    "BasicUNet": ({"channels": (4, 4, 4, 8, 8, 4)}, 16),
    "DynUNet": ({"channels": (4, 4, 8), "arguments": {"res_block": True, "act_name": ["elu", {"alpha": 0.5}]}}, 8),
    "SegResNet": ({"channels": (4, 8), "arguments": {"upsample_mode": "deconv", "blocks_down": [1, 2]}}, 8),
    "SwinUNETR": ({"channels": (12,), "arguments": SWIN}, 32),
    "UNETR": ({"channels": (4,), "arguments": {"img_size": [16, 16, 16], **TRANSFORMER}}, 16),
    "UNet": ({"channels": (4, 8), "norm": "instance", "arguments": {"num_res_units": 2, "kernel_size": 5}}, 8),
    "VNet": ({}, 16),
}
NEEDS_EINOPS = {"SwinUNETR", "UNETR"}


def small_plan(name, **changes):
    fields, side = SMALL[name]
    return plan(
        network={"architecture": name, "channels": architectures.FIXED_CHANNELS, **fields},
        preparation={"patch_zyx": (side, side, side)},
        **changes,
    )


def needing(name):
    if name in NEEDS_EINOPS:
        pytest.importorskip("einops")
    return name


def clipped_sum(module, one, cohort, coins, clip):
    """The obvious computation: autograd for each patient by itself, clip, sum."""
    total = [torch.zeros_like(p) for p in module.parameters()]
    for patient in cohort:
        images, labels = patches.draw(patient, one.preparation, one.training, coins.generator(patient.key))
        found = torch.autograd.grad(dice_ce(module(images), labels), list(module.parameters()), allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(module.parameters(), found, strict=True)]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradient]))
        for whole, g in zip(total, gradient, strict=True):
            whole += g * float(min(1.0, clip / norm))
    return total


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_dp_step_of_every_network_is_the_clipped_sum_of_plain_autograd(name):
    one, cohort, clip = small_plan(needing(name)), [person("a", scans=2), person("b")][: 1 if name == "VNet" else 2], 0.05
    torch.manual_seed(1)
    module, coins = network.build(one.network).train(), StepCoins.fresh(replayed(b"step"))
    expected = clipped_sum(module, one, cohort, coins, clip)
    optimizer = PatientOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1.0,
        normals=normals(),
    )
    before = [p.detach().clone() for p in module.parameters()]
    for patient in cohort:
        backward(module, one, patient, coins)
        optimizer.clip_and_accumulate()
    optimizer.step()
    after = [p.detach() for p in module.parameters()]
    off = torch.stack([(b - p - e).norm() for b, p, e in zip(before, after, expected, strict=True)]).norm()
    whole = torch.stack([e.norm() for e in expected]).norm()
    assert 0.5 * clip < float(whole) <= len(cohort) * clip * (1 + 1e-6)
    assert float(off) < 1e-4 * float(whole)


@pytest.mark.parametrize("name", ["AttentionUnet", "SegResNet", "UNETR"])
def test_a_round_of_every_network_has_the_history_of_the_plan_and_a_finite_update(name):
    one = small_plan(needing(name), training={"local_steps": 1}, privacy={"inverse_sampling_rate": 1})
    torch.manual_seed(1)
    base = network.vector_of(network.build(one.network))
    trained = train_round(one, URI, base, people(2))
    assert trained.history == ((1.0, 1.0, 1),)
    assert np.isfinite(trained.update).all()
    assert (trained.update != 0).all()


def test_one_scan_is_seen_alike_whatever_lies_beside_it_in_every_network():
    for name in ARCHITECTURES:
        if name in NEEDS_EINOPS | {"VNet"}:
            continue
        side = SMALL[name][1]
        module = network.build(small_plan(name).network)
        scans = torch.randn(3, 1, side, side, side)
        assert torch.allclose(module(scans)[:2], module(scans[:2]), atol=1e-5), name


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("name", ["AttentionUnet", "VNet"])
def test_where_monai_normalises_across_patients_the_plans_norm_takes_the_place(name, norm):
    module = architectures.made(small_plan(name).network.model_copy(update={"norm": norm}))
    kinds = {type(layer) for layer in module.modules()}
    assert not any(issubclass(kind, architectures.BATCH_NORMS) for kind in kinds)
    assert {"group": nn.GroupNorm, "instance": nn.InstanceNorm3d}[norm] in kinds
    network.refuse_shared_statistics(module)


def test_arguments_reach_the_class():
    one = Network(architecture="UNet", channels=(4, 8), labels=("a",), norm="instance")
    plain = network.build(one)
    wide = network.build(one.model_copy(update={"arguments": {"kernel_size": 5, "act": ["elu", {"alpha": 0.5}]}}))
    assert len(network.vector_of(wide)) > len(network.vector_of(plain))
    assert {layer.alpha for layer in wide.modules() if isinstance(layer, nn.ELU)} == {0.5}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"arguments": {"in_channels": 2}}, "arguments.in_channels follows from the plan's other fields"),
        ({"arguments": {"filters": [4, 4, 4]}}, "arguments.filters follows from the plan's other fields"),
        ({"arguments": {"no_such": 1}}, "arguments.no_such is no argument of MONAI's DynUNet, which takes act_name, deep"),
        ({"arguments": {"act_name": "none-such"}}, "MONAI cannot build DynUNet of this plan: "),
        ({"arguments": {"dropout": 0.2}}, "is Dropout: it draws from torch's own generator"),
        ({"architecture": "BasicUNet"}, "lists 3 levels, BasicUNet needs exactly 6"),
        ({"architecture": "UNETR", "channels": (4, 8)}, "lists 2 levels, UNETR needs exactly 1"),
        ({"architecture": "SegResNet", "channels": (4, 12)}, "SegResNet doubles its channels"),
        ({"architecture": "VNet", "channels": (4, 8)}, "widths of VNet are fixed by MONAI"),
        ({"architecture": "VNet", "arguments": {"dropout_prob_down": 0.5}}, "is Dropout3d"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(fields, says):
    with pytest.raises(NetworkError, match=says):
        network.build(plan(network={"channels": architectures.FIXED_CHANNELS, **fields}).network)


@pytest.mark.parametrize(
    ("fields", "side", "says"),
    [
        ({"arguments": {"deep_supervision": True}}, 8, r"shape \[2, 2, 2, 8, 8, 8\] for 2 patches, training needs"),
        ({"architecture": "BasicUNet", "channels": (4,) * 6}, 8, r"BasicUNet of this plan cannot take patches of \[8, 8, 8\]"),
        ({"architecture": "SegResNet", "channels": (4, 8), "arguments": {"blocks_down": [1, 1, 1]}}, 8, "SegResNet of this"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_before_anything_is_trained(fields, side, says):
    one = plan(network=fields, preparation={"patch_zyx": (side, side, side)})
    with pytest.raises((NetworkError, TrainingError), match=says):
        train_round(one, URI, np.zeros(1, np.float32), people(1))


def test_a_missing_package_is_named(monkeypatch):
    def without(**_):
        raise OptionalImportError("from einops import rearrange (No module named 'einops').\n\nFor details ...")

    monkeypatch.setattr(architectures.nets, "DynUNet", without)
    architectures.check_patch.cache_clear()  # a network that went through before is not asked again
    with pytest.raises(NetworkError, match=r"needs a package that is not here \(from einops .*'einops'\)\): pip install"):
        SEGMENTATION.check(plan())


class Attended(nn.Module):
    """A network of an objective that drops inside a layer which is no dropout layer."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.1), nn.Dropout3d(0.5), nn.AlphaDropout(0.2), nn.RReLU(), Attended(dropout=0.1), nn.GRU(2, 2, 2, dropout=0.1)],
)
def test_a_layer_with_chance_of_its_own_is_refused_with_the_reason(layer):
    with pytest.raises(NetworkError, match=r"layer '1.*' is .*torch's own generator.*what the others contribute"):
        network.refuse_own_chance(nn.Sequential(nn.Linear(2, 2), layer))


def test_layers_without_chance_pass():
    harmless = (nn.Dropout(0.0), nn.RReLU(0.1, 0.1), Attended(), nn.GRU(2, 2))
    network.refuse_own_chance(nn.ModuleList(harmless))


# ---- the plan ----


def test_arguments_travel_and_change_the_digest_and_their_absence_changes_nothing():
    without, empty = small_plan("UNet").model_dump(mode="json"), plan().canonical()
    assert b"arguments" not in empty
    full = Plan.model_validate(without)
    assert b'"arguments":{"kernel_size":5,"num_res_units":2}' in full.canonical()
    assert from_canonical(full.canonical()) == full
    without["network"]["arguments"] = {"kernel_size": 5, "num_res_units": 3}
    other = Plan.model_validate(without)
    assert len({full.digest(), other.digest()}) == 2
    assert len({hash(full), hash(other)}) == 2


@pytest.mark.parametrize(
    ("network_fields", "says"),
    [
        ({"arguments": {"Kernel": 3}}, "'Kernel' is no name of a keyword argument"),
        ({"arguments": {"act": None}}, "'act' must be a text, a finite number"),
        ({"arguments": {"act": float("inf")}}, "'act' must be a text, a finite number"),
        ({"arguments": {"act": [[[[[1]]]]]}}, "'act' must be a text, a finite number"),
        ({"architecture": "task:digits", "arguments": {"act": 1}}, "arguments are for MONAI's networks"),
        ({"norm": "batch"}, "'batch' normalises one patient by the others .*: use 'group' or 'instance'"),
        ({"norm": "SyncBatchNorm"}, "'SyncBatchNorm' normalises one patient by the others"),
    ],
)
def test_a_plan_that_no_network_can_follow_is_refused_in_a_sentence(network_fields, says):
    fields = plan().model_dump(mode="json")
    fields["network"] |= network_fields
    with pytest.raises(PlanError, match=says):
        from_canonical(json.dumps(fields, sort_keys=True).encode())


def test_silent_plans_train_transposed_convolutions_too():
    one = small_plan("BasicUNet", training={"local_steps": 1}, privacy={**SILENT, "inverse_sampling_rate": 1})
    module = network.build(one.network)
    assert any(isinstance(layer, nn.ConvTranspose3d) for layer in module.modules())
    before = network.vector_of(module)
    layout = network.layout_of(module)
    update = layout.split(train_round(one, URI, before, people(2)).update)
    transposed = [n for n, p in module.named_modules() if isinstance(p, nn.ConvTranspose3d)]
    assert all(np.abs(update[f"{name}.weight"]).sum() > 0 for name in transposed)
