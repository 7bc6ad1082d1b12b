"""One condition of the audit from its first coin to its verdict: many independent rounds, a guess for the loudest, a bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hospital_node.accounting import Mechanism, epsilon
from hospital_node.noise import Rand
from study.audit import bound
from study.audit.canaries import Reals, Setting, World, coins
from study.audit.faults import Fault


@dataclass(frozen=True, slots=True)
class Observed:
    """What the runs gave. The attack sees `scores`; `taking_part` is the truth, which only the judge sees."""

    scores: Reals  # (runs, canaries)
    taking_part: NDArray[np.bool_]  # (runs, canaries)
    recorded: tuple[Mechanism, ...]  # by the node, in every run the same


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one condition showed."""

    fault: str
    reported: float  # epsilon of what the node recorded, at the setting's delta
    shown: float  # lower bound on epsilon
    correct: int
    guesses: int
    coins: int
    fewest_runs_a_side: int  # over the canaries: runs with it, or without it

    @property
    def exceeds(self) -> bool:
        """Whether the attack refutes what was reported."""
        return self.shown > self.reported


def observe(setting: Setting, world: World, fault: Fault, rand: Rand, on_run: Callable[[], None] = lambda: None) -> Observed:
    """Train every run. Raises what training raises; RuntimeError where two runs recorded different mechanisms."""
    scores = np.empty((setting.runs, setting.canaries))
    taking_part = np.empty((setting.runs, setting.canaries), np.bool_)
    recorded: set[tuple[Mechanism, ...]] = set()
    with fault.inside():
        for run in range(setting.runs):
            taking_part[run] = coins(rand, setting.canaries)
            present = [one for one, there in zip(world.canaries, taking_part[run], strict=True) if there]
            trained = world.train(present, rand)
            scores[run] = world.scores(trained)
            recorded.add(world.reported(trained))
            on_run()
    if len(recorded) != 1:
        raise RuntimeError(f"{len(recorded)} different mechanisms were recorded under one plan: the node's history is wrong")
    return Observed(scores, taking_part, recorded.pop())


def judge(setting: Setting, fault: Fault, seen: Observed) -> Verdict:
    """Guess "took part" for the highest scores, as many as were fixed beforehand, and count."""
    attack = setting.attack
    loudest = np.argsort(-seen.scores, axis=None, kind="stable")[: attack.guesses]
    correct = int(seen.taking_part.reshape(-1)[loudest].sum())
    inside = seen.taking_part.sum(axis=0)
    return Verdict(
        fault=fault.name,
        reported=epsilon(seen.recorded, setting.delta),
        shown=bound.lower_bound(attack, correct),
        correct=correct,
        guesses=attack.guesses,
        coins=attack.coins,
        fewest_runs_a_side=int(min(inside.min(), setting.runs - inside.max())),
    )
