"""Keeps progress.json and leaves.json current: what the hospital's own app shows of a running node.

This file decides nothing. What is shown already, and steps, are written at most twice a second, which is as often as anybody
looks. A disk that cannot be written costs people the view, never the round: it is logged, and what was to be counted is counted
with the next write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

from hospital_node.logs import logger
from hospital_node.progress import Leaves, LocalProgress, NodePhase, read_leaves, write_leaves, write_progress
from hospital_node.state import StateFolder
from hospital_node.traffic import ByteMeter

REWRITE_S = 0.5

Clock = Callable[[], float]  # seconds since 1970


class Display:
    """One node's files for the app. Safe to call from the training thread and the conversation."""

    def __init__(self, folder: StateFolder, study: str, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._written_s = 0.0
        self._leaves: Leaves | None = None  # what left, as far as it was counted; leaves.json may have less
        self._counted_s = 0.0  # when leaves.json was written last
        now = self._now()
        self._shown = LocalProgress(
            study=study,
            round=0,
            rounds=0,
            phase="connecting",
            since=now,
            sentence="connecting to the coordinator",
            updated_at=now,
        )

    @property
    def shown(self) -> LocalProgress:
        """What the file says now."""
        return self._shown

    def rounds(self, rounds: int) -> None:
        """The plan's number of rounds."""
        with self._lock:
            self._shown = self._shown.model_copy(update={"rounds": rounds})

    def show(
        self,
        phase: NodePhase,
        sentence: str,
        *,
        round_number: int | None = None,
        only_after: tuple[NodePhase, ...] | None = None,
    ) -> None:
        """A new phase, or another sentence for the same one.

        `only_after` is for the background thread: it changes nothing where the conversation has gone on to another phase.
        """
        with self._lock:
            if only_after is not None and self._shown.phase not in only_after:
                return
            now = self._now()
            same = phase == self._shown.phase and round_number in (None, self._shown.round)
            fields = {
                "phase": phase,
                "sentence": sentence,
                "round": self._shown.round if round_number is None else round_number,
                "since": self._shown.since if same else now,
                "step": 0,
                "steps": 0,
            }
            if self._due or any(getattr(self._shown, name) != value for name, value in fields.items()):
                self._write(fields, now)

    def steps(self, phase: NodePhase, step: int, steps: int) -> None:
        """How far the phase is; ignored where the node has gone on to another phase."""
        with self._lock:
            if phase == self._shown.phase and (step >= steps or self._due):
                self._write({"step": step, "steps": steps}, self._now())

    def count(self, meter: ByteMeter, round_number: int, *, at_once: bool = True) -> int:
        """Add what the meter holds to leaves.json; returns the bytes sent.

        Not `at_once`: where the file was written just now, it is written with what is counted next.
        """
        now, sent = self._now(), {}
        try:
            before = self._leaves or read_leaves(self._folder.leaves) or Leaves(study=self._shown.study, updated_at=now)
            sent = meter.take()
            self._leaves = before.sent(round_number, sent, now)
            if at_once or self._clock() - self._counted_s >= REWRITE_S:
                write_leaves(self._folder.leaves, self._leaves)
                self._counted_s = self._clock()
        except OSError as error:
            _unwritable(error)
        return sum(sent.values())

    @property
    def _due(self) -> bool:
        return self._clock() - self._written_s >= REWRITE_S

    def _write(self, fields: dict[str, object], now: datetime) -> None:
        self._shown = self._shown.model_copy(update={**fields, "updated_at": now})
        self._written_s = self._clock()
        try:
            write_progress(self._folder.progress, self._shown)
        except OSError as error:
            _unwritable(error)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _unwritable(error: OSError) -> None:
    logger().warning("the state folder cannot be written; free some space or check its disk", reason=error.strerror)
