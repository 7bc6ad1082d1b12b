"""Models in fewer bytes: rounding alone is lost, each channel keeps its own steps, and a damaged file is refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load, save_file

from proto.layout import Layout, LayoutError
from proto.modelfile import Model, ModelFileError, encode_model, kernel_axes, read_model
from proto.packed import STEPS, WHOLE, from_bfloat16, from_int8, to_bfloat16, to_int8

LAYOUT = Layout((("down.weight", (6, 4, 3, 3, 3)), ("down.bias", (6,)), ("up.weight", (6, 5, 2, 2, 2)), ("norm.weight", (5,))))
AXES = [0, WHOLE, 1, WHOLE]
finite = st.floats(-(2.0**99), 2.0**99, width=32)


def model(seed=1):
    values = np.random.default_rng(seed).normal(size=LAYOUT.length).astype(np.float32)
    return Model(LAYOUT, values, {"round": "4"})


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=finite))
def test_bfloat16_is_torchs(values):
    wanted = torch.from_numpy(values).bfloat16()
    assert np.array_equal(to_bfloat16(values), wanted.view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(from_bfloat16(to_bfloat16(values)), wanted.float().numpy())


@pytest.mark.parametrize("bad", [np.inf, np.nan, np.float32(3.4e38)])
def test_what_bfloat16_cannot_hold_is_refused(bad):
    with pytest.raises(ValueError, match="too large for bfloat16"):
        to_bfloat16(np.array([1, bad], np.float32))


@given(arrays.arrays(np.float32, (3, 4, 2), elements=finite), st.integers(0, 2))
def test_an_integer_is_half_a_step_of_its_channel_away(values, axis):
    integers, steps = to_int8(values, axis)
    assert integers.dtype == np.int8
    assert steps.shape == (values.shape[axis],)
    apart = np.abs(from_int8(integers, steps, axis).astype(np.float64) - values)
    channels = np.moveaxis(apart, axis, 0).reshape(len(steps), -1)
    assert (channels <= steps[:, None].astype(np.float64) * 0.5001 + 1e-37).all()
    assert np.abs(integers).max(initial=0) <= STEPS


def test_a_quiet_channel_beside_a_loud_one_keeps_its_digits():
    values = np.stack([np.linspace(-1000, 1000, 24), np.linspace(-0.001, 0.001, 24)]).astype(np.float32)
    found = from_int8(*to_int8(values, 0), 0)
    assert np.abs(found[1] - values[1]).max() < 1e-5
    assert not to_int8(np.zeros((2, 3), np.float32), 0)[0].any()


@pytest.mark.parametrize(("values", "share", "limit"), [("bf16", 0.5, 2**-8), ("int8", 0.3, 0.01)])
def test_a_packed_file_is_small_and_reads_back(tmp_path, values, share, limit):
    layout = Layout(tuple((f"block{at}.conv.weight", (32, 16, 3, 3, 3)) for at in range(9)))
    made = Model(layout, np.random.default_rng(1).normal(size=layout.length).astype(np.float32), {"round": "4", "digest": "ab"})
    whole, small = encode_model(made), encode_model(made, values, kernel_axes(layout, ()))
    assert len(small) <= share * len(whole)
    path = tmp_path / "m.safetensors"
    path.write_bytes(small)
    again = read_model(path)
    assert again.layout == layout
    assert again.provenance == made.provenance
    assert 0 < np.linalg.norm(again.vector - made.vector) <= limit * np.linalg.norm(made.vector)
    assert again.digest != made.digest


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_another_library_reads_the_file(values):
    found = load(encode_model(model(), values, AXES))
    if values == "bf16":
        assert found["values"].dtype == torch.bfloat16
        assert torch.equal(found["values"], torch.from_numpy(model().vector).bfloat16())
        return
    assert {name: one.dtype for name, one in found.items()} == {
        "kernels": torch.int8,
        "steps": torch.float32,
        "rest": torch.float32,
    }
    assert (len(found["steps"]), len(found["rest"])) == (6 + 5, 6 + 5)


def test_norms_and_biases_stay_as_they_are(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode_model(model(), "int8", AXES))
    found, wanted = LAYOUT.split(read_model(path).vector), LAYOUT.split(model().vector)
    assert np.array_equal(found["down.bias"], wanted["down.bias"])
    assert np.array_equal(found["norm.weight"], wanted["norm.weight"])
    assert not np.array_equal(found["up.weight"], wanted["up.weight"])


def test_the_output_channels_of_a_transposed_kernel_are_its_second_axis():
    assert kernel_axes(LAYOUT, {"up.weight"}) == AXES


def damaged(tmp_path, data, change):
    """A file whose metadata `change` has had its hands on."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


@pytest.mark.parametrize(
    ("values", "change", "said"),
    [
        ("int8", lambda meta: meta.update(axes="[0,-1,1]"), "3 axes for 4 tensors"),
        ("int8", lambda meta: meta.update(axes="[0,-1,7,-1]"), "has no axis 7"),
        ("int8", lambda meta: meta.update(axes="[0,-1,0,-1]"), "'steps' holds fewer"),
        ("int8", lambda meta: meta.update(axes="[0,-1,-1,-1]"), "'rest' holds fewer"),
        ("int8", lambda meta: meta.update(axes="no list"), "not a list of whole numbers"),
        ("int8", lambda meta: meta.update(values="int4"), "kept as 'int4', none of fp32, bf16, int8"),
        ("int8", lambda meta: meta.update(values="bf16"), "3 tensors instead of one"),
        ("bf16", lambda meta: meta.update(values="int8", axes=json.dumps(AXES)), ""),
        ("bf16", lambda meta: meta.update(layout='[["a",[3]]]'), "the layout has 3"),
        ("bf16", lambda meta: meta.update(layout_deflated="%%%"), "cannot be unpacked"),
        ("bf16", lambda meta: meta.update(layout_deflated="AAAA"), "cannot be unpacked"),
        ("bf16", lambda meta: meta.pop("layout_deflated"), "not a list of"),
        ("bf16", lambda meta: meta.pop("values"), "not a model file"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, values, change, said):
    path = damaged(tmp_path, encode_model(model(), values, AXES), change)
    with pytest.raises(ModelFileError, match=r"is not a model file of this software .*: make it again") as refused:
        read_model(path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("value", "values", "said"),
    [
        (np.nan, "int8", "cannot be kept as int8"),
        (np.inf, "bf16", "cannot be kept as bf16"),
        (3.4e38, "bf16", "keep it as fp32"),
    ],
)
def test_what_cannot_be_packed_is_refused(value, values, said):
    made = model()
    made.vector[0] = value
    with pytest.raises(ModelFileError, match=said):
        encode_model(made, values, AXES)


def test_axes_are_asked_for():
    with pytest.raises(LayoutError, match="0 axes for 4 tensors"):
        encode_model(model(), "int8")


def test_a_half_file_of_somebody_else_is_refused_not_misread(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(3).bfloat16()}, path, metadata={"layout": '[["a",[3]]]'})
    with pytest.raises(ModelFileError, match="tensors of BF16, not of F32"):
        read_model(path)
