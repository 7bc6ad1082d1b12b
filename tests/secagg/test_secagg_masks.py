"""What masks and masked words look like: uniform over all 64-bit words, unrelated between sessions, and gone in the sum.

Keys are fixed, so each test gives the same verdict every time; bounds are six standard errors unless they say otherwise.
"""

from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from secagg_round import Federation, small_params

from secagg import Quantizer
from secagg.keystream import FIRST_COUNTER, Door, Stream, Streams
from secagg.upload import Masks, SignedMask

TOP = 2**64 - 1
COUNT = 1 << 20


def chi_squared(bytes_):
    """Against 256 equal shares: expected 255, standard deviation sqrt(510)."""
    expected = len(bytes_) / 256
    return float(((np.bincount(bytes_, minlength=256) - expected) ** 2 / expected).sum())


def looks_uniform(words):
    high, low = (words >> np.uint64(56)).astype(np.int64), (words & np.uint64(255)).astype(np.int64)
    for column in (high, low):
        assert 255 - 6 * np.sqrt(510) < chi_squared(column) < 255 + 6 * np.sqrt(510)
    for bit in range(64):
        share = float(((words >> np.uint64(bit)) & np.uint64(1)).mean())
        assert abs(share - 0.5) < 6 * 0.5 / np.sqrt(len(words)), bit


def difference_looks_uniform(one, other):
    """Unrelated words differ by a uniform word and agree in half of their bits."""
    looks_uniform(one - other)
    agreeing = float(np.bitwise_count(~(one ^ other)).mean())
    assert abs(agreeing - 32) < 6 * 4 / np.sqrt(len(one))


def test_masks_cover_all_64_bit_words():
    words = Stream(b"uniformity check", 0).words(COUNT)
    looks_uniform(words)
    assert int(words.max()) >= TOP - 2**48
    assert int(words.min()) < 2**48


def test_what_is_not_uniform_is_found():
    """The checks above see a bit that is never set, a range that ends a sixteenth too early, and masks that are the same."""
    words = Stream(b"uniformity check", 0).words(COUNT)
    for bad in (words & ~np.uint64(1 << 40), words % np.uint64(15 << 60), words >> np.uint64(1)):
        with pytest.raises(AssertionError):
            looks_uniform(bad)
    with pytest.raises(AssertionError):
        difference_looks_uniform(words, words)


@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("value", [0, TOP])
def test_the_ends_of_the_range_are_masks_like_any_other(door, value):
    """The cipher's inverse tells which block gives two words of all ones: the stream gives them there, and a mask adds them."""
    key = b"the end of range"
    block = Cipher(algorithms.AES128(key), modes.ECB()).decryptor().update(value.to_bytes(8, "big") * 2)
    lane, segment, counter = (int.from_bytes(part, "big") for part in (block[:4], block[4:12], block[12:]))
    stream = Stream(key, door=door)
    stream.seek(segment, lane, counter - FIRST_COUNTER)
    assert stream.words(2).tolist() == [value, value]


@pytest.mark.parametrize("subtract", [False, True])
def test_words_wrap_at_both_ends(subtract, monkeypatch):
    class AllOnes:
        def update_into(self, source, view):
            view[:] = b"\xff" * len(source)

    monkeypatch.setattr(Streams, "step", lambda _, size: (bytes(size), [AllOnes()]))
    words = np.array([0, 1, TOP], np.uint64)
    Masks([SignedMask(bytes(16), subtract)], Door.CTR).apply(words, 0)
    assert words.tolist() == ([1, 2, 0] if subtract else [TOP, 0, TOP - 1])


def test_every_key_segment_and_lane_has_its_own_words():
    streams = [Stream(bytes([key]) * 16, segment, lane).words(4096) for key in (0, 1) for segment in (0, 1) for lane in (0, 1)]
    for one, other in combinations(streams, 2):
        agreeing = float(np.bitwise_count(~(one ^ other)).mean())
        assert abs(agreeing - 32) < 6 * 4 / np.sqrt(4096)


def test_masks_of_two_sessions_are_unrelated():
    """The same members, signing keys and even drawn secrets: the context alone gives every mask another key."""
    one, other = (Federation(small_params(session=bytes([i]) * 16)).until("ready") for i in (1, 2))
    assert one.keys["anna"].private_numbers() == other.keys["anna"].private_numbers()
    keys = [[mask.key for p in f.params.participants for mask in f.states[p].masks] for f in (one, other)]
    assert [len(set(some)) for some in keys] == [4 + 6, 4 + 6]  # a self mask each, and a pair key known to two members
    assert not set(keys[0]) & set(keys[1])
    first, second = (Stream(f.states["anna"].masks[0].key).words(COUNT // 4) for f in (one, other))
    difference_looks_uniform(first, second)


def test_rounding_bits_have_a_key_of_their_own():
    federation = Federation(small_params()).until("ready")
    keys = {mask.key for p in federation.params.participants for mask in federation.states[p].masks}
    assert len({*keys, *(state.rounding_key for state in federation.states.values())}) == len(keys) + 4


def test_an_upload_looks_uniform_whatever_the_update():
    params = small_params(("a", "b", "c"), length=300_000, quantizer=Quantizer(1.0, 3))
    federation = Federation(params).until("ready")
    federation.mask({"a": np.zeros(300_000, np.float32), "b": np.ones(300_000, np.float32), "c": -np.ones(300_000, np.float32)})
    words = {p: np.frombuffer(federation.uploads[p], "<u8") for p in "abc"}
    for p in "abc":
        looks_uniform(words[p])
        assert len(np.unique(words[p])) == len(words[p])
    difference_looks_uniform(words["a"], words["b"])


def test_pair_masks_cancel_in_the_sum_and_in_no_part_of_it():
    federation = Federation(small_params(("a", "b", "c"), length=300_000)).until("ready")
    masks = {p: federation.states[p].masks for p in "abc"}
    assert not any(masks[p][0].subtract for p in "abc")  # the self mask
    added = {}
    for p in "abc":
        added[p] = np.zeros(30_000, np.uint64)
        Masks(masks[p][1:], Door.GCM).apply(added[p], 0)
    assert not (added["a"] + added["b"] + added["c"]).any()
    for one, other in combinations("abc", 2):
        assert abs(float(((added[one] + added[other]) >> np.uint64(63)).mean()) - 0.5) < 6 * 0.5 / np.sqrt(30_000)
