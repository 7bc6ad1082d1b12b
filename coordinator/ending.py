"""Whom a coordinator waits for once its run is over, so that everybody hears of the end and the last model is measured.

Rules: (1) whoever was heard of within `lost_after_s` is waited for until it was told, a hospital for as long after the end: one
that says this and that but never asks for its orders keeps nobody; (2) after a restart everybody who had not left in order may
still be on the way back, for as long; (3) an evaluator says that it is at work while it measures, and so is heard of, but a
measurement that never ends does not keep this program: it waits for evaluators at most `evaluation_patience_s` after the end,
which is when the store says that it was, however often the program was started since.
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
        self,
        members: Mapping[str, Member],
        evaluators: Mapping[str, Evaluator],
        now_s: float,
        at: float,
        ended_at: float | None = None,
    ) -> frozenset[str]:
        """Who has to know before this program ends; to be asked once the run is over.

        `now_s`: monotonic; `at`, `ended_at`: of the wall, the latter when the run ended as the store has it.
        """
        if self._over_since_s is None:
            self._over_since_s = now_s
        over_s = now_s - self._over_since_s
        hospitals = {uri for uri, one in members.items() if self._may_ask(one, now_s, over_s)}
        if max(over_s, 0.0 if ended_at is None else at - ended_at) >= self.evaluation_patience_s:
            return frozenset(hospitals)
        return frozenset(hospitals | {uri for uri, one in evaluators.items() if self._measures(one, now_s, at)})

    def _is_expected_back(self, now_s: float) -> bool:
        return self.took_over_s is not None and now_s - self.took_over_s < self.lost_after_s

    def _may_ask(self, member: Member, now_s: float, over_s: float) -> bool:
        if self._is_expected_back(now_s):
            return member.standing is not Standing.LEFT
        return over_s < self.lost_after_s and is_present(member, now_s, self.lost_after_s)

    def _measures(self, evaluator: Evaluator, now_s: float, at: float) -> bool:
        heard = evaluator.last_seen_at is not None and at - evaluator.last_seen_at < self.lost_after_s
        return heard or self._is_expected_back(now_s)
