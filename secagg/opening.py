"""Opening the sum: recover what the survivors revealed, remove every mask from the total, decode the mean.

Rule: only the total is opened. A single upload could be opened only with t shares of both secrets of one member, and no
honest member reveals both (README, step 6). Recovered secrets are checked against the adverts; wrong shares are
corrected where there is surplus and their senders named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from secagg import keys, shamir
from secagg.encoding import digest, encode_list
from secagg.errors import UNKNOWN, LocalError, RemoteError
from secagg.keystream import CHUNK_WORDS, Door, Stream
from secagg.lanes import Decoder
from secagg.messages import Advert
from secagg.params import Vector, Words
from secagg.shamir import Combiner
from secagg.upload import SignedMask, apply_masks, open_streams, segment_count, segment_range
from secagg.view import SessionView

SUM_LABEL = "hospital-secagg sum v1"


@dataclass(frozen=True, slots=True)
class OpenedSum:
    """The result of one session: weighted mean of the survivors, the weight that arrived, a digest of the opened words.

    `wrong_shares` names the members whose revealed shares had to be corrected.
    """

    mean: Vector
    weight: int
    sum_digest: bytes
    wrong_shares: tuple[str, ...]


def open_sum(view: SessionView, total: Words, *, threads: int = 1, door: Door = Door.GCM) -> OpenedSum:
    """Open the sum modulo 2**64 of the survivors' uploads. `total` is not changed.

    Raises TooFewSurvivors before t members revealed, RemoteError where their shares or the sum are inconsistent.
    """
    params = view.params
    view.check_revealed()
    if total.dtype != np.uint64 or total.shape != (params.words,):
        raise LocalError(f"the total is {total.dtype} of shape {total.shape}, expected uint64 ({params.words},)")
    recovery = _Recovery(view)
    masks = tuple(_masks_in_sum(view, recovery))
    decoder = Decoder(params, view.survivors)
    mean: Vector = np.empty(params.length, dtype=np.float32)

    def open_segment(segment: int) -> bytes:
        return _open_segment(total, segment_range(params, segment), open_streams(masks, segment, door), decoder, mean)

    with ThreadPoolExecutor(threads) as pool:  # segments are independent and the kernels release the interpreter lock
        digests = list(pool.map(open_segment, range(segment_count(params))))
    weight = sum(params.weight(party) for party in view.survivors)
    return OpenedSum(mean, weight, digest(SUM_LABEL, params.context(), encode_list(digests)), recovery.wrong_shares)


def _open_segment(total: Words, span: range, masks: list[tuple[Stream, bool]], decoder: Decoder, mean: Vector) -> bytes:
    state = hashlib.sha256()
    scratch: Words = np.empty(CHUNK_WORDS, dtype="<u8")
    for start in range(span.start, span.stop, CHUNK_WORDS):
        words = total[start : min(start + CHUNK_WORDS, span.stop)].copy()
        apply_masks(words, masks, scratch)
        state.update(words.data.cast("B"))
        decoder.decode_into(mean, words, start)
    return state.digest()


def _masks_in_sum(view: SessionView, recovery: _Recovery) -> Iterator[SignedMask]:
    """What is left in the total, with the sign that removes it (step 6.2): self masks, and pairs with dropped members."""
    params = view.params

    def fits_seed(seed: bytes, advert: Advert) -> bool:
        return keys.seed_commitment(params, seed, advert.party) == advert.seed_commitment

    for party in view.survivors:
        seed = recovery.secret(party, fits_seed)
        yield SignedMask(keys.self_key(params, seed, party), subtract=True)
    for party in view.dropped:
        mine = view.adverts[party]
        private = keys.private_key(recovery.secret(party, _fits_mask_key))
        for other in view.survivors:
            secret = keys.agree(private, view.adverts[other].mask_key, blame=other)
            # the survivor subtracted where the other's name is earlier (step 3.4); removing it is the opposite
            yield SignedMask(keys.pair_key(params, secret, mine, view.adverts[other]), subtract=party > other)


def _fits_mask_key(private: bytes, advert: Advert) -> bool:
    return keys.public_of(keys.private_key(private)) == advert.mask_key


class _Recovery:
    """Secrets from revealed shares; one set of Lagrange coefficients until a liar is found."""

    def __init__(self, view: SessionView) -> None:
        self._view = view
        self._points = {view.params.place(party) + 1: party for party in sorted(view.revealed)}
        self._shares = {
            point: {item.peer: item.share for item in view.revealed[party].shares} for point, party in self._points.items()
        }
        self._wrong: set[int] = set()
        self._combiner = self._combine_trusted()

    @property
    def wrong_shares(self) -> tuple[str, ...]:
        """Members found to have revealed wrong shares."""
        return tuple(sorted(self._points[point] for point in self._wrong))

    def secret(self, peer: str, fits: Callable[[bytes, Advert], bool]) -> bytes:
        """The secret of `peer` that fits its advert; RemoteError (unrecoverable) if the shares do not give it."""
        advert = self._view.adverts[peer]
        shares = {point: held[peer] for point, held in self._shares.items()}
        secret = self._combiner.combine(shares)
        if secret is not None and fits(secret, advert):
            return secret
        for good in shamir.likely_good(shares, self._view.params.threshold):
            secret = Combiner(good).combine(shares)
            if secret is not None and fits(secret, advert):
                self._wrong.update(shamir.off_polynomial(good, shares))
                self._combiner = self._combine_trusted()
                return secret
        text = f"the revealed shares do not give the secret that {peer} advertised: it or too many members gave wrong shares"
        raise RemoteError(UNKNOWN, "unrecoverable", text)

    def _combine_trusted(self) -> Combiner:
        """The first t points, those with wrong shares last."""
        ordered = sorted(self._points, key=lambda point: (point in self._wrong, point))
        return Combiner(ordered[: self._view.params.threshold])
