"""The flat vector: what goes in comes out, and nothing else goes in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import layout as of_layout
from proto.layout import Layout, LayoutError, all_finite, model_digest

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=6)


@given(shapes)
def test_split_inverts_flatten(sizes):
    layout = Layout(tuple((f"t{i}", shape) for i, shape in enumerate(sizes)))
    tensors = {name: np.random.default_rng(1).normal(size=shape).astype(np.float32) for name, shape in layout.tensors}
    vector = layout.flatten(tensors)
    assert vector.shape == (layout.length,)
    for name, part in layout.split(vector).items():
        assert np.array_equal(part, tensors[name])
    assert Layout.from_json(layout.to_json()) == layout


def test_order_and_shape_are_in_the_digest():
    one = Layout((("a", (2, 3)), ("b", (1,))))
    assert one.digest() != Layout((("b", (1,)), ("a", (2, 3)))).digest()
    assert one.digest() != Layout((("a", (3, 2)), ("b", (1,)))).digest()


def test_wrong_tensors_and_lengths_are_refused():
    layout = Layout((("a", (2, 3)),))
    with pytest.raises(LayoutError, match="'a'"):
        layout.flatten({"a": np.zeros((3, 2), np.float32)})
    with pytest.raises(LayoutError, match="missing"):
        layout.flatten({})
    with pytest.raises(LayoutError, match="shape"):
        layout.split(np.zeros(5, np.float32))
    with pytest.raises(LayoutError, match="distinct"):
        Layout((("a", (1,)), ("a", (1,))))


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[["a"]]', '[["a", ["x"]]]', '[["a", [-1]]]', '[["a", [Infinity]]]', "[" * 100_000]
)
def test_foreign_json_is_a_layout_error(text):
    with pytest.raises(LayoutError):
        Layout.from_json(text)


def test_model_digest_covers_values_and_length():
    vector = np.arange(4, dtype=np.float32)
    changed = vector.copy()
    changed[3] = np.nextafter(changed[3], np.float32(9))
    assert len({model_digest(vector), model_digest(changed), model_digest(vector[:3])}) == 3


def test_what_is_not_averaged_is_named_in_the_digest_and_has_no_values():
    tensors = (("a", (2, 3)),)
    plain, counting = Layout(tensors), Layout(tensors, ("norm.num_batches_tracked",))
    assert counting.length == plain.length == 6
    assert list(counting.split(np.zeros(6, np.float32))) == ["a"]
    assert counting.flatten({"a": np.ones((2, 3), np.float32)}).tolist() == [1.0] * 6
    assert Layout.from_json(counting.to_json()) == counting
    assert len({plain.digest(), counting.digest(), Layout(tensors, ("other",)).digest()}) == 3
    with pytest.raises(LayoutError, match="distinct"):
        Layout(tensors, ("a",))
    with pytest.raises(LayoutError):
        Layout.from_json('{"averaged": [["a", [1]]]}')


def test_layouts_without_such_buffers_keep_the_digest_that_they_had():
    """Of the first version of this file: starts and sessions of earlier plans stay what they were."""
    assert Layout((("conv.weight", (7, 3)), ("conv.bias", (7,)))).to_json() == '[["conv.weight",[7,3]],["conv.bias",[7]]]'


@given(st.integers(0, 3 * 7 + 2), st.sampled_from([np.nan, np.inf, -np.inf, 3.0e38, -0.0]), st.integers(0, 3 * 7 + 1))
def test_one_value_that_is_not_finite_is_found_wherever_it_lies(length, value, place):
    vector = np.zeros(length, np.float32)
    vector[place : place + 1] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_layout, "FINITE_RUN", 7)
        assert all_finite(vector) == (place >= length or bool(np.isfinite(value)))
    assert all_finite(np.arange(length))
