"""The node's own training under attack: as built it shows no more than is reported; broken on purpose it shows more.

Draws are seeded, so that a run is the same run each time; the audit of the command line draws from the operating system.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from hospital_node import train
from hospital_node.accounting import Mechanism, epsilon
from study.audit.audit import power_of
from study.audit.canaries import LENGTH, Setting, coins, linear_world, sums_of
from study.audit.faults import AS_BUILT, GROSS, SUBTLE, Fault
from study.audit.scans import scan_world
from study.audit.trial import Verdict, judge, observe
from study.bench.draws import seeded

SETTING = Setting()
SCANS = Setting(runs=150, steps=1, inverse_rate=1, guessed=1 / 4, patches=2)
NO_NOISE, NO_CLIP, PER_PATCH = GROSS


@cache
def attacked(setting: Setting, fault: Fault) -> Verdict:
    world = linear_world(setting) if setting is SETTING else scan_world(setting)
    return judge(setting, fault, observe(setting, world, fault, seeded(f"audit {fault.name}")))


def test_the_audit_is_as_large_as_it_has_to_be() -> None:
    assert SETTING.canaries >= 4
    assert SETTING.confidence >= 1 - 1e-6
    assert attacked(SETTING, NO_NOISE).fewest_runs_a_side >= 500


def test_as_built_the_attack_shows_no_more_than_is_reported() -> None:
    found = attacked(SETTING, AS_BUILT)
    rate = 1 / SETTING.inverse_rate
    assert found.reported == epsilon([Mechanism(SETTING.noise_multiplier, rate, SETTING.steps)], SETTING.delta)
    assert 0.89 < found.reported <= 1
    assert found.shown <= found.reported
    assert not found.exceeds
    expected = power_of(SETTING, found.reported).accuracy  # the guesses are as good as they can be, and no better
    assert found.correct / found.guesses == pytest.approx(expected, abs=5 * (0.25 / found.guesses) ** 0.5)


@pytest.mark.parametrize("fault", [NO_NOISE, NO_CLIP], ids=lambda fault: fault.name)
def test_a_broken_mechanism_shows_more_than_it_reports(fault: Fault) -> None:
    found = attacked(SETTING, fault)
    assert found.reported == pytest.approx(0.9, abs=0.01)  # the node believes that all is well
    assert found.exceeds
    assert found.shown == pytest.approx(power_of(SETTING, found.reported).strongest, abs=0.01)


@pytest.mark.slow  # twelve gradients for each patient
def test_a_clip_for_each_patch_shows_more_than_it_reports() -> None:
    found = attacked(SETTING, PER_PATCH)
    assert found.exceeds
    assert found.shown > 2


@pytest.mark.parametrize(
    ("fault", "exceeds"), [(AS_BUILT, False), (NO_NOISE, True), (NO_CLIP, True)], ids=["as built", "no noise", "no clip"]
)
def test_the_segmentation_network_under_the_same_attack(fault: Fault, exceeds: bool) -> None:
    found = attacked(SCANS, fault)
    assert found.exceeds is exceeds
    assert found.shown <= found.reported if not exceeds else found.shown > 2


def test_the_power_is_stated() -> None:
    power = power_of(SETTING, 0.9)
    assert power.strongest == pytest.approx(3.76, abs=0.01)
    assert 0.5 < power.accuracy < 0.6
    assert power.expected == 0  # a sound mechanism gives itself away to nobody, at this confidence
    assert 5 < power.smallest_noticed < 7 < SETTING.patches < LENGTH  # so these faults are within reach


def test_a_fault_ends_with_its_context_and_changes_no_file_of_the_node() -> None:
    names = ("PatientOptimizer", "take_step", "StepCoins", "NormalStream")
    before = [getattr(train, name) for name in names]
    for fault in (*GROSS, *SUBTLE):
        with fault.inside():
            assert sum(getattr(train, name) is not old for name, old in zip(names, before, strict=True)) == 1
        assert [getattr(train, name) for name in names] == before


def test_a_canary_weighs_one_clip_norm_for_each_draw() -> None:
    setting = Setting(inverse_rate=1, steps=3, canaries=2, bystanders=0)
    world = linear_world(setting, noise_multiplier=1e-6)
    trained = world.train(world.canaries[:1], seeded("one"))
    assert sums_of(trained, world.plan) == pytest.approx([3, 0], abs=1e-4)
    assert world.scores(trained) == pytest.approx([3, 0], abs=1e-4)


def test_scores_of_scans_answer_to_their_own_patient() -> None:
    setting = Setting(inverse_rate=1, steps=1, canaries=3, bystanders=1, patches=1)
    world = scan_world(setting)
    quiet = world.plan.model_copy(update={"privacy": world.plan.privacy.model_copy(update={"noise_multiplier": 1e-6})})
    object.__setattr__(world, "plan", quiet)
    object.__setattr__(world, "bystanders", ())
    for place, canary in enumerate(world.canaries):
        assert world.scores(world.train([canary], seeded("x"))) == pytest.approx(np.eye(3)[place], abs=1e-3)


def test_coins_are_fair() -> None:
    drawn = coins(seeded("coins"), 20_000)
    assert abs(drawn.mean() - 0.5) < 4.5 * (0.25 / 20_000) ** 0.5
    assert len(coins(seeded("coins"), 3)) == 3
