"""Quantizer and packing: edges, unbiased rounding, sums that fill a lane and never more, and what cannot be sent."""

import numpy as np
import pytest
from plain_reference import Session, quantize
from secagg_round import small_params

from secagg import LocalError, Quantizer, RemoteError
from secagg.coding import code
from secagg.keystream import Door, Stream
from secagg.lanes import Decoder, Encoder, clip_below, count_clipped, scaling

KEYS = tuple(bytes([i]) for i in range(64))
LANES = [2, 3, 4, 5, 6, 8, 10]
GARBAGE = np.uint64(0xA5A5A5A5A5A5A5A5)  # what a buffer held before


def params_of(count, lanes, length, clip=1.0, weights=()):
    names = tuple(f"h{i:02d}" for i in range(count))
    return small_params(names, length=length, quantizer=Quantizer(clip, lanes), weights=weights, public_keys=KEYS[:count])


def encode(params, party, update, key=bytes(16)):
    words = np.full(params.words, GARBAGE)
    Encoder(params, party, np.asarray(update, np.float32), key, Door.GCM).open().encode_into(words, 0)
    return words


def decode(params, words, survivors):
    mean = np.empty(params.length, np.float32)
    Decoder(params, survivors).decode_into(mean, words, 0)
    return mean


def lane_values(params, words):
    quantizer = params.quantizer
    return [int(w) >> (lane * quantizer.lane_bits) & quantizer.lane_max for lane in range(quantizer.lanes) for w in words]


@pytest.mark.parametrize("lanes", LANES)
def test_everybody_at_the_clip_fills_the_lane_and_no_more(lanes):
    count = 7
    for value in (1.0, -1.0, 3e38, -3e38):
        params = params_of(count, lanes, 2 * lanes + 1)
        total = sum(encode(params, p, [value] * params.length, bytes([i]) * 16) for i, p in enumerate(params.participants))
        top = sum(2 * params.offset(p) for p in params.participants)
        assert top <= params.quantizer.lane_max
        sums = lane_values(params, total)[: params.length]
        assert set(sums) <= ({0} if value < 0 else {top})
        assert decode(params, total, params.participants).tolist() == [max(-1.0, min(1.0, value))] * params.length


@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_rounding_of_the_factor_never_lifts_the_clip_above_the_offset(lanes):
    """Over many clips the rounded product lands above the offset sometimes; the factor is then lowered."""
    kind = np.float64 if lanes == 2 else np.float32
    lowered = 0
    for clip in np.linspace(0.5, 1.0, 200, dtype=np.float32):
        params = params_of(4, lanes, 3, clip=float(clip))
        scale, offset = scaling(params, "h00"), params.offset("h00")
        assert float(kind(scale.clip) * kind(scale.factor)) <= offset << scale.fraction_bits
        nearest = float(kind(params.half_steps * (1 << scale.fraction_bits) / 4 / float(clip)))
        lowered += scale.factor < nearest
        assert scale.factor >= nearest * (1 - 2**-22)
    assert lowered > 0


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-45])
def test_zero_is_exact_and_denormals_are_zero_or_one_step(lanes, value):
    params = params_of(3, lanes, lanes + 1)
    integers = lane_values(params, encode(params, "h00", [value] * params.length))
    offset = params.offset("h00")
    assert set(integers) <= ({offset} if value == 0 else {offset - 1, offset, offset + 1})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 40_000, 99_999])
def test_values_that_are_not_finite_are_refused(value, place):
    params = params_of(3, 3, 100_000)
    update = np.zeros(100_000, np.float32)
    assert count_clipped(params, update) == 0
    update[place] = value
    with pytest.raises(LocalError, match="not finite"):
        count_clipped(params, update)


@pytest.mark.parametrize("update", [np.zeros(9, np.float32), np.zeros(10), np.zeros((10, 1), np.float32)])
def test_vectors_of_another_shape_or_type_are_refused(update):
    with pytest.raises(LocalError, match="expected float32"):
        code(params_of(3, 3, 10), update)


def test_clipped_coordinates_are_counted_and_the_clip_itself_is_not():
    params = params_of(3, 3, 6, clip=0.1)
    clip = clip_below(params)
    assert float(clip) <= 0.1
    beyond = np.nextafter(clip, np.float32(1))
    assert count_clipped(params, np.array([clip, -clip, beyond, -beyond, 5, 0], np.float32)) == 3
    assert scaling(params, "h00").clip == clip


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("count", [3, 7])
def test_rounding_is_unbiased(lanes, count):
    """The mean error over 30,000 values lies within three standard errors of one uniform rounding."""
    params = params_of(count, lanes, 30_000)
    x = np.random.default_rng(lanes).uniform(-1, 1, params.length).astype(np.float32)
    error = decode(params, encode(params, "h00", x), ("h00",)).astype(np.float64) - x
    step = params.quantizer.clip * params.total_weight / params.half_steps
    float32_error = 2.0**-24  # of a value near the clip; at two lanes this is more than a step
    assert np.abs(error).max() <= step + 2 * float32_error
    assert abs(error.mean()) <= 3 * (step / 2 + float32_error) / np.sqrt(params.length)


@pytest.mark.parametrize("lanes", [3, 8])
@pytest.mark.parametrize("steps", [None, 0.3, 0.02])
def test_the_mean_of_a_cohort_is_unbiased(lanes, steps):
    """Against float64 and the standard error seen, also far below one step, where rounding to nearest would give zero."""
    count, length = 12, 20_000
    params = params_of(count, lanes, length)
    step = params.total_weight / params.half_steps  # of one member's integers, in units of its update
    spread = steps * step if steps else 0.9
    rng = np.random.default_rng(lanes)
    updates = {p: rng.uniform(0.1 * spread, spread, length).astype(np.float32) for p in params.participants}
    total = sum(encode(params, p, x, bytes([k]) * 16) for k, (p, x) in enumerate(updates.items()))
    error = decode(params, total, params.participants) - np.mean([x.astype(np.float64) for x in updates.values()], axis=0)
    assert abs(error.mean()) <= 3 * error.std() / np.sqrt(length) < 0.1 * spread
    assert np.abs(error).max() <= step


def test_rounding_follows_the_fraction():
    params = params_of(5, 8, 20_000)
    step = params.total_weight / params.half_steps
    for fraction in (0.1, 0.5, 0.9):
        integers = lane_values(params, encode(params, "h00", [fraction * step] * params.length))[: params.length]
        share_up = np.mean(np.array(integers) - params.offset("h00"))
        assert share_up == pytest.approx(fraction, abs=4 * 0.5 / np.sqrt(params.length))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("random", [0, 1, 0x7FFF, 0xFFFF])
def test_values_at_the_edge_of_a_step_round_as_the_specification_says(lanes, random, monkeypatch):
    """README, Lanes, steps 3 and 4, against the plain implementation, with the same rounding bits for all values."""
    params = params_of(4, lanes, 4_000)
    scale, offset = scaling(params, "h01"), params.offset("h01")
    rng = np.random.default_rng(lanes)
    fixed = rng.integers(-offset, offset, params.length) * 2.0**scale.fraction_bits  # whole steps, and beside them
    x = ((fixed + rng.choice([0, 0.4, 0.5, 0.6, 1, -0.4, -0.5, -0.6, -1], params.length)) / scale.factor).astype(np.float32)
    monkeypatch.setattr(
        Stream, "fill", lambda _, view: view.__setitem__(slice(None), random.to_bytes(2, "little") * (len(view) // 2))
    )
    plain = Session(bytes(16), list(params.participants), 3, params.length, 1.0, lanes, [1] * 4)
    assert lane_values(params, encode(params, "h01", x))[: params.length] == quantize(plain, 1, x.tolist(), lambda *_: random)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (5, 1, 2, 7)])
def test_the_mean_is_weighted_by_what_arrived(weights):
    params = params_of(4, 3, 50, weights=weights)
    rng = np.random.default_rng(3)
    updates = {p: rng.uniform(-1, 1, 50).astype(np.float32) for p in params.participants}
    arrived = params.participants[1:]
    total = sum(encode(params, p, updates[p]) for p in arrived)
    expected = np.average([updates[p] for p in arrived], axis=0, weights=weights[1:])
    assert np.abs(decode(params, total, arrived) - expected).max() < 3 * params.total_weight / params.half_steps


@pytest.mark.parametrize("lanes", [2, 3, 5, 6])
@pytest.mark.parametrize("door", list(Door))
def test_any_run_of_words_gives_the_same_words(lanes, door):
    """One after the other at any length, or in any order where each begins at a block of rounding bits."""
    params = params_of(3, lanes, 1000 * lanes - 1)
    update = np.random.default_rng(1).uniform(-1, 1, params.length).astype(np.float32)
    whole, parts = encode(params, "h01", update), np.full(1000, GARBAGE)
    encoder = Encoder(params, "h01", update, bytes(16), door).open()
    for start, stop in ((0, 64), (64, 72), (72, 1000), (8, 16), (960, 1000), (0, 64)):
        parts[start:stop] = GARBAGE
        encoder.encode_into(parts[start:stop], start)
    assert parts.tolist() == whole.tolist()


@pytest.mark.parametrize("lanes", [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
def test_every_spare_bit_is_refused(lanes):
    """Those above the top lane, in a word whose lanes are all in range."""
    params = params_of(3, lanes, 2 * lanes)
    good = encode(params, "h01", np.zeros(params.length))
    decode(params, good.copy(), ("h01",))
    for bit in range(lanes * params.quantizer.lane_bits, 64):
        bad = good.copy()
        bad[1] |= np.uint64(1 << bit)
        with pytest.raises(RemoteError, match="cannot have sent"):
            decode(params, bad, ("h01",))


def test_runs_of_a_sum_are_decoded_like_the_whole():
    params = params_of(3, 3, 1001)
    total = encode(params, "h01", np.random.default_rng(1).uniform(-1, 1, 1001))
    whole, parts = decode(params, total.copy(), ("h01",)), np.empty(1001, np.float32)
    decoder = Decoder(params, ("h01",))
    for start, stop in ((100, 334), (0, 99), (99, 100)):
        decoder.decode_into(parts, total[start:stop], start)
    assert parts.tolist() == whole.tolist()


@pytest.mark.parametrize("lanes", [3, 4, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7])
def test_values_past_the_end_are_zero(lanes, length):
    params = params_of(3, lanes, length)
    integers = lane_values(params, encode(params, "h00", [1.0] * length))
    assert integers[length:] == [params.offset("h00")] * (params.words * lanes - length)


def test_sums_that_nobody_can_have_sent_are_refused():
    params = params_of(3, 3, 5)
    good = sum(encode(params, p, [0.5] * 5) for p in params.participants)
    decode(params, good, params.participants)
    spare_bit, padding, too_large = good.copy(), good.copy(), good.copy()
    spare_bit[0] |= np.uint64(1 << 63)
    padding[-1] += np.uint64(1 << 42)
    too_large[0] |= np.uint64(params.quantizer.lane_max)
    for bad in (spare_bit, padding, too_large):
        with pytest.raises(RemoteError, match="cannot have sent"):
            decode(params, bad, params.participants)
