"""The bytes that members sign, and who may check them: used alike by nodes and coordinator.

Rule: a statement names everything that its signer saw; the session context is added by `identity`. Byte layouts are in
README, Messages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from struct import pack

from secagg import identity, keys
from secagg.encoding import digest, encode, encode_list
from secagg.errors import UNKNOWN, RemoteError
from secagg.graph import Complete, Graph, are_neighbours, graph_of
from secagg.identity import Purpose
from secagg.messages import Advert, BoxDigests, Confirmation, ShareSet, UploadSeal, summary_of
from secagg.params import RoundParams

ADVERTS_LABEL = "hospital-secagg adverts v1"
UPLOADS_LABEL = "hospital-secagg uploads v1"


def advert_statement(
    party: str,
    seal_key: bytes,
    mask_key: bytes,
    seed_commitment: bytes,
    neighbours: Sequence[int] = (),
    noise_commitments: Sequence[bytes] = (),
) -> bytes:
    """Phase 1; neighbours are one more field in sparse sessions only, noise commitments two more where noise is shared."""
    statement = encode(party, seal_key, mask_key, seed_commitment)
    drawn = encode(pack(f">{len(neighbours)}I", *neighbours)) if neighbours else b""
    return statement + drawn + (encode("noise", b"".join(noise_commitments)) if noise_commitments else b"")


def adverts_digest(adverts: Mapping[str, Advert]) -> bytes:
    """32 bytes over the content of all adverts in the order of names; later statements are bound to it."""
    return digest(ADVERTS_LABEL, encode_list(_content(advert) for _, advert in sorted(adverts.items())))


def session_graph(params: RoundParams, adverts: Mapping[str, Advert]) -> Graph:
    """The edges that these adverts give; they have passed `check_advert`."""
    return graph_of(params.graph, params.participants, {party: advert.neighbours for party, advert in adverts.items()})


def shares_statement(party: str, adverts: bytes, digests: BoxDigests) -> bytes:
    """Phase 2, over the adverts seen and the box digests in the order of the receivers, whom the adverts fix."""
    return encode(party, adverts, digests.joined)


def share_set_statement(params: RoundParams, adverts: bytes, share_set: ShareSet) -> bytes:
    """Phase 2: over all digests, or in a sparse session over their summary, so that no reader needs them all."""
    if isinstance(params.graph, Complete):
        return shares_statement(share_set.party, adverts, share_set.digests)
    return encode(share_set.party, adverts, share_set.summary or summary_of(share_set.digests))


def uploads_context(params: RoundParams, adverts: bytes, sharers: Iterable[str]) -> bytes:
    """What an upload is signed under (step 3.6): the session, and in a sparse one also the sharers that its member saw."""
    if isinstance(params.graph, Complete):
        return params.context()
    return digest(UPLOADS_LABEL, params.context(), adverts, encode_list(sorted(sharers)))


def upload_statement(party: str, upload_bytes: int, upload_digest: bytes) -> bytes:
    """Phase 3, over the whole masked vector."""
    return encode(party, upload_bytes, upload_digest)


def list_statement(adverts: bytes, sharers: Iterable[str], survivors: Iterable[str]) -> bytes:
    """Phase 4: the same bytes for every member, so that t signatures are t members with one view."""
    return encode(adverts, encode_list(sorted(sharers)), encode_list(sorted(survivors)))


def check_advert(params: RoundParams, advert: Advert, *, blame: str) -> None:
    """Member, signature, canonical keys, neighbours (step 2.1). What is wrong under a valid signature is the signer's fault."""
    check_member(params, advert.party, blame=blame)
    _verify(params, advert.party, Purpose.ADVERT, _content(advert), advert.signature, blame=blame)
    keys.check_public(advert.seal_key, blame=advert.party)
    keys.check_public(advert.mask_key, blame=advert.party)
    if not are_neighbours(params.graph, params.place(advert.party), len(params.participants), advert.neighbours):
        text = f"the neighbours of {advert.party} are not as many distinct other members as the session's graph asks for"
        raise RemoteError(advert.party, "bad-neighbours", text)
    if len(advert.noise_commitments) != params.shared_secrets:
        text = f"{advert.party} commits to {len(advert.noise_commitments)} secrets of noise instead of {params.shared_secrets}"
        raise RemoteError(advert.party, "malformed", text)


def check_distinct_keys(adverts: Iterable[Advert], *, blame: str) -> None:
    """No key and no commitment twice, whoever's (step 2.2). Which of two members copied the other cannot be told later."""
    seen: dict[bytes, str] = {}
    for advert in adverts:
        for value in advert.values:
            if value in seen:
                text = f"the adverts of {seen[value]} and {advert.party} share a key or a commitment"
                raise RemoteError(blame if seen[value] != advert.party else advert.party, "repeated-key", text)
            seen[value] = advert.party


def check_share_set(
    params: RoundParams, graph: Graph, seen: bytes, share_set: ShareSet, *, blame: str, reader: str | None = None
) -> None:
    """Advertised sender, one digest for every receiver, signature over what was seen (step 3.1).

    A `reader` that is neither sender nor receiver has the summary in place of the digests.
    """
    party = share_set.party
    if party not in graph:
        raise RemoteError(blame, "unknown-party", f"{party} shares without having advertised")
    outside = reader is not None and reader != party and not graph.sends(party, reader)
    if share_set.digests.receivers != (() if outside else graph.receivers(party)) or bool(share_set.summary) != outside:
        raise RemoteError(blame, "malformed", f"the boxes of {party} are not one for every receiver of its shares, in order")
    _verify(params, party, Purpose.SHARES, share_set_statement(params, seen, share_set), share_set.signature, blame=blame)


def check_seal(params: RoundParams, party: str, seal: UploadSeal, context: bytes, *, blame: str) -> None:
    """The member's signature over its whole upload, under `uploads_context` (steps 3.7 and 4.2)."""
    statement = upload_statement(party, params.upload_bytes, seal.digest)
    identity.verify(params.public_key(party), Purpose.UPLOAD, context, statement, seal.signature, blame=blame)


def check_confirmation(
    params: RoundParams, statement: bytes, survivors: Collection[str], confirmation: Confirmation, *, blame: str
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


def _content(advert: Advert) -> bytes:
    public = (advert.seal_key, advert.mask_key, advert.seed_commitment)
    return advert_statement(advert.party, *public, advert.neighbours, advert.noise_commitments)


def _verify(params: RoundParams, party: str, purpose: Purpose, statement: bytes, signature: bytes, *, blame: str) -> None:
    identity.verify(params.public_key(party), purpose, params.context(), statement, signature, blame=blame)
