"""The codes with which a node declines a round or leaves a session: documented, distinct, and nothing but a code leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from node_world import (
    BASE,
    ME,
    NOW_S,
    FakeLink,
    Folders,
    Rehearsal,
    Trainer,
    approved_ledger,
    make_desk,
    make_folders,
    make_plan,
)
from test_node_runner import DECLINED, Node, train_order

import hospital_node
from hospital_node.ledger import CannotRecord, ClockJumped, Ledger
from hospital_node.link import ModelMismatch
from hospital_node.session import SESSION_CODES, SessionRefused
from hospital_node.work import WorkFailed
from hospital_node.workshop import prepare_studies
from proto.layout import model_digest
from proto.plan import DECLINE_CODES
from secagg import REFUSAL_CODES

PACKAGE = Path(hospital_node.__file__).parent
PLAN = make_plan()
FIGURES = "epsilon 3.21 of 8 is spent"  # of this hospital; in sentences that must not leave


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folders = make_folders(tmp_path)
    approved_ledger(folders, PLAN)
    made = Node(folders, FakeLink(PLAN), Trainer())
    yield made
    made.end()


def listed(heading: str) -> dict[str, str]:
    """The first table below a text of the README's Refusals."""
    section = (PACKAGE / "README.md").read_text().split("## Refusals")[1].split("\n## ")[0]
    table = section.split(heading)[1].split("|---|---|\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", table, re.MULTILINE))


def test_the_readme_lists_every_code() -> None:
    assert listed("DECLINE_CODES") == DECLINE_CODES
    assert listed("SESSION_CODES") == SESSION_CODES


def test_every_code_is_raised_somewhere_and_no_other() -> None:
    code = "".join(path.read_text() for path in PACKAGE.glob("*.py"))
    for name in DECLINE_CODES.keys() | SESSION_CODES.keys():
        assert len(re.findall(f'"{name}"', code)) >= (2 if name in SESSION_CODES else 1), name
    raised = set(re.findall(r'(?:SessionRefused|OutOfPlace)\(\s*"([a-z-]+)"', code))
    assert raised - REFUSAL_CODES.keys() - DECLINE_CODES.keys() <= SESSION_CODES.keys()
    with pytest.raises(AssertionError):
        SessionRefused("because", "of no listed reason")


@pytest.mark.parametrize("error", [CannotRecord, ClockJumped])
def test_a_ledger_that_cannot_charge_is_named_without_its_figures(
    tmp_path: Path, error: type[CannotRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = make_folders(tmp_path)
    ledger = approved_ledger(folders, PLAN)
    desk, coordinator = make_desk(folders, PLAN, lambda: ledger), Rehearsal(PLAN, folders)
    desk.hold(Trainer().update, model_digest(BASE), ledger.authorize(PLAN, 1))
    order = coordinator.take_shares(desk.share(coordinator.take_advert(desk.open(coordinator.order))))

    def commit(*_: object) -> None:
        raise error(FIGURES)

    monkeypatch.setattr(Ledger, "commit", commit)
    with pytest.raises(SessionRefused) as refusal:
        desk.mask(order)
    expected = {CannotRecord: "ledger-unwritable", ClockJumped: "clock-behind"}[error]
    assert (refusal.value.code, refusal.value.detail) == (expected, DECLINE_CODES[expected])
    assert desk.holds(1, model_digest(BASE)) is False


@pytest.mark.parametrize(("error", "code"), [(CannotRecord, "ledger-unwritable"), (ClockJumped, "clock-behind")])
def test_a_ledger_that_says_no_to_a_round_is_named_without_its_figures(
    node: Node, error: type[CannotRecord], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def authorize(*_: object) -> None:
        raise error(FIGURES)

    monkeypatch.setattr(Ledger, "authorize", authorize)
    node.start()
    node.link.put(train=train_order())
    report = node.link.wait_for(1)
    assert (report.state, report.code) == (DECLINED, code)
    assert FIGURES not in str(report)


def test_a_clock_that_stands_behind_the_ledger_is_named(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    ledger = approved_ledger(folders, PLAN)
    ledger.pause("Dr Keller", "audit", datetime.fromtimestamp(NOW_S, UTC) + timedelta(days=3))
    ledger.resume("Dr Keller", "done", datetime.fromtimestamp(NOW_S, UTC) + timedelta(days=3))
    desk, coordinator = make_desk(folders, PLAN, lambda: ledger), Rehearsal(PLAN, folders)
    desk.hold(Trainer().update, model_digest(BASE), ledger.authorize(PLAN, 1))
    order = coordinator.take_shares(desk.share(coordinator.take_advert(desk.open(coordinator.order))))
    with pytest.raises(SessionRefused) as refusal:
        desk.mask(order)
    assert refusal.value.code == "clock-behind"


def test_a_model_that_is_not_the_announced_one_declines_the_round(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> None:
        raise ModelMismatch("the model that the coordinator sent does not have the announced digest")

    monkeypatch.setattr(node.link, "fetch_model", fetch)
    node.start()
    node.link.put(train=train_order())
    report = node.link.wait_for(1)
    assert (report.state, report.code) == (DECLINED, "wrong-model")
    assert node.trainer.rounds == []


def test_studies_that_cannot_be_read_decline_the_round(node: Node) -> None:
    """The data folder is empty: the real preparation says so, and the coordinator reads a code."""
    node.prepare = lambda plan, count: prepare_studies(node.folders.config, plan, count)
    node.start()
    node.link.put(train=train_order())
    report = node.link.wait_for(2)
    assert (report.state, report.code) == (DECLINED, "data-unusable")
    assert str(node.folders.root) not in str(report)


def test_the_codes_of_work_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="not one of"):
        WorkFailed("because", "of no listed reason")


def test_a_session_without_this_node_is_no_roster_of_its_plan(tmp_path: Path) -> None:
    folders: Folders = make_folders(tmp_path)
    ledger = approved_ledger(folders, PLAN)
    desk, coordinator = make_desk(folders, PLAN, lambda: ledger), Rehearsal(PLAN, folders)
    desk.hold(Trainer().update, model_digest(BASE), ledger.authorize(PLAN, 1))
    order = coordinator.open()
    del order.members[[member.uri for member in order.members].index(ME)]
    with pytest.raises(SessionRefused, match="does not list") as refusal:
        desk.open(order)
    assert refusal.value.code == "wrong-roster"
    assert desk.holds(1, model_digest(BASE))
