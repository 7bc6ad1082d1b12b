"""What the demonstration says and when it gives up."""

from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from certs.audit_file import AuditLog
from coordinator.store import MemberRow
from hospital_node.ledger import Ledger
from study import approvals, presets, sites
from study.cast import Cast, Role
from study.demo import _draw, _raise_if_stuck
from study.processes import Family, ProcessFailed
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


@pytest.mark.parametrize("template", ["chest-ct", "chest-ct-plain"])
def test_approvals_stand_in_ledger_and_audit_log(tmp_path, template):
    cast = Cast("s", template, tuple(Role(n, tmp_path, 40) for n in NAMES), Role("public", tmp_path, 2), "")
    world = Sites(tmp_path / "sites", cast)
    sites.certify(world)
    plan = presets.complete(
        presets.load(template).fields,
        study=cast.study,
        hospitals=presets.admitted(cast, world.uri),
        evaluators=[world.uri(cast.evaluator)],
        start_digest=b"\xab" * 32,
        rounds=3,
    )
    with Console(file=StringIO()) as console:
        approvals.approve_all(world, plan, console)
    for role in cast.hospitals:
        (record,) = AuditLog.within(world.state(role)).read()
        ledger = Ledger.open_readonly(world.state(role) / "ledger.db")
        assert ledger.approval(plan).by == record.action.by == approvals.OFFICER
        assert (record.action.kind, record.action.reason) == ("approve", approvals.REASON)
        assert record.action.fields["ledger digest"] == ledger.events()[-1].digest.hex()
    if not plan.privacy.no_guarantee:
        assert ledger.budget(plan).stops_after_round == 1, "the last hospital's cap ends before the plan does"


def test_the_last_model_draws_on_scans_of_the_first_hospital(tmp_path, monkeypatch):
    stand_in = tmp_path / "secagg-node"
    stand_in.write_text('#!/bin/sh\necho "asked: $*"\necho "4 scans are ready"\n')
    stand_in.chmod(0o700)
    monkeypatch.setattr("study.demo._script", lambda name: str(tmp_path / name))
    world = Sites(tmp_path / "sites", WORLD.cast)
    said = StringIO()
    with Family(1) as family:
        _draw(family, world, Console(file=said, width=200))
    assert "Page Scans of a: 4 scans are ready" in said.getvalue()
    asked = (world.home(world.cast.hospitals[0]) / "draw.log").read_text()
    assert asked.startswith(
        f"asked: data draw --config {world.config(world.cast.hospitals[0])} --model {world.latest_model} --most"
    )
