"""What a restarted coordinator needs to go on with an open masking session: its outline, and every message that was taken.

The outline is what the engine decided (phase, who is expected, who dropped out, the survivor list); messages are what members
sent, as they sent it. Together they give the same orders, byte for byte, and nothing that the coordinator was not told:
boxes are sealed, and of each member it holds shares of one secret at most. Both are deleted when the session ends. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError
from pydantic import ValidationError

from coordinator import events as ev
from coordinator.orders import Seat
from coordinator.state import Kept, Member, Phase, Session, Standing, State, why_not
from proto import federation_pb2 as pb
from proto import wire
from proto.frozen import Frozen
from secagg import SecaggError
from secagg.messages import Advert, Confirmation, Revealed, ShareSet, UploadSeal

PHASE_OF_KIND = {
    "advert": Phase.ADVERTISE,
    "shares": Phase.SHARE,
    "seal": Phase.MASK,
    "confirmation": Phase.CONFIRM,
    "revealed": Phase.REVEAL,
}
Value = TypeVar("Value", Advert, ShareSet, UploadSeal, Confirmation)
Body = Advert | ShareSet | UploadSeal | Confirmation | Revealed


class JournalError(ValueError):
    """A session's record does not make a session; its round cannot go on."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message that was taken, as it is stored: protobuf."""

    kind: str
    party: str
    body: bytes


class SeatRecord(Frozen):
    """One seat of the roster; keys and digests are hexadecimal. Standing, code, refusals and began are its member's."""

    uri: str
    public_key: str
    weight: int
    base_digest: str
    standing: Standing
    code: str = ""
    refusals: int = 0
    began: int = 0


class Outline(Frozen):
    """What the engine has decided about a session so far."""

    round: int
    phase: Phase
    roster: tuple[SeatRecord, ...]
    threshold: int
    expected: tuple[str, ...]
    dropped: dict[str, str]
    survivors: tuple[str, ...] = ()
    closed: bool = False  # the phase is over and the next orders wait for the drill pause


def outline_of(state: State) -> Outline:
    """The outline of the state's session."""
    session = state.session
    assert session is not None
    seats = [_seat_record(seat, state.members[seat.uri]) for seat in session.roster]
    return Outline(
        round=state.round,
        phase=state.phase,
        roster=tuple(seats),
        threshold=session.threshold,
        expected=tuple(sorted(session.expected)),
        dropped=dict(session.dropped),
        survivors=session.survivors,
        closed=session.closed_at_s is not None,
    )


def decided(before: State, after: State) -> bool:
    """Whether a step changed what an outline says of the session that is open after it."""
    old, new = before.session, after.session
    if new is None:
        return False
    return old is None or (
        (before.phase, old.id, old.expected, old.dropped, old.survivors, old.closed_at_s is None)
        != (after.phase, new.id, new.expected, new.dropped, new.survivors, new.closed_at_s is None)
    )


def taken(before: State, event: ev.Event) -> Message | None:
    """The message of an event that the engine counts in this state, for keeping; None where it counts none."""
    message = _message_of(event)
    if message is None or before.session is None or message.party in before.session.answered:
        return None
    counts = why_not(before, message.party, getattr(event, "session", b""), PHASE_OF_KIND[message.kind]) is None
    return message if counts else None


def _message_of(event: ev.Event) -> Message | None:
    match event:
        case ev.Advertised(party, _, advert):
            return Message("advert", party, wire.to_advert(advert).SerializeToString())
        case ev.Shared(party, _, share_set):
            return Message("shares", party, wire.to_share_set(share_set).SerializeToString())
        case ev.UploadAccepted(party, _, UploadSeal() as seal):
            return Message("seal", party, wire.to_seal(party, seal).SerializeToString())
        case ev.Confirmed(party, _, confirmation):
            return Message("confirmation", party, wire.to_confirmation(confirmation).SerializeToString())
        case ev.Revealed(party, _, Revealed() as shares):
            return Message("revealed", party, wire.to_revealed(shares).SerializeToString())
        case _:
            return None


def body_of(message: Message) -> Body:
    """The protocol value of a stored message. JournalError where it is none."""
    try:
        match message.kind:
            case "advert":
                return wire.from_advert(pb.Advert.FromString(message.body))
            case "shares":
                return wire.from_share_set(pb.ShareSet.FromString(message.body))
            case "seal":
                return wire.from_seals([pb.Seal.FromString(message.body)])[message.party]
            case "confirmation":
                return wire.from_confirmation(pb.Confirmation.FromString(message.body))
            case "revealed":
                return wire.from_revealed(pb.RevealedShares.FromString(message.body))
    except (wire.WireError, SecaggError, KeyError, DecodeError) as error:
        raise JournalError(f"the stored {message.kind} of {message.party} cannot be read") from error
    raise JournalError(f"'{message.kind}' is no message of a masking session")


def read_outline(text: bytes) -> Outline:
    """The outline as it was stored. Raises JournalError."""
    try:
        return Outline.model_validate_json(text)
    except ValidationError as error:
        raise JournalError("the stored outline of the masking session cannot be read") from error


def kept_of(session: bytes, outline: Outline, bodies: Iterable[tuple[str, str, Body]]) -> Kept:
    """The session as the engine left it, from its outline and its messages (kind, party, value)."""
    held: dict[str, dict[str, Body]] = {kind: {} for kind in PHASE_OF_KIND}
    for kind, party, body in bodies:
        held[kind][party] = body
    answered = next((frozenset(held[kind]) for kind, phase in PHASE_OF_KIND.items() if phase is outline.phase), frozenset())
    seats = tuple(
        Seat(row.uri, bytes.fromhex(row.public_key), row.weight, bytes.fromhex(row.base_digest)) for row in outline.roster
    )
    kept = Session(
        id=session,
        roster=seats,
        threshold=outline.threshold,
        expected=frozenset(outline.expected),
        answered=answered,
        adverts=_of(held["advert"], Advert),
        sets=_of(held["shares"], ShareSet),
        seals=_of(held["seal"], UploadSeal),
        confirmations=_of(held["confirmation"], Confirmation),
        survivors=outline.survivors,
        dropped=outline.dropped,
        closed_at_s=0.0 if outline.closed else None,
    )
    return Kept(outline.phase, kept, {row.uri: _member(row) for row in outline.roster})


def _of(messages: Mapping[str, Body], kind: type[Value]) -> dict[str, Value]:
    return {party: body for party, body in messages.items() if isinstance(body, kind)}


def _seat_record(seat: Seat, member: Member) -> SeatRecord:
    return SeatRecord(
        uri=seat.uri,
        public_key=seat.public_key.hex(),
        weight=seat.weight,
        base_digest=seat.base_digest.hex(),
        standing=member.standing,
        code=member.code,
        refusals=member.refusals,
        began=member.began,
    )


def _member(row: SeatRecord) -> Member:
    return Member(
        row.uri,
        row.weight,
        0.0,
        bytes.fromhex(row.public_key),
        standing=row.standing,
        code=row.code,
        refusals=row.refusals,
        base=bytes.fromhex(row.base_digest),
        began=row.began,
    )
