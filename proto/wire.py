"""Messages between protobuf and the protocol's own values, chunks, and what a message costs on the connection.

This file decides nothing: it checks shapes, so that everything behind it works on typed values, and raises WireError
for anything else. `open_params` builds the session parameters from plan and Open order for node and coordinator alike,
so that both sides hash the same context or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from proto import bulk, precision, shared_noise
from proto import federation_pb2 as pb
from proto.layout import Layout
from proto.plan import PROTOCOL_VERSION, Masking, Plan, PlanError
from proto.roundlog import Entry
from secagg import Quantizer, RoundParams, SecaggError
from secagg.bounds import graph_for
from secagg.messages import (
    DIGEST_BYTES,
    Advert,
    Box,
    BoxDigests,
    Confirmation,
    Revealed,
    RevealedShare,
    ShareKind,
    ShareSet,
    UploadSeal,
)
from secagg.noise_shares import SharedNoise
from secagg.params import plan_half_steps, rounding_error

CHUNK_BYTES = 1 << 20  # 4 MiB messages lose a third of the throughput to fresh pages, 256 KiB a fifth to calls
SERVICE = pb.DESCRIPTOR.services_by_name["Federation"].full_name
PLAN_KEY = "secagg-plan"  # of a call's metadata: digest of the plan that the caller serves, hexadecimal; may be left out
MAX_MESSAGE_BYTES = 8 << 20  # a control message for 1,000 hospitals is below 1 MiB

GRPC_PREFIX_BYTES = 5  # compressed flag and length, gRPC over HTTP/2
FRAME_PAYLOAD_BYTES = 16_384  # largest HTTP/2 DATA frame by default, and largest TLS record
FRAME_OVERHEAD_BYTES = 9 + 22  # HTTP/2 frame header; TLS 1.3 record header, content type and tag


class WireError(ValueError):
    """A message that does not have the form of federation.proto; the sender's fault."""


class RosterError(WireError):
    """A session whose members or weights are not the plan's for its round; the coordinator's fault."""


class Sized(Protocol):
    """Any protobuf message, or one of proto/bulk.py."""

    def ByteSize(self) -> int:  # noqa: N802  (protobuf's name)
        """Serialised size in bytes."""
        ...


def framed_bytes(message: Sized) -> int:
    """Bytes that one message takes on the connection, with gRPC, HTTP/2 and TLS framing (call headers excluded)."""
    payload = message.ByteSize() + GRPC_PREFIX_BYTES
    frames = -(-payload // FRAME_PAYLOAD_BYTES)
    return payload + frames * FRAME_OVERHEAD_BYTES


def chunks(buffer: bytes | memoryview, size: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """The buffer in order, in views of at most `size` bytes."""
    view = memoryview(buffer)
    for start in range(0, len(view), size):
        yield view[start : start + size]


def upload_messages(
    session: bytes, total_bytes: int, receipt: bytes, segments: Iterable[bytes | memoryview], offset_bytes: int = 0
) -> Iterator[bulk.UploadPart]:
    """Header and words of one upload from `offset_bytes` on; the caller appends `upload_trailer` once the digest is known."""
    header = pb.UploadHeader(session=session, total_bytes=total_bytes, receipt=receipt, offset_bytes=offset_bytes)
    yield pb.UploadChunk(header=header)
    for segment in segments:
        for piece in chunks(segment):
            yield bulk.to_words(piece)


def upload_trailer(digest: bytes, signature: bytes) -> pb.UploadChunk:
    """Last message of an upload."""
    return pb.UploadChunk(trailer=pb.UploadTrailer(digest=digest, signature=signature))


def open_params(plan: Plan, order: pb.Open, layout: Layout) -> RoundParams:
    """Session parameters from the approved plan and an Open order.

    RosterError where members or weights are not the plan's, WireError where the session cannot work.
    """
    uris = [member.uri for member in order.members]
    asked = plan.selected(order.round)
    try:
        for member in order.members:
            if member.weight not in plan.session_weights(member.uri):
                raise RosterError(f"the coordinator gives {member.uri} another weight than the plan")
            if member.uri not in asked:
                raise RosterError(
                    f"the coordinator puts {member.uri} into round {order.round}, for which the plan does not select it"
                )
        noise = shared_noise.noise_of(plan)
        return RoundParams(
            session=order.session,
            participants=tuple(uris),
            threshold=plan.threshold_of(len(uris)),
            length=layout.length,
            quantizer=_quantizer(plan, order.round, noise, len(uris), layout),
            tensor_clips=_sent_clips(plan, order.round, layout),
            extra_clips=extra_clips_of(plan, order.round),
            public_keys=tuple(member.public_key for member in order.members),
            weights=tuple(member.weight for member in order.members),
            base_digests=tuple(member.base_digest for member in order.members),
            plan_digest=plan.digest(),
            round=order.round,
            noise_mode=plan.privacy.noise_mode,
            layout_digest=layout.digest(),
            protocol_version=PROTOCOL_VERSION,
            max_colluders=plan.masking.max_colluders,
            minimum_cohort=plan.masking.minimum_cohort,
            graph=graph_for(len(uris), plan.threshold_of(len(uris)), plan.masking.max_colluders),
            shared=noise,
            log_head=_bound_head(plan, order),
        )
    except PlanError as error:
        raise RosterError(f"the coordinator's session cannot be used: {error}") from error
    except SecaggError as error:
        raise WireError(f"the coordinator's session cannot be used: {error}") from error


def _quantizer(plan: Plan, round_number: int, noise: SharedNoise | None, members: int, layout: Layout) -> Quantizer:
    """With shared noise the clip says what a member's whole numbers are worth; nothing is clipped to it."""
    if noise is None:
        return quantizer_of(plan.masking, round_number)
    return Quantizer(shared_noise.session_clip(plan, noise, members, layout.length), plan.masking.lanes)


def _bound_head(plan: Plan, order: pb.Open) -> bytes:
    """The log's head where the plan binds it, and only there: what no statement covers is not taken for something covered."""
    if len(order.log_head) != (DIGEST_BYTES if plan.masking.bind_log else 0):
        raise WireError("the session binds a history of rounds where the plan does not, or none where it does")
    return order.log_head


def to_entry(entry: Entry) -> pb.LogEntry:
    """Value to protobuf."""
    return pb.LogEntry(
        index=entry.index,
        plan_digest=entry.plan,
        round=entry.round,
        state=entry.state,
        session=entry.session,
        base_digest=entry.base,
        model_digest=entry.model,
        sum_digest=entry.sum_digest,
        survivors=entry.survivors,
        previous=entry.previous,
        head=entry.head,
    )


def from_entry(message: pb.LogEntry) -> Entry:
    """Protobuf to value; what it says is checked by whoever keeps the log (proto.roundlog.check_next)."""
    return Entry(
        index=message.index,
        plan=message.plan_digest,
        round=message.round,
        state=message.state,
        session=message.session,
        base=message.base_digest,
        model=message.model_digest,
        sum_digest=message.sum_digest,
        survivors=tuple(_named(uri) for uri in message.survivors),
        previous=message.previous,
        head=message.head,
    )


def quantizer_of(masking: Masking, round_number: int) -> Quantizer:
    """The plan's choice of bits for one round."""
    clip = masking.update_clip * masking.clip_factor(round_number)
    return Quantizer(clip=clip, lanes=masking.lanes, rotate=masking.rotate, keep=masking.keep)


def tensor_clips_of(masking: Masking, round_number: int, layout: Layout) -> tuple[tuple[int, float], ...]:
    """(values, clip) of each tensor, () where the plan has one clip. WireError for a prefix that no tensor has."""
    if not masking.tensor_clips:
        return ()
    for entry in masking.tensor_clips:
        if not any(name.startswith(entry.prefix) for name, _ in layout.tensors):
            raise WireError(
                f"masking.tensor_clips: no tensor of the plan's network has a name that begins with '{entry.prefix}'"
            )

    factor = masking.clip_factor(round_number)

    def clip_of(name: str) -> float:
        clips = (entry.clip for entry in masking.tensor_clips if name.startswith(entry.prefix))
        return next(clips, masking.update_clip) * factor

    return tuple((math.prod(shape), clip_of(name)) for name, shape in layout.tensors)


def _sent_clips(plan: Plan, round_number: int, layout: Layout) -> tuple[tuple[int, float], ...]:
    """(values, clip) of each tensor that is sent: precisions have a clip of their own, which no round lowers."""
    if not precision.is_used(plan):
        return tensor_clips_of(plan.masking, round_number, layout)
    update = Layout(layout.tensors[: len(layout.tensors) // 2])
    whole = (update.length, plan.masking.update_clip * plan.masking.clip_factor(round_number))
    return (*(tensor_clips_of(plan.masking, round_number, update) or (whole,)), (update.length, precision.CLIP))


def extra_clips_of(plan: Plan, round_number: int) -> tuple[float, ...]:
    """Bounds of the evaluation sums that ride in this round; () where none do."""
    if plan.evaluation is None or not plan.evaluation.is_due(round_number):
        return ()
    largest = max(hospital.declared_patients for hospital in plan.hospitals)
    return plan.evaluation.clips(len(plan.network.labels), largest)


def mean_error(plan: Plan) -> float:
    """Largest rounding error of the mean in a full cohort, as a share of the clip. PlanError where lanes cannot carry it."""
    masking, worst = plan.masking, 0.0
    if plan.privacy.is_shared:  # whole numbers are sent as they are
        return worst
    rounds = range(1, plan.rounds + 1) if plan.participants is not None else (1,)
    try:
        quantizer_of(masking, plan.rounds)
        for number in rounds:
            weights = tuple(plan.hospital(uri).weight for uri in plan.selected(number))
            half_steps = plan_half_steps(quantizer_of(masking, 1), weights)
            worst = max(worst, rounding_error(half_steps, len(weights)))
    except SecaggError as error:
        raise PlanError(f"masking of study '{plan.study}' cannot work: {error}") from error
    return worst


def to_advert(advert: Advert) -> pb.Advert:
    """Protocol value to protobuf."""
    return pb.Advert(
        party=advert.party,
        seal_key=advert.seal_key,
        mask_key=advert.mask_key,
        seed_commitment=advert.seed_commitment,
        signature=advert.signature,
        neighbours=advert.neighbours,
        noise_commitments=advert.noise_commitments,
    )


def from_advert(message: pb.Advert) -> Advert:
    """Protobuf to protocol value."""
    return Advert(
        party=_named(message.party),
        seal_key=_exactly(message.seal_key, 32, "seal_key"),
        mask_key=_exactly(message.mask_key, 32, "mask_key"),
        seed_commitment=_exactly(message.seed_commitment, 32, "seed_commitment"),
        signature=message.signature,
        neighbours=tuple(message.neighbours),
        noise_commitments=tuple(_exactly(item, DIGEST_BYTES, "noise commitment") for item in message.noise_commitments),
    )


def to_share_set(share_set: ShareSet) -> pb.ShareSet:
    """Protocol value to protobuf."""
    receivers, joined = share_set.digests.receivers, share_set.digests.joined
    return pb.ShareSet(
        party=share_set.party,
        boxes=[pb.Box(receiver=box.receiver, sealed=box.sealed) for box in share_set.boxes],
        digests=[
            pb.BoxDigest(receiver=receiver, digest=joined[DIGEST_BYTES * at : DIGEST_BYTES * (at + 1)])
            for at, receiver in enumerate(receivers)
        ],
        signature=share_set.signature,
        summary=share_set.summary,
    )


def from_share_set(message: pb.ShareSet) -> ShareSet:
    """Protobuf to protocol value."""
    return ShareSet(
        party=_named(message.party),
        boxes=tuple([Box(receiver=_named(box.receiver), sealed=box.sealed) for box in message.boxes]),
        digests=BoxDigests(
            tuple([_named(item.receiver) for item in message.digests]),
            b"".join([_exactly(item.digest, DIGEST_BYTES, "box digest") for item in message.digests]),
        ),
        signature=message.signature,
        summary=message.summary,
    )


def to_seal(party: str, seal: UploadSeal) -> pb.Seal:
    """Protocol value to protobuf, with the name of the member whose upload it is."""
    return pb.Seal(party=party, digest=seal.digest, signature=seal.signature)


def from_seals(messages: Sequence[pb.Seal]) -> dict[str, UploadSeal]:
    """Protobuf to protocol values by name; WireError where a member appears twice."""
    parties = from_uris([message.party for message in messages])
    seals = (UploadSeal(_exactly(message.digest, 32, "upload digest"), message.signature) for message in messages)
    return dict(zip(parties, seals, strict=True))


def to_confirmation(confirmation: Confirmation) -> pb.Confirmation:
    """Protocol value to protobuf."""
    return pb.Confirmation(party=confirmation.party, signature=confirmation.signature)


def from_confirmation(message: pb.Confirmation) -> Confirmation:
    """Protobuf to protocol value."""
    return Confirmation(party=_named(message.party), signature=message.signature)


def to_revealed(revealed: Revealed) -> pb.RevealedShares:
    """Protocol value to protobuf; the wire's oneof has no place for two shares of one peer."""
    return pb.RevealedShares(shares=[_to_revealed_share(share) for share in revealed.shares])


def from_revealed(message: pb.RevealedShares) -> Revealed:
    """Protobuf to protocol value; WireError where a peer appears twice or an entry holds no share."""
    peers = [_named(share.peer) for share in message.shares]
    if len(set(peers)) != len(peers):
        raise WireError("a peer appears twice among the revealed shares")
    return Revealed(shares=tuple(_from_revealed_share(share) for share in message.shares))


def from_uris(uris: Sequence[str]) -> tuple[str, ...]:
    """Names in the order sent; WireError where one is empty or repeated."""
    if len(set(uris)) != len(uris):
        raise WireError("a party is named twice in one list")
    return tuple(_named(uri) for uri in uris)


def _to_revealed_share(share: RevealedShare) -> pb.RevealedShare:
    if share.kind is ShareKind.SELF_MASK_SEED:
        return pb.RevealedShare(peer=share.peer, self_mask_seed=share.share, noise=share.noise)
    return pb.RevealedShare(peer=share.peer, mask_key=share.share)


def _from_revealed_share(message: pb.RevealedShare) -> RevealedShare:
    match message.WhichOneof("share"):
        case "self_mask_seed":
            return RevealedShare(
                peer=message.peer, kind=ShareKind.SELF_MASK_SEED, share=message.self_mask_seed, noise=message.noise
            )
        case "mask_key":
            return RevealedShare(peer=message.peer, kind=ShareKind.MASK_KEY, share=message.mask_key, noise=message.noise)
        case _:
            raise WireError(f"the revealed share of {message.peer} is empty")


def _named(text: str) -> str:
    if not 0 < len(text) <= 512:
        raise WireError("a party's name is empty or longer than 512 characters")
    return text


def _exactly(data: bytes, size: int, what: str) -> bytes:
    if len(data) != size:
        raise WireError(f"{what} has {len(data)} bytes, expected {size}")
    return data
