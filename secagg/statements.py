"""The bytes that members sign, and who may check them: used alike by nodes and coordinator.

Rule: a statement names everything that its signer saw; the session context is added by `identity`. Byte layouts are in
README, Messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from secagg import identity, keys
from secagg.encoding import digest, encode, encode_list
from secagg.errors import UNKNOWN, RemoteError
from secagg.identity import Purpose
from secagg.messages import Advert, BoxDigest, Confirmation, ShareSet
from secagg.params import RoundParams

ADVERTS_LABEL = "hospital-secagg adverts v1"


def advert_statement(party: str, seal_key: bytes, mask_key: bytes, seed_commitment: bytes) -> bytes:
    """Phase 1."""
    return encode(party, seal_key, mask_key, seed_commitment)


def adverts_digest(adverts: Mapping[str, Advert]) -> bytes:
    """32 bytes over the content of all adverts in the order of names; later statements are bound to it."""
    return digest(
        ADVERTS_LABEL,
        encode_list(
            advert_statement(party, advert.seal_key, advert.mask_key, advert.seed_commitment)
            for party, advert in sorted(adverts.items())
        ),
    )


def shares_statement(party: str, adverts: bytes, digests: Iterable[BoxDigest]) -> bytes:
    """Phase 2, over the adverts seen and the box digests in the order of the receivers, whom the adverts fix."""
    return encode(party, adverts, b"".join(item.digest for item in digests))


def upload_statement(party: str, upload_bytes: int, upload_digest: bytes) -> bytes:
    """Phase 3, over the whole masked vector."""
    return encode(party, upload_bytes, upload_digest)


def list_statement(adverts: bytes, sharers: Iterable[str], survivors: Iterable[str]) -> bytes:
    """Phase 4: the same bytes for every member, so that t signatures are t members with one view."""
    return encode(adverts, encode_list(sorted(sharers)), encode_list(sorted(survivors)))


def check_advert(params: RoundParams, advert: Advert, *, blame: str) -> None:
    """Member, signature, canonical keys (step 2.1). What is wrong under a valid signature is the signer's fault."""
    check_member(params, advert.party, blame=blame)
    statement = advert_statement(advert.party, advert.seal_key, advert.mask_key, advert.seed_commitment)
    _verify(params, advert.party, Purpose.ADVERT, statement, advert.signature, blame=blame)
    keys.check_public(advert.seal_key, blame=advert.party)
    keys.check_public(advert.mask_key, blame=advert.party)


def check_distinct_keys(adverts: Iterable[Advert], *, blame: str) -> None:
    """No key and no commitment twice, whoever's (step 2.2). Which of two members copied the other cannot be told later."""
    seen: dict[bytes, str] = {}
    for advert in adverts:
        for value in (advert.seal_key, advert.mask_key, advert.seed_commitment):
            if value in seen:
                text = f"the adverts of {seen[value]} and {advert.party} share a key or a commitment"
                raise RemoteError(blame if seen[value] != advert.party else advert.party, "repeated-key", text)
            seen[value] = advert.party


def check_share_set(
    params: RoundParams, adverts: Mapping[str, Advert], seen: bytes, share_set: ShareSet, *, blame: str
) -> None:
    """Advertised sender, one digest for every other advertised member, signature over what was seen (step 3.1)."""
    if share_set.party not in adverts:
        raise RemoteError(blame, "unknown-party", f"{share_set.party} shares without having advertised")
    expected = tuple(party for party in sorted(adverts) if party != share_set.party)
    if tuple(item.receiver for item in share_set.digests) != expected:
        text = f"the boxes of {share_set.party} are not one for every other advertised member, in order"
        raise RemoteError(blame, "malformed", text)
    statement = shares_statement(share_set.party, seen, share_set.digests)
    _verify(params, share_set.party, Purpose.SHARES, statement, share_set.signature, blame=blame)


def check_confirmation(
    params: RoundParams, statement: bytes, survivors: Sequence[str], confirmation: Confirmation, *, blame: str
) -> None:
    """A listed member's signature over this statement (step 5.1)."""
    if confirmation.party not in survivors:
        raise RemoteError(blame, "unknown-party", f"{confirmation.party} confirms a list that it is not on")
    _verify(params, confirmation.party, Purpose.CONFIRM, statement, confirmation.signature, blame=blame)


def check_member(params: RoundParams, party: str, *, blame: str) -> None:
    """RemoteError (unknown-party) for a name outside the roster."""
    if not params.is_member(party):
        raise RemoteError(blame, "unknown-party", f"{party} is not a member of this session")


def check_repeats(parties: Sequence[str], what: str) -> None:
    """RemoteError (duplicate-party) if a name is there twice."""
    if len(set(parties)) != len(parties):
        raise RemoteError(UNKNOWN, "duplicate-party", f"a party appears twice in {what}")


def _verify(params: RoundParams, party: str, purpose: Purpose, statement: bytes, signature: bytes, *, blame: str) -> None:
    identity.verify(params.public_key(party), purpose, params.context(), statement, signature, blame=blame)
