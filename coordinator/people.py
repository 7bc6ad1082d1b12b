"""What the coordinator's people may ask of it while it runs: open no further round, go on, end the round under way.

Check, record, act: what is no longer possible is refused in words, what is possible stands in the audit log before it happens.
Whether rounds are held back is read from that log at the start, so that a restart does not undo a pause.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol, assert_never

from certs.audit import Action, AuditError, Record
from certs.audit_file import AuditLog
from coordinator import events as ev
from coordinator.run import Run
from coordinator.state import MASKING, UNCOMMITTED, Phase, State
from coordinator.store import StoreError
from proto.control import Abort, Answer, ControlError, CoordinatorRequest, Pause, Resume, coordinator_request
from proto.control_socket import ANSWER_LIMIT_S

PAUSED, RESUMED, ENDED = "pause-rounds", "resume-rounds", "abort-round"


class NotPossible(ValueError):
    """A request that does not fit the run as it is; one sentence."""


def pause_in_force(records: Sequence[Record]) -> str:
    """Who paused and why, where nobody resumed since; empty otherwise."""
    last = next((one.action for one in reversed(records) if one.action.kind in {PAUSED, RESUMED}), None)
    return "" if last is None or last.kind == RESUMED else said(last.by, last.reason)


def said(by: str, reason: str) -> str:
    """A pause in words."""
    return f"paused by {by}: {reason}"


class Running(Protocol):
    """Whoever has the run of a plan; another one after its store was out of reach."""

    run: Run


def asked(loop: asyncio.AbstractEventLoop, desk: Running, log: AuditLog) -> Callable[[bytes], Answer]:
    """A handler for the control socket's threads that answers in the run's own event loop."""

    async def on_the_loop(data: bytes) -> Answer:
        return answer(desk.run, log, data, datetime.now(UTC))

    return lambda data: asyncio.run_coroutine_threadsafe(on_the_loop(data), loop).result(ANSWER_LIMIT_S)


def answer(run: Run, log: AuditLog, data: bytes, at: datetime) -> Answer:
    """One request, carried out or refused in one sentence. Belongs to the run's event loop."""
    try:
        request = coordinator_request(data)
        event, action, sentence = decided(run.state, request)
        log.append(action, at)
        run.feed(event)
    except (AuditError, ControlError, NotPossible) as error:
        return Answer(done=False, sentence=str(error))
    except StoreError as error:
        return Answer(done=False, sentence=f"it is recorded, but the store cannot be written now ({error}): ask again")
    return Answer(done=True, sentence=sentence)


def decided(state: State, request: CoordinatorRequest) -> tuple[ev.Event, Action, str]:
    """The event, its record and what is said of it. Raises NotPossible."""
    if state.phase is Phase.FINISHED:
        raise NotPossible(f"the run is over ({state.finished}): there is nothing to change any more")
    fields = {"study": state.plan.study, "round": str(state.round), **_proof(request)}
    match request:
        case Pause():
            if state.held:
                raise NotPossible(f"rounds are held back already ({state.held})")
            event: ev.Event = ev.RoundsHeld(said(request.by, request.reason))
            kind, sentence = PAUSED, f"Paused by {request.by}: no further round is opened; {_under_way(state)}."
        case Resume():
            if not state.held:
                raise NotPossible("rounds are not held back: there is nothing to resume")
            event, kind, sentence = ev.RoundsLetOn(request.by), RESUMED, f"Resumed by {request.by}: rounds are opened again."
        case Abort():
            _check_abort(state, request.round)
            event = ev.RoundEnded(request.round, request.by, request.reason)
            kind, sentence = ENDED, f"Round {request.round} was ended by {request.by}: {_spent(state)}, and the model stays."
        case _:
            assert_never(request)
    return event, Action(request.by, kind, request.reason, fields), sentence


def _proof(request: CoordinatorRequest) -> dict[str, str]:
    """Who signed in, as the app says, and the user it came from, as the kernel says. Raises NotPossible."""
    if request.proved is None:
        return {}
    if request.proved.role != "operator":
        raise NotPossible("only an operator decides about rounds")
    return {"user": str(os.getuid()), **request.proved.fields()}  # the socket answers nobody but this process's own user


def _check_abort(state: State, number: int) -> None:
    if number != state.round:
        raise NotPossible(f"round {number} is not under way, round {state.round} is next: nothing was ended")
    if state.phase is Phase.OPENING:
        raise NotPossible(f"the sum of round {number} is being opened: it is too late to end it")
    if state.phase not in {Phase.TRAIN, *MASKING}:
        raise NotPossible(f"round {number} was not opened yet: there is nothing to end")


def _under_way(state: State) -> str:
    return (
        f"round {state.round} goes on to its end" if state.phase in {Phase.TRAIN, Phase.OPENING, *MASKING} else "none is open"
    )


def _spent(state: State) -> str:
    if state.phase is Phase.TRAIN or state.phase in UNCOMMITTED:
        return "nothing was released, so no budget was spent"
    return "updates that had left are gone, and their budget is spent"
