"""Opening the sum: recover what the survivors revealed, remove every mask from the total, decode the mean.

Rule: only the total is opened. A single upload could be opened only with enough shares of both secrets of one member, and no
honest member reveals both (README, step 6). Recovered secrets are checked against the adverts; wrong shares are
corrected where there is surplus and their senders named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secagg import keys, shamir
from secagg.coding import decode
from secagg.encoding import digest, encode_list
from secagg.errors import UNKNOWN, LocalError, RemoteError
from secagg.extras import extra_sums
from secagg.keystream import Door
from secagg.messages import Advert
from secagg.noise_shares import chain
from secagg.noised import without_surplus
from secagg.params import Vector, Words
from secagg.shamir import Combiner
from secagg.unmasking import unmask
from secagg.upload import SignedMask
from secagg.view import SessionView

SUM_LABEL = "hospital-secagg sum v1"

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class OpenedSum:
    """The result of one session: weighted mean of the survivors, the weight that arrived, a digest of the opened words.

    `wrong_shares` names the members whose revealed shares had to be corrected; `extras` are the survivors' sums.
    """

    mean: Vector
    weight: int
    sum_digest: bytes
    wrong_shares: tuple[str, ...]
    extras: tuple[float, ...] = ()


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
    total = without_surplus(params, total, tuple(_surplus(view, recovery)), door)
    coded, extra, digests = unmask(params, view.survivors, total, masks, threads, door)
    weight = sum(params.weight(party) for party in view.survivors)
    sums = tuple(extra_sums(params, extra, len(view.survivors)).tolist())
    opened = digest(SUM_LABEL, params.context(), encode_list(digests))
    return OpenedSum(decode(params, coded), weight, opened, recovery.wrong_shares, sums)


def _masks_in_sum(view: SessionView, recovery: _Recovery) -> Iterator[SignedMask]:
    """What is left in the total, with the sign that removes it (step 6.2): self masks, and pairs with dropped members."""
    params = view.params

    def seed_of(advert: Advert, seed: bytes) -> bytes | None:
        return seed if keys.seed_commitment(params, seed, advert.party) == advert.seed_commitment else None

    for party in view.survivors:
        seed = recovery.secret(party, seed_of)
        yield SignedMask(keys.self_key(params, seed, party), subtract=True)
    peers = {party: keys.peer(params, view.adverts[party]) for party in view.sharers}
    for party in view.dropped:
        private = recovery.secret(party, _mask_key_of)
        others = [other for other in view.graph.masked_with(party) if view.is_survivor(other)]
        pairs = keys.pair_keys(params, private, peers[party], (peers[other] for other in others))
        for other, key in zip(others, pairs, strict=True):
            # the survivor subtracted where the other's name is earlier (step 3.4); removing it is the opposite
            yield SignedMask(key, subtract=party > other)


def _surplus(view: SessionView, recovery: _Recovery) -> Iterator[tuple[bytes, Fraction]]:
    """Components of every survivor's noise beyond the target (step 6.2): which ones the signed list says."""
    params = view.params
    first = params.surplus_from(len(view.survivors))
    if first is None or params.shared is None:
        return
    variances = params.shared.shares(len(params.participants)).components()

    def secret_of(advert: Advert, secret: bytes) -> bytes | None:
        committed = advert.noise_commitments[first - 1]
        return secret if keys.noise_commitment(params, secret, advert.party, first) == committed else None

    for party in view.survivors:
        secrets = chain(recovery.secret(party, secret_of, noise=True), first, params.shared.may_drop)
        for number, secret in enumerate(secrets, start=first):
            yield keys.noise_key(params, secret, party, number), variances[number]


def _mask_key_of(advert: Advert, secret: bytes) -> X25519PrivateKey | None:
    private = keys.private_key(secret)
    return private if keys.public_of(private) == advert.mask_key else None


class _Recovery:
    """Secrets from revealed shares. The sets of points that all members need are prepared together, before a liar is found."""

    def __init__(self, view: SessionView) -> None:
        self._view = view
        self._need = view.params.share_threshold
        self._points = {view.params.place(party) + 1: party for party in sorted(view.revealed)}
        self._shares: dict[str, dict[int, bytes]] = {party: {} for party in view.sharers}
        self._noise: dict[str, dict[int, bytes]] = {party: {} for party in view.sharers}
        for point, party in self._points.items():
            for item in view.revealed[party].shares:
                self._shares[item.peer][point] = item.share
                self._noise[item.peer][point] = item.noise
        self._wrong: set[int] = set()
        self._combiners = shamir.combiners({self._trusted(peer) for peer in self._shares})

    @property
    def wrong_shares(self) -> tuple[str, ...]:
        """Members found to have revealed wrong shares."""
        return tuple(sorted(self._points[point] for point in self._wrong))

    def secret(self, peer: str, check: Callable[[Advert, bytes], S | None], *, noise: bool = False) -> S:
        """What `check` makes of the 32 bytes that fit the advert of `peer`, None where they do not; of its noise, or its masks.

        RemoteError (unrecoverable) if the shares do not give such bytes.
        """
        advert, shares = self._view.adverts[peer], (self._noise if noise else self._shares)[peer]

        def at(points: tuple[int, ...]) -> S | None:
            combined = self._combine(points, shares)
            return None if combined is None else check(advert, combined)

        if (secret := at(self._trusted(peer))) is not None:
            return secret
        for good in shamir.likely_good(shares, self._need):
            if (secret := at(good)) is not None:
                self._wrong.update(shamir.off_polynomial(good, shares))
                return secret
        text = f"the revealed shares do not give the secret that {peer} advertised: it or too many members gave wrong shares"
        raise RemoteError(UNKNOWN, "unrecoverable", text)

    def _combine(self, points: tuple[int, ...], shares: dict[int, bytes]) -> bytes | None:
        return (self._combiners.get(points) or Combiner(points)).combine(shares)

    def _trusted(self, peer: str) -> tuple[int, ...]:
        """The first points that hold a share of this peer, those with wrong shares last."""
        shares: Sequence[int] = tuple(self._shares[peer])
        if self._wrong:
            shares = sorted(shares, key=lambda point: (point in self._wrong, point))
        return tuple(shares[: self._need])
