"""Buffered rounds: hospitals are at several models, and a cohort forms from ready updates of one of them (FedBuff).

Rules beside those of coordinator/rounds.py:
(a) a cohort has one model: a node accepts a session only where the members that share its own model are a majority that
    suffices alone, and two majorities are one (secagg/README.md, Bounds);
(b) it forms as soon as the plan's number of updates of one model is ready. It waits only for hospitals that could form no
    cohort without it, fewer than that number, and for each of them no longer than the training deadline;
(c) an update that can be in no cohort any more, because it is too stale or too few hospitals are left at its model, is let
    go before anything of it leaves: the hospital begins anew from the newest model.
Nothing here is kept on disk: after a restart hospitals say which round they are at, and the store has every round's model.
"""

from __future__ import annotations

from coordinator.events import Report, Reported
from coordinator.orders import Train
from coordinator.state import OUT, Member, Session, Standing, State, is_lost, smallest_cohort
from coordinator.turn import Turn
from proto.plan import short_name

AT_WORK = (Standing.TRAINING, Standing.READY)
COMING = (Standing.IDLE, Standing.TRAINING)


def base_of(state: State, number: int) -> bytes | None:
    """The model that a round of this number began from; None for a round that has not begun."""
    if not 1 <= number <= state.round:
        return None
    return next((digest for published, digest in reversed(state.models) if published < number), None)


def offer(turn: Turn, uri: str) -> None:
    """Ask a hospital to train on the newest model; whoever may have come back with an update may say so instead."""
    member, state = turn.state.members[uri], turn.state
    anew = member.began > 0  # since this start it was asked before, or said where it is: what it holds was let go or is gone
    turn.instruct(uri, Train(state.round, state.base_digest, anew))
    turn.change_member(
        uri,
        standing=Standing.IDLE,
        code="",
        base=state.base_digest,
        began=state.round,
        asked_s=turn.now_s,
        not_before=state.round if anew else 0,
    )


def ask_again(turn: Turn, uri: str) -> None:
    """Ask a hospital once more, which may still hold an update; then that counts."""
    turn.instruct(uri, Train(turn.state.round, turn.state.base_digest))
    turn.change_member(uri, standing=Standing.IDLE, code="", asked_s=turn.now_s)


def is_taken(state: State, uri: str) -> bool:
    """Whether a session that opens or is open has the hospital's update: what it says of others waits for the end of it."""
    return uri in state.forming or (state.session is not None and uri in state.session.uris)


def counts(state: State, member: Member, event: Reported) -> bool:
    """Whether a report is of a training that this coordinator did not let go."""
    if not max(1, member.not_before) <= event.round <= state.round:
        return False
    if event.report in {Report.DECLINED, Report.FAILED}:
        return True
    newer = member.standing is not Standing.READY or event.round > member.began  # a node that was restarted has lost its update
    return newer and not is_taken(state, member.uri)


def on_training(turn: Turn, event: Reported) -> None:
    """It trains, perhaps on an older model."""
    base = base_of(turn.state, event.round)
    if base is not None:
        turn.change_member(event.party, standing=Standing.TRAINING, code="", began=event.round, base=base)


def on_ready(turn: Turn, event: Reported) -> None:
    """It has an update, perhaps of an older model."""
    name, state = short_name(event.party), turn.state
    if event.base_digest != base_of(state, event.round):
        turn.record("wrong-base", f"{name} trained on another model and cannot take part", event.party)
        turn.change_member(event.party, standing=Standing.FAILED, code="wrong-base")
        return
    turn.change_member(event.party, standing=Standing.READY, code="", began=event.round, base=event.base_digest)
    older = "" if event.round == state.round else f" from round {event.round}"
    turn.record("ready", f"{name} has an update{older}", event.party)


def of_ended(turn: Turn, session: Session) -> None:
    """The members of a session that ended a round have nothing any more."""
    for uri in session.uris:
        if turn.state.members[uri].standing in AT_WORK:
            turn.change_member(uri, standing=Standing.IDLE)


def begin_round(turn: Turn) -> None:
    """A new round: whoever is at work stays at it; the others are asked to train on its model."""
    free = [m for m in turn.state.members.values() if m.standing not in AT_WORK and m.may_be_asked]
    turn.record("round", f"offered to {', '.join(short_name(member.uri) for member in free)}")
    for uri in turn.state.members:
        turn.change_member(uri, refusals=0)
    for member in free:
        if member.standing is not Standing.ABSENT:
            offer(turn, member.uri)


def let_go(turn: Turn) -> None:
    """Rule (c)."""
    plan = turn.state.plan
    assert plan.buffer is not None
    if turn.state.forming:
        return
    for member in tuple(turn.state.members.values()):
        state, name = turn.state, short_name(member.uri)
        if member.standing not in AT_WORK or is_lost(state, member, turn.now_s):
            continue
        if state.round - member.began > plan.buffer.max_staleness:
            why = f"{name} is at its update since round {member.began}, longer than the plan allows"
        elif member.base != state.base_digest and len(_at(state, member.base, turn.now_s)) < smallest_cohort(plan):
            why = f"too few hospitals are left at the model of {name}"
        else:
            continue
        turn.record("let-go", f"{why}: it begins anew, and nothing of its update has left", member.uri)
        offer(turn, member.uri)


def ready_cohort(state: State, now_s: float) -> tuple[str, ...]:
    """Rule (b): updates of one model with which a session may open now, the oldest model first; () where there are none."""
    needed, deadline_s = smallest_cohort(state.plan), state.plan.timing.training_deadline_s
    holding = [m for m in state.members.values() if m.standing is Standing.READY]
    for base in dict.fromkeys(m.base for m in sorted(holding, key=lambda m: m.began)):
        present = _at(state, base, now_s)
        ready = tuple(m.uri for m in present if m.standing is Standing.READY)
        coming = [m for m in present if m.standing in COMING and now_s < m.asked_s + deadline_s]
        if len(ready) >= needed and not 0 < len(coming) < needed and ready != state.impossible:
            return ready
    return ()


def _at(state: State, base: bytes, now_s: float) -> list[Member]:
    """Hospitals at a model, and those of whom it is not known yet, which may be at any that others are at."""
    there = [m for m in state.members.values() if m.standing not in OUT and not is_lost(state, m, now_s)]
    return [m for m in there if m.base == base or _is_unknown(m)]


def _is_unknown(member: Member) -> bool:
    """Has not come yet, or was asked without being told to let go of what it may hold, and has not answered."""
    return member.standing is Standing.ABSENT or (member.standing is Standing.IDLE and member.not_before == 0)
