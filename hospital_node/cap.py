"""The cap of a hospital's ledger, and the privacy filter that enforces it.

A cap (epsilon, delta) is a promise about a stopping time that people choose after seeing results, so the reading that decides
must be valid there:

* While every charge of the ledger's life has one (noise multiplier, rate), only the number of steps is chosen as one goes.
  Stopping early is post-processing of the longest run that fits, so the privacy loss distribution decides. The releases of
  one plan with evaluations are such a case too, because they are counted in one order of cost (releases.py). Where their
  noise was shared, the best whole order of Renyi accounting reads them in its place ("orders").
* Once charges differ, their parameters may have been chosen after seeing outputs. The privacy loss distribution is then no
  valid filter (arXiv 2602.06756); the sum of Renyi divergences at one order, fixed before the first charge, is one
  (Feldman and Zrnic 2021, arXiv 2008.11193).

People decide *which* case arises, possibly from what they saw. Outcomes that stay uniform are bounded by the first rule and
outcomes that become mixed by the second; the two sets are disjoint, so their deltas add. Each rule therefore gets its own
share of the cap's delta, and together they never exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

from pydantic import Field

from hospital_node.accounting import Mechanism, epsilon, is_shared, renyi_epsilon
from hospital_node.releases import Repeatable, Spending, counted, done, is_one_sequence
from proto.plan import Frozen

ReadingKind: TypeAlias = Literal["pld", "orders", "renyi"]

UNIFORM_SHARE: Final = 0.99  # of delta; costs the usual case 0.005 of epsilon
MIXED_SHARE: Final = 0.01
ORDERS: Final = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)  # integers: their series always converges
MAX_RENYI_ORDER: Final = 256


def stated(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon at `delta` as every page, paragraph and command says it: the uniform rule's own reading.

    It is read at UNIFORM_SHARE of delta, as the filter reads it, so that no two places say different figures of one history.
    That is a true bound at `delta` as well, and about 0.005 above the tightest one.
    """
    return epsilon(mechanisms, UNIFORM_SHARE * delta)


def rounded_up(value: float) -> str:
    """An epsilon in two decimals, never rounded down."""
    return "no guarantee" if math.isinf(value) else f"{math.ceil(value * 100 - 1e-6) / 100:.2f}"


def plain(value: float) -> str:
    """A delta as people write it: 1e-5, not 1e-05 and not 0.00001."""
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


class Cap(Frozen):
    """The most that all releases of one hospital's life together may cost one patient."""

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1, allow_inf_nan=False)

    def at_most(self, other: Cap) -> bool:
        """Whether this cap is no looser than `other` in either figure."""
        return self.epsilon <= other.epsilon and self.delta <= other.delta

    def __str__(self) -> str:
        return f"epsilon {self.epsilon:g} at delta {plain(self.delta)}"


class CapFilter(Frozen):
    """The reading that decides for one ledger. `order` is the ledger's own, for life."""

    delta: float = Field(gt=0, lt=1)
    order: int = Field(ge=2, le=MAX_RENYI_ORDER)

    def kind(self, history: Sequence[Spending]) -> ReadingKind:
        """Which of the rules holds for this history."""
        if not is_one_sequence(history):
            return "renyi"
        return "orders" if is_shared(done(history)) else "pld"

    def spent(self, history: Sequence[Spending], kind: ReadingKind | None = None) -> float:
        """Epsilon of this history against the cap; `kind` asks for one rule's reading of it, for curves in one measure."""
        if (kind or self.kind(history)) != "renyi":
            return stated(counted(history), self.delta)
        return renyi_epsilon(done(history), MIXED_SHARE * self.delta, (self.order,))

    def admits(self, cap: Cap, history: Sequence[Spending]) -> bool:
        """Whether the whole history, the round asked for included, stays within the cap."""
        reached = self.spent(history)
        return math.isfinite(reached) and reached <= cap.epsilon


def best_order(cap: Cap, rounds: Repeatable) -> int:
    """The Renyi order at which the most of these rounds fit the cap; to be chosen before the first charge."""
    many = 10_000  # rounds: there a reading grows by the same amount with each further step, unclipped at 0

    def rounds_that_fit(order: int) -> float:
        far, farther = (renyi_epsilon(done([rounds.times(n)]), MIXED_SHARE * cap.delta, (order,)) for n in (many, 2 * many))
        each = (farther - far) / many
        return (cap.epsilon - (far - many * each)) / each

    return max(ORDERS, key=rounds_that_fit)
