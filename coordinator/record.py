"""What a step decided, as rows of the store. This file decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator import events as ev
from coordinator import journal
from coordinator.state import State
from coordinator.store_write import Batch

STORED = (ev.CommitPoint, ev.AbortSession, ev.Publish, ev.SaveRound, ev.SaveValidation, ev.SavePhase, ev.Record, ev.Finish)
MANY_HOSPITALS = 100  # each of 1,000 that joins would write a list of the other 999


def shows_at_once(state: State, stored: Sequence[ev.Effect]) -> bool:
    """Whether people see a step before the next heartbeat; not an answer alone, and among many no news of one hospital."""
    few = len(state.members) <= MANY_HOSPITALS
    return any(few or not isinstance(effect, ev.Record) for effect in stored)


def store_effect(changes: Batch, effect: ev.Effect, length: int, at: float) -> None:
    """One effect; `length` is that of the model's vector, `at` the time in seconds since 1970."""
    match effect:
        case ev.CommitPoint(session):
            changes.session_state(session, "masking")
        case ev.AbortSession(session, reason):
            changes.session_state(session, "aborted", reason=reason)
        case ev.Publish(number, session, survivors, sum_digest, model_digest, mean_digest):
            changes.session_state(session, "opened", survivors, sum_digest.hex())
            changes.model(number, model_digest.hex(), length, at)
            changes.mean(number, mean_digest.hex())
        case ev.SaveRound():
            changes.round_state(
                effect.number,
                effect.state,
                at,
                cohort=effect.cohort,
                survivors=effect.survivors,
                dropped=dict(effect.dropped),
                model_digest=None if effect.model_digest is None else effect.model_digest.hex(),
                reason=effect.reason,
            )
        case ev.SaveValidation(number, model_round, hospitals, means):
            changes.validation(number, model_round, hospitals, means)
        case ev.SavePhase(number, phase, seconds):
            changes.phase_seconds(number, phase, seconds)
        case ev.Record(number, kind, text, party, phase):
            changes.event(at, number, kind, text, party=party, phase=phase)
        case _:
            pass


def store_session(changes: Batch, before: State, after: State, message: journal.Message | None) -> None:
    """What a step changed in the session that is open after it: the message that it took, and what it decided."""
    session = after.session
    if session is None:
        return
    if message is not None and before.session is not None and before.session.id == session.id:
        changes.session_message(session.id, message)
    if journal.decided(before, after):
        changes.session_outline(session.id, journal.outline_of(after).model_dump_json().encode())
