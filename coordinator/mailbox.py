"""Orders for one party, until it has carried them out.

A mailbox holds at most one *task* (what to do now) besides *notes* (results and evaluations, which must not be lost). A new
task replaces the old one. A task stays after it was acknowledged, for a node that was restarted and asks from 0 again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.orders import Evaluate, Order, RoundResult

ID_BITS = 32  # ids of one start of the coordinator; the bits above are its epoch
MAX_NOTES = 4096  # an evaluator that is away for so many rounds loses the oldest


def first_id(epoch: int) -> int:
    """Instruction ids of a later start are larger than all earlier ones, so that a node's `done` stays meaningful."""
    return epoch << ID_BITS


@dataclass(slots=True)
class Mailbox:
    """Waiting orders of one party, by id."""

    last_id: int
    task: tuple[int, Order] | None = None
    notes: list[tuple[int, Order]] = field(default_factory=list)

    def put(self, order: Order) -> int:
        """Add an order and return its id."""
        self.last_id += 1
        if isinstance(order, RoundResult | Evaluate):
            self.notes = [*self.notes[-(MAX_NOTES - 1) :], (self.last_id, order)]
        else:
            self.task = (self.last_id, order)
        return self.last_id

    def after(self, done: int) -> tuple[int, Order] | None:
        """The oldest order with an id above `done`; forgets results that were read and evaluations that were done."""
        self.notes = [note for note in self.notes if note[0] > done]
        waiting = [item for item in (*self.notes, self.task) if item is not None and item[0] > done]
        return min(waiting, key=lambda item: item[0]) if waiting else None

    def idle(self, done: int) -> bool:
        """Whether the party has carried out everything."""
        return self.after(done) is None
