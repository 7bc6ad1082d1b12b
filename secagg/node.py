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
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secagg import boxes, keys, shamir
from secagg.boxes import HeldShares
from secagg.coding import code
from secagg.errors import UNKNOWN, LocalError, RemoteError, TooFewSurvivors
from secagg.extras import extra_words
from secagg.graph import Complete, Graph, draw_neighbours
from secagg.identity import Purpose, public_der
from secagg.keystream import Door
from secagg.lanes import Encoder, count_clipped
from secagg.messages import (
    NO_DIGESTS,
    Advert,
    Box,
    Confirmation,
    Revealed,
    RevealedShare,
    ShareKind,
    ShareSet,
    UploadSeal,
    digests_of,
)
from secagg.noise_shares import chain
from secagg.noised import NoisedEncoder, add_shares, check_enough_noise, cut_sums
from secagg.once import Once
from secagg.params import Integers, RoundParams, Vector
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
    check_seal,
    check_share_set,
    list_statement,
    session_graph,
    share_set_statement,
    uploads_context,
)
from secagg.upload import PackedUpload, SignedMask

M = TypeVar("M", Advert, ShareSet, Confirmation)
NO_SEALS: Mapping[str, UploadSeal] = MappingProxyType({})


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What a member draws for one session; nothing of it outlives the session."""

    seal_key: X25519PrivateKey
    mask_key: X25519PrivateKey  # shared, and opened if this member drops
    seed: bytes  # of the self mask; shared, and opened if this member survives
    rounding_seed: bytes  # never shared
    noise: tuple[bytes, ...] = ()  # with shared noise: of components 0 ... d; all but the first are shared


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
    graph: Graph
    agreed: Mapping[str, Agreed]  # by neighbour
    own: HeldShares  # my own shares of my own secrets
    share_set: ShareSet  # mine, with digests
    once: Once[MaskReady] = field(default_factory=Once)


@dataclass(frozen=True, slots=True, repr=False)
class Sharing:
    """How the share phase ended, as this member saw it: the statement of the list is about all of it."""

    seen: bytes  # digest of the adverts
    graph: Graph
    sharers: tuple[str, ...]
    held: Mapping[str, HeldShares]  # by sharer that sent me a box, mine included


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MaskReady:
    """All boxes opened and all checks before the upload passed; the caller may now commit the charge."""

    seat: Seat
    sharing: Sharing
    masks: tuple[SignedMask, ...]
    rounding_key: bytes
    noise: tuple[bytes, ...] = ()  # key of each component of my share of the noise
    once: Once[tuple[Masked, PackedUpload]] = field(default_factory=Once)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Masked:
    """Phase 3: the upload may leave. No mask key is left in this state."""

    seat: Seat
    sharing: Sharing
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
    secrets = _draw_secrets(params, rand)
    public = (
        keys.public_of(secrets.seal_key),
        keys.public_of(secrets.mask_key),
        keys.seed_commitment(params, secrets.seed, me),
    )
    neighbours = draw_neighbours(params.graph, seat.place, len(params.participants), rand)
    noise = tuple(keys.noise_commitment(params, secret, me, k) for k, secret in enumerate(secrets.noise) if k)
    signature = seat.sign(Purpose.ADVERT, advert_statement(me, *public, neighbours, noise))
    advert = Advert(me, *public, signature, neighbours, noise)
    return Advertised(seat, secrets, advert), advert


def _draw_secrets(params: RoundParams, rand: Rand) -> Secrets:
    drawn = [shamir.draw(rand, keys.SECRET_BYTES) for _ in range(4)]
    noise = chain(shamir.draw(rand, keys.SECRET_BYTES), 0, params.shared.may_drop) if params.shared else ()
    return Secrets(keys.private_key(drawn[0]), keys.private_key(drawn[1]), drawn[2], drawn[3], noise)


def share(state: Advertised, adverts: Sequence[Advert], rand: Rand) -> tuple[Shared, ShareSet]:
    """Step 2: check every advert, split both secrets, seal one box for each receiver."""
    _expect(state, Advertised)
    return state.once.answer(_in_order(adverts), lambda: _share(state, adverts, rand))


def _share(state: Advertised, adverts: Sequence[Advert], rand: Rand) -> tuple[Shared, ShareSet]:
    seat, params = state.seat, state.seat.params
    by_party = _checked_adverts(state, adverts)  # 2.1, 2.2
    graph = session_graph(params, by_party)
    seat.check_cohort(list(by_party), "share")  # 2.3
    check_enough_noise(params, list(by_party), "share")
    graph.check_kept(graph.advertised, by_party, "share")
    agreed = {party: _agree(state.secrets, by_party[party]) for party in graph.masked_with(seat.me)}  # 2.4
    receivers = graph.receivers(seat.me)
    parts = _split(state, receivers, rand)  # 2.5
    sealed = tuple(Box(party, _seal(state, by_party[party], agreed[party], parts[party])) for party in receivers)
    seen, full = adverts_digest(by_party), ShareSet(seat.me, sealed, digests_of(sealed), b"not signed yet")
    signature = seat.sign(Purpose.SHARES, share_set_statement(params, seen, full))
    full = replace(full, signature=signature)
    shared = Shared(seat, state.secrets, by_party, seen, graph, agreed, parts[seat.me], full)
    return shared, ShareSet(seat.me, sealed, NO_DIGESTS, signature)


def _split(state: Advertised, receivers: Sequence[str], rand: Rand) -> dict[str, HeldShares]:
    """Shares of all shared secrets for the receivers and for myself."""
    params, secrets = state.seat.params, state.secrets
    points = {party: params.place(party) + 1 for party in sorted({state.seat.me, *receivers})}
    shared = (secrets.seed, secrets.mask_key.private_bytes_raw(), *secrets.noise[1:])
    seeds, mask_keys, *noise = [shamir.split(one, params.share_threshold, list(points.values()), rand) for one in shared]
    return {
        party: HeldShares(seeds[point], mask_keys[point], tuple(part[point] for part in noise))
        for party, point in points.items()
    }


def _checked_adverts(state: Advertised, adverts: Sequence[Advert]) -> dict[str, Advert]:
    seat = state.seat
    check_repeats([advert.party for advert in adverts], "the adverts")
    if state.advert not in adverts:
        raise RemoteError(UNKNOWN, "own-message-altered", "my own advert came back altered or not at all")
    for advert in adverts:
        check_advert(seat.params, advert, blame=UNKNOWN)  # 2.1
    check_distinct_keys(adverts, blame=UNKNOWN)  # 2.2
    return {advert.party: advert for advert in sorted(adverts, key=lambda advert: advert.party)}


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
    opened = {item.party: _open_set(state, item) for item in sets}  # 3.1, 3.2
    held = {party: shares for party, shares in opened.items() if shares is not None} | {seat.me: state.own}
    sharers = tuple(sorted({*opened, seat.me}))
    seat.check_cohort(sharers, "mask")  # 3.3
    check_enough_noise(params, sharers, "mask")  # before the charge: whoever is missing now is in no list of survivors
    state.graph.check_kept(sharers, sharers, "mask")
    mine = state.adverts[seat.me]
    masks = [SignedMask(keys.self_key(params, state.secrets.seed, seat.me))]
    for party in state.graph.masked_with(seat.me):
        if party in opened:  # 3.4: the earlier name of a pair adds, the later one subtracts
            pair = keys.pair_key(params, state.agreed[party].mask, mine, state.adverts[party])
            masks.append(SignedMask(pair, subtract=party < seat.me))
    rounding = keys.rounding_key(params, state.secrets.rounding_seed, seat.me)
    noise = tuple(keys.noise_key(params, secret, seat.me, k) for k, secret in enumerate(state.secrets.noise))
    return MaskReady(seat, Sharing(state.seen, state.graph, sharers, held), tuple(masks), rounding, noise)


def _open_set(state: Shared, item: ShareSet) -> HeldShares | None:
    """My shares of one sharer's secrets, None where it did not draw me."""
    seat, params = state.seat, state.seat.params
    check_share_set(params, state.graph, state.seen, item, blame=UNKNOWN, reader=seat.me)
    if item.party == seat.me:
        if item.digests != state.share_set.digests:
            raise RemoteError(UNKNOWN, "own-message-altered", "my own share set came back altered")
        return state.own
    box = next((box for box in item.boxes if box.receiver == seat.me), None)
    if item.digests.of(seat.me) != (None if box is None else hashlib.sha256(box.sealed).digest()):
        text = f"the box from {item.party} is missing, not the one that was signed, or not meant for this member"
        raise RemoteError(UNKNOWN, "altered-box", text)
    if box is None:
        return None
    key = keys.box_key(params, state.agreed[item.party].seal, state.adverts[item.party], state.adverts[seat.me])
    places = (params.place(item.party), seat.place)
    return boxes.unseal(key, params.context(), *places, box.sealed, blame=item.party, noise_shares=params.shared_secrets)


def mask(
    state: MaskReady, update: Vector | Integers, door: Door = Door.GCM, extras: Sequence[float] = ()
) -> tuple[Masked, PackedUpload]:
    """Step 3.5: the masked vector as a resumable sequence of segments. LocalError for an update that cannot be sent.

    `update` is float32, or with shared noise the int64 sums of the member's patients. `extras` are the extra coordinates, as
    many as the session has. The masks of a session serve one vector: a second call with another array or other extras
    raises LocalError.
    """
    _expect(state, MaskReady)
    used = LocalError("the masks of this session are already used for another update: discard the session")
    return state.once.answer((_Same(update), *extras), lambda: _mask(state, update, door, extras), used)


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """Equal for the very same array only; holds it, so that no other array can take its place in memory."""

    array: Vector | Integers = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.array is self.array

    def __hash__(self) -> int:
        return id(self.array)


def _mask(state: MaskReady, update: Vector | Integers, door: Door, extras: Sequence[float]) -> tuple[Masked, PackedUpload]:
    encoder, clipped = _encoder(state, update, door, extras)
    seat = replace(state.seat, signed_under=uploads_context(state.seat.params, state.sharing.seen, state.sharing.sharers))
    upload = PackedUpload(seat, encoder, state.masks, clipped, door)
    return Masked(state.seat, state.sharing), upload


def _encoder(
    state: MaskReady, update: Vector | Integers, door: Door, extras: Sequence[float]
) -> tuple[Encoder | NoisedEncoder, int]:
    """What makes the words of the upload, and how many coordinates were clipped."""
    params, me = state.seat.params, state.seat.me
    extra = extra_words(params, extras, state.rounding_key)
    if params.shared is not None:
        sums, cut = cut_sums(params, params.shared, update)
        return NoisedEncoder(params, add_shares(params, params.shared, sums, state.noise, door), extra), cut
    coded = code(params, cast("Vector", update))
    return Encoder(params, me, coded, state.rounding_key, door, extra), count_clipped(params, coded)


def confirm(
    state: Masked, survivors: Sequence[str], seals: Mapping[str, UploadSeal] = NO_SEALS
) -> tuple[Confirmed, Confirmation]:
    """Step 4: sign the one survivor list of this session, if it keeps to my policy.

    `seals` are needed in a sparse session: those of the listed members whose shares I hold.
    """
    _expect(state, Masked)
    check_repeats(survivors, "the survivor list")
    ordered = tuple(sorted(survivors))
    return state.once.answer(ordered, lambda: _confirm(state, ordered, seals))


def _confirm(state: Masked, survivors: tuple[str, ...], seals: Mapping[str, UploadSeal]) -> tuple[Confirmed, Confirmation]:
    seat, sharing = state.seat, state.sharing
    if seat.me not in survivors:
        raise RemoteError(UNKNOWN, "not-on-list", f"the survivor list leaves out {seat.me}, which is alive")
    shared = frozenset(sharing.sharers)
    for party in survivors:
        check_member(seat.params, party, blame=UNKNOWN)
        if party not in shared:
            raise RemoteError(UNKNOWN, "never-shared", f"the survivor list names {party}, which shared nothing")
    seat.check_cohort(survivors, "confirm")
    sharing.graph.check_kept(sharing.sharers, survivors, "confirm")
    check_enough_noise(seat.params, survivors, "confirm")  # 4.1
    _check_seals(state, survivors, seals)  # 4.2
    statement = list_statement(sharing.seen, sharing.sharers, survivors)
    confirmation = Confirmation(seat.me, seat.sign(Purpose.CONFIRM, statement))
    return Confirmed(seat, sharing.held, survivors, statement), confirmation


def _check_seals(state: Masked, survivors: Sequence[str], seals: Mapping[str, UploadSeal]) -> None:
    """Sparse sessions: whoever's seed I may reveal has masked with the very sharers that I know of."""
    seat, sharing = state.seat, state.sharing
    if isinstance(seat.params.graph, Complete):
        return
    context = uploads_context(seat.params, sharing.seen, sharing.sharers)
    for party in sharing.held.keys() & set(survivors) - {seat.me}:
        if party not in seals:
            raise RemoteError(UNKNOWN, "never-uploaded", f"the survivor list names {party} without its signed upload")
        check_seal(seat.params, party, seals[party], context, blame=UNKNOWN)


def reveal(state: Confirmed, confirmations: Sequence[Confirmation]) -> tuple[Finished, Revealed]:
    """Step 5: with t signatures over the list that I signed, one share of one kind for each member whose shares I hold."""
    _expect(state, Confirmed)
    return state.once.answer(_in_order(confirmations), lambda: _reveal(state, confirmations))


def _reveal(state: Confirmed, confirmations: Sequence[Confirmation]) -> tuple[Finished, Revealed]:
    params = state.seat.params
    check_repeats([item.party for item in confirmations], "the confirmations")
    listed = frozenset(state.survivors)
    for item in confirmations:
        check_confirmation(params, state.statement, listed, item, blame=UNKNOWN)
    signers = {item.party for item in confirmations} | {state.seat.me}
    if len(signers) < params.threshold:
        raise TooFewSurvivors("reveal", f"{len(signers)} members signed the survivor list, {params.threshold} are needed")
    return Finished(state.survivors), Revealed(tuple(_one_share(state, party, listed) for party in sorted(state.held)))


def verify_result(state: Finished, survivors: Sequence[str]) -> None:
    """RemoteError (result-altered) where the published result is not about the list that I signed."""
    _expect(state, Finished)
    if tuple(sorted(survivors)) != state.survivors:
        raise RemoteError(UNKNOWN, "result-altered", "the published result names other survivors than the list that was signed")


def _one_share(state: Confirmed, party: str, listed: frozenset[str]) -> RevealedShare:
    """Step 5.3: survivors lose their self mask, dropped members their mask key; never both, by type."""
    held = state.held[party]
    if party not in listed:
        return RevealedShare(party, ShareKind.MASK_KEY, held.mask_key)
    surplus = state.seat.params.surplus_from(len(listed))  # 5.3: which secret is a function of the signed list alone
    return RevealedShare(party, ShareKind.SELF_MASK_SEED, held.seed, b"" if surplus is None else held.noise[surplus - 1])


def _in_order(messages: Sequence[M]) -> tuple[M, ...]:
    """The same messages whatever order they came in."""
    return tuple(sorted(messages, key=lambda message: message.party))


def _expect(state: object, kind: type) -> None:
    """A phase out of order is our caller's fault; type checkers see it earlier."""
    if not isinstance(state, kind):
        raise LocalError(f"a phase out of order: the state is {type(state).__name__}, expected {kind.__name__}")
