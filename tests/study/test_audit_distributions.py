"""Divisor, sampling and noise against the plan: all hold as built, and each fault breaks the one that it is about."""

from __future__ import annotations

from functools import cache

import pytest

from study.audit.canaries import Setting
from study.audit.distributions import EMPTY, PEOPLE, Check, checks, read
from study.audit.faults import AS_BUILT, SUBTLE, Fault
from study.bench.draws import seeded

RUNS = 400
CONDITIONS = {fault.name: fault for fault in (AS_BUILT, *SUBTLE)}


@cache
def found(name: str) -> dict[str, Check]:
    seen = read(Setting(), RUNS, CONDITIONS[name], seeded(f"distributions {name}"))
    assert seen.draws.shape == (RUNS, PEOPLE)
    assert seen.noise.shape == (RUNS, PEOPLE + EMPTY)
    return {check.name: check for check in checks(seen)}


def test_as_built_everything_is_what_the_plan_promises() -> None:
    assert [check.sentence for check in found(AS_BUILT.name).values() if not check.holds] == []
    assert min(check.p_value for check in found(AS_BUILT.name).values()) > 1e-3  # this seed is no lucky one


BROKEN = {
    "divided by the draw": {"divisor"},
    "doubled rate": {"rate", "coins"},
    "one coin for all": {"coins"},
    "weaker noise": {"deviation"},
    "one value": {"coordinates"},
    "noise of the process": {"rounds"},
    "noise of the round": {"deviation"},
}


@pytest.mark.parametrize("fault", SUBTLE, ids=lambda fault: fault.name)
def test_each_fault_breaks_what_it_is_about(fault: Fault) -> None:
    broken = {name for name, check in found(fault.name).items() if not check.holds}
    assert BROKEN[fault.name] <= broken


@pytest.mark.parametrize(
    ("fault", "untouched"), [("doubled rate", "deviation"), ("weaker noise", "rate"), ("one coin for all", "divisor")]
)
def test_a_check_does_not_complain_of_what_is_right(fault: str, untouched: str) -> None:
    assert found(fault)[untouched].holds
