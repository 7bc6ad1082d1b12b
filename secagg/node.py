"""The node's side: one state type per phase and one function per transition, `(state, message) -> (state, answer)`.

Rule: nothing here reads a clock, a disk, a socket or global randomness; `rand` is given. Each function makes all checks
of its phase before it makes anything secret, and a failed check leaves the state as it was. Each state answers one
question (`once`). Step numbers are those of README.md.

The caller still has to: persist the session id before the advert leaves (pass the ids seen before as `seen`), and
commit the charge to its ledger between `ready_to_mask` and `mask`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secagg import boxes, keys, shamir
from secagg.boxes import HeldShares
from secagg.errors import UNKNOWN, LocalError, RemoteError, TooFewSurvivors
from secagg.identity import Purpose, public_der
from secagg.keystream import Door
from secagg.lanes import Encoder, count_clipped
from secagg.messages import Advert, Box, Confirmation, Revealed, RevealedShare, ShareKind, ShareSet, digests_of
from secagg.once import Once
from secagg.params import RoundParams, Vector
from secagg.policy import Policy, check_session
from secagg.seat import Seat
from secagg.shamir import Rand
from secagg.statements import (
    advert_statement,
    adverts_digest,
    check_advert,
    check_confirmation,
    check_distinct_keys,
    check_member,
    check_repeats,
    check_share_set,
    list_statement,
    shares_statement,
)
from secagg.upload import PackedUpload, SignedMask

M = TypeVar("M", Advert, ShareSet, Confirmation)


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What a member draws for one session; nothing of it outlives the session."""

    seal_key: X25519PrivateKey
    mask_key: X25519PrivateKey  # shared, and opened if this member drops
    seed: bytes  # of the self mask; shared, and opened if this member survives
    rounding_seed: bytes  # never shared


@dataclass(frozen=True, slots=True, repr=False)
class Agreed:
    """X25519 results with one peer."""

    seal: bytes
    mask: bytes


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Advertised:
    """Phase 1 done: the advert may leave."""

    seat: Seat
    secrets: Secrets
    advert: Advert
    once: Once[tuple[Shared, ShareSet]] = field(default_factory=Once)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Shared:
    """Phase 2 done: the boxes may leave."""

    seat: Seat
    secrets: Secrets
    adverts: Mapping[str, Advert]
    seen: bytes  # digest of these adverts
    agreed: Mapping[str, Agreed]  # by peer
    own: HeldShares  # my own shares of my own secrets
    share_set: ShareSet  # mine, with digests
    once: Once[MaskReady] = field(default_factory=Once)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MaskReady:
    """All boxes opened and all checks before the upload passed; the caller may now commit the charge."""

    seat: Seat
    seen: bytes
    held: Mapping[str, HeldShares]  # by sharer, mine included
    masks: tuple[SignedMask, ...]
    rounding_key: bytes
    once: Once[tuple[Masked, PackedUpload]] = field(default_factory=Once)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Masked:
    """Phase 3: the upload may leave. No mask key is left in this state."""

    seat: Seat
    seen: bytes
    held: Mapping[str, HeldShares]
    once: Once[tuple[Confirmed, Confirmation]] = field(default_factory=Once)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Confirmed:
    """Phase 4 done: one list signed, and no other one ever."""

    seat: Seat
    held: Mapping[str, HeldShares]
    survivors: tuple[str, ...]
    statement: bytes
    once: Once[tuple[Finished, Revealed]] = field(default_factory=Once)


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """Phase 5 done; no secret is left."""

    survivors: tuple[str, ...]


def advertise(
    params: RoundParams,
    me: str,
    signing_key: ec.EllipticCurvePrivateKey,
    policy: Policy,
    rand: Rand,
    *,
    seen: Container[bytes] = (),
    base_digest: bytes | None = None,
) -> tuple[Advertised, Advert]:
    """Step 1: check the session against my own policy, draw my secrets, sign their public halves.

    `seen` holds the session ids this node knows already; `base_digest` is the digest of the model it trained on.
    """
    if not params.is_member(me) or params.public_key(me) != public_der(signing_key):
        raise RemoteError(UNKNOWN, "policy", f"the session does not list {me} with its own key")
    if params.session in seen:
        raise RemoteError(UNKNOWN, "session-repeated", "the coordinator offers a session id that was used before")
    if base_digest is not None and params.base_digests[params.place(me)] != base_digest:
        raise RemoteError(UNKNOWN, "policy", f"the session says that {me} trained on another model than it did")
    check_session(params, me, policy)
    seat = Seat(params, me, signing_key, policy)
    drawn = [shamir.draw(rand, keys.SECRET_BYTES) for _ in range(4)]
    secrets = Secrets(keys.private_key(drawn[0]), keys.private_key(drawn[1]), drawn[2], drawn[3])
    public = (
        keys.public_of(secrets.seal_key),
        keys.public_of(secrets.mask_key),
        keys.seed_commitment(params, secrets.seed, me),
    )
    advert = Advert(me, *public, seat.sign(Purpose.ADVERT, advert_statement(me, *public)))
    return Advertised(seat, secrets, advert), advert


def share(state: Advertised, adverts: Sequence[Advert], rand: Rand) -> tuple[Shared, ShareSet]:
    """Step 2: check every advert, split both secrets, seal one box for each other advertised member."""
    _expect(state, Advertised)
    return state.once.answer(_in_order(adverts), lambda: _share(state, adverts, rand))


def _share(state: Advertised, adverts: Sequence[Advert], rand: Rand) -> tuple[Shared, ShareSet]:
    seat = state.seat
    by_party = _checked_adverts(state, adverts)  # 2.1 to 2.3
    agreed = {party: _agree(state.secrets, advert) for party, advert in by_party.items() if party != seat.me}  # 2.4
    points = {party: seat.params.place(party) + 1 for party in by_party}
    seed_shares = shamir.split(state.secrets.seed, seat.params.threshold, list(points.values()), rand)
    key_shares = shamir.split(state.secrets.mask_key.private_bytes_raw(), seat.params.threshold, list(points.values()), rand)
    parts = {party: HeldShares(seed_shares[point], key_shares[point]) for party, point in points.items()}
    own = parts.pop(seat.me)
    sealed = tuple(Box(party, _seal(state, by_party[party], agreed[party], parts[party])) for party in sorted(parts))
    digests, seen = digests_of(sealed), adverts_digest(by_party)
    signature = seat.sign(Purpose.SHARES, shares_statement(seat.me, seen, digests))
    full = ShareSet(seat.me, sealed, digests, signature)
    return Shared(seat, state.secrets, by_party, seen, agreed, own, full), ShareSet(seat.me, sealed, (), signature)


def _checked_adverts(state: Advertised, adverts: Sequence[Advert]) -> dict[str, Advert]:
    seat = state.seat
    check_repeats([advert.party for advert in adverts], "the adverts")
    if state.advert not in adverts:
        raise RemoteError(UNKNOWN, "own-message-altered", "my own advert came back altered or not at all")
    for advert in adverts:
        check_advert(seat.params, advert, blame=UNKNOWN)  # 2.1
    check_distinct_keys(adverts, blame=UNKNOWN)  # 2.2
    by_party = {advert.party: advert for advert in sorted(adverts, key=lambda advert: advert.party)}
    seat.check_cohort(list(by_party), "share")  # 2.3
    return by_party


def _agree(secrets: Secrets, advert: Advert) -> Agreed:
    return Agreed(
        keys.agree(secrets.seal_key, advert.seal_key, blame=advert.party),
        keys.agree(secrets.mask_key, advert.mask_key, blame=advert.party),
    )


def _seal(state: Advertised, receiver: Advert, agreed: Agreed, shares: HeldShares) -> bytes:
    params = state.seat.params
    key = keys.box_key(params, agreed.seal, state.advert, receiver)
    return boxes.seal(key, params.context(), state.seat.place, params.place(receiver.party), shares)


def ready_to_mask(state: Shared, sets: Sequence[ShareSet]) -> MaskReady:
    """Step 3.1 to 3.4: open and check every box addressed to me; after this only the update is missing."""
    _expect(state, Shared)
    return state.once.answer(_in_order(sets), lambda: _ready(state, sets))


def _ready(state: Shared, sets: Sequence[ShareSet]) -> MaskReady:
    seat, params = state.seat, state.seat.params
    check_repeats([item.party for item in sets], "the share sets")
    held = {item.party: _open_set(state, item) for item in sets}  # 3.1, 3.2
    held[seat.me] = state.own
    seat.check_cohort(sorted(held), "mask")  # 3.3
    mine = state.adverts[seat.me]
    masks = [SignedMask(keys.self_key(params, state.secrets.seed, seat.me))]
    for party in sorted(held):
        if party != seat.me:  # 3.4: the earlier name of a pair adds, the later one subtracts
            pair = keys.pair_key(params, state.agreed[party].mask, mine, state.adverts[party])
            masks.append(SignedMask(pair, subtract=party < seat.me))
    rounding = keys.rounding_key(params, state.secrets.rounding_seed, seat.me)
    return MaskReady(seat, state.seen, held, tuple(masks), rounding)


def _open_set(state: Shared, item: ShareSet) -> HeldShares:
    seat, params = state.seat, state.seat.params
    check_share_set(params, state.adverts, state.seen, item, blame=UNKNOWN)
    if item.party == seat.me:
        if item.digests != state.share_set.digests:
            raise RemoteError(UNKNOWN, "own-message-altered", "my own share set came back altered")
        return state.own
    box = next((box for box in item.boxes if box.receiver == seat.me), None)
    signed = next(entry.digest for entry in item.digests if entry.receiver == seat.me)
    if box is None or hashlib.sha256(box.sealed).digest() != signed:
        raise RemoteError(UNKNOWN, "altered-box", f"the box from {item.party} is missing or not the one that was signed")
    key = keys.box_key(params, state.agreed[item.party].seal, state.adverts[item.party], state.adverts[seat.me])
    return boxes.unseal(key, params.context(), params.place(item.party), seat.place, box.sealed, blame=item.party)


def mask(state: MaskReady, update: Vector, door: Door = Door.GCM) -> tuple[Masked, PackedUpload]:
    """Step 3.5: the masked vector as a resumable sequence of segments. LocalError for an update that cannot be sent.

    The masks of a session serve one vector: a second call with another array raises LocalError.
    """
    _expect(state, MaskReady)
    used = LocalError("the masks of this session are already used for another update: discard the session")
    return state.once.answer(id(update), lambda: _mask(state, update, door), used)


def _mask(state: MaskReady, update: Vector, door: Door) -> tuple[Masked, PackedUpload]:
    clipped = count_clipped(state.seat.params, update)
    encoder = Encoder(state.seat.params, state.seat.me, update, state.rounding_key, door)
    upload = PackedUpload(state.seat, encoder, state.masks, clipped, door)
    return Masked(state.seat, state.seen, state.held), upload


def confirm(state: Masked, survivors: Sequence[str]) -> tuple[Confirmed, Confirmation]:
    """Step 4: sign the one survivor list of this session, if it keeps to my policy."""
    _expect(state, Masked)
    check_repeats(survivors, "the survivor list")
    ordered = tuple(sorted(survivors))
    return state.once.answer(ordered, lambda: _confirm(state, ordered))


def _confirm(state: Masked, survivors: tuple[str, ...]) -> tuple[Confirmed, Confirmation]:
    seat = state.seat
    if seat.me not in survivors:
        raise RemoteError(UNKNOWN, "not-on-list", f"the survivor list leaves out {seat.me}, which is alive")
    for party in survivors:
        check_member(seat.params, party, blame=UNKNOWN)
        if party not in state.held:
            raise RemoteError(UNKNOWN, "never-shared", f"the survivor list names {party}, which shared nothing")
    seat.check_cohort(survivors, "confirm")
    statement = list_statement(state.seen, state.held, survivors)
    confirmation = Confirmation(seat.me, seat.sign(Purpose.CONFIRM, statement))
    return Confirmed(seat, state.held, survivors, statement), confirmation


def reveal(state: Confirmed, confirmations: Sequence[Confirmation]) -> tuple[Finished, Revealed]:
    """Step 5: with t signatures over the list that I signed, one share of one kind for each member that shared."""
    _expect(state, Confirmed)
    return state.once.answer(_in_order(confirmations), lambda: _reveal(state, confirmations))


def _reveal(state: Confirmed, confirmations: Sequence[Confirmation]) -> tuple[Finished, Revealed]:
    params = state.seat.params
    check_repeats([item.party for item in confirmations], "the confirmations")
    for item in confirmations:
        check_confirmation(params, state.statement, state.survivors, item, blame=UNKNOWN)
    signers = {item.party for item in confirmations} | {state.seat.me}
    if len(signers) < params.threshold:
        raise TooFewSurvivors("reveal", f"{len(signers)} members signed the survivor list, {params.threshold} are needed")
    return Finished(state.survivors), Revealed(tuple(_one_share(state, party) for party in sorted(state.held)))


def verify_result(state: Finished, survivors: Sequence[str]) -> None:
    """RemoteError (result-altered) where the published result is not about the list that I signed."""
    _expect(state, Finished)
    if tuple(sorted(survivors)) != state.survivors:
        raise RemoteError(UNKNOWN, "result-altered", "the published result names other survivors than the list that was signed")


def _one_share(state: Confirmed, party: str) -> RevealedShare:
    """Step 5.3: survivors lose their self mask, dropped members their mask key; never both, by type."""
    if party in state.survivors:
        return RevealedShare(party, ShareKind.SELF_MASK_SEED, state.held[party].seed)
    return RevealedShare(party, ShareKind.MASK_KEY, state.held[party].mask_key)


def _in_order(messages: Sequence[M]) -> tuple[M, ...]:
    """The same messages whatever order they came in."""
    return tuple(sorted(messages, key=lambda message: message.party))


def _expect(state: object, kind: type) -> None:
    """A phase out of order is our caller's fault; type checkers see it earlier."""
    if not isinstance(state, kind):
        raise LocalError(f"a phase out of order: the state is {type(state).__name__}, expected {kind.__name__}")
