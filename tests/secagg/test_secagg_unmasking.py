"""Opening on several threads: the same mean and digest to the last bit, whatever the threads, doors and lengths."""

import hashlib
import threading

import numpy as np
import pytest
from plain_reference import enc_list, sha
from secagg_round import Federation, small_params

import secagg.unmasking
from secagg import RemoteError
from secagg.coordinate import open_sum
from secagg.keystream import CHUNK_WORDS, SEGMENT_WORDS, Door
from secagg.unmasking import DIGEST_WORDS, unmask

LENGTHS = [1, 7, 3 * DIGEST_WORDS, 3 * DIGEST_WORDS + 1, 100_000, 3 * (SEGMENT_WORDS + CHUNK_WORDS + 5)]


@pytest.fixture(scope="module", params=LENGTHS)
def closed(request):
    """A session of which one member was lost; all is there to open the sum."""
    federation = Federation(small_params(("a", "b", "c", "d"), threshold=3, length=request.param))
    federation.advertise().share().ready("abc").mask(federation.updates(), "abc").confirm("abc").reveal("abc")
    return federation


def test_the_result_is_the_same_for_all_threads_and_doors(closed):
    kept = closed.total.copy()
    one = open_sum(closed.view, closed.total, threads=1, door=Door.CTR)
    for door in Door:
        for threads in (1, 2, 3, 8):
            opened = open_sum(closed.view, closed.total, threads=threads, door=door)
            assert np.array_equal(opened.mean, one.mean)
            assert opened.sum_digest == one.sum_digest
    assert np.array_equal(closed.total, kept)
    updates = closed.updates()
    assert np.abs(one.mean - np.mean([updates[p] for p in "abc"], axis=0)).max() < 1e-5


def test_the_digest_is_that_of_the_opened_words(closed, monkeypatch):
    """README, step 6.5; the words are taken where they are decoded."""
    words = np.zeros(closed.params.words, np.uint64)
    decode = secagg.unmasking.Decoder.decode_into

    def watched(self, mean, run, first):
        words[first : first + len(run)] = run
        decode(self, mean, run, first)

    monkeypatch.setattr(secagg.unmasking.Decoder, "decode_into", watched)
    opened = open_sum(closed.view, closed.total, threads=2)
    runs = [words[start : start + 4096].tobytes() for start in range(0, len(words), 4096)]
    expected = sha("hospital-secagg sum v1", closed.params.context(), enc_list(hashlib.sha256(run).digest() for run in runs))
    assert opened.sum_digest == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_one_wrong_word_anywhere_is_found(closed, threads):
    for place in {0, closed.params.words // 2, closed.params.words - 1}:
        wrong = closed.total.copy()
        wrong[place : place + 1] += np.uint64(1 << 63)  # the bit that three lanes leave free
        with pytest.raises(RemoteError, match="cannot have sent"):
            open_sum(closed.view, wrong, threads=threads)


def test_two_threads_share_a_vector_of_a_hundred_thousand_values(monkeypatch):
    """Both hold a run at once, or the barrier breaks, and none of them has two thirds of the work."""
    params = small_params(("a", "b", "c"), length=100_000, public_keys=(b"1", b"2", b"3"))
    meeting, runs = threading.Barrier(2, timeout=120), []

    def together(_, start, stop):
        runs.append(stop - start)
        if len(runs) <= 2:
            meeting.wait()
        return [b"%d to %d" % (start, stop)]

    monkeypatch.setattr(secagg.unmasking._Opener, "open", together)
    _, _, digests = unmask(params, ("a", "b", "c"), np.zeros(params.words, np.uint64), (), 2, Door.CTR)
    assert len(digests) == len(set(digests)) == len(runs) >= 2
    assert sum(runs) == params.words
    assert max(runs) < 2 / 3 * params.words
