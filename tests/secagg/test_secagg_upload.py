"""Uploads: pure, resumable at any byte, the same for any number of threads, and never two vectors under one mask."""

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_round import Drbg, Federation, small_params

import secagg.upload
from secagg import LocalError, RemoteError, node
from secagg.coordinate import add_upload, verify_upload_seal
from secagg.keystream import CHUNK_WORDS, SEGMENT_BYTES, SEGMENT_WORDS, Door
from secagg.lanes import Encoder
from secagg.messages import UploadSeal
from secagg.params import WORD_BYTES
from secagg.policy import policy_of
from secagg.upload import PIECE_BYTES, PIECE_WORDS, Masks, PackedUpload, SignedMask

LONG = 3 * (2 * SEGMENT_WORDS + CHUNK_WORDS + 5)  # two whole segments and an odd rest


@pytest.fixture(scope="module")
def long_federation():
    return Federation(small_params(("a", "b", "c"), length=LONG)).until("ready")


@pytest.fixture(scope="module")
def long_update():
    update = np.random.default_rng(5).uniform(-1, 1, LONG).astype(np.float32)
    update.flags.writeable = False
    return update


@pytest.fixture(scope="module")
def whole(long_federation, long_update):
    """The bytes of the whole upload, by one thread and counter mode's own door."""
    return b"".join(rebuilt(long_federation, long_update, Door.CTR).pieces())


def rebuilt(federation, update, door=Door.GCM):
    """Another upload of the same session, as an attacker of this test: states are rebuilt, not reused."""
    return node.mask(replace(federation.states["a"], once=node.Once()), update, door)[1]


# --- pure and resumable --------------------------------------------------------------------------------------------


def test_pieces_are_resumed_byte_for_byte(long_federation, long_update, whole):
    upload = rebuilt(long_federation, long_update)
    pieces = [bytes(piece) for piece in upload.pieces()]
    assert b"".join(pieces) == whole
    assert {len(piece) for piece in pieces[:-1]} == {PIECE_BYTES}
    assert len(whole) == upload.total_bytes == long_federation.params.upload_bytes
    assert [bytes(piece) for piece in upload.pieces(PIECE_BYTES)] == pieces[1:]
    seal = upload.finish()
    assert seal.digest == hashlib.sha256(whole).digest()
    assert rebuilt(long_federation, long_update).finish() == seal


def test_an_upload_that_broke_off_anywhere_goes_on_where_it_broke_off(long_federation, long_update, whole):
    upload = rebuilt(long_federation, long_update, Door.XTS)
    upload.finish()
    edges = {edge + shift for edge in (0, PIECE_BYTES, SEGMENT_BYTES, len(whole)) for shift in (-9, -8, -1, 0, 1, 8)}
    for offset in sorted(edge for edge in edges if 0 <= edge <= len(whole)):
        assert b"".join(upload.pieces(offset)) == whole[offset:], offset

    @settings(max_examples=12)
    @given(st.integers(0, len(whole)), st.integers(1, 3))
    def anywhere(offset, threads):
        assert b"".join(upload.pieces(offset, threads=threads)) == whole[offset:]

    anywhere()
    assert upload.finish().digest == hashlib.sha256(whole).digest()


def test_pieces_are_made_in_order(long_federation, long_update, whole):
    upload = rebuilt(long_federation, long_update)
    for offset in (-1, PIECE_BYTES, len(whole), len(whole) + 1):
        with pytest.raises(LocalError, match="neither"):
            upload.pieces(offset)
    next(upload.pieces())
    assert bytes(next(upload.pieces(PIECE_BYTES))) == whole[PIECE_BYTES : 2 * PIECE_BYTES]
    with pytest.raises(LocalError, match="neither"):
        upload.pieces(3 * PIECE_BYTES)
    upload.finish()
    with pytest.raises(LocalError, match="neither"):
        upload.pieces(len(whole) + 1)


@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_doors_and_threads_do_not_change_a_byte(long_federation, long_update, whole, door, threads):
    assert b"".join(rebuilt(long_federation, long_update, door).pieces(threads=threads)) == whole


@pytest.mark.parametrize("words", [1 << 11, CHUNK_WORDS, SEGMENT_WORDS])
def test_the_size_of_pieces_does_not_change_a_byte(long_federation, long_update, whole, monkeypatch, words):
    monkeypatch.setattr(secagg.upload, "PIECE_WORDS", words)
    monkeypatch.setattr(secagg.upload, "PIECE_BYTES", WORD_BYTES * words)
    upload = rebuilt(long_federation, long_update, Door.XTS)
    assert b"".join(upload.pieces(threads=2)) == whole
    assert upload.finish().digest == hashlib.sha256(whole).digest()


def test_two_connections_at_once_get_the_same_bytes(long_federation, long_update, whole):
    """A dead connection's iterator may still run when the upload begins again."""
    upload = rebuilt(long_federation, long_update)
    older, newer = upload.pieces(), upload.pieces()
    mixed = [(bytes(next(older)), bytes(next(newer))) for _ in range(3)]
    assert b"".join(old for old, _ in mixed) == b"".join(new for _, new in mixed) == whole[: 3 * PIECE_BYTES]
    older.close()
    assert b"".join(newer) == whole[3 * PIECE_BYTES :]


@pytest.mark.parametrize("door", list(Door))
def test_masks_are_added_to_any_run_of_words(door):
    """In any order, chunk by chunk or all at once, words have the same masks."""
    masks = [SignedMask(bytes([k]) * 16, subtract=bool(k % 2)) for k in range(5)]
    count = SEGMENT_WORDS + CHUNK_WORDS + 3
    whole, scattered = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    ordered = Masks(masks, Door.CTR)
    for start in range(0, count, CHUNK_WORDS):
        ordered.apply(whole[start : start + CHUNK_WORDS], start)
    starts = [*range(0, SEGMENT_WORDS, 9998), *range(SEGMENT_WORDS, count, 9998)]
    stops = [min(start + 9998, SEGMENT_WORDS if start < SEGMENT_WORDS else count) for start in starts]
    jumping = Masks(masks, door)
    for k in np.random.default_rng(1).permutation(len(starts)):
        jumping.apply(scattered[starts[k] : stops[k]], starts[k])
    assert np.array_equal(whole, scattered)


# --- one vector for one key ----------------------------------------------------------------------------------------


def test_an_update_that_changed_does_not_leave_again(long_federation, long_update):
    update = long_update.copy()
    upload = rebuilt(long_federation, update)
    next(upload.pieces())
    update[0] += 0.25
    with pytest.raises(LocalError, match="withheld"):
        next(upload.pieces())
    with pytest.raises(LocalError, match="withheld"):
        next(upload.pieces(17, threads=2))
    next(upload.pieces(PIECE_BYTES))  # what never left may differ: it is masked once


@pytest.mark.parametrize("what", ["_masks", "_encoder"])
def test_another_key_cannot_be_put_under_what_has_left(long_federation, long_update, what):
    upload, state = rebuilt(long_federation, long_update), long_federation.states["a"]
    next(upload.pieces())
    stranger = bytes(16)
    other = {
        "_masks": (SignedMask(stranger), *state.masks[1:]),
        "_encoder": Encoder(state.seat.params, "a", long_update, stranger, Door.GCM),
    }
    setattr(upload, what, other[what])
    with pytest.raises(LocalError, match="withheld"):
        next(upload.pieces())


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


def test_one_key_twice_in_a_vector_is_refused():
    """The difference of two equal masks is none, and their sum has no odd word."""
    federation = Federation(small_params()).until("ready")
    state = federation.states["anna"]
    encoder = Encoder(state.seat.params, "anna", federation.updates()["anna"], state.rounding_key, Door.GCM)
    first = state.masks[0]
    for masks in ((first, first), (first, replace(first, subtract=True))):
        with pytest.raises(LocalError, match="twice"):
            PackedUpload(state.seat, encoder, masks, 0, Door.GCM)


def test_a_session_id_and_with_it_every_key_is_used_once():
    federation = Federation(small_params())
    params, key = federation.params, federation.keys["anna"]
    with pytest.raises(RemoteError) as caught:
        node.advertise(params, "anna", key, policy_of(params), Drbg(1), seen={params.session})
    assert caught.value.code == "session-repeated"


def test_states_cannot_be_copied_or_stored():
    federation = Federation(small_params()).until("ready")
    for attempt in (copy.copy, copy.deepcopy, lambda one: one.__reduce_ex__(4)):  # the last is what serializing it calls
        with pytest.raises(LocalError, match="memory only"):
            attempt(federation.states["anna"].once)
    with pytest.raises(LocalError, match="memory only"):
        copy.deepcopy(federation.states["anna"])


# --- what belongs to an upload -------------------------------------------------------------------------------------


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


def test_pieces_lie_on_whole_chunks():
    assert PIECE_WORDS % CHUNK_WORDS == 0 == SEGMENT_WORDS % PIECE_WORDS
