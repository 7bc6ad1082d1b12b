"""Whom a coordinator waits for once its run is over, so that everybody hears of the end and the last model is measured.

Rules: (1) whoever was heard of within `lost_after_s` is waited for until it was told; (2) after a restart everybody who had not
left in order may still be on the way back, for as long; (3) an evaluator says that it is at work while it measures, and so is
heard of, but a measurement that never ends does not keep this program: it waits for evaluators at most `evaluation_patience_s`
after the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.presence import is_present
from coordinator.state import Member, Standing


@dataclass(slots=True)
class Evaluator:
    """What is known of an evaluator. `last_seen_at`: seconds since 1970."""

    state: str = "absent"
    last_seen_at: float | None = None


@dataclass(slots=True)
class Ending:
    """The end of one run. `took_over_s`: when this start went on with what an earlier one began."""

    lost_after_s: float
    evaluation_patience_s: float
    took_over_s: float | None = None
    _over_since_s: float | None = None

    def awaited(
        self, members: Mapping[str, Member], evaluators: Mapping[str, Evaluator], now_s: float, at: float
    ) -> frozenset[str]:
        """Who has to know before this program ends; to be asked once the run is over. `now_s`: monotonic; `at`: of the wall."""
        if self._over_since_s is None:
            self._over_since_s = now_s
        if self.took_over_s is not None and now_s - self.took_over_s < self.lost_after_s:
            return frozenset({*evaluators, *(uri for uri, one in members.items() if one.standing is not Standing.LEFT)})
        hospitals = {one.uri for one in members.values() if is_present(one, now_s, self.lost_after_s)}
        if now_s - self._over_since_s >= self.evaluation_patience_s:
            return frozenset(hospitals)
        return frozenset(hospitals | {uri for uri, one in evaluators.items() if self._was_heard(one, at)})

    def _was_heard(self, evaluator: Evaluator, at: float) -> bool:
        return evaluator.last_seen_at is not None and at - evaluator.last_seen_at < self.lost_after_s
