"""What a coordinator cannot do without, and how fast this machine does it: signatures to verify, keys to agree on, keystream.

The rates of the machine on which the targets were set stand beside them. A machine may be slower in curves than in AES.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from time import process_time

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from benchmarks.masking_round import Recording
from secagg.identity import VERIFY
from secagg.params import WORD_BYTES
from secagg.statements import session_graph


@dataclass(frozen=True, slots=True)
class Rates:
    """Microseconds of CPU for one operation, and gigabytes a second of AES-128 counter mode."""

    verify_us: float  # ECDSA on P-256
    agree_us: float  # X25519
    ctr_gb_per_s: float


REFERENCE = Rates(verify_us=43.0, agree_us=23.0, ctr_gb_per_s=12.0)


@dataclass(frozen=True, slots=True)
class Floor:
    """How often a coordinator does each in one round."""

    signatures: int
    agreements: int
    mask_bytes: int

    def ms(self, rates: Rates) -> float:
        """CPU milliseconds of these alone."""
        curves_us = self.signatures * rates.verify_us + self.agreements * rates.agree_us
        return curves_us / 1e3 + self.mask_bytes / rates.ctr_gb_per_s / 1e6


def floor_of(recording: Recording) -> Floor:
    """Every message that carries a signature, every pair of a dropped member and a survivor, every mask that is left."""
    graph = session_graph(recording.params, recording.adverts)
    dropped = recording.share_sets.keys() - recording.uploads.keys()
    agreements = sum(len(recording.uploads.keys() & set(graph.masked_with(party))) for party in dropped)
    signed = len(recording.adverts) + len(recording.share_sets) + len(recording.uploads) + len(recording.confirmations)
    masks = len(recording.uploads) + agreements
    return Floor(signed, agreements, masks * WORD_BYTES * recording.params.words)


def rates_here(ctr_gb_per_s: float) -> Rates:
    """The fastest of several runs of this machine's library."""
    key, digest = ec.generate_private_key(ec.SECP256R1()), os.urandom(32)
    public, signature = key.public_key(), key.sign(digest, VERIFY)
    mine, peer = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key()
    return Rates(
        _fastest_us(lambda: public.verify(signature, digest, VERIFY)), _fastest_us(lambda: mine.exchange(peer)), ctr_gb_per_s
    )


def _fastest_us(work: Callable[[], object], runs: int = 10, calls: int = 100) -> float:
    spent = []
    for _ in range(runs):
        start = process_time()
        for _ in range(calls):
            work()
        spent.append(process_time() - start)
    return 1e6 * min(spent) / calls
