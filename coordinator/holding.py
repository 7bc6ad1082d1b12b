"""What the coordinator's people may ask of the engine: hold rounds back, let them go on, end the round under way.

Part of `rounds.step`, and as pure. A round is never held back half-way: it ends by itself or is ended, and the next one waits.
"""

from __future__ import annotations

from coordinator.events import AbortSession, RoundEnded, RoundsHeld, RoundsLetOn, SaveRound
from coordinator.orders import RoundResult
from coordinator.state import MASKING, Phase, Standing
from coordinator.turn import Turn

REASON = "the coordinator's people ended the round"  # all that hospitals hear; who and why stay in the store and the audit log


def hold(turn: Turn, event: RoundsHeld) -> None:
    """No further round begins."""
    turn.change(held=event.said)
    turn.record("held", f"no further round is opened: {event.said}")


def holds(turn: Turn) -> bool:
    """Whether the round that is about to begin has to wait; then it does."""
    if not turn.state.held:
        return False
    turn.change(phase=Phase.HELD, phase_since_s=turn.now_s, session=None, forming=())
    turn.record("held", f"not opened: {turn.state.held}")
    return True


def let_on(turn: Turn, event: RoundsLetOn) -> bool:
    """Rounds go on; whether one was waiting for it."""
    if not turn.state.held:
        return False
    turn.change(held="")
    turn.record("resumed", f"rounds are opened again, says {event.by}")
    return turn.state.phase is Phase.HELD


def end_round(turn: Turn, event: RoundEnded) -> bool:
    """End the round as a failed session ends it, if it is under way and its sum is not being opened; whether it was."""
    state = turn.state
    if event.round != state.round or state.phase not in {Phase.TRAIN, *MASKING}:
        return False
    session = state.session
    if session is None:  # members that train hear of the next round and drop what they have
        turn.emit(SaveRound(state.round, "aborted", reason=REASON))
    else:
        dropped = tuple(sorted(session.dropped.items()))
        turn.emit(AbortSession(session.id, REASON))
        turn.emit(SaveRound(state.round, "aborted", session.uris, session.survivors, dropped, reason=REASON))
        unopened = (session.id, session.survivors, b"", state.base_digest)
        result = RoundResult(state.round, *unopened, opened=False, reason=REASON)
        for member in state.members.values():
            if member.standing is not Standing.ABSENT:
                turn.instruct(member.uri, result)
    turn.record("round-aborted", f"ended without a sum by {event.by} ({event.reason}); the model stays")
    return True
