"""`secagg-node leave`: the node ends the round that it is in, says goodbye and stops; nothing is cut off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_world import FakeLink, Folders, Rehearsal, Trainer, approved_ledger, make_folders, make_plan, train_order, until
from test_node_runner import Node, play
from typer.testing import CliRunner

from certs.audit_file import AuditLog
from hospital_node import loop
from hospital_node.cli import app, main
from hospital_node.memory import Memory
from proto import federation_pb2 as pb
from proto.control import Leave
from proto.control_socket import ask, runs

LEAVE = Leave(by="Dr Keller", reason="the scanner moves house")
LEFT, READY, TRAINING = pb.NodeReport.LEFT, pb.NodeReport.READY, pb.NodeReport.TRAINING


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


@pytest.fixture
def node(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(loop, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(loop, "LONGEST_WAIT_S", 0.01)
    plan = make_plan()
    approved_ledger(folders, plan)
    made = Node(folders, FakeLink(plan), Trainer())
    yield made
    made.end()


def leave(node: Node) -> str:
    """By the control socket, as the command does."""
    until(lambda: runs(node.folders.state.path))
    said = ask(node.folders.state.path, LEAVE, "the node")
    assert said.done
    return said.sentence


def test_a_node_that_waits_says_goodbye_and_stops_at_once(node: Node) -> None:
    node.start()
    until(lambda: node.phase == "waiting")
    assert leave(node) == "Asked by Dr Keller: the node ends the round that it is in, says goodbye and stops."
    assert node.link.wait_for(1).state == LEFT
    until(node.future.done)
    assert (node.error, node.phase) == (None, "left")
    (record,) = AuditLog.within(node.folders.state.path).read()
    assert (record.action.by, record.action.kind, record.action.reason) == ("Dr Keller", "leave", "the scanner moves house")


def test_a_round_under_way_is_ended_first_and_its_update_is_in_the_sum(node: Node) -> None:
    node.trainer.gate = threading.Event()
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(1).state == TRAINING
    leave(node)
    node.trainer.gate.set()
    assert node.link.wait_for(2).state == READY
    play(node, Rehearsal(make_plan(), node.folders), first=3)
    until(node.future.done)
    goodbye = node.link.sent[-1]
    assert isinstance(goodbye, pb.NodeReport)
    assert (goodbye.state, node.phase, node.error) == (LEFT, "left", None)
    assert [event.kind for event in node.ledger.events()][-2:] == ["charge", "verified"]
    assert node.trainer.rounds == [1]


def test_a_node_hands_pages_back_after_every_order(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[str] = []
    monkeypatch.setattr(Memory, "trim", lambda _: trims.append(node.phase))
    node.start()
    node.link.put(wait=pb.Wait())
    until(lambda: len(trims) == 1)
    node.link.put(train=train_order())
    until(lambda: len(trims) == 2)


def test_an_order_that_comes_with_the_goodbye_is_not_begun(node: Node) -> None:
    node.start()
    until(lambda: node.phase == "waiting")
    leave(node)
    node.link.put(train=train_order())
    until(node.future.done)
    assert node.trainer.rounds == []
    assert [one.state for one in node.link.sent] == [LEFT]


def test_without_a_connection_it_stops_without_a_word(node: Node) -> None:
    node.start()
    until(lambda: node.phase == "waiting")
    node.link.lose = ["report"] * 2  # the goodbye took effect, and nobody said so
    leave(node)
    until(node.future.done)
    assert node.error is None
    assert {report.state for report in node.link.sent} == {LEFT}


def test_a_node_that_does_not_run_cannot_leave(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    folders.state.create()
    arguments = ["leave", "--config", str(folders.config_file), "--by", "Dr Keller", "--reason", "moves house"]
    assert main(arguments) == 2
    assert "the node does not run: start it, and ask again; nothing was changed" in " ".join(capsys.readouterr().err.split())


def test_the_command_asks_the_node_that_runs(node: Node) -> None:
    node.start()
    until(lambda: runs(node.folders.state.path))
    arguments = ["leave", "--config", str(node.folders.config_file), "--by", "Dr Keller", "--reason", "moves house"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert "says goodbye and stops" in done.output
    until(node.future.done)
    assert node.phase == "left"
