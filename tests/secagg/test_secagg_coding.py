"""Fewer bits: rotation, subset, tensor clips and extra coordinates, each undone on the mean, unbiased, within its bytes."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_round import Federation, small_params

from secagg import LocalError, Quantizer, RemoteError, node
from secagg.coding import chosen, code, decode
from secagg.coordinate import open_sum
from secagg.errors import UNKNOWN
from secagg.extras import extra_offset, extra_sums, extra_words
from secagg.keystream import Door
from secagg.lanes import Decoder, Encoder
from secagg.params import rotation_shape, rounding_error
from secagg.rehearse import run_round
from secagg.rotation import rotate, unrotate

KEY = bytes(range(16))
NAMES = tuple("abcd")


def session(number=0, length=200, keep=1.0, rotate=False, lanes=8, clip=1.0, **fields):
    quantizer = Quantizer(clip, lanes, rotate=rotate, keep=keep)
    keys = tuple(bytes([i]) for i in range(4))
    return small_params(
        NAMES, length=length, quantizer=quantizer, session=number.to_bytes(16, "big"), public_keys=keys, **fields
    )


@given(st.integers(1, 3000), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_rotation_keeps_lengths_and_angles_and_is_undone(length, seed):
    rng = np.random.default_rng(seed)
    one, two = rng.standard_normal((2, length)).astype(np.float32)
    turned, other = rotate(one, length, KEY), rotate(two, length, KEY)
    rows, columns = rotation_shape(length)
    assert len(turned) == rows * columns < length + 2 * np.sqrt(length) + 2
    assert turned @ other == pytest.approx(float(one @ two), abs=float(1e-5 * np.linalg.norm(one) * np.linalg.norm(two)))
    np.testing.assert_allclose(unrotate(turned.copy(), length, KEY), one, atol=1e-6 * np.abs(one).max())


@pytest.mark.parametrize("shape", ["spike", "block", "constant", "row of the transform"])
def test_the_rotation_flattens_what_one_clip_would_cut(shape):
    length = 20_000
    vector = np.zeros(length, np.float32)
    rows, columns = rotation_shape(length)
    if shape == "spike":
        vector[123] = 1
    elif shape == "block":
        vector[:300] = 1
    elif shape == "constant":
        vector[:] = 1
    else:
        vector[np.arange(0, rows // 2, 2) * columns] = 1
    turned = rotate(vector, length, KEY)
    assert np.abs(turned).max() < 6 * np.sqrt(np.mean(turned**2))


def test_other_sessions_turn_otherwise_and_choose_otherwise():
    one, other = session(1, rotate=True, keep=0.5), session(2, rotate=True, keep=0.5)
    update = np.ones(200, np.float32)
    assert not np.allclose(code(one, update), code(other, update))
    assert set(chosen(one)) != set(chosen(other))


def test_nothing_is_copied_where_nothing_is_to_be_done():
    params, update = session(), np.ones(200, np.float32)
    assert code(params, update) is update
    assert decode(params, update) is update


@given(st.integers(1, 500), st.floats(2**-10, 1), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_comes_back_and_the_rest_is_made_up_for(length, keep, turned, number):
    params = session(number, length, keep, turned)
    places = chosen(params)
    assert len(places) == params.coded_length == len(set(places.tolist()))
    assert sorted(places) == places.tolist()
    update = np.random.default_rng(number).standard_normal(length).astype(np.float32)
    back = decode(params, code(params, update))
    if not turned:
        expected = np.zeros(length, np.float32)
        expected[places] = update[places] * np.float32(length / len(places))
        assert back.tobytes() == expected.tobytes()
    elif keep == 1:
        np.testing.assert_allclose(back, update, atol=1e-5)


def test_every_coordinate_is_chosen_equally_often():
    count, length, keep = 600, 60, 0.3
    drawn = np.zeros(length)
    for number in range(count):
        drawn[chosen(session(number, length, keep))] += 1
    kept = session(0, length, keep).coded_length / length
    deviation = np.sqrt(count * kept * (1 - kept))
    assert np.abs(drawn - count * kept).max() < 4 * deviation  # of 60 binomial counts
    assert drawn.std() == pytest.approx(deviation, rel=0.35)


@pytest.mark.parametrize(
    ("rotated", "keep", "lanes", "clip", "weights"),
    [
        (True, 1.0, 8, 0.2, ()),
        (True, 1.0, 16, 0.2, ()),
        (False, 0.5, 8, 1.0, ()),
        (True, 0.5, 10, 0.2, ()),
        (True, 1.0, 16, 0.2, (53, 35, 27, 16)),  # the lightest has less than one step
    ],
)
def test_the_mean_is_unbiased_over_sessions(rotated, keep, lanes, clip, weights):
    """Against the float64 mean: the average over sessions stays within three standard errors, in norm and along the mean.

    Nowhere is the rounding error of a coordinate larger than what the plan says of it.
    """
    length, count = 64, 400
    rng = np.random.default_rng(5)
    updates = {p: (rng.standard_normal(length) * 0.05).astype(np.float32) for p in NAMES}
    exact = np.average([updates[p].astype(np.float64) for p in NAMES], axis=0, weights=weights or None)
    sessions = [session(n, length, keep, rotated, lanes, clip, weights=weights) for n in range(count)]
    errors = np.array([mean_of(params, updates, n) - exact for n, params in enumerate(sessions)])
    if keep == 1:
        assert np.sqrt(np.mean(errors**2)) < 1.01 * clip * rounding_error(sessions[0].half_steps, len(NAMES))
    standard = errors.std(axis=0, ddof=1) / np.sqrt(count)
    assert (standard > 0).all()
    off = errors.mean(axis=0) / standard
    assert np.sum(off**2) < length + 3 * np.sqrt(2 * length)  # chi-squared with `length` degrees of freedom
    along = errors @ exact / np.linalg.norm(exact)
    assert abs(along.mean()) < 3 * along.std(ddof=1) / np.sqrt(count)


def mean_of(params, updates, seed):
    """Quantize, add and decode without masks: masks cancel exactly, which other tests prove."""
    total = np.zeros(params.words, np.uint64)
    for place, party in enumerate(NAMES):
        words = np.empty(params.words, np.uint64)
        key = seed.to_bytes(15, "big") + bytes([place])
        Encoder(params, party, code(params, updates[party]), key, Door.CTR).open().encode_into(words, 0)
        total += words
    mean = np.empty(params.coded_length, np.float32)
    Decoder(params, NAMES).decode_into(mean, total, 0)
    return decode(params, mean).astype(np.float64)


def test_rotation_lets_few_bits_carry_values_of_very_different_size():
    """Ten lanes leave each of four hospitals fifteen levels; where tensors differ a hundredfold, no clip fits both."""
    length = 4000
    rng = np.random.default_rng(3)
    scale = np.where(np.arange(length) < 400, 1.0, 0.01)
    shared = rng.standard_normal(length)
    updates = {p: ((shared + 0.2 * rng.standard_normal(length)) * scale).astype(np.float32) for p in NAMES}
    exact = np.mean([updates[p] for p in NAMES], axis=0)
    small = scale < 1

    def error(params):
        off = (mean_of(params, updates, 1) - exact) / scale
        return np.sqrt(np.mean(off[small] ** 2)) + np.sqrt(np.mean(off[~small] ** 2))

    plain = [error(session(1, length, lanes=10, clip=clip)) for clip in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)]
    by_tensor = session(1, length, lanes=10, clip=3.0, tensor_clips=((400, 3.0), (3600, 0.03)))
    assert error(by_tensor) < 0.3 * min(plain)


def test_rotation_takes_the_outliers_out_of_a_tensor():
    """Values with heavy tails: rotated, a clip of four deviations cuts next to nothing and its steps are small."""
    length = 4000
    rng = np.random.default_rng(4)
    shared = rng.standard_t(2.1, length) * 0.01
    updates = {p: (shared + 0.001 * rng.standard_normal(length)).astype(np.float32) for p in NAMES}
    exact = np.mean([updates[p] for p in NAMES], axis=0)
    deviation = float(np.sqrt(np.mean(exact**2)))

    def error(params):
        return np.linalg.norm(mean_of(params, updates, 1) - exact)

    turned = error(session(1, length, rotate=True, lanes=10, clip=4 * deviation))
    assert turned < 0.7 * min(error(session(1, length, lanes=10, clip=width * deviation)) for width in (2, 4, 8, 16, 32))


@pytest.mark.parametrize(("lanes", "keep", "share"), [(8, 1.0, 0.26), (10, 1.0, 0.21), (16, 0.9375, 0.123)])
def test_the_upload_is_as_small_as_it_should_be(lanes, keep, share):
    """One rehearsed round of 100,000 values: one member's uploads, all phases and framing, against float32."""
    params = small_params(NAMES, length=100_000, quantizer=Quantizer(0.2, lanes, rotate=True, keep=keep))
    updates = dict.fromkeys(NAMES, np.full(100_000, 0.01, np.float32))
    sent = run_round(params, updates, rand=os.urandom).upload_bytes
    assert max(sent.values()) / (4 * 100_000) <= share


def test_tensor_clips_cut_each_tensor_at_its_own():
    params = session(length=6, lanes=2, tensor_clips=((2, 0.1), (4, 5.0)))
    federation = Federation(replace(params, public_keys=()), seed="clips")
    updates = dict.fromkeys(NAMES, np.array([0.05, 0.4, 0.05, 0.4, 4.0, 9.0], np.float32))
    opened = federation.play(updates, {})
    np.testing.assert_allclose(opened.mean, [0.05, 0.1, 0.05, 0.4, 4.0, 5.0], rtol=1e-6)


@given(
    st.integers(3, 20),
    st.lists(st.sampled_from([1.0, 0.25, 1e6]), min_size=1, max_size=9),
    st.integers(0, 2**32),
    st.integers(0, 19),
)
@settings(max_examples=40, deadline=None)
def test_extra_coordinates_open_to_the_survivors_sum(count, clips, seed, lost):
    rng = np.random.default_rng(seed)
    names = tuple(f"h{i:02d}" for i in range(count))
    keys = tuple(bytes([i]) for i in range(count))
    params = small_params(names, public_keys=keys, extra_clips=tuple(clips))
    values = rng.uniform(-1.2, 1.2, (count, len(clips))) * clips
    there = [i for i in range(count) if i != lost]
    total = np.zeros(params.extra_words, np.uint64)
    for i in there:
        total += extra_words(params, values[i].tolist(), bytes([i]) * 16)
    sums = extra_sums(params, total, len(there))
    step = np.array(clips) / extra_offset(params)
    expected = np.clip(values[there], -np.array(clips), clips).sum(axis=0)
    assert (np.abs(sums - expected) <= len(there) * step).all()


def test_extra_coordinates_at_their_clips_never_leave_their_lane():
    params = small_params(NAMES, public_keys=tuple(bytes([i]) for i in range(4)), extra_clips=(1.0, 1.0, 1.0))
    for value in (1.0, -1.0, 1e300):
        total = np.zeros(params.extra_words, np.uint64)
        for i in range(4):
            total += extra_words(params, [value] * 3, bytes([i]) * 16)
        assert extra_sums(params, total, 4).tolist() == [4.0 if value > 0 else -4.0] * 3


@pytest.mark.parametrize("extras", [(1.0,), (1.0, 2.0, 3.0), (1.0, float("nan"))])
def test_extra_coordinates_that_cannot_be_sent_are_refused_before_anything_leaves(extras):
    params = small_params(NAMES, extra_clips=(1.0, 1.0))
    federation = Federation(params)
    with pytest.raises(LocalError, match="2 finite numbers"):
        federation.play(federation.updates(), {}, dict.fromkeys(NAMES, extras))


def test_a_sum_that_the_survivors_cannot_have_sent_is_refused():
    params = small_params(NAMES, extra_clips=(1.0,))
    federation = Federation(params)
    federation.advertise().share().ready().mask(federation.updates(), extras=dict.fromkeys(NAMES, (0.5,)))
    federation.confirm().reveal()
    federation.total[-1] += np.uint64(1 << 32)  # the unused lane of the last word
    with pytest.raises(RemoteError) as refused:
        open_sum(federation.view, federation.total)
    assert (refused.value.code, refused.value.party) == ("bad-sum", UNKNOWN)


def test_other_extras_on_a_resend_are_refused():
    params = small_params(NAMES, extra_clips=(1.0,))
    federation = Federation(params).advertise().share().ready()
    update = federation.updates()["a"]
    node.mask(federation.states["a"], update, extras=(0.5,))
    with pytest.raises(LocalError, match="another update"):
        node.mask(federation.states["a"], update, extras=(0.25,))
    with pytest.raises(LocalError, match="another update"):
        node.mask(federation.states["a"], update.copy(), extras=(0.5,))
