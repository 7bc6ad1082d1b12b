"""One step under way: the state as changed so far and the effects decided so far.

Only code inside `rounds.step` sees it, so that the step itself stays a pure function.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coordinator.events import Effect, Instruct, Record
from coordinator.orders import Order
from coordinator.state import Member, Session, State


class Turn:
    """Accumulates the outcome of one step."""

    def __init__(self, state: State, now_s: float) -> None:
        self.state = state
        self.now_s = now_s
        self.effects: list[Effect] = []

    @property
    def session(self) -> Session:
        """The present session; only called where there is one."""
        session = self.state.session
        assert session is not None
        return session

    def change(self, **fields: Any) -> None:
        """Replace fields of the state."""
        self.state = replace(self.state, **fields)

    def change_member(self, uri: str, **fields: Any) -> Member:
        """Replace fields of one member."""
        member = replace(self.state.members[uri], **fields)
        self.change(members={**self.state.members, uri: member})
        return member

    def change_session(self, **fields: Any) -> None:
        """Replace fields of the present session."""
        self.change(session=replace(self.session, **fields))

    def emit(self, effect: Effect) -> None:
        """Decide one effect."""
        self.effects.append(effect)

    def instruct(self, party: str, order: Order) -> None:
        """Tell a party what to do."""
        self.emit(Instruct(party, order))

    def record(self, kind: str, text: str, party: str = "") -> None:
        """Say what happened, in plain words that begin with the round."""
        number = self.state.round
        self.emit(Record(number, kind, f"Round {number} · {text}", party, self.state.phase.value))
