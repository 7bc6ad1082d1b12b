"""The page of decisions: the cost before the button, a name and a reason with every decision, and what people did, verified."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from deciding_world import node_of, running_node
from streamlit import config
from streamlit.testing.v1 import AppTest
from test_ui_pages import banner, metrics, tables, text
from worlds import World, make_plan, uri

from certs.audit_file import AuditLog
from hospital_node.ledger import Ledger
from proto.control import Answer, coordinator_request
from proto.control_socket import listening


@pytest.fixture(autouse=True)
def _local() -> Iterator[None]:
    before = config.get_option("server.address")
    config.set_option("server.address", "127.0.0.1")
    yield
    config.set_option("server.address", before)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A plan on offer at lakeside, which nobody has approved."""
    made = World(tmp_path, make_plan(6, names=("lakeside", "nordklinik", "st-anna")))
    node_of(made, "lakeside")
    return made


def at_lakeside(world: World) -> list[str]:
    return world.arguments(coordinator=False, hospitals=["lakeside"])


def press(app: AppTest, label: str) -> AppTest:
    return next(button for button in app.button if button.label == label).click().run()


def fill(app: AppTest, key: str, name: str, reason: str) -> None:
    """Into the fields of a form; once it was taken, the next form's have another key."""
    for field, said in (("by", name), ("reason", reason)):
        next(one for one in app.text_input if str(one.key).startswith(f"{field}-{key}")).input(said)


def test_the_cost_stands_before_the_button_and_follows_the_cap(open_page, world) -> None:
    app = open_page(at_lakeside(world), "decisions")
    assert "waits for a decision" in banner(app)
    assert "all 6 rounds that are left fit" in banner(app)
    assert metrics(app)["Spent so far"] == "nothing"
    assert metrics(app)["After round 1"] == "ε 3.14"
    app.number_input(key="cap-lakeside").set_value(4.5).run()
    assert "stops by itself after round 2" in banner(app)
    assert metrics(app)["At the end"] == "ε 4.13"
    app.number_input(key="cap-lakeside").set_value(0.5).run()
    assert "not even one round fits" in banner(app)
    assert "cost of all rounds" in tables(app)


def test_without_a_running_node_nothing_can_be_pressed(open_page, world) -> None:
    app = open_page(at_lakeside(world), "decisions")
    assert "The node of lakeside does not run" in banner(app)
    assert app.button
    assert all(button.disabled for button in app.button)


def test_an_approval_is_made_by_the_node_and_recorded(open_page, world) -> None:
    with running_node(world, "lakeside"):
        app = open_page(at_lakeside(world), "decisions")
        app.number_input(key="cap-lakeside").set_value(5.0).run()
        fill(app, "approve-lakeside", "Dr K. Weber", "board decision 12")
        press(app, "Approve this plan")
        assert "Approved by Dr K. Weber" in banner(app)
        assert "is approved" in banner(app)
        assert "board decision 12" in tables(app)
        assert "ledger entry 2" in tables(app)
        assert {field.value for field in app.text_input} == {""}  # pressed once more it would be refused
    ledger = Ledger.open(world.state("lakeside") / "ledger.db")
    approved = ledger.approval(world.plan)
    assert approved is not None
    assert (approved.by, approved.cap.epsilon) == ("Dr K. Weber", 5.0)


@pytest.mark.parametrize(("name", "reason"), [("", "because"), ("Dr K. Weber", "  ")])
def test_without_a_name_or_a_reason_nothing_is_decided(open_page, world, name: str, reason: str) -> None:
    with running_node(world, "lakeside"):
        app = open_page(at_lakeside(world), "decisions")
        fill(app, "approve-lakeside", name, reason)
        press(app, "Approve this plan")
        assert "is empty: a decision is recorded with a name and a reason" in banner(app)
    assert not (world.state("lakeside") / "ledger.db").exists()


def test_raising_the_cap_needs_a_second_person(open_page, world) -> None:
    world.approve("lakeside", cap=3.0)
    with running_node(world, "lakeside"):
        app = open_page(at_lakeside(world), "decisions")
        app.number_input(key="cap-lakeside").set_value(6.0).run()
        assert "two different people have to agree" in text(app)
        fill(app, "approve-lakeside", "Dr K. Weber", "more rounds")
        press(app, "Approve this plan")
        assert "needs two different people" in banner(app)
        assert "tried to approve the plan; refused" in tables(app)
        app.number_input(key="cap-lakeside").set_value(6.0).run()
        app.text_input(key="second-lakeside").input("Dr L. Lind")
        fill(app, "approve-lakeside", "Dr K. Weber", "more rounds")
        press(app, "Approve this plan")
        assert "Approved by Dr K. Weber" in banner(app)
    assert Ledger.open(world.state("lakeside") / "ledger.db").cap.epsilon == 6.0


def test_a_plan_without_noise_is_agreed_to_only_by_saying_so(open_page, tmp_path) -> None:
    world = World(tmp_path, make_plan(3, noise=0.0))
    with running_node(world, "lakeside"):
        app = open_page(at_lakeside(world), "decisions")
        assert "Approving gives no guarantee to any patient" in banner(app)
        fill(app, "approve-lakeside", "Dr K. Weber", "synthetic")
        press(app, "Approve this plan")
        assert "there is no guarantee for any patient" in banner(app)
        for box in app.checkbox:
            box.check()
        fill(app, "approve-lakeside", "Dr K. Weber", "synthetic")
        press(app, "Approve this plan")
        assert "without any guarantee" in banner(app)


def test_a_hospital_is_paused_and_goes_on(open_page, world) -> None:
    world.approve("lakeside")
    with running_node(world, "lakeside"):
        app = open_page(at_lakeside(world), "decisions")
        fill(app, "pause-lakeside", "Dr K. Weber", "a question")
        press(app, "Pause this hospital")
        assert "This hospital is paused" in banner(app)
        fill(app, "pause-lakeside", "Dr K. Weber", "answered")
        press(app, "Let it go on")
        assert "is approved" in banner(app)
    assert [one.action.kind for one in AuditLog.within(world.state("lakeside")).read()] == ["pause", "resume"]


def test_a_damaged_audit_log_is_named(open_page, world) -> None:
    with running_node(world, "lakeside"):
        app = open_page(at_lakeside(world), "decisions")
        fill(app, "approve-lakeside", "Dr K. Weber", "board")
        press(app, "Approve this plan")
    log = AuditLog.within(world.state("lakeside"))
    log.path.write_bytes(log.path.read_bytes().replace(b"board", b"bored"))
    assert "line 1 of the audit log" in banner(open_page(at_lakeside(world), "decisions"))


def test_rounds_are_held_back_and_one_is_ended_at_the_coordinator(open_page, tmp_path) -> None:
    world = World(tmp_path, make_plan(6))
    world.start()
    world.begin(1)
    asked: list[tuple[str, str, str]] = []

    def coordinator(data: bytes) -> Answer:
        request = coordinator_request(data)
        asked.append((request.action, request.by, request.reason))
        return Answer(done=True, sentence=f"Paused by {request.by}: no further round is opened; round 1 goes on to its end.")

    with listening(world.coordinator, coordinator):
        app = open_page(world.arguments(hospitals=[]), "decisions")
        fill(app, "rounds", "Dr B. Okoro", "maintenance")
        press(app, "Open no further round")
        assert "Paused by Dr B. Okoro" in banner(app)
        fill(app, "abort", "Dr B. Okoro", "wrong scanner")
        press(app, "End round 1")
    assert asked == [("pause", "Dr B. Okoro", "maintenance"), ("abort", "Dr B. Okoro", "wrong scanner")]
    with world.store() as store, store.batch() as batch:
        batch.status("Round 2 · paused by Dr B. Okoro: maintenance", "")
    assert "No further round is opened" in banner(open_page(world.arguments(hospitals=[]), "decisions"))


def test_from_another_machine_nothing_is_decided(open_page, world) -> None:
    config.set_option("server.address", "192.0.2.7")
    app = open_page(at_lakeside(world), "decisions")
    assert "only where the app listens on this machine's own address" in banner(app)
    assert not app.button


def test_a_folder_without_a_node_is_asked_nothing(open_page, world) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(world.state("lakeside") / "control.sock"))
    app = open_page(at_lakeside(world), "decisions")
    assert "does not run" in banner(app)
    assert uri("lakeside") not in text(app)
