"""Which part of a model travels, and how a mean of it becomes a change of the whole model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.frozen import parsed
from proto.layout import Layout
from proto.parts import down, parts_of, spread, update_layout
from proto.plan import Plan, PlanError, Training

LAYOUT = Layout(
    (
        ("enc.conv.weight", (4, 2, 3, 3, 3)),
        ("enc.conv.bias", (4,)),
        ("enc.norm.weight", (4,)),
        ("dec.up.weight", (4, 8)),
        ("dec.slope", (1,)),
        ("dec.scale", ()),
    )
)
PLAN = {
    "study": "trial",
    "rounds": 3,
    "network": {"labels": ["nodule"]},
    "preparation": {"modality": "CT", "spacing_xyz_mm": [2, 2, 2], "patch_zyx": [16, 16, 16]},
    "privacy": {"noise_multiplier": 1.0, "inverse_sampling_rate": 4},
    "hospitals": [{"uri": f"secagg://trial/hospital/{name}", "declared_patients": 40} for name in "abc"],
}


def plan(**training):
    return parsed(Plan, {**PLAN, "training": {"local_steps": 2, **training}}, "the plan", PlanError)


def names(**training):
    return [name for name, _ in update_layout(LAYOUT, plan(**training).training).tensors]


def test_what_travels_follows_from_names_and_shapes():
    assert update_layout(LAYOUT, plan().training) == LAYOUT
    assert names(parts="norms-and-biases") == ["enc.conv.bias", "enc.norm.weight", "dec.slope", "dec.scale"]
    assert names(parts=["dec.up", "enc.conv.b"]) == ["enc.conv.bias", "dec.up.weight"]
    assert update_layout(LAYOUT, plan(adapter_rank=2).training).tensors == (
        ("enc.conv.weight.up", (4, 2)),
        ("enc.conv.bias", (4,)),
        ("enc.norm.weight", (4,)),
        ("dec.up.weight.up", (4, 2)),
        ("dec.slope", (1,)),
        ("dec.scale", ()),
    )


def test_a_tensor_whose_columns_are_not_more_than_the_rank_is_trained_itself():
    assert names(adapter_rank=8)[3] == "dec.up.weight"
    assert names(adapter_rank=7)[3] == "dec.up.weight.up"


def test_an_update_of_everything_is_the_change_itself():
    update = np.arange(LAYOUT.length, dtype=np.float32)
    assert spread(plan(), LAYOUT, update, 1) is update


@pytest.mark.parametrize("parts", ["norms-and-biases", ["dec.up", "enc.conv.b"]])
def test_trained_tensors_land_in_their_places_and_nothing_else_moves(parts):
    one = plan(parts=parts)
    small = update_layout(LAYOUT, one.training)
    update = np.arange(1, small.length + 1, dtype=np.float32)
    whole, sent = LAYOUT.split(spread(one, LAYOUT, update, 1)), small.split(update)
    assert all(np.array_equal(whole[name], sent[name]) for name in sent)
    assert all(not whole[name].any() for name in whole.keys() - sent.keys())


def test_a_factor_lands_as_its_product_with_the_signs_of_the_round():
    one = plan(parts=["enc.conv.weight"], adapter_rank=3)
    (part,) = parts_of(LAYOUT, one.training)
    up = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    found = LAYOUT.split(spread(one, LAYOUT, up.reshape(-1), 2))["enc.conv.weight"]
    assert found == pytest.approx((up @ down(part, 2)).reshape(4, 2, 3, 3, 3), abs=1e-6)
    assert not np.allclose(found, LAYOUT.split(spread(one, LAYOUT, up.reshape(-1), 3))["enc.conv.weight"])


@settings(max_examples=30)
@given(data=st.data(), number=st.integers(1, 9))
def test_spreading_is_linear_so_that_the_mean_may_be_spread_instead_of_the_updates(data, number):
    choice = data.draw(st.sampled_from([{"adapter_rank": 2}, {"parts": ["enc"], "adapter_rank": 5}, {"parts": ["dec"]}]))
    one = plan(**choice)
    length = update_layout(LAYOUT, one.training).length
    values = np.random.default_rng(data.draw(st.integers(0, 999))).standard_normal((2, length)).astype(np.float32)
    apart = sum(spread(one, LAYOUT, update, number) for update in values) / 2
    assert spread(one, LAYOUT, values.mean(0, dtype=np.float32), number) == pytest.approx(apart, abs=1e-6)


def test_signs_are_balanced_differ_by_round_and_tensor_and_are_the_identity_on_average():
    (part,) = parts_of(Layout((("w", (4, 12)),)), plan(adapter_rank=4).training)
    drawn = np.stack([down(part, number) for number in range(1, 2001)])
    assert set(np.unique(np.abs(drawn))) == {np.float32(0.5)}
    assert abs(drawn.mean()) < 5 * 0.5 / drawn.size**0.5
    mean = np.einsum("nrc,nrd->cd", drawn, drawn) / len(drawn)
    assert mean == pytest.approx(np.eye(12), abs=5 / (4 * 2000) ** 0.5)
    (other,) = parts_of(Layout((("v", (4, 12)),)), plan(adapter_rank=4).training)
    assert not np.array_equal(down(part, 1), down(other, 1))


def test_signs_are_the_published_ones():
    """Every party derives them for itself: a change would split a study."""
    (part,) = parts_of(Layout((("w", (4, 12)),)), plan(adapter_rank=1).training)
    assert "".join("+-"[int(value < 0)] for value in down(part, 1)[0]) == "++++++-+-+++"


@pytest.mark.parametrize(
    ("training", "says"),
    [
        (
            {"parts": ["decoder"]},
            "no tensor of the plan's network has a name that begins with 'decoder'; names begin with enc, d",
        ),
        ({"parts": ["enc", "x"]}, "begins with 'x'"),
        ({"adapter_rank": 54}, "adapter_rank 54 is not below the columns of any tensor"),
        ({"parts": ["enc.norm"], "adapter_rank": 2}, "adapter_rank 2 is not below the columns of any tensor that is trained"),
    ],
)
def test_parts_that_do_not_fit_the_network_are_refused_in_a_sentence(training, says):
    with pytest.raises(PlanError, match=says):
        update_layout(LAYOUT, plan(**training).training)


def test_a_network_without_the_asked_part_is_refused():
    with pytest.raises(PlanError, match="leaves nothing of the plan's network to train"):
        update_layout(Layout((("w", (3, 3)),)), plan(parts="norms-and-biases").training)


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"parts": "decoder"}, "'decoder' is none of all, norms-and-biases: write beginnings of tensors' names as a list"),
        ({"parts": []}, "parts"),
        ({"parts": [""]}, "parts"),
        ({"parts": 3}, "parts"),
        ({"adapter_rank": 0}, "adapter_rank"),
        ({"parts": "norms-and-biases", "adapter_rank": 2}, "parts leaves none: leave one of them out"),
    ],
)
def test_parts_that_mean_nothing_are_refused_in_a_sentence(training, says):
    with pytest.raises(PlanError, match=says) as caught:
        plan(**training)
    assert "\n" not in str(caught.value)


def test_parts_are_in_the_digest_where_they_are_used():
    plain = plan()
    assert not {b"parts", b"adapter_rank"} & set(plain.canonical().split(b'"'))
    used = [plan(parts="norms-and-biases"), plan(parts=["dec"]), plan(adapter_rank=2), plan(parts=["dec"], adapter_rank=2)]
    assert len({one.digest() for one in [plain, *used]}) == 5
    assert [one.training.trains_all for one in [plain, *used]] == [True, False, False, False, False]
    assert Training(local_steps=1).trains_all
