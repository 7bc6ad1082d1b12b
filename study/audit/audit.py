"""A whole audit: every condition, every check, every picture, as one value from which a report is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hospital_node.noise import Rand
from study.audit import bound, distributions
from study.audit.bound import Signal
from study.audit.canaries import Setting, World, linear_world
from study.audit.distributions import Check
from study.audit.faults import AS_BUILT, GROSS, SUBTLE, Fault
from study.audit.inversion import Attempt, attempts
from study.audit.scans import scan_world
from study.audit.shared import SHARED_BROKEN, SHARED_GROSS, shared_world
from study.audit.trial import Observed, Verdict, judge, observe

SHARED = "shared noise"  # name of a world
Made = Callable[[Setting, float, int], World]
Tick = Callable[[str], None]  # one unit of work done, and what is being worked on


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is done. Zero runs leave a part out."""

    linear: Setting
    scans: Setting | None
    distribution_runs: int
    inversion: bool
    shared: Setting | None = None  # the same attack where hospitals share one noise

    @property
    def units(self) -> int:
        """Units of work in all, as `Tick` counts them."""
        conditions = 1 + len(GROSS)
        scans = self.scans.runs if self.scans else 0
        checked = 1 + len(SUBTLE)
        own = conditions * (self.linear.runs + scans) + checked * self.distribution_runs + 6 * self.inversion
        if self.shared is None:
            return own
        return own + (1 + len(SHARED_GROSS)) * self.shared.runs + (1 + len(SHARED_BROKEN)) * self.distribution_runs


@dataclass(frozen=True, slots=True)
class Power:
    """What the audit could have seen at all."""

    strongest: float  # the bound of an attack that is always right
    accuracy: float  # of the best attack on the mechanism as built
    expected: float  # the bound that this accuracy shows
    smallest_noticed: float  # clip norms that one draw must weigh before 95 of 100 repetitions refute what is reported


@dataclass(frozen=True, slots=True)
class Attacked:
    """One world under every condition."""

    name: str
    setting: Setting
    power: Power | None  # None where the best attack is not known in closed form
    verdicts: tuple[Verdict, ...]  # as built first
    observed: tuple[Observed, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """The distributions under one condition."""

    fault: str
    sentence: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every quantity is what the plan promises."""
        return all(check.holds for check in self.checks)


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything that was found."""

    worlds: tuple[Attacked, ...]
    distributions: tuple[Checked, ...]  # as built first; empty where left out
    attempts: tuple[Attempt, ...]
    shared_distributions: tuple[Checked, ...] = ()  # likewise, under shared noise

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is not as it must be, in sentences; empty for an audit that passed."""
        found = []
        for world in self.worlds:
            built, *broken = world.verdicts
            if built.exceeds:
                found.append(
                    f"{world.name}: the attack shows epsilon {built.shown:.2f}, more than the {built.reported:.2f} reported."
                )
            found += [f"{world.name}: the fault '{one.fault}' was not noticed." for one in broken if not one.exceeds]
        for where, checked in (("", self.distributions), ("shared noise, ", self.shared_distributions)):
            found += _complaints(where, checked)
        return tuple(found)


def _complaints(where: str, checked: Sequence[Checked]) -> list[str]:
    """About distributions, as built first."""
    found = []
    for place, one in enumerate(checked):
        if place == 0 and not one.holds:
            found += [f"{where}as built it does not hold that {check.sentence}." for check in one.checks if not check.holds]
        if place > 0 and one.holds:
            found.append(f"{where}distributions: the fault '{one.fault}' was not noticed.")
    return found


def run(extent: Extent, rand: Rand, tick: Tick = lambda _: None) -> Audit:
    """Do everything. Raises ValueError where an attack could show nothing, and what training raises."""
    for setting in (extent.linear, extent.scans, extent.shared):
        _refuse_powerless(setting)
    worlds = [attacked("one direction for each patient", extent.linear, linear_world(extent.linear), rand, tick)]
    if extent.scans is not None:
        worlds.append(attacked("segmentation network", extent.scans, scan_world(extent.scans), rand, tick))
    if extent.shared is not None:
        worlds.append(attacked(SHARED, extent.shared, shared_world(extent.shared), rand, tick, SHARED_GROSS))
    checked = _all_checked(extent.linear, extent.distribution_runs, SUBTLE, linear_world, rand, tick)
    shared = _all_checked(extent.shared, extent.distribution_runs, SHARED_BROKEN, shared_world, rand, tick)
    drawn = attempts(rand, on_attempt=lambda: tick("drawing scans from updates")) if extent.inversion else ()
    return Audit(tuple(worlds), checked, drawn, shared)


def attacked(name: str, setting: Setting, world: World, rand: Rand, tick: Tick, gross: Sequence[Fault] = GROSS) -> Attacked:
    """One world as built and with each gross fault."""
    verdicts, seen = [], []
    for fault in (AS_BUILT, *gross):
        label = f"{name}, {fault.name}"
        observed = observe(setting, world, fault, rand, lambda label=label: tick(label))  # type: ignore[misc]
        seen.append(observed)
        verdicts.append(judge(setting, fault, observed))
    known = None
    if world.plan.network.architecture.startswith("task:"):
        known = power_of(setting, verdicts[0].reported, world.plan.privacy.noise_multiplier)
    return Attacked(name, setting, known, tuple(verdicts), tuple(seen))


def power_of(setting: Setting, reported: float, noise_multiplier: float | None = None) -> Power:
    """The power of an audit of the linear world, in closed form; `noise_multiplier` where it is not the setting's own."""
    attack, signal = setting.attack, setting.signal
    if noise_multiplier is not None:
        signal = Signal(setting.steps, 1 / setting.inverse_rate, noise_multiplier)
    accuracy = signal.accuracy(attack.guesses / attack.coins)
    return Power(
        strongest=bound.strongest(attack),
        accuracy=accuracy,
        expected=bound.lower_bound(attack, round(accuracy * attack.guesses)),
        smallest_noticed=bound.smallest_noticed(attack, reported, signal),
    )


def _refuse_powerless(setting: Setting | None) -> None:
    if setting is None:
        return
    strongest = bound.strongest(setting.attack)
    if strongest <= setting.epsilon:
        raise ValueError(
            f"{setting.runs} rounds with {setting.canaries} canaries prove nothing: an attack that is always right would show "
            f"epsilon {strongest:.2f}, and {setting.epsilon:g} is reported; ask for more rounds or more canaries"
        )


def _all_checked(
    setting: Setting | None, runs: int, faults: Sequence[Fault], made: Made, rand: Rand, tick: Tick
) -> tuple[Checked, ...]:
    """As built and with each fault; nothing where this part is left out."""
    if setting is None or not runs:
        return ()
    found = []
    for fault in (AS_BUILT, *faults):
        seen = distributions.read(setting, runs, fault, rand, lambda: tick("distributions"), made)
        found.append(Checked(fault.name, fault.sentence, distributions.checks(seen)))
    return tuple(found)
