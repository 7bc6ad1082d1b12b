"""The masking session as the coordinator drives it: advertise, share, mask, confirm, reveal, open.

A phase ends when everybody expected has answered, or nobody who is still heard of is missing, or at its deadline, and
then only with enough answers. A session that cannot go on says so in `session.ended`; what follows for the round is
decided in coordinator/rounds.py. A survivor is a member whose whole upload was accepted, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from coordinator.events import (
    Advertised,
    Answer,
    CloseList,
    CommitPoint,
    Confirmed,
    OpenSum,
    Refused,
    Revealed,
    SavePhase,
    SaveRound,
    Shared,
    UploadAccepted,
)
from coordinator.orders import Confirm, Mask, Open, Order, Reveal, Sealed, Share
from coordinator.state import MASKING, UNCOMMITTED, Kept, Phase, Session, Standing, State, enough, is_lost, seats_of, why_not
from coordinator.turn import Turn
from proto.plan import short_name
from secagg.messages import UploadSeal

DONE_WORDS = {
    Phase.ADVERTISE: "keys advertised",
    Phase.SHARE: "shares sealed",
    Phase.MASK: "uploaded",
    Phase.CONFIRM: "confirmed the list",
    Phase.REVEAL: "revealed",
}
REVOKED = "revoked"  # in place of the phase at which a member dropped out
MAX_REFUSALS = 2  # a second refusal in one round leaves a hospital out of it


def open_session(turn: Turn, session_id: bytes, roster: tuple[str, ...]) -> None:
    """Begin a session under an id that is on disk already."""
    state = turn.state
    seats = seats_of(state, roster)
    threshold = state.plan.threshold_of(len(seats))
    session = Session(id=session_id, roster=seats, threshold=threshold, expected=frozenset(roster))
    turn.change(session=session, forming=(), impossible=())
    turn.emit(SaveRound(state.round, "masking", cohort=roster))
    _enter(turn, Phase.ADVERTISE, session.expected)
    names = ", ".join(short_name(uri) for uri in roster)
    turn.record("cohort", f"cohort of {len(seats)}: {names} · any {threshold} of them open the sum")
    order = order_of(turn.state)
    for uri in roster:
        turn.instruct(uri, order)


def resume(turn: Turn, kept: Kept) -> None:
    """Go on with a session that an earlier start left open: whoever has not answered is asked again, with the same bytes.

    Its phase has its whole time again, since everybody has to find back first.
    """
    closed_at_s = None if kept.session.closed_at_s is None else turn.now_s
    session = replace(kept.session, closed_at_s=closed_at_s)
    turn.change(session=session, phase=kept.phase, phase_since_s=turn.now_s, kept=None)
    turn.record("resumed", f"the coordinator was restarted; its masking session goes on at {kept.phase}")
    if kept.phase is Phase.OPENING:
        turn.emit(OpenSum(session.id, session.survivors))
    elif closed_at_s is None:
        order = order_of(turn.state)
        for uri in sorted(session.missing):
            turn.instruct(uri, order)


def order_of(state: State) -> Order:
    """What the members are asked in the present masking phase; made of what the session holds and nothing else."""
    session = state.session
    assert session is not None
    match state.phase:
        case Phase.ADVERTISE:
            return Open(session.id, state.round, session.roster)
        case Phase.SHARE:
            return Share(session.id, tuple(session.adverts[uri] for uri in session.uris if uri in session.adverts))
        case Phase.MASK:
            return Mask(session.id, tuple(session.sets[uri] for uri in session.uris if uri in session.sets))
        case Phase.CONFIRM:
            return Confirm(session.id, session.survivors, _sealed(session))
        case _:
            signed = (session.confirmations[uri] for uri in session.uris if uri in session.confirmations)
            return Reveal(session.id, tuple(signed))


def on_answer(turn: Turn, event: Answer) -> None:
    """Count one answer; anything late, repeated or out of place changes nothing."""
    if why_not(turn.state, event.party, event.session, _phase_of(event)) is not None:
        return
    session = turn.session
    if event.party in session.answered:
        return
    turn.change(session=replace(_with_message(session, event), answered=session.answered | {event.party}))
    if isinstance(event, UploadAccepted) and event.size_bytes:
        turn.record("upload", f"{short_name(event.party)} sent {event.size_bytes / 1000:,.0f} kB", event.party)
    end_phase_if_over(turn)


def on_refusal(turn: Turn, event: Refused) -> None:
    """A member leaves the session, or, before anything was released, takes the member that it names out of the round."""
    state = turn.state
    if state.phase not in MASKING or why_not(state, event.party, event.session, state.phase) is not None:
        return
    by, culprit = short_name(event.party), event.culprit
    if culprit in turn.session.uris and culprit != event.party:
        turn.record("refused", f"{by} refused at {state.phase} ({event.code}) and named {short_name(culprit)}", event.party)
        if state.phase in UNCOMMITTED:
            exclude(turn, culprit, event.code)
            turn.change_session(ended=f"{by} named {short_name(culprit)} ({event.code})")
            return
    else:
        turn.record("refused", f"{by} refused at {state.phase} ({event.code})", event.party)
    drop(turn, event.party)
    _count_refusal(turn, event)
    end_phase_if_over(turn)


def exclude(turn: Turn, uri: str, code: str) -> None:
    """Take a hospital out of the present round."""
    turn.change_member(uri, standing=Standing.EXCLUDED, code=code)
    turn.record("excluded", f"{short_name(uri)} is left out of this round ({code})", uri)


def drop(turn: Turn, uri: str) -> None:
    """Expect nothing more of a member in this session."""
    session, phase = turn.session, turn.state.phase
    turn.change_session(
        expected=session.expected - {uri},
        dropped={**session.dropped, uri: phase.value},
    )


def revoke(turn: Turn, uri: str) -> None:
    """A member was taken from the list of confirmed keys.

    Before the mask the session begins again without it; until the survivor list is made it counts as dropped, also after its
    upload; a sum that holds its update is not opened.
    """
    state, session = turn.state, turn.session
    if session.ended is not None or session.dropped.get(uri) == REVOKED:
        return
    by_whom = f"{short_name(uri)} was taken from the list of confirmed keys"
    if state.phase in UNCOMMITTED:
        drop(turn, uri)
        turn.change_session(ended=by_whom)
    elif session.survivors and uri in session.survivors:
        turn.change_session(ended=by_whom)
    elif uri in session.expected | session.answered and not session.survivors:
        turn.change_session(expected=session.expected - {uri}, dropped={**session.dropped, uri: REVOKED})
        end_phase_if_over(turn)


def end_phase_if_over(turn: Turn) -> None:
    """End the present phase where everybody answered, nobody heard of is missing, or time is up."""
    state, session = turn.state, turn.session
    if state.phase not in MASKING or session.ended is not None or session.closed_at_s is not None:
        return
    enough_answers = needed(state)
    if len(session.expected) < enough_answers:
        remain = f"{len(session.expected)} of {len(session.roster)} members remain, {enough_answers} are needed"
        _end(turn, remain + _for_the_noise(state, session, enough_answers))
        return
    late = turn.now_s - state.phase_since_s >= state.plan.timing.phase_deadline_s
    heard = [uri for uri in session.missing if not is_lost(state, state.members[uri], turn.now_s)]
    if len(session.present) >= enough_answers and (late or not heard):
        _close_phase(turn)
    elif late:
        _end(turn, f"only {len(session.present)} of {len(session.expected)} answered in time, {enough_answers} are needed")


def on_tick(turn: Turn) -> None:
    """Deadlines, lost members and the drill pause."""
    session = turn.session
    if session.closed_at_s is None:
        end_phase_if_over(turn)
    elif turn.now_s - session.closed_at_s >= turn.state.drill_pause_s:
        _next_phase(turn)


def needed(state: State) -> int:
    """Answers without which the present masking phase cannot end well."""
    assert state.session is not None
    before_list = state.phase in {Phase.ADVERTISE, Phase.SHARE, Phase.MASK}
    return enough(state, state.session) if before_list else state.session.threshold


def _for_the_noise(state: State, session: Session, needed_answers: int) -> str:
    """Why so many are needed, where the threshold alone would let the round go on."""
    if needed_answers <= max(session.threshold, state.plan.masking.minimum_cohort):
        return ""
    return f": the noise is shared so that at most {state.plan.privacy.may_drop} may be lost, and nobody reveals anything"


def _end(turn: Turn, reason: str) -> None:
    for uri in sorted(turn.session.missing):
        drop(turn, uri)
    turn.change_session(ended=f"{turn.state.phase}: {reason}")


def _close_phase(turn: Turn) -> None:
    """The answers of this phase are complete: say so, drop who is missing, go on after the drill pause."""
    phase, session = turn.state.phase, turn.session
    text = f"{len(session.answered)} of {len(session.expected | session.answered)} {DONE_WORDS[phase]}"
    missing = sorted(session.missing)
    turn.record("phase", f"{text} · without {', '.join(map(short_name, missing))}" if missing else text)
    for uri in missing:
        drop(turn, uri)
        turn.record("dropped", f"{short_name(uri)} dropped out at {phase}; the round goes on without it", uri)
    _save_time(turn)
    turn.change_session(closed_at_s=turn.now_s)
    if phase is Phase.MASK:
        survivors = tuple(uri for uri in session.uris if uri in session.answered and session.dropped.get(uri) != REVOKED)
        turn.change_session(survivors=survivors)
        turn.emit(CloseList(session.id, survivors))
    if turn.state.drill_pause_s == 0 or phase is Phase.REVEAL:
        _next_phase(turn)


def _next_phase(turn: Turn) -> None:
    """Send the orders of the phase that follows to those who answered the last one."""
    session = turn.session
    turn.change_session(closed_at_s=None)
    if turn.state.phase is Phase.REVEAL:
        turn.change(phase=Phase.OPENING, phase_since_s=turn.now_s)
        turn.emit(OpenSum(session.id, session.survivors))
        return
    if turn.state.phase is Phase.SHARE:
        turn.emit(CommitPoint(session.id))
    _order(turn, MASKING[MASKING.index(turn.state.phase) + 1])


def _sealed(session: Session) -> tuple[Sealed, ...]:
    """The survivors' seals with those who drew shares of them; none where no advert names neighbours."""
    roster = sorted(session.uris)  # the order in which the session context numbers its members
    found = []
    for uri in session.survivors:
        advert, seal = session.adverts[uri], session.seals.get(uri)
        if advert.neighbours and seal is not None:
            found.append(Sealed(uri, seal, frozenset(roster[place] for place in advert.neighbours)))
    return tuple(found)


def _order(turn: Turn, phase: Phase) -> None:
    present = turn.session.present
    _enter(turn, phase, present)
    order = order_of(turn.state)
    for uri in turn.session.uris:
        if uri in present:
            turn.instruct(uri, order)


def _enter(turn: Turn, phase: Phase, expected: frozenset[str]) -> None:
    turn.change(phase=phase, phase_since_s=turn.now_s)
    turn.change_session(expected=expected, answered=frozenset())


def _save_time(turn: Turn) -> None:
    state = turn.state
    turn.emit(SavePhase(state.round, state.phase.value, turn.now_s - state.phase_since_s))


def _count_refusal(turn: Turn, event: Refused) -> None:
    """Before anything was released a hospital may come back once into the same round; then it sits it out."""
    if turn.state.phase not in UNCOMMITTED:
        return
    refusals = turn.state.members[event.party].refusals + 1
    turn.change_member(event.party, refusals=refusals, standing=Standing.IDLE)
    if refusals >= MAX_REFUSALS:
        exclude(turn, event.party, event.code)


def _phase_of(event: Answer) -> Phase:
    match event:
        case Advertised():
            return Phase.ADVERTISE
        case Shared():
            return Phase.SHARE
        case UploadAccepted():
            return Phase.MASK
        case Confirmed():
            return Phase.CONFIRM
        case Revealed():
            return Phase.REVEAL
        case _:
            assert_never(event)


def _with_message(session: Session, event: Answer) -> Session:
    match event:
        case Advertised():
            return replace(session, adverts={**session.adverts, event.party: event.advert})
        case Shared():
            return replace(session, sets={**session.sets, event.party: event.share_set})
        case UploadAccepted(seal=UploadSeal() as seal):
            return replace(session, seals={**session.seals, event.party: seal})
        case Confirmed():
            return replace(session, confirmations={**session.confirmations, event.party: event.confirmation})
        case _:
            return session
