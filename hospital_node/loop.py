"""The conversation with the coordinator, for hospitals and evaluators alike: join, poll, carry out, and come back after a loss.

What a party has to say goes with the next poll, which saves a call of two; it is kept until an instruction comes back, and said
again where the connection broke or the poll was given up. The coordinator takes a repetition once.

A lost connection never ends a node: it dials again with growing, jittered pauses and goes on with the same `done`, so that an
instruction that was cut off is given again and answered with the same bytes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

from hospital_node.link import Link, LinkLost, OrderStale, Said, say_apart
from hospital_node.logs import logger
from proto import federation_pb2 as pb

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 30.0
JITTER_BYTES = 2

Rand = Callable[[int], bytes]


class Party(Protocol):
    """What a hospital or an evaluator does with the conversation."""

    def joined(self, reply: pb.JoinReply) -> None:
        """The connection stands (again)."""
        ...

    def settle(self, link: Link) -> None:
        """Before every poll: say what ended in the background."""
        ...

    def carry_out(self, link: Link, order: pb.Instruction) -> None:
        """One instruction. Returning means done."""
        ...

    def lost(self, reason: str, wait_s: float) -> None:
        """The connection is lost; the next attempt is in `wait_s` seconds."""
        ...


class Conversation:
    """One node's conversation. `wake` may be called from any thread; everything else belongs to one."""

    def __init__(self, dial: Callable[[], Link], party: Party, stop: threading.Event, rand: Rand) -> None:
        self._dial = dial
        self._party = party
        self._stop = stop
        self._rand = rand
        self._link: Link | None = None
        self._done = 0
        self._finished = False
        self._redial = False
        self._unsaid: list[Said] = []  # one at most, but where training ended meanwhile
        self._tried = False  # whether the first of them may have been heard

    def wake(self) -> None:
        """End a poll in progress, so that `settle` runs."""
        link = self._link
        if link is not None:
            link.wake()

    def redial(self) -> None:
        """Make a new connection before the next poll, with the certificate as it is then; from the thread of `run` only."""
        self._redial = True

    def say(self, said: Said) -> None:
        """With the next poll, after what is to be said already; from the thread of `run` only.

        A report takes the place of one that went out with a poll which was given up: it is the newer one of the two.
        """
        if self._tried and isinstance(self._unsaid[0], pb.NodeReport) and isinstance(said, pb.NodeReport):
            self._forget_first()
        self._unsaid.append(said)

    def say_nothing(self) -> None:
        """What was to be said is of a plan that is served no more; from the thread of `run` only."""
        while self._unsaid:
            self._forget_first()

    def run(self) -> None:
        """Talk until the study is finished or `stop` is set. Raises LinkRefused."""
        threading.Thread(target=self._wake_when_stopped, name="stop-watcher", daemon=True).start()
        attempt = 0
        while not self._stop.is_set() and not self._finished:
            try:
                with contextlib.closing(self._dial()) as link:
                    self._party.joined(link.join())
                    self._link = link
                    attempt = 0
                    self._follow(link)
            except LinkLost as error:
                attempt += 1
                wait_s = backoff_s(attempt, self._rand)
                self._party.lost(str(error), wait_s)
                self._stop.wait(wait_s)
            finally:
                self._link = None

    def _follow(self, link: Link) -> None:
        self._redial = False
        while not self._stop.is_set():
            self._party.settle(link)
            if self._redial or self._stop.is_set():
                return
            order = self._polled(link)
            if order is None:
                continue
            kind = order.WhichOneof("order")
            self._party.carry_out(link, order)
            self._done = max(self._done, order.id)
            if kind == "finished":
                self._finished = True
                return

    def _polled(self, link: Link) -> pb.Instruction | None:
        """The next instruction; None after a wake, and where what was said is not wanted any more."""
        try:
            while len(self._unsaid) > int(link.polls_say):
                say_apart(link, self._unsaid[0])
                self._forget_first()
            order = link.poll(self._done, self._unsaid[0] if self._unsaid else None)
        except OrderStale as error:
            if not self._unsaid:
                raise
            logger().info("not wanted any more", what=type(self._unsaid[0]).__name__, reason=str(error))
            self._forget_first()
            return None
        if order is None:
            self._tried = bool(self._unsaid)
        elif self._unsaid:
            self._forget_first()
        return order

    def _forget_first(self) -> None:
        del self._unsaid[0]
        self._tried = False

    def _wake_when_stopped(self) -> None:
        self._stop.wait()
        self.wake()


def backoff_s(attempt: int, rand: Rand) -> float:
    """Pause before attempt number `attempt` + 1: doubling, capped, between half and all of it at random."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * float(2 ** min(attempt - 1, 16)))
    share = int.from_bytes(rand(JITTER_BYTES), "big") / float(256**JITTER_BYTES - 1)
    return longest * (0.5 + 0.5 * share)
