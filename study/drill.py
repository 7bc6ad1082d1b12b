"""The drill of `KILL=1`: one hospital loses power between its masked upload and the reveal, and comes back later.

The coordinator pauses between masking phases (`drill_pause_s`), so that the kill falls where it is meant to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console

from coordinator.store import EventRow
from study.processes import Child, Family
from study.sites import Sites

DRILL_ROUND = 2
BACK_AFTER_S = 6.0


@dataclass(slots=True)
class Drill:
    """Watches events, kills the second hospital once, starts it again."""

    world: Sites
    family: Family
    nodes: dict[str, Child]
    console: Console
    victim: str = field(init=False)
    killed_at_s: float | None = field(default=None, init=False)
    back: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.victim = self.world.cast.hospitals[1].name

    def watch(self, event: EventRow) -> None:
        """Kill when the masked uploads of the drill's round are in."""
        if self.killed_at_s is None and event.round >= DRILL_ROUND and (event.kind, event.phase) == ("phase", "mask"):
            self.family.kill(self.nodes[self.victim])
            self.killed_at_s = time.monotonic()
            self.console.print(f"  Drill: {self.victim} was killed (SIGKILL) after its upload, before the reveal")
        self.tick()

    def tick(self) -> None:
        """Start the node again some seconds later."""
        if self.killed_at_s is None or self.back or time.monotonic() - self.killed_at_s < BACK_AFTER_S:
            return
        self.back = True
        old = self.nodes[self.victim]
        self.nodes[self.victim] = self.family.start(self.victim, old.command, old.log)
        self.console.print(f"  Drill: {self.victim} was started again")
