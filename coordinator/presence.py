"""Who is there: hospitals heard of, lost, revoked, and gone in order. Part of `rounds.step`, and as pure."""

from __future__ import annotations

from coordinator import masking
from coordinator.events import Revoked
from coordinator.state import Member, Standing, is_lost
from coordinator.turn import Turn
from proto.plan import short_name

HEARD_EVERY_S = 0.2  # a step of the engine for each MiB that passes would cost more than the MiB


def revoke(turn: Turn, event: Revoked) -> None:
    """Out of the round, and out of a session in so far as its sum is not committed to it (masking.revoke)."""
    member = turn.state.members.get(event.party)
    if member is None or member.standing is Standing.REVOKED:
        return
    if member.standing is not Standing.ABSENT:
        turn.record("revoked", f"{short_name(event.party)} was taken from the list of confirmed keys", event.party)
    turn.change_member(event.party, standing=Standing.REVOKED, code="revoked", public_key=b"")
    if turn.state.session is not None and event.party in turn.state.session.uris:
        masking.revoke(turn, event.party)


def heard(turn: Turn, party: str) -> Member | None:
    """A hospital was heard of; None where the plan has none of this name."""
    member = turn.state.members.get(party)
    if member is None:
        return None
    if member.lost:
        turn.record("returned", f"{short_name(party)} is back", party)
    return turn.change_member(party, last_seen_s=turn.now_s, lost=False)


def notice_lost(turn: Turn) -> None:
    """Say once who has not been heard of for too long."""
    for member in turn.state.members.values():
        gone = is_lost(turn.state, member, turn.now_s)
        if gone and not member.lost and not member.definitive and member.standing is not Standing.LEFT:
            turn.change_member(member.uri, lost=True)
            after = f"{turn.state.plan.timing.lost_after_s:g} s"
            turn.record("lost", f"{short_name(member.uri)} has not been heard of for {after}; nobody waits for it", member.uri)


def is_present(member: Member | None, now_s: float, within_s: float) -> bool:
    """Whether a hospital joined, is neither lost nor gone in order, and was heard of so lately."""
    if member is None or not member.public_key or member.lost or member.standing is Standing.LEFT:
        return False
    return now_s - member.last_seen_s < within_s


def leave(turn: Turn, member: Member) -> None:
    """A correct node leaves with nothing under way; one that leaves a session is dropped from it as a silent one is (7)."""
    if member.standing in {Standing.ABSENT, Standing.REVOKED, Standing.LEFT}:
        return
    turn.record("left", f"{short_name(member.uri)} left in order; nobody waits for it until it joins again", member.uri)
    turn.change_member(member.uri, standing=Standing.LEFT, code="")
    leave_session(turn, member.uri)


def leave_session(turn: Turn, uri: str) -> None:
    """Expect nothing more of it in the session that is open."""
    if turn.state.session is not None and uri in turn.state.session.expected:
        masking.drop(turn, uri)
        masking.end_phase_if_over(turn)
