"""The conversation with the coordinator, for hospitals and evaluators alike: join, poll, carry out, and come back after a loss.

What a party has to say goes with the next poll, which saves a call of two; it is kept until an instruction comes back, and said
again where the poll was given up. The coordinator takes a repetition once.

A lost connection never ends a node: it dials again with growing, jittered pauses and asks with the `done` of before, so that an
instruction whose answer was lost is given again, where it still stands, and answered with the same bytes. What ended in the
background meanwhile is said again.
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
        self._tried: Said | None = None  # may have been heard
        self._of_order: Said | None = None  # what the last instruction made the party say
        self._before = 0  # `done` of before that instruction
        self._carrying = False

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

        A report takes the place of an older one, but for one that training began, which is said first unless it was tried.
        """
        if isinstance(said, pb.NodeReport):
            self._unsaid = [one for one in self._unsaid if not self._outdated(one)]
        self._unsaid.append(said)
        if self._carrying:
            self._of_order = said

    def _outdated(self, one: Said) -> bool:
        return isinstance(one, pb.NodeReport) and (one is self._tried or one.state != pb.NodeReport.TRAINING)

    def say_nothing(self) -> None:
        """What was to be said is of a plan that is served no more; from the thread of `run` only."""
        self._unsaid.clear()

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
                self._take_back()
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
                break
            order = self._polled(link)
            if order is None:
                continue
            self._carry_out(link, order)
            if order.WhichOneof("order") == "finished":
                self._finished = True
                return
        if self._stop.is_set():
            self._say_the_rest(link)

    def _carry_out(self, link: Link, order: pb.Instruction) -> None:
        self._before, self._carrying = self._done, True
        try:
            self._party.carry_out(link, order)
        finally:
            self._carrying = False
        self._done = max(self._done, order.id)

    def _polled(self, link: Link) -> pb.Instruction | None:
        """The next instruction; None after a wake."""
        while True:
            try:
                while len(self._unsaid) > int(link.polls_say):
                    say_apart(link, self._unsaid[0])
                    del self._unsaid[0]
                order = link.poll(self._done, self._unsaid[0] if self._unsaid else None)
            except OrderStale as error:
                if not self._unsaid:
                    raise
                logger().info("not wanted any more", what=type(self._unsaid[0]).__name__, reason=str(error))
                del self._unsaid[0]
            else:
                break
        self._tried = self._unsaid[0] if order is None and self._unsaid else None
        if order is not None:
            self._unsaid.clear()
        return order

    def _take_back(self) -> None:
        """Nobody knows whether the answer to the last instruction was heard: it is asked for again, or not wanted any more."""
        if any(one is self._of_order for one in self._unsaid):
            self._unsaid = [one for one in self._unsaid if one is not self._of_order]
            self._done = self._before
        self._of_order = None

    def _say_the_rest(self, link: Link) -> None:
        """What no poll went out with: a round may wait for it, and this node is not there to be asked again."""
        for said in (one for one in self._unsaid if one is not self._tried):
            with contextlib.suppress(LinkLost, OrderStale):
                say_apart(link, said)

    def _wake_when_stopped(self) -> None:
        self._stop.wait()
        self.wake()


def backoff_s(attempt: int, rand: Rand) -> float:
    """Pause before attempt number `attempt` + 1: doubling, capped, between half and all of it at random."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * float(2 ** min(attempt - 1, 16)))
    share = int.from_bytes(rand(JITTER_BYTES), "big") / float(256**JITTER_BYTES - 1)
    return longest * (0.5 + 0.5 * share)
