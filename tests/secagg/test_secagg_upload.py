"""Uploads: pure, resumable, uniform to those who lack a mask, and never two vectors under one mask."""

import copy
import hashlib

import numpy as np
import pytest
from secagg_round import Federation, small_params

from secagg import LocalError, Quantizer, RemoteError, node
from secagg.coordinate import add_upload, verify_upload_seal
from secagg.keystream import CHUNK_WORDS, SEGMENT_BYTES, SEGMENT_WORDS, Door, Stream
from secagg.messages import UploadSeal
from secagg.upload import SignedMask, apply_masks

LONG = 3 * (2 * SEGMENT_WORDS + CHUNK_WORDS + 5)  # two whole segments and an odd rest


@pytest.fixture(scope="module")
def long_federation():
    return Federation(small_params(("a", "b", "c"), length=LONG)).until("ready")


@pytest.fixture
def update():
    return np.random.default_rng(5).uniform(-1, 1, LONG).astype(np.float32)


def fresh(federation, update):
    """Another upload of the same session, as an attacker of this test: states are rebuilt, not reused."""
    state = federation.states["a"]
    twin = node.MaskReady(state.seat, state.seen, state.held, state.masks, state.rounding_key)
    return node.mask(twin, update)[1]


def test_segments_are_resumed_byte_for_byte(long_federation, update):
    upload = fresh(long_federation, update)
    first = [bytes(segment) for segment in upload.segments()]
    assert [len(segment) for segment in first] == [SEGMENT_BYTES, SEGMENT_BYTES, 8 * (CHUNK_WORDS + 5)]
    assert sum(map(len, first)) == upload.total_bytes == long_federation.params.upload_bytes
    assert [bytes(segment) for segment in upload.segments(1)] == first[1:]
    assert bytes(upload.segment(1)) == first[1]
    assert upload.finish().digest == hashlib.sha256(b"".join(first)).digest()
    assert upload.finish() == fresh(long_federation, update).finish()


def test_doors_and_chunks_do_not_change_a_byte(long_federation, update):
    state = long_federation.states["a"]
    twins = [node.MaskReady(state.seat, state.seen, state.held, state.masks, state.rounding_key) for _ in Door]
    seals = {node.mask(twin, update, door)[1].finish().digest for twin, door in zip(twins, Door, strict=True)}
    assert len(seals) == 1


def test_an_update_that_changed_does_not_leave_again(long_federation, update):
    upload = fresh(long_federation, update)
    next(upload.segments())
    update[0] += 0.25
    with pytest.raises(LocalError, match="withheld"):
        upload.segment(0)
    upload.segment(1)  # what never left may differ: it is masked once


def test_segments_come_in_order(long_federation, update):
    upload = fresh(long_federation, update)
    for number in (1, -1, 3):
        with pytest.raises(LocalError, match="not the next one"):
            upload.segment(number)


def test_masks_serve_one_update():
    federation = Federation(small_params()).until("ready")
    state, updates = federation.states["anna"], federation.updates()
    bad = updates["anna"].copy()
    bad[0] = np.nan
    with pytest.raises(LocalError, match="not finite"):
        node.mask(state, bad)
    masked, upload = node.mask(state, updates["anna"])  # a refused update used nothing up
    assert node.mask(state, updates["anna"]) == (masked, upload)
    with pytest.raises(LocalError, match="already used"):
        node.mask(state, updates["bern"])
    with pytest.raises(LocalError, match="already used"):
        node.mask(state, updates["anna"].copy())


def test_states_cannot_be_copied_or_stored():
    federation = Federation(small_params()).until("ready")
    with pytest.raises(LocalError, match="memory only"):
        copy.deepcopy(federation.states["anna"])


def test_clipped_coordinates_are_the_members_own_knowledge():
    federation = Federation(small_params()).until("ready")
    update = np.zeros(10, np.float32)
    update[3:5] = 7
    assert node.mask(federation.states["bern"], update)[1].clipped == 2


def test_a_seal_fits_one_upload_of_one_member():
    federation = Federation(small_params()).until("mask")
    params, seal = federation.params, federation.seals["anna"]
    digest = hashlib.sha256(federation.uploads["anna"]).digest()
    verify_upload_seal(params, "anna", digest, seal)
    flipped = bytes([federation.uploads["anna"][0] ^ 1]) + federation.uploads["anna"][1:]
    for party, other, sealed in (
        ("anna", hashlib.sha256(flipped).digest(), seal),
        ("bern", digest, seal),
        ("anna", digest, UploadSeal(digest, federation.seals["bern"].signature)),
        ("anna", digest, UploadSeal(hashlib.sha256(flipped).digest(), seal.signature)),
    ):
        with pytest.raises(RemoteError) as caught:
            verify_upload_seal(params, party, other, sealed)
        assert caught.value.party == party


def test_uploads_are_added_in_runs_of_words():
    total, words = np.zeros(6, np.uint64), np.arange(6, dtype=np.uint64)
    words[0] = 2**64 - 1
    add_upload(total, words.tobytes())
    add_upload(total, words.tobytes()[:16])
    add_upload(total, memoryview(words.tobytes())[16:], 16)
    assert total.tolist() == [2**64 - 2, 2, 4, 6, 8, 10]
    for data, offset in ((bytes(7), 0), (bytes(8), 4), (bytes(56), 0), (bytes(8), 48), (bytes(8), -8)):
        with pytest.raises(LocalError):
            add_upload(total, data, offset)


# --- what the words look like -------------------------------------------------------------------------------------


def test_masks_cover_all_64_bit_words():
    """Chi-squared over the top byte and over the bottom byte, each bit half set, and words above 2**64 - 2**44 occur."""
    words = Stream(b"uniformity check", 0).words(1 << 20)
    assert int(words.max()) >= 2**64 - 2**48
    assert int(words.min()) < 2**48
    for column in (words >> np.uint64(56), words & np.uint64(255)):
        counts = np.bincount(column.astype(np.int64), minlength=256)
        expected = len(words) / 256
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert 255 - 6 * np.sqrt(510) < chi_squared < 255 + 6 * np.sqrt(510)
    for bit in range(64):
        share = float(((words >> np.uint64(bit)) & np.uint64(1)).mean())
        assert abs(share - 0.5) < 6 * 0.5 / np.sqrt(len(words))


@pytest.mark.parametrize("subtract", [False, True])
def test_the_top_value_is_a_mask_like_any_other(subtract):
    class Top:
        def read_into(self, out):
            out.fill(2**64 - 1)

    words = np.array([0, 1, 2**64 - 1], np.uint64)
    apply_masks(words, [(Top(), subtract)], np.empty(3, np.uint64))
    assert words.tolist() == ([1, 2, 0] if subtract else [2**64 - 1, 0, 2**64 - 2])


def test_masks_of_two_sessions_are_unrelated():
    one, other = (Federation(small_params(session=bytes([i]) * 16, length=30_000)).until("ready") for i in (1, 2))
    keys = [{mask.key for mask in f.states[p].masks} for f in (one, other) for p in f.params.participants]
    assert sum(map(len, keys)) == 2 * (4 + 2 * 6)  # each of 6 pair keys seen by two members, and 4 self keys
    assert len(set().union(*keys)) == 2 * (4 + 6)
    a, b = (Stream(next(iter(sorted(k))), 0).words(4096) for k in (keys[0], keys[4]))
    agreeing_bits = np.bitwise_count(~(a ^ b)).mean()
    assert abs(agreeing_bits - 32) < 6 * 4 / np.sqrt(4096)


def test_an_upload_looks_uniform_and_pair_masks_cancel():
    federation = Federation(small_params(("a", "b", "c"), length=60_000, quantizer=Quantizer(1.0, 3))).until("ready")
    masks = {p: federation.states[p].masks for p in "abc"}
    federation.mask({p: np.zeros(60_000, np.float32) for p in "abc"})
    words = np.frombuffer(federation.uploads["a"], "<u8")
    assert abs(float((words >> np.uint64(63)).mean()) - 0.5) < 6 * 0.5 / np.sqrt(len(words))
    assert len(np.unique(words)) == len(words)
    pairs = [mask for p in "abc" for mask in masks[p][1:]]
    assert sorted(mask.key for mask in pairs if mask.subtract) == sorted(mask.key for mask in pairs if not mask.subtract)
    assert not any(masks[p][0].subtract for p in "abc")
    assert isinstance(masks["a"][0], SignedMask)
