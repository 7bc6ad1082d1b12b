"""The coordinator of a federation in one process: the real run and service in an event loop, without a socket.

It does what `coordinator.serving.serve` does around the same two objects, says when a round's figures are complete, and
ends with one sentence where a real coordinator would wait for people or go on after a failed write: here nobody comes.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from certs.peers import load_peers
from coordinator import events as ev
from coordinator.config import CoordinatorConfig
from coordinator.orders import Evaluate, RoundResult
from coordinator.run import Run
from coordinator.service import Federation
from coordinator.serving import TICK_S
from coordinator.state import OUT, Phase, State, needs_people, smallest_cohort
from proto import scaffold
from proto.layout import Vector
from proto.plan import DECLINE_CODES, short_name
from study.bench.memory import Exchange
from study.bench.task import StudyError

LOOK_S = 0.02  # how soon a complete round is noticed; no phase of a round waits for it


@dataclass(frozen=True, slots=True)
class Hooks:
    """How the coordinator's thread speaks with the one that plays the federation. Called in the coordinator's thread."""

    opened: Callable[[Exchange], None]  # parties may call from now on
    complete: Callable[[int], None]  # all figures up to this round are stored
    over: threading.Event = field(repr=False)  # set by the other side: end


async def coordinate(config: CoordinatorConfig, hooks: Hooks) -> Vector:
    """Serve until `hooks.over` is set; the last model. Raises StudyError where nothing can go on, and what ends the run."""
    config.state.mkdir(parents=True, exist_ok=True)
    failures: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(_failure_in(context)))
    run = Run(config, os.urandom)
    service = Federation(run, load_peers(config.allow))
    exchange = Exchange(service)
    watch = _Watch(run, service, hooks)
    hooks.opened(exchange)
    try:
        while not hooks.over.is_set():
            watch.look()
            if failures:
                raise failures[0]
            await asyncio.sleep(LOOK_S)
        return scaffold.taken_apart(run.plan, run.models.read(run.state.base_digest.hex()))[0]
    finally:
        await exchange.close()
        await run.close()


@dataclass(slots=True, eq=False)
class _Watch:
    """Ticks the run and follows its rounds."""

    run: Run
    service: Federation
    hooks: Hooks
    ticked_s: float = -TICK_S
    reported: int = -1  # newest round that was said to be complete

    def look(self) -> None:
        """Once every LOOK_S. Raises StudyError, StoreError."""
        if time.monotonic() - self.ticked_s >= TICK_S:
            self.ticked_s = time.monotonic()
            self.service.seen_in_polls()
            self.run.feed(ev.Tick())
        if needs_people(self.run.state):
            raise StudyError(stuck(self.run.state))
        while self.reported + 1 < self.run.state.round and self._is_complete(self.reported + 1):
            self.run.flush()
            self.reported += 1
            self.hooks.complete(self.reported)

    def _is_complete(self, number: int) -> bool:
        """Whether every party has read the result and no measurement of an ended round is due or can become due."""
        state = self.run.state
        if state.phase is Phase.START or _awaits_last_measurement(state, number):
            return False
        notes = (order for box in self.run.mail.values() for _, order in box.notes)
        return not any(isinstance(order, RoundResult | Evaluate) and order.round <= number for order in notes)


def stuck(state: State) -> str:
    """Why no cohort can form, in one sentence."""
    members = [state.members[uri] for uri in sorted(state.asked)]
    out = [f"{short_name(m.uri)}: {DECLINE_CODES.get(m.code, m.code)}" for m in members if m.standing in OUT]
    there = f"{len(members) - len(out)} of its {len(members)} hospitals have an update"
    needed = smallest_cohort(state.plan)
    return f"round {state.round} cannot form a cohort: {there} and {needed} are needed ({'; '.join(out)})"


def _awaits_last_measurement(state: State, number: int) -> bool:
    """A model that the plan does not have measured still is, should it turn out to be the last one."""
    return number == state.base_round and number % state.plan.evaluate_every != 0 and not state.finished


def _failure_in(context: dict[str, Any]) -> BaseException:
    found = context.get("exception")
    return found if isinstance(found, BaseException) else RuntimeError(context["message"])
