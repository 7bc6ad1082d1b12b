"""From a member's message to a verified event, or a refusal that says what is wrong with it.

Rule: nothing reaches the engine that was not checked here against the session it claims to belong to, and a message that
was taken before is acknowledged again without being counted again. The sender is known from its connection alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from coordinator import events as ev
from coordinator.state import MASKING, Phase, State, why_not
from proto import federation_pb2 as pb
from proto.wire import WireError, from_advert, from_confirmation, from_revealed, from_share_set
from secagg import LocalError, RemoteError
from secagg.coordinate import SessionView
from secagg.messages import Advert, Confirmation, Revealed, ShareSet

CODE = re.compile(r"[a-z][a-z0-9-]{0,39}")
MAX_URI_CHARACTERS = 512


class Refusal(Exception):
    """A request that is refused. `kind` decides the status, the text is one sentence for the sender."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind  # late: it no longer fits; invalid: it never did; denied: not for this party; busy: try again
        self.text = text


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a message: an event for the engine, or None where it was known already."""

    event: ev.Event | None


PHASE_OF = {
    "advert": Phase.ADVERTISE,
    "shares": Phase.SHARE,
    "confirmation": Phase.CONFIRM,
    "revealed": Phase.REVEAL,
}


def take(state: State, view: SessionView | None, party: str, message: pb.PhaseAnswer) -> Taken:
    """Check one answer of `party`. Raises Refusal; changes nothing but the view, and that only where it is taken."""
    kind = message.WhichOneof("answer")
    if kind is None:
        raise Refusal("invalid", "the answer is empty")
    if kind == "refusal":
        return Taken(_refusal(state, party, message))
    try:
        parsed = _parsed(kind, message)
    except (WireError, RemoteError) as error:
        raise Refusal("invalid", f"the {kind} cannot be read: {error}") from error
    claimed = getattr(parsed, "party", party)  # revealed shares name no sender
    if claimed != party:
        raise Refusal("denied", "the message carries the name of another party than its connection")
    if view is not None and view.params.session == message.session and _known(view, party, parsed):
        return Taken(None)
    reason = why_not(state, party, message.session, PHASE_OF[kind])
    if reason is not None or view is None:
        raise Refusal("late", reason or "this masking session is over: poll for the next instruction")
    return Taken(_added(view, party, message.session, parsed))


def forget(view: SessionView, party: str, event: ev.Event) -> None:
    """Undo `take` where the store could not record what followed, so that view and engine agree."""
    match event:
        case ev.Advertised():
            view.adverts.pop(party, None)
        case ev.Shared():
            view.share_sets.pop(party, None)
        case ev.Confirmed():
            view.confirmations.pop(party, None)
        case ev.Revealed():
            view.revealed.pop(party, None)
        case _:
            pass


Parsed = Advert | ShareSet | Confirmation | Revealed


def _parsed(kind: str, message: pb.PhaseAnswer) -> Parsed:
    if kind == "advert":
        return from_advert(message.advert)
    if kind == "shares":
        return from_share_set(message.shares)
    if kind == "confirmation":
        return from_confirmation(message.confirmation)
    return from_revealed(message.revealed)


def _known(view: SessionView, party: str, parsed: Parsed) -> bool:
    match parsed:
        case Advert():
            return view.adverts.get(party) == parsed
        case ShareSet():
            return party in view.share_sets and view.share_sets[party] == parsed.with_digests()
        case Confirmation():
            return view.confirmations.get(party) == parsed
        case Revealed():
            return view.revealed.get(party) == parsed


def _added(view: SessionView, party: str, session: bytes, parsed: Parsed) -> ev.Event:
    try:
        match parsed:
            case Advert():
                view.add_advert(parsed)
                return ev.Advertised(party, session, parsed)
            case ShareSet():
                view.add_share_set(parsed)
                return ev.Shared(party, session, view.share_sets[party])  # with the digests that are relayed
            case Confirmation():
                view.add_confirmation(parsed)
                return ev.Confirmed(party, session, parsed)
            case Revealed():
                view.add_revealed(party, parsed)
                return ev.Revealed(party, session, parsed)
    except RemoteError as error:
        raise Refusal("invalid", error.text) from error
    except LocalError as error:
        raise Refusal("late", str(error)) from error


def _refusal(state: State, party: str, message: pb.PhaseAnswer) -> ev.Event:
    code, culprit = message.refusal.code, message.refusal.culprit
    if CODE.fullmatch(code) is None or len(culprit) > MAX_URI_CHARACTERS:
        raise Refusal("invalid", "a refusal needs a short code and at most one party's URI")
    if state.phase not in MASKING:
        raise Refusal("late", "no masking session is open")
    reason = why_not(state, party, message.session, state.phase)
    if reason is not None:
        raise Refusal("late", reason)
    return ev.Refused(party, message.session, code, culprit)
