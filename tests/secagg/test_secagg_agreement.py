"""The library and the second, plain implementation agree bit for bit on everything that is sent and on the mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_reference import PlainRound, Session, decode, mask_words, quantize, rounding_bits, unpack
from secagg_round import Drbg, Federation, small_params

from secagg import LocalError, Quantizer, Sparse
from secagg.keystream import SEGMENT_WORDS, Door, Stream
from secagg.lanes import Decoder, Encoder


def plain(params):
    return Session(
        session=params.session,
        members=list(params.participants),
        threshold=params.threshold,
        length=params.length,
        clip=params.quantizer.clip,
        lanes=params.quantizer.lanes,
        weights=list(params.weights),
        minimum_cohort=params.minimum_cohort,
        max_colluders=params.max_colluders,
        degree=getattr(params.graph, "degree", 0),
        neighbour_threshold=getattr(params.graph, "neighbour_threshold", 0),
        rotate=params.quantizer.rotate,
        keep=params.quantizer.keep,
        tensor_clips=list(params.tensor_clips),
        extra_clips=list(params.extra_clips),
    )


CASES = [
    ("abcd", {}, 3, (1, 1, 1, 1), 11),
    ("abcd", {"b": "mask"}, 2, (1, 1, 1, 1), 5),
    ("abcde", {"a": "advertise"}, 8, (2, 1, 2, 3, 1), 9),
    ("abcde", {"e": "share", "b": "reveal"}, 5, (1, 1, 1, 1, 1), 1),
    ("abcde", {"c": "mask", "d": "confirm"}, 4, (1, 2, 2, 1, 2), 30),
]


@pytest.mark.parametrize(("names", "drop", "lanes", "weights", "length"), CASES)
def test_whole_rounds_agree_bit_for_bit(names, drop, lanes, weights, length):
    threshold = len(names) - len(drop) if len(names) == 5 else 3
    quantizer = Quantizer(0.75, lanes)
    params = small_params(tuple(names), threshold, length=length, weights=weights, quantizer=quantizer, minimum_cohort=2)
    assert_agreement(params, drop)


SPARSE_CASES = [
    ("abcdefg", {}, 5, Sparse(4, 2)),
    ("abcdefg", {"d": "mask"}, 5, Sparse(4, 2)),
    ("abcdefghi", {"a": "advertise", "h": "mask", "c": "reveal"}, 7, Sparse(5, 2)),
    ("abcdefghi", {"e": "share", "f": "mask"}, 7, Sparse(5, 3)),
]


@pytest.mark.parametrize(("names", "drop", "threshold", "graph"), SPARSE_CASES)
def test_sparse_rounds_agree_bit_for_bit(names, drop, threshold, graph):
    params = small_params(tuple(names), threshold, length=9, graph=graph, minimum_cohort=2)
    other = assert_agreement(params, drop)
    assert any(not other.edge(a, b) for a in names for b in names if {a, b} <= set(other.drawn) and a != b)


CODINGS = [
    ({"rotate": True}, {}, 23),
    ({"rotate": True}, {}, 1),
    ({"keep": 0.5}, {}, 21),
    ({"rotate": True, "keep": 0.7}, {"extra_clips": (1.0, 8.0, 0.25)}, 17),
    ({}, {"extra_clips": (2.0,)}, 7),
    ({"rotate": True}, {"tensor_clips": ((5, 0.3), (1, 4.0), (12, 0.01)), "extra_clips": (1.0, 1e6)}, 18),
    ({}, {"tensor_clips": ((5, 0.3), (1, 4.0), (12, 0.01))}, 18),
]


@pytest.mark.parametrize(("coding", "fields", "length"), CODINGS)
def test_coded_rounds_agree_bit_for_bit(coding, fields, length):
    params = small_params(tuple("abcd"), 3, length=length, quantizer=Quantizer(0.75, 8, **coding), minimum_cohort=2, **fields)
    assert_agreement(params, {"b": "mask"})


def assert_agreement(params, drop):
    names = params.participants
    federation = Federation(params, seed="agree")
    updates = federation.updates(7)
    extras = {p: [clip * (i - 1.5) / (2 + j) for j, clip in enumerate(params.extra_clips)] for i, p in enumerate(names)}
    opened = federation.play(updates, drop, extras)
    lists = {p: [float(v) for v in updates[p]] for p in names}
    other = PlainRound(plain(params), lists, drop, Drbg("agree"), extras)
    mean = other.run()

    view = federation.view
    assert other.context == federation.params.context()
    for p, advert in view.adverts.items():
        assert tuple(names[place] for place in advert.neighbours) == tuple(other.drawn[p] if other.s.degree else ())
        assert (advert.seal_key, advert.mask_key, advert.seed_commitment, advert.signature) == other.adverts[p]
    assert view.sharers == tuple(sorted(other.boxes))
    for p, share_set in view.share_sets.items():
        assert {box.receiver: box.sealed for box in share_set.boxes} == other.boxes[p]
        assert share_set.signature == other.share_signature[p]
    assert federation.uploads == other.upload
    assert {p: seal.signature for p, seal in federation.seals.items()} == other.upload_signature
    assert view.survivors == tuple(other.survivors)
    assert {p: c.signature for p, c in view.confirmations.items()} == other.confirmation
    assert {p: {i.peer: i.share for i in r.shares} for p, r in view.revealed.items()} == other.revealed
    assert opened.mean.tobytes() == np.array(mean, dtype="<f4").tobytes()
    assert list(opened.extras) == other.extra_sums
    return other


edges = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-45, 1.1754944e-38, 3.4e38, -3.4e38, 0.99999994])
values = st.one_of(edges, st.floats(-1.5, 1.5, width=32))


@st.composite
def encodings(draw):
    count = draw(st.integers(2, 12))
    names = tuple("abcdefghijkl"[:count])
    weights = tuple(draw(st.lists(st.integers(1, 50), min_size=count, max_size=count)))
    clip = draw(st.one_of(st.sampled_from([1.0, 0.1, 3.0, 2.0**-20, 1e6]), st.floats(1e-3, 1e3)))
    lanes = draw(st.sampled_from([2, 3, 4, 5, 6, 8]))
    data = draw(st.lists(values, min_size=1, max_size=40))
    return names, weights, clip, lanes, [float(np.float32(v * clip)) if abs(v) < 3 else v for v in data]


@given(encodings())
@settings(max_examples=120, deadline=None)
def test_quantizer_agrees_bit_for_bit(case):
    names, weights, clip, lanes, data = case
    keys = tuple(bytes([i]) for i in range(len(names)))  # never loaded here: only the context hashes them
    try:
        params = small_params(names, weights=weights, length=len(data), quantizer=Quantizer(clip, lanes), public_keys=keys)
    except LocalError:
        return  # a weight without a step: test_secagg_params.py has that case
    session, key = plain(params), bytes(range(16))
    assert session.half_steps() == params.half_steps
    for place in (0, len(names) - 1):
        words = np.empty(params.words, np.uint64)
        update = np.array(data, np.float32)
        Encoder(params, names[place], update, key, Door.CTR).open().encode_into(words, 0)
        integers = quantize(session, place, data, rounding_bits(key, params.words))
        assert unpack(session, words.tolist()) == integers
        assert all(0 <= q <= 2 * params.offset(names[place]) for q in integers)
        mean = np.empty(params.length, np.float32)
        Decoder(params, [names[place]]).decode_into(mean, words, 0)
        assert mean.tobytes() == np.array(decode(session, integers, [names[place]]), "<f4").tobytes()


@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_mask_words_agree(door, count):
    key = bytes(range(1, 17))
    assert Stream(key, 0, 0, door).words(count).tolist() == mask_words(key, count)


def test_second_segment_has_its_own_nonce():
    key = bytes(range(16))
    first, second = Stream(key, 0).words(4), Stream(key, 1).words(4)
    assert not set(first.tolist()) & set(second.tolist())
    assert SEGMENT_WORDS * 8 == 2 << 20
