"""Weights of bfloat16 for segmenting: near float32, only where convolutions and norms are all there is, and on a copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_world import plan

from hospital_node import narrow, network
from hospital_node.predict import Segmenter
from hospital_node.sliding import Windows
from proto.modelfile import Model
from proto.plan import Plan

SIDE = 16
TRANSFORMER = {"hidden_size": 12, "mlp_dim": 24, "num_heads": 2}


def convolutional() -> Plan:
    return plan(network={"channels": (4, 8, 8), "labels": ("one", "two")})


def attentive() -> Plan:
    arguments = {"img_size": [SIDE, SIDE, SIDE], **TRANSFORMER}
    return plan(network={"architecture": "UNETR", "channels": (4,), "labels": ("one",), "arguments": arguments})


def segmenter(chosen: Plan) -> Segmenter:
    torch.manual_seed(8)
    module = network.build(chosen.network)
    model = Model(network.layout_of(module), network.vector_of(module))
    return Segmenter.of(chosen, model, Windows((SIDE, SIDE, SIDE)))


def said(one: Segmenter) -> torch.Tensor:
    torch.manual_seed(9)
    with torch.inference_mode():
        return one.forward(torch.randn(2, 1, SIDE, SIDE, SIDE))


def test_narrow_weights_say_nearly_what_wide_ones_say_and_the_wide_ones_stay() -> None:
    wide = segmenter(convolutional())
    before = said(wide)
    quick = wide.in_precision("bf16")
    found = said(quick)
    assert {parameter.dtype for parameter in quick.module.parameters()} == {torch.bfloat16}
    assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
    difference = (found - before).abs().max()
    assert 0 < difference < 0.05 * before.abs().max()
    assert torch.equal(said(wide), before)


def test_several_windows_go_through_at_once_but_never_fewer_than_were_asked_for() -> None:
    wide = segmenter(convolutional())
    assert wide.in_precision("bf16").windows.at_once == narrow.AT_ONCE
    assert wide.in_precision("fp32").windows.at_once == 1


def test_attention_stays_with_autocast() -> None:
    pytest.importorskip("einops")
    quick = segmenter(attentive()).in_precision("bf16")
    assert {parameter.dtype for parameter in quick.module.parameters()} == {torch.float32}
    assert said(quick).dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Conv3d(1, 2, 3), True),
        (nn.ConvTranspose3d(2, 1, 2), True),
        (nn.GroupNorm(2, 4), True),
        (nn.InstanceNorm3d(4, affine=True), True),
        (nn.PReLU(), True),
        (nn.LayerNorm(4), False),
        (nn.Linear(4, 4), False),
        (nn.MultiheadAttention(4, 2), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_may_be_narrowed_is_a_closed_list(layer, fits) -> None:
    assert narrow.fits(nn.Sequential(nn.Conv3d(1, 1, 1), nn.ReLU(), layer)) is fits
