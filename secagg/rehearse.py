"""The whole protocol in one function, in memory: an executable specification (README, One round in one function).

Tests, study and benchmarks call `run_round`. Nothing is skipped: signatures, sealed boxes, digests and the checks of both
sides all run; only the connection between them is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from secagg import node, sizes
from secagg.coordinate import SessionView, add_upload, open_sum
from secagg.errors import LocalError
from secagg.identity import public_der
from secagg.keystream import Door
from secagg.node import Advertised, Confirmed, Masked, Shared
from secagg.params import RoundParams, Vector, Words
from secagg.policy import policy_of
from secagg.shamir import Rand
from secagg.upload import PackedUpload

PHASES = ("advertise", "share", "mask", "confirm", "reveal")
NO_EXTRAS: Mapping[str, Sequence[float]] = MappingProxyType({})
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What the coordinator knows after a round. `upload_bytes` counts all that each member sent, by `sizes`."""

    mean: Vector
    survivors: tuple[str, ...]
    upload_bytes: dict[str, int]
    weight: int
    sum_digest: bytes
    extras: tuple[float, ...] = ()


def run_round(
    params: RoundParams,
    updates: Mapping[str, Vector],
    drop: Mapping[str, str] | None = None,
    *,
    rand: Rand,
    door: Door = Door.GCM,
    threads: int = 1,
    signing_keys: Mapping[str, ec.EllipticCurvePrivateKey] | None = None,
    extras: Mapping[str, Sequence[float]] = NO_EXTRAS,
) -> RoundResult:
    """Run the five phases. `drop` maps a name to the phase before which that member vanishes.

    Makes signing keys where `params` names none. Raises TooFewSurvivors, LocalError (updates), RemoteError (plan's bounds).
    """
    absent = _checked_absence(params, updates, drop or {})
    params, signing_keys = _with_keys(params, signing_keys, rand)
    view, policy, sent = SessionView(params), policy_of(params), dict.fromkeys(params.participants, 0)

    # Phase 1, advertise: every member draws secrets and signs their public halves.
    advertised: dict[str, Advertised] = {}
    for party in absent.present("advertise"):
        advertised[party], advert = node.advertise(params, party, signing_keys[party], policy, rand)
        sent[party] += sizes.advert_bytes(advert)
        view.add_advert(advert)
    view.check_adverts()

    # Phase 2, share: both secrets of each member are split and sealed, one box for each receiver.
    shared: dict[str, Shared] = {}
    for party in absent.present("share"):
        shared[party], share_set = node.share(advertised[party], tuple(view.adverts.values()), rand)
        sent[party] += sizes.share_set_bytes(share_set)
        view.add_share_set(share_set)
    view.check_shares()

    # Phase 3, mask: every box is opened and checked, then the masked vector leaves; the sum takes whole uploads only.
    masked: dict[str, Masked] = {}
    total: Words = np.zeros(params.words, dtype=np.uint64)
    for party in absent.present("mask"):
        ready = node.ready_to_mask(shared[party], view.sets_for(party))
        masked[party], upload = node.mask(ready, updates[party], door, extras.get(party, ()))
        sent[party] += _receive(view, party, upload, total)

    # Phase 4, confirm: whoever is left signs the one survivor list.
    view.close(tuple(masked))
    confirmed: dict[str, Confirmed] = {}
    for party in absent.present("confirm"):
        confirmed[party], confirmation = node.confirm(masked[party], view.survivors, view.seals_for(party))
        sent[party] += sizes.confirmation_bytes(confirmation)
        view.add_confirmation(confirmation)
    view.check_confirmed()

    # Phase 5, reveal: self-mask shares of survivors, mask-key shares of the others; then only the sum opens.
    for party in absent.present("reveal"):
        finished, revealed = node.reveal(confirmed[party], tuple(view.confirmations.values()))
        node.verify_result(finished, view.survivors)
        sent[party] += sizes.revealed_bytes(revealed)
        view.add_revealed(party, revealed)
    opened = open_sum(view, total, threads=threads, door=door)
    return RoundResult(opened.mean, view.survivors, sent, opened.weight, opened.sum_digest, opened.extras)


@dataclass(frozen=True, slots=True)
class _Absence:
    """Who is still there in each phase."""

    participants: tuple[str, ...]
    drop: Mapping[str, str]

    def present(self, phase: str) -> list[str]:
        """Members that have not vanished before `phase`."""
        at = PHASES.index(phase)
        return [party for party in self.participants if party not in self.drop or PHASES.index(self.drop[party]) > at]


def _checked_absence(params: RoundParams, updates: Mapping[str, Vector], drop: Mapping[str, str]) -> _Absence:
    for party, phase in drop.items():
        params.place(party)
        if phase not in PHASES:
            raise LocalError(f"{party} cannot vanish before '{phase}': the phases are {', '.join(PHASES)}")
    absence = _Absence(params.participants, drop)
    for party in absence.present("mask"):
        if party not in updates:
            raise LocalError(f"no update is given for {party}, which is there in the mask phase")
    return absence


def _receive(view: SessionView, party: str, upload: PackedUpload, total: Words) -> int:
    """Step 3.6 and 3.7: spool the whole upload, check its signed digest, only then add it."""
    spool = b"".join(upload.pieces())
    seal = upload.finish()
    view.add_seal(party, hashlib.sha256(spool).digest(), seal)
    add_upload(total, spool)
    return sizes.upload_bytes(len(spool), seal)


def _with_keys(
    params: RoundParams, signing_keys: Mapping[str, ec.EllipticCurvePrivateKey] | None, rand: Rand
) -> tuple[RoundParams, Mapping[str, ec.EllipticCurvePrivateKey]]:
    if params.public_keys:
        if signing_keys is None:
            raise LocalError("parameters that name public keys need the matching signing_keys")
        return params, signing_keys
    made = {party: _draw_signing_key(rand) for party in params.participants}
    return replace(params, public_keys=tuple(public_der(made[party]) for party in params.participants)), made


def _draw_signing_key(rand: Rand) -> ec.EllipticCurvePrivateKey:
    """A P-256 key from 48 random bytes (FIPS 186-5, A.2.1: extra random bits)."""
    scalar = int.from_bytes(rand(48), "big") % (P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())
