"""The round engine: `step(state, event, now_s) -> (state, effects)`, a pure function.

Rules it keeps (architecture.md, "One round, as a walk"; protocol.md):
(1) train first, mask after: a cohort forms from hospitals that have an update;
(2) nobody waits for a hospital that was not heard of for `lost_after_s`, nor, past the deadline, for any other;
(3) a session never has fewer members than the plan and its collusion bound allow;
(4) once members may have released updates (CommitPoint) a failed session ends the round: the next one has a new number
    and the same base, and nobody is asked for the same update again;
(5) before that a failed session costs nothing: the same round forms another, under another id;
(6) a round belongs to the hospitals that the plan selects for it: nobody else is offered it, counts for it or replaces one of
    them. Where too few of those have budget left the round is passed over;
(7) whoever left in order is waited for by nobody and asked for nothing until it joins again;
(8) people can hold back the next round, never one under way; they can end one under way before its sum is being opened.

An event that does not fit the state changes nothing and decides nothing.
"""

from __future__ import annotations

from typing import assert_never

from coordinator import buffered, holding, masking, presence
from coordinator.events import (
    AbortSession,
    Advertised,
    Confirmed,
    Effect,
    Event,
    Finish,
    Joined,
    NewSession,
    Opened,
    Publish,
    Refused,
    Report,
    Reported,
    Revealed,
    Revoked,
    RoundEnded,
    RoundsHeld,
    RoundsLetOn,
    SavePhase,
    SaveRound,
    Seen,
    SessionBroken,
    SessionImpossible,
    SessionNamed,
    Shared,
    Tick,
    UploadAccepted,
)
from coordinator.orders import Evaluate, Finished, RoundResult, Train, Wait
from coordinator.state import (
    OUT,
    UNCOMMITTED,
    Member,
    Phase,
    Standing,
    State,
    fits,
    ready_cohort,
    smallest_cohort,
    willing,
    willing_now,
)
from coordinator.turn import Turn
from coordinator.validated import validated
from proto.plan import DECLINE_CODES, short_name


def step(state: State, event: Event, now_s: float) -> tuple[State, tuple[Effect, ...]]:
    """One event: the state after it and what has to be done, in order. Never raises for what parties send."""
    turn = Turn(state, now_s)
    if state.phase is not Phase.FINISHED:
        _dispatch(turn, event)
        _settle(turn)
    return turn.state, tuple(turn.effects)


def _dispatch(turn: Turn, event: Event) -> None:
    match event:
        case Tick():
            _on_tick(turn)
        case Joined():
            _on_joined(turn, event)
        case Revoked():
            presence.revoke(turn, event)
        case Seen():
            presence.heard(turn, event.party)
        case Reported():
            _on_reported(turn, event)
        case SessionNamed():
            if turn.state.forming == event.roster:
                masking.open_session(turn, event.session, event.roster)
        case SessionImpossible():
            _on_impossible(turn, event)
        case Advertised() | Shared() | UploadAccepted() | Confirmed() | Revealed():
            presence.heard(turn, event.party)
            masking.on_answer(turn, event)
        case Refused():
            presence.heard(turn, event.party)
            masking.on_refusal(turn, event)
        case Opened():
            _on_opened(turn, event)
        case SessionBroken():
            _on_broken(turn, event)
        case RoundsHeld():
            holding.hold(turn, event)
        case RoundsLetOn():
            if holding.let_on(turn, event):
                _begin_round(turn)
        case RoundEnded():
            if holding.end_round(turn, event):
                _next_round(turn)
        case _:
            assert_never(event)


def _settle(turn: Turn) -> None:
    """What follows from the state whatever the event was: a session's end, a cohort, the end of the run."""
    if turn.state.session is not None and turn.state.session.ended is not None:
        _session_failed(turn, turn.state.session.ended)
    if turn.state.phase is Phase.TRAIN and not _finish_if_too_few(turn):
        _pass_over_if_too_few(turn)
    if turn.state.phase is Phase.TRAIN and turn.state.plan.buffer is not None:
        buffered.let_go(turn)
    if turn.state.phase is Phase.TRAIN:
        _form_cohort(turn)


# ---- who is there ----


def _on_joined(turn: Turn, event: Joined) -> None:
    member = presence.heard(turn, event.party)
    if member is None:
        return
    fresh = member.standing is Standing.ABSENT
    if fresh:
        turn.record("joined", f"{short_name(event.party)} joined", event.party)
    if member.standing is Standing.LEFT:
        turn.record("returned", f"{short_name(event.party)} is back", event.party)
    gone = {Standing.DECLINED, Standing.REVOKED, Standing.LEFT}  # people may have lifted the reason
    again = fresh or member.standing in gone
    turn.change_member(event.party, public_key=event.public_key, standing=Standing.IDLE if again else member.standing)
    waits_for_nobody = turn.state.plan.buffer is not None and turn.state.phase not in {Phase.START, Phase.HELD}
    if again and (turn.state.phase is Phase.TRAIN or waits_for_nobody) and not buffered.is_taken(turn.state, event.party):
        _offer(turn, event.party)


def _on_reported(turn: Turn, event: Reported) -> None:
    member = presence.heard(turn, event.party)
    state = turn.state
    if member is not None and event.report is Report.LEFT:
        presence.leave(turn, member)
        return
    out = {Standing.EXCLUDED, Standing.REVOKED, Standing.LEFT}
    if member is None or member.standing in out or member.uri not in state.asked:
        return
    if not (event.round == state.round if state.plan.buffer is None else buffered.counts(state, member, event)):
        return
    match event.report:
        case Report.READY:
            _on_ready(turn, member, event)
        case Report.TRAINING:
            if state.plan.buffer is not None:
                buffered.on_training(turn, event)
            elif member.standing is not Standing.READY:
                turn.change_member(event.party, standing=Standing.TRAINING, code="")
        case Report.DECLINED | Report.FAILED:
            _on_out(turn, event)


def _on_ready(turn: Turn, member: Member, event: Reported) -> None:
    if turn.state.plan.buffer is not None:
        buffered.on_ready(turn, event)
        return
    if event.base_digest != turn.state.base_digest:
        turn.record("wrong-base", f"{short_name(event.party)} trained on another model and cannot take part", event.party)
        turn.change_member(event.party, standing=Standing.FAILED, code="wrong-base")
        return
    if member.standing is not Standing.READY:
        turn.change_member(event.party, standing=Standing.READY, code="")
        turn.record("ready", f"{short_name(event.party)} has an update", event.party)


def _on_out(turn: Turn, event: Reported) -> None:
    standing = Standing.DECLINED if event.report is Report.DECLINED else Standing.FAILED
    if turn.state.members[event.party].standing is not standing:
        why = DECLINE_CODES.get(event.code, "no reason known here")
        turn.record(standing.value, f"{short_name(event.party)} {standing}: {why}", event.party)
    turn.change_member(event.party, standing=standing, code=event.code)
    presence.leave_session(turn, event.party)


# ---- training phase and cohort ----


def _on_tick(turn: Turn) -> None:
    if turn.state.phase is Phase.START:
        _start(turn)
    presence.notice_lost(turn)
    if turn.state.phase is Phase.TRAIN and turn.now_s >= turn.state.deadline_s:
        _another_try(turn)
    elif turn.state.session is not None and turn.state.phase is not Phase.OPENING:
        masking.on_tick(turn)


def _start(turn: Turn) -> None:
    for number, digest in turn.state.due:
        _evaluate(turn, number, digest)
    if turn.state.kept is not None:
        masking.resume(turn, turn.state.kept)
    elif turn.state.round > turn.state.plan.rounds:
        _finish(turn, f"all {turn.state.plan.rounds} rounds are done")
    else:
        _begin_round(turn)


def _begin_round(turn: Turn) -> None:
    """Offer the round to every hospital of it that joined and has not declined for good; the others are told to wait.

    Where people hold rounds back it begins when they let it (8).
    """
    if holding.holds(turn):
        return
    turn.emit(SaveRound(turn.state.round, "training"))
    _enter_training(turn)
    if turn.state.plan.buffer is not None:
        buffered.begin_round(turn)
        return
    offered = [uri for uri in willing_now(turn.state) if turn.state.members[uri].standing is not Standing.LEFT]
    turn.record("round", f"offered to {', '.join(map(short_name, offered))}")
    for member in tuple(turn.state.members.values()):
        if member.standing is not Standing.ABSENT and member.may_be_asked:
            turn.change_member(member.uri, standing=Standing.IDLE, code="", refusals=0)
            _offer(turn, member.uri)


def _enter_training(turn: Turn) -> None:
    deadline_s = turn.now_s + turn.state.plan.timing.training_deadline_s
    turn.change(phase=Phase.TRAIN, phase_since_s=turn.now_s, deadline_s=deadline_s, session=None, forming=(), impossible=())


def _offer(turn: Turn, uri: str, *, again: bool = False) -> None:
    state = turn.state
    if state.plan.buffer is not None:
        (buffered.ask_again if again else buffered.offer)(turn, uri)
    elif uri in state.asked:
        turn.instruct(uri, Train(state.round, state.base_digest))
    else:
        turn.instruct(uri, Wait(f"the plan does not select this hospital for round {state.round}"))


def _form_cohort(turn: Turn) -> None:
    """Begin a session where everybody that anybody waits for is ready, or time is up (rules 1 to 3)."""
    state = turn.state
    ready = ready_cohort(state, turn.now_s) if state.plan.buffer is None else buffered.ready_cohort(state, turn.now_s)
    if state.forming or ready == state.impossible or len(ready) < smallest_cohort(state.plan):
        return
    if not fits(state.plan, len(ready)):
        bound = f"the plan's threshold does not fit {len(ready)} members with {state.plan.masking.max_colluders} colluders"
        turn.record("cohort-refused", f"{bound}: no session opens until the cohort changes")
        turn.change(impossible=ready)
        return
    turn.emit(SavePhase(state.round, Phase.TRAIN.value, turn.now_s - state.phase_since_s))
    turn.change(forming=ready)
    turn.emit(NewSession(state.round, ready))


def _on_impossible(turn: Turn, event: SessionImpossible) -> None:
    if turn.state.forming == event.roster:
        turn.change(forming=(), impossible=event.roster)
        turn.record("cohort-refused", f"{event.reason}: no session opens until the cohort changes")


def _another_try(turn: Turn) -> None:
    """The deadline passed and no cohort could form: whoever failed or was left out is asked once more."""
    _form_cohort(turn)
    if turn.state.forming:
        return
    turn.change(deadline_s=turn.now_s + turn.state.plan.timing.training_deadline_s)
    turn.record("waiting", "the training deadline passed with too few updates; the round stays open")
    for member in tuple(turn.state.members.values()):
        if member.uri in turn.state.asked and member.standing in OUT and member.may_be_asked:
            turn.change_member(member.uri, standing=Standing.IDLE, code="", refusals=0)
            _offer(turn, member.uri, again=True)


# ---- how a session ends ----


def _session_failed(turn: Turn, reason: str) -> None:
    session, phase = turn.session, turn.state.phase
    turn.emit(AbortSession(session.id, reason))
    if phase in UNCOMMITTED:
        turn.record("session-aborted", f"masking session ended ({reason}); nothing was released, another one forms")
        _back_to_training(turn)
        return
    turn.record("round-aborted", f"ended without a sum ({reason}); its updates are gone, the model stays")
    dropped = tuple(sorted(session.dropped.items()))
    turn.emit(SaveRound(turn.state.round, "aborted", session.uris, session.survivors, dropped, reason=reason))
    result = RoundResult(
        turn.state.round, session.id, session.survivors, b"", turn.state.base_digest, opened=False, reason=reason
    )
    _tell_all(turn, result)
    _next_round(turn)


def _back_to_training(turn: Turn) -> None:
    """Members that dropped out lose their place until they report again; the others keep their updates (rule 5)."""
    session = turn.session
    turn.emit(SaveRound(turn.state.round, "training"))
    _enter_training(turn)
    at_other_models = set() if turn.state.plan.buffer is None else turn.state.members.keys() - session.uris
    for member in tuple(turn.state.members.values()):
        keeps = member.standing is Standing.READY and member.uri not in session.dropped
        if keeps and member.uri in session.uris:
            turn.instruct(member.uri, Wait("the masking session ended before anything was released: keep the update"))
        elif (
            not keeps
            and member.uri in turn.state.asked - at_other_models
            and member.standing in {Standing.READY, Standing.IDLE}
        ):
            turn.change_member(member.uri, standing=Standing.IDLE)
            _offer(turn, member.uri, again=True)


def _on_opened(turn: Turn, event: Opened) -> None:
    session = turn.state.session
    if turn.state.phase is not Phase.OPENING or session is None or session.id != event.session:
        return
    state = turn.state
    turn.emit(SavePhase(state.round, "result", turn.now_s - state.phase_since_s))
    digests = event.sum_digest, event.model_digest, event.mean_digest
    turn.emit(Publish(state.round, session.id, session.survivors, *digests))
    dropped = tuple(sorted(session.dropped.items()))
    turn.emit(SaveRound(state.round, "opened", session.uris, session.survivors, dropped, event.model_digest))
    turn.record("opened", f"{len(session.survivors)} of {len(session.roster)} in the sum · sum opened")
    validated(turn, event.sums, len(session.survivors))
    models = (*state.models, (state.round, event.model_digest))
    turn.change(base_digest=event.model_digest, base_round=state.round, models=models)
    _tell_all(turn, RoundResult(state.round, session.id, session.survivors, event.sum_digest, event.model_digest, opened=True))
    if state.round % state.plan.evaluate_every == 0:
        _evaluate(turn, state.round, event.model_digest)
    _next_round(turn)


def _on_broken(turn: Turn, event: SessionBroken) -> None:
    session = turn.state.session
    if session is not None and session.id == event.session:
        turn.change_session(ended=f"{turn.state.phase}: {event.reason}")


def _next_round(turn: Turn) -> None:
    """Begin the next round that enough of its hospitals can take part in, or end the run."""
    if turn.state.plan.buffer is not None and turn.state.session is not None:
        buffered.of_ended(turn, turn.state.session)
    turn.change(session=None)
    plan = turn.state.plan
    while turn.state.round < plan.rounds:
        number = turn.state.round + 1
        turn.change(round=number, asked=frozenset(plan.selected(number)))
        if _finish_if_too_few(turn):
            return
        if len(willing_now(turn.state)) >= smallest_cohort(plan):
            _begin_round(turn)
            return
        _pass_over(turn)
    _finish(turn, f"all {plan.rounds} rounds are done")


def _pass_over_if_too_few(turn: Turn) -> None:
    if len(willing_now(turn.state)) < smallest_cohort(turn.state.plan):
        _pass_over(turn)
        _next_round(turn)


def _pass_over(turn: Turn) -> None:
    """End a round before any session of it: too few of its hospitals have budget left, and nobody takes their place (6)."""
    state = turn.state
    able = f"{len(willing_now(state))} of its {len(state.asked)} hospitals have budget left"
    reason = f"{able} and {smallest_cohort(state.plan)} are needed"
    turn.emit(SaveRound(state.round, "aborted", reason=reason))
    turn.record("round-aborted", f"passed over: {reason}")


# ---- the end, and everybody ----


def _finish_if_too_few(turn: Turn) -> bool:
    left, needed = willing(turn.state), smallest_cohort(turn.state.plan)
    if len(left) >= needed:
        return False
    gone = [m for m in turn.state.members.values() if m.definitive]
    names = ", ".join(f"{short_name(m.uri)}: {DECLINE_CODES[m.code]}" for m in gone)
    _finish(turn, f"{len(left)} hospitals remain and {needed} are needed ({names})")
    return True


def _finish(turn: Turn, reason: str) -> None:
    if turn.state.evaluated_round < turn.state.base_round:
        _evaluate(turn, turn.state.base_round, turn.state.base_digest)
    turn.change(phase=Phase.FINISHED, finished=reason, session=None, forming=())
    turn.record("finished", f"the run is over: {reason}")
    for uri in (*turn.state.members, *turn.state.plan.evaluators):
        turn.instruct(uri, Finished(reason))
    turn.emit(Finish(reason))


def _evaluate(turn: Turn, number: int, digest: bytes) -> None:
    turn.change(evaluated_round=number)
    for uri in turn.state.plan.evaluators:
        turn.instruct(uri, Evaluate(number, digest))


def _tell_all(turn: Turn, result: RoundResult) -> None:
    for member in turn.state.members.values():
        if member.standing is not Standing.ABSENT:
            turn.instruct(member.uri, result)
