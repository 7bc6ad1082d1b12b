"""What a hospital's releases did to one patient, and what a plan's further rounds would do.

A release trains (sampled Gaussian steps) and, in some rounds of a plan with an evaluation, sends noised sums besides: one
Gaussian mechanism at rate 1 (Dwork and Roth 2014, appendix A). Both are charged to every patient of the hospital, although each
patient is in one part only: the two costs add almost in squares, so the smaller one is nearly free, and nothing has to be
proved about parts that change between studies (LEDGER.md).

Two lists of mechanisms follow from a history. `done` is what happened. `counted` is what the privacy loss distribution reads at
the cap, where releases of one plan must come in one order of cost: which rounds a hospital takes part in may depend on
results, and those with an evaluation cost more. So a plan's releases count as if those with evaluations came first, at most
as many as the plan has. At its end the two lists agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from hospital_node.accounting import Mechanism

EVERYBODY = 1.0  # rate of an evaluation


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What a plan says of its evaluations. `most`: in all its rounds; `plan`: its digest, because they count by plan."""

    plan: str
    noise_multiplier: float
    every: int
    most: int

    def between(self, first: int, count: int) -> int:
        """Evaluations in `count` rounds from round `first` on."""
        return (first + count - 1) // self.every - (first - 1) // self.every

    def mechanism(self, count: int) -> Mechanism:
        """So many of them."""
        return Mechanism(self.noise_multiplier, EVERYBODY, count)


@dataclass(frozen=True, slots=True)
class Release:
    """`rounds` releases of one plan, together: all their training steps, and `evaluated` evaluations."""

    training: Mechanism
    rounds: int = 1
    evaluated: int = 0
    evaluations: Evaluations | None = None

    @property
    def done(self) -> tuple[Mechanism, ...]:
        """What happened."""
        return (self.training, *(() if self.evaluations is None else (self.evaluations.mechanism(self.evaluated),)))


Spending: TypeAlias = Mechanism | Release  # a bare mechanism: one release without evaluations


class Repeatable(Protocol):
    """Rounds to come: a mechanism, or the rounds of a plan."""

    def times(self, count: int, /) -> Spending:
        """The next `count` of them."""
        ...


@dataclass(frozen=True, slots=True)
class Program:
    """What the rounds of a plan do: `training` in each."""

    training: Mechanism
    evaluations: Evaluations | None = None

    def released(self, first: int, count: int = 1) -> Release:
        """Rounds `first` to `first + count - 1`."""
        evaluated = 0 if self.evaluations is None else self.evaluations.between(first, count)
        return Release(self.training.times(count), count, evaluated, self.evaluations)

    def ahead(self, first: int) -> Ahead:
        """The rounds from `first` on."""
        return Ahead(self, first)


@dataclass(frozen=True, slots=True)
class Ahead:
    """The rounds of a plan from one round on; repeatable as a mechanism is."""

    program: Program
    first: int

    def times(self, count: int) -> Release:
        """The next `count` rounds."""
        return self.program.released(self.first, count)


def done(history: Sequence[Spending]) -> tuple[Mechanism, ...]:
    """Every mechanism that ran."""
    return tuple(one for release in _releases(history) for one in release.done)


def counted(history: Sequence[Spending]) -> tuple[Mechanism, ...]:
    """The same, with the evaluations of each plan counted first."""
    releases = _releases(history)
    rounds: dict[Evaluations, int] = {}
    for release in releases:
        if release.evaluations is not None:
            rounds[release.evaluations] = rounds.get(release.evaluations, 0) + release.rounds
    evaluated = (plan.mechanism(min(count, plan.most)) for plan, count in rounds.items())
    return (*(release.training for release in releases), *evaluated)


def is_one_sequence(history: Sequence[Spending]) -> bool:
    """Whether only the number of releases was chosen: all of one (noise multiplier, rate, shares), or all of one plan."""
    return len({_sequence(release) for release in _releases(history) if release.training.steps}) <= 1


def _sequence(release: Release) -> tuple[object, ...]:
    kind = (release.training.noise_multiplier, release.training.sampling_rate, release.training.shares)
    return (*kind, release.evaluations)


def _releases(history: Sequence[Spending]) -> tuple[Release, ...]:
    return tuple(one if isinstance(one, Release) else Release(one) for one in history)
