"""What a number of correct guesses proves: lower bounds on epsilon, and how strong a fault has to be before they show it.

The rule: nothing here knows where the guesses come from. A coin decides for each canary whether it takes part; whoever saw
only the output guesses some of the coins. Under (epsilon, delta)-differential privacy the number of correct guesses is bounded
in distribution, also where many coins share one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846, theorem 5.2); runs
that are independent are one larger mechanism in which every coin is still one record. Too many correct guesses refute it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

LARGEST = 50.0  # epsilons above it say nothing more
PRECISION = 1e-4


@dataclass(frozen=True, slots=True)
class Attack:
    """How much an audit looks at. `guesses` is fixed before anything is seen; the other coins are not guessed."""

    coins: int
    guesses: int
    delta: float
    confidence: float

    def __post_init__(self) -> None:
        if not 0 < self.guesses <= self.coins:
            raise ValueError(f"an attack guesses between 1 and all {self.coins} coins, not {self.guesses}")
        if not (0 <= self.delta < 1 and 0 < self.confidence < 1):
            raise ValueError("an attack needs a delta in [0, 1) and a confidence in (0, 1)")


def p_value(attack: Attack, correct: int, epsilon: float) -> float:
    """How often an (epsilon, delta)-private mechanism lets anyone guess so many coins, at most."""
    if not 0 <= correct <= attack.guesses:
        raise ValueError(f"{correct} of {attack.guesses} guesses cannot be correct")
    private = stats.binom(attack.guesses, 1 / (1 + math.exp(-epsilon)))
    by_chance = float(private.sf(correct - 1))
    if attack.delta == 0 or correct == 0:
        return by_chance
    below = np.cumsum(private.pmf(np.arange(correct - 1, -1, -1)))  # P[correct > W >= correct - i] for i = 1 .. correct
    worst = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, by_chance + 2 * worst * attack.coins * attack.delta)


def lower_bound(attack: Attack, correct: int) -> float:
    """The largest epsilon that so many correct guesses refute at the attack's confidence; 0 where they refute none."""
    allowed = 1 - attack.confidence
    if p_value(attack, correct, 0.0) > allowed:
        return 0.0
    low, high = 0.0, LARGEST
    while high - low > PRECISION:  # invariant: `low` is refuted; more epsilon makes more guesses likely
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(attack, correct, middle) <= allowed else (low, middle)
    return low


def strongest(attack: Attack) -> float:
    """What the audit can show at most: the bound where every guess is right."""
    return lower_bound(attack, attack.guesses)


def needed(attack: Attack, epsilon: float) -> int | None:
    """The fewest correct guesses that refute `epsilon`; None where not even a perfect attack does."""
    allowed = 1 - attack.confidence
    if p_value(attack, attack.guesses, epsilon) > allowed:
        return None
    low, high = 0, attack.guesses  # invariant: `high` refutes, `low` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(attack, middle, epsilon) <= allowed else (middle, high)
    return high


def power(attack: Attack, epsilon: float, accuracy: float) -> float:
    """How often guesses that are right with this probability refute `epsilon`."""
    fewest = needed(attack, epsilon)
    return 0.0 if fewest is None else float(stats.binom.sf(fewest - 1, attack.guesses, accuracy))


@dataclass(frozen=True, slots=True)
class Signal:
    """What the best attack on a linear model sees of one canary: draws times `weight`, plus noise. In clip norms."""

    steps: int
    rate: float
    deviation: float  # of one step's noise
    weight: float = 1.0  # of one draw; 1 as built, more where the clip fails

    def accuracy(self, share: float) -> float:
        """How often "took part" is right for the `share` of all coins with the highest scores; half of the coins are in."""
        draws = np.arange(self.steps + 1)
        chances = stats.binom.pmf(draws, self.steps, self.rate)
        spread = self.deviation * math.sqrt(self.steps)

        def above(level: float) -> tuple[float, float]:
            inside = float(chances @ stats.norm.sf(level, loc=self.weight * draws, scale=spread))
            return inside, float(stats.norm.sf(level, scale=spread))

        low, high = -40 * spread, self.weight * self.steps + 40 * spread
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(above(middle)) / 2 > share else (low, middle)
        inside, outside = above((low + high) / 2)
        return inside / (inside + outside)


def smallest_noticed(attack: Attack, epsilon: float, signal: Signal, probability: float = 0.95) -> float:
    """How many clip norms one draw must weigh before the audit refutes `epsilon` with this probability; infinite if never."""
    if needed(attack, epsilon) is None:
        return math.inf

    def noticed(weight: float) -> bool:
        seen = Signal(signal.steps, signal.rate, signal.deviation, weight)
        return power(attack, epsilon, seen.accuracy(attack.guesses / attack.coins)) >= probability

    high = 1.0
    while not noticed(high):
        high *= 2
        if high > 1e6:
            return math.inf
    low = 0.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if noticed(middle) else (middle, high)
    return high
