"""Networks: what can be built, what is refused and why, and the way to the flat vector and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hospital_node import architectures, network
from hospital_node.network import NetworkError
from proto.layout import Layout, LayoutError
from proto.plan import Network


def spec(**changes):
    return Network.model_validate({"channels": (4, 8, 8), "labels": ("lesion",), **changes})


@pytest.mark.parametrize(
    ("architecture", "norm", "channels"),
    [
        ("DynUNet", "group", (4, 8, 8)),
        ("DynUNet", "instance", (3, 5, 7)),
        ("DynUNet", "group", (4, 4, 8, 8)),
        ("UNet", "instance", (4, 8)),
        ("UNet", "instance", (4, 8, 16, 16)),
    ],
)
def test_output_has_the_grid_of_the_input_and_a_channel_for_each_class(architecture, norm, channels):
    one = spec(architecture=architecture, norm=norm, channels=channels, labels=("a", "b"))
    side = 2 * network.divisor(one)
    module = network.build(one)
    assert module(torch.zeros(2, 1, side, 2 * side, side)).shape == (2, 3, side, 2 * side, side)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channels": (4, 8)}, "2 levels, DynUNet needs 3"),
        ({"architecture": "UNet", "channels": (4,)}, "1 levels, UNet needs 2"),
        ({"channels": (4, 6, 8)}, "multiples of 4"),
        ({"channels": (4, 0, 8)}, "must be positive"),
        ({"architecture": "UNet"}, "use norm = 'instance'"),
        ({"channels": (4,) * 11}, "11 levels, more than 10 fit no scan"),
        ({"channels": (100_000,) * 3}, "more than 100,000,000 parameters or 4,096 tensors, which no node builds: use fewer"),
        ({"channels": (2**60,) * 10}, "use fewer channels"),
        ({"channels": (4, 8, 2_000)}, "use fewer channels"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_remedy(changes, reason):
    with pytest.raises(NetworkError, match=reason):
        network.build(spec(**changes))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"architecture": "UNet", "norm": "instance", "arguments": {"num_res_units": 2**16}}, "which no node builds"),
        ({"architecture": "UNet", "norm": "instance", "arguments": {"kernel_size": 301}}, "which no node builds"),
        ({"architecture": "SwinUNETR", "channels": (12,), "arguments": {"depths": [2**16, 2, 2, 2]}}, "which no node builds"),
        ({"architecture": "SegResNet", "channels": (4, 8), "arguments": {"blocks_down": [2**16, 1]}}, "which no node builds"),
        (
            {"architecture": "SwinUNETR", "channels": (12,), "arguments": {"depths": [10**9]}},
            "depths holds 1e[+]09: no network",
        ),
        ({"arguments": {"act_name": ["elu", {"alpha": -1e12}]}}, "act_name holds 1e[+]12"),
    ],
)
def test_arguments_that_would_fill_the_memory_are_refused_while_they_are_counted(fields, says):
    with pytest.raises(NetworkError, match=says):
        network.build(spec(**fields))


def test_the_largest_usual_networks_are_below_the_bound():
    largest = spec(channels=(32, 64, 128, 256, 320, 320))
    for one in (largest, spec(architecture="VNet", channels=architectures.FIXED_CHANNELS)):
        kind = architectures.kind_of(one)
        given = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, **kind.options(one)}
        assert 10_000_000 < architectures.counted(one, given) < architectures.MAX_PARAMETERS


@pytest.mark.parametrize("layer", [nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.BatchNorm3d(4, track_running_stats=False)])
def test_batch_normalisation_is_refused_with_reason_and_replacement(layer):
    module = nn.Sequential(nn.Conv3d(1, 4, 3), layer)
    with pytest.raises(NetworkError, match=r"layer '1' is .*BatchNorm.*normalises one patient by the others.*GroupNorm"):
        network.refuse_shared_statistics(module)


def test_running_means_are_refused():
    with pytest.raises(NetworkError, match="running mean over patients"):
        network.refuse_shared_statistics(nn.InstanceNorm3d(4, track_running_stats=True))


def test_a_buffer_that_could_carry_statistics_is_refused():
    module = nn.Conv3d(1, 4, 3)
    module.register_buffer("seen", torch.zeros(4))
    with pytest.raises(NetworkError, match="buffer 'seen'"):
        network.refuse_shared_statistics(module)


def test_harmless_layers_pass():
    attention = nn.MultiheadAttention(8, 2)
    norms = (nn.GroupNorm(2, 4), nn.InstanceNorm3d(4, affine=True), nn.LayerNorm(4))
    network.refuse_shared_statistics(nn.ModuleList([attention, nn.ConvTranspose3d(4, 4, 2), *norms]))


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_one_scan_is_seen_alike_whatever_lies_beside_it_in_the_batch(norm):
    module = network.build(spec(norm=norm))
    scans = torch.randn(3, 1, 16, 16, 16)
    together, pair = module(scans), module(scans[:2])
    assert torch.allclose(together[:2], pair, atol=1e-5)


def test_vector_and_layout_name_every_parameter_in_order():
    module = network.build(spec())
    layout, vector = network.layout_of(module), network.vector_of(module)
    assert [name for name, _ in layout.tensors] == [name for name, _ in module.named_parameters()]
    assert vector.shape == (layout.length,)
    parts = layout.split(vector)
    assert all(np.array_equal(parts[name], p.detach().numpy()) for name, p in module.named_parameters())


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_any_vector_goes_in_and_comes_out_the_same(seed):
    module = network.build(spec())
    layout = network.layout_of(module)
    vector = np.random.default_rng(seed).standard_normal(layout.length).astype(np.float32)
    kept = vector.copy()
    network.load_vector(module, layout, vector)
    assert np.array_equal(network.vector_of(module), vector)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert np.array_equal(vector, kept)  # the module owns a copy


def test_a_vector_of_another_network_is_refused_and_changes_nothing():
    module = network.build(spec())
    before = network.vector_of(module)
    other = network.layout_of(network.build(spec(channels=(4, 4, 4))))
    with pytest.raises(NetworkError, match="another network"):
        network.load_vector(module, other, np.zeros(other.length, np.float32))
    with pytest.raises(LayoutError):
        network.load_vector(module, network.layout_of(module), np.zeros(3, np.float32))
    renamed = Layout(tuple((f"x.{name}", shape) for name, shape in network.layout_of(module).tensors))
    with pytest.raises(NetworkError, match="another network"):
        network.load_vector(module, renamed, before)
    assert np.array_equal(network.vector_of(module), before)


def test_counters_and_positions_are_named_as_not_averaged_and_stay_as_they_are():
    module = nn.Conv3d(1, 2, 1)
    module.register_buffer("num_batches_tracked", torch.tensor(7))
    module.register_buffer("kept", torch.tensor([True, False]))
    network.refuse_shared_statistics(module)
    layout = network.layout_of(module)
    assert layout.not_averaged == ("num_batches_tracked", "kept")
    assert layout.length == len(network.vector_of(module)) == 4
    network.load_vector(module, layout, np.arange(4, dtype=np.float32))
    assert (int(module.num_batches_tracked), module.kept.tolist()) == (7, [True, False])
    assert network.layout_of(nn.Conv3d(1, 2, 1)) != layout
