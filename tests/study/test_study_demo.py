"""What the demonstration says and when it gives up."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from coordinator.store import MemberRow
from study.cast import Cast, Role
from study.demo import _raise_if_stuck
from study.processes import ProcessFailed
from study.sites import Sites

NAMES = ("a", "b", "c", "d")
WORLD = Sites(Path("folder"), Cast("s", "t", tuple(Role(n, Path(), 4) for n in NAMES), Role("public", Path(), 2), ""))


def reader(out: dict[str, str], finished: str = ""):
    rows = [MemberRow(f"secagg://s/hospital/{n}", "declined" if n in out else "ready", None, "", out.get(n, "")) for n in NAMES]
    plan = SimpleNamespace(masking=SimpleNamespace(minimum_cohort=3))
    return SimpleNamespace(members=lambda: rows, finished=lambda: finished, plan=lambda: plan)


def test_one_hospital_that_declines_does_not_end_the_demonstration():
    _raise_if_stuck(reader({"a": "too-few-patients"}), WORLD)


def test_too_few_hospitals_end_it_with_names_and_reasons():
    with pytest.raises(ProcessFailed, match=r"a: more studies were unreadable.*; c: no officer has approved"):
        _raise_if_stuck(reader({"a": "too-few-patients", "c": "not-approved"}), WORLD)


def test_a_run_that_ended_by_itself_is_no_failure():
    _raise_if_stuck(reader({"a": "budget-exhausted", "b": "budget-exhausted"}, finished="all is done"), WORLD)
