"""Shared noise under attack: as built no more shows than is charged, broken on purpose more; its noise is as planned."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

from proto import shared_noise
from secagg.noise_shares import NoiseShares
from study.audit.canaries import Setting
from study.audit.distributions import Check, checks, read
from study.audit.faults import AS_BUILT, SUBTLE, Fault
from study.audit.shared import SHARED_GROSS, SHARED_SUBTLE, noise_of, shared_world, unknown_noise
from study.audit.trial import Verdict, judge, observe
from study.bench.draws import seeded

SETTING = Setting(steps=1, patches=2)
RUNS = 400
(FORGOTTEN,) = SHARED_SUBTLE
EAGER, ONE_COIN = (one for one in SUBTLE if one.name in {"doubled rate", "one coin for all"})


@cache
def attacked(fault: Fault) -> Verdict:
    return judge(SETTING, fault, observe(SETTING, shared_world(SETTING), fault, seeded(f"shared {fault.name}")))


def test_as_built_the_attack_shows_no_more_than_is_charged() -> None:
    found = attacked(AS_BUILT)
    assert 0.85 < found.reported <= SETTING.epsilon
    assert not found.exceeds
    assert found.fewest_runs_a_side >= 500


@pytest.mark.parametrize("fault", SHARED_GROSS, ids=lambda fault: fault.name)
def test_a_broken_mechanism_shows_more_than_it_charges(fault: Fault) -> None:
    found = attacked(fault)
    assert found.reported == attacked(AS_BUILT).reported  # the node believes that all is well
    assert found.exceeds


@cache
def found(fault: Fault, lost: int = 0) -> dict[str, Check]:
    made = partial(shared_world, lost=lost)
    seen = read(SETTING, RUNS, fault, seeded(f"shared distributions {fault.name} {lost}"), made=made)
    return {check.name: check for check in checks(seen)}


@pytest.mark.parametrize("lost", [0, 1])
def test_draws_and_noise_are_what_the_plan_promises_whoever_is_lost(lost: int) -> None:
    assert [check.sentence for check in found(AS_BUILT, lost).values() if not check.holds] == []


@pytest.mark.parametrize(
    ("fault", "breaks"),
    [(FORGOTTEN, "deviation"), (EAGER, "rate"), (ONE_COIN, "coins")],
    ids=lambda one: getattr(one, "name", one),
)
def test_each_fault_breaks_what_it_is_about(fault: Fault, breaks: str) -> None:
    assert not found(fault)[breaks].holds


@pytest.mark.parametrize(
    ("members", "may_drop", "may_collude", "lost"), [(4, 1, 1, 0), (4, 1, 1, 1), (16, 3, 1, 2), (9, 2, 2, 1)]
)
def test_what_stays_has_the_target_variance_within_a_percent(members: int, may_drop: int, may_collude: int, lost: int) -> None:
    plan = shared_world(SETTING, noise_of(SETTING)).plan
    variance = shared_noise.shares_of(plan).variance
    shares = NoiseShares(variance, members, may_drop, may_collude)
    noise = unknown_noise(shares, lost, 250_000, seeded(f"variance {members} {lost}")).astype(np.float64)
    assert noise.var() == pytest.approx(float(variance), rel=0.01)  # three and a half deviations of the estimate
    assert abs(noise.mean()) < 5 * np.sqrt(float(variance) / len(noise))


def test_the_setting_asks_for_noise_that_is_shared() -> None:
    world = shared_world(replace(SETTING, canaries=2))
    assert world.plan.privacy.is_shared
    assert world.reported(world.train((), seeded("nobody")))[0].shares is not None
