"""Whom a run waits for, and whether it could go on without them: questions to the engine's state, for people and alarms."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.masking import needed
from coordinator.state import MASKING, OUT, Member, Phase, Standing, State, behind, is_lost, smallest_cohort

STATE_WORDS = {Standing.ABSENT: "to join", Standing.IDLE: "to begin", Standing.READY: "to answer"}


@dataclass(frozen=True, slots=True)
class Awaited:
    """One hospital whose answer the present phase lacks.

    `survives_without`: whether the round can go on if it never answers, everybody else doing so.
    """

    uri: str
    state: str
    survives_without: bool


def awaited(state: State, now_s: float) -> tuple[Awaited, ...]:
    """Hospitals that the present phase waits for, by URI; empty where it waits for nobody."""
    session = state.session
    if session is not None:
        if state.phase not in MASKING or session.closed_at_s is not None:
            return ()
        spare = len(session.expected) > needed(state)
        return tuple(Awaited(uri, _word(state, state.members[uri], now_s), spare) for uri in sorted(session.missing))
    if state.phase is not Phase.TRAIN or state.forming:
        return ()
    asked = [state.members[uri] for uri in sorted(state.asked)]
    coming = [member for member in asked if member.standing not in OUT and not is_lost(state, member, now_s)]
    return tuple(
        Awaited(member.uri, _word(state, member, now_s), len(coming) - (member in coming) >= smallest_cohort(state.plan))
        for member in behind(state)
    )


def _word(state: State, member: Member, now_s: float) -> str:
    if member.standing in OUT:
        return f"{member.standing}: {member.code}" if member.code else member.standing.value
    if is_lost(state, member, now_s):
        return "not heard of"
    return STATE_WORDS.get(member.standing, member.standing.value)
