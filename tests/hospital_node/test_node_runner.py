"""The node at work against a link without sockets: one round, declines, losses, restarts, and a stop at any moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_world import (
    BASE,
    EVALUATOR,
    LAYOUT,
    ME,
    NOW_S,
    Counter,
    FakeLink,
    Folders,
    Rehearsal,
    Trainer,
    approve,
    approved_ledger,
    make_folders,
    make_plan,
    make_workshop,
    train_order,
    until,
    uri,
    words_of,
)
from structlog.testing import capture_logs

import secagg.node
from certs.peers import PeerList, load_peers, write_peers
from hospital_node import loop, runner
from hospital_node.config import ConfigError
from hospital_node.ledger import Charge, Ledger
from hospital_node.link import LinkRefused
from hospital_node.local_training import moment
from hospital_node.progress import read_leaves, read_progress
from hospital_node.runner import run_with
from hospital_node.state import StateError
from hospital_node.work import WorkFailed
from proto import federation_pb2 as pb
from proto.layout import model_digest
from proto.plan import PlanError
from secagg import Door

TRAINING, READY, DECLINED, FAILED = (
    pb.NodeReport.TRAINING,
    pb.NodeReport.READY,
    pb.NodeReport.DECLINED,
    pb.NodeReport.FAILED,
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(loop, "LONGEST_WAIT_S", 0.01)


@dataclass
class Node:
    """A node in a thread, and the link that it talks over."""

    folders: Folders
    link: FakeLink
    trainer: Trainer
    stop: threading.Event = field(default_factory=threading.Event)
    prepare: Callable[..., Any] | None = None
    clock: Callable[[], float] = lambda: NOW_S
    future: Future[None] = field(default_factory=Future)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))

    def start(self) -> None:
        self.future = self.pool.submit(
            run_with,
            self.folders.config,
            make_workshop(self.trainer, self.prepare),
            dial=lambda _config, _meter: self.link,
            clock=self.clock,
            rand=Counter(),
            stop=self.stop,
        )

    def end(self) -> None:
        """Stop it; what it raised is in `error`."""
        self.stop.set()
        wait([self.future], 120)
        assert self.future.done()

    @property
    def error(self) -> BaseException | None:
        return self.future.exception() if self.future.done() else None

    def restart(self) -> None:
        """Power off and on: another process with the same folders. The coordinator gives its last order again."""
        self.end()
        self.stop = threading.Event()
        self.start()

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.folders.state.ledger)

    @property
    def charges(self) -> list[Charge]:
        return [event.entry for event in self.ledger.events() if isinstance(event.entry, Charge)]

    @property
    def phase(self) -> str:
        shown = read_progress(self.folders.state.progress)
        return "" if shown is None else shown.phase


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


@pytest.fixture
def node(folders: Folders) -> Iterator[Node]:
    plan = make_plan()
    approved_ledger(folders, plan)
    made = Node(folders, FakeLink(plan), Trainer())
    yield made
    if made.future.running() or made.future.done():
        made.end()


def play(node: Node, coordinator: Rehearsal, first: int) -> list[Any]:
    """A whole session; `first` is the number of the next thing that the node sends. Returns the parts of the upload."""
    link = node.link
    link.put(open=coordinator.order)
    link.put(share=coordinator.take_advert(link.wait_for(first)))
    link.put(mask=coordinator.take_shares(link.wait_for(first + 1)))
    parts = link.wait_for(first + 2)
    link.put(confirm=coordinator.take_upload(words_of(parts)))
    link.put(reveal=coordinator.take_confirmation(link.wait_for(first + 3)))
    link.put(result=coordinator.take_revealed(link.wait_for(first + 4)))
    return list(parts)


def test_a_whole_round_gives_the_right_sum_and_is_charged_once(node: Node) -> None:
    node.start()
    node.link.put(train=train_order())
    training, ready = node.link.wait_for(1), node.link.wait_for(2)
    assert (training.state, ready.state, ready.base_digest) == (TRAINING, READY, model_digest(BASE))
    coordinator = Rehearsal(make_plan(), node.folders)
    parts = play(node, coordinator, 3)
    assert parts[0].WhichOneof("part") == "header"
    assert parts[-1].WhichOneof("part") == "trailer"
    expected = np.mean([node.trainer.update, *(peer.update for peer in coordinator.peers)], axis=0)
    assert np.allclose(coordinator.opened.mean, expected, atol=2e-6)
    until(lambda: any(event.kind == "verified" for event in node.ledger.events()))
    node.link.put(finished=pb.Finished(reason="all rounds are done"))
    until(lambda: node.phase == "finished")
    node.end()
    assert node.error is None
    assert [charge.round for charge in node.charges] == [1]


def test_the_fastest_door_is_chosen_and_logged_once_and_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Door] = []
    masks = secagg.node.PackedUpload

    def watched(*arguments: Any) -> Any:
        made.append(arguments[-1])
        return masks(*arguments)

    monkeypatch.setattr(secagg.node, "PackedUpload", watched)
    plan, sent = make_plan(), set()
    for door in Door:
        monkeypatch.setattr(runner, "faster_door", lambda clock_s, door=door: door if clock_s() >= 0 else None)
        made.clear()
        folders = make_folders(tmp_path / door.value)
        approved_ledger(folders, plan)
        node = Node(folders, FakeLink(plan), Trainer())
        with capture_logs() as lines:
            node.start()
            node.link.put(train=train_order())
            node.link.wait_for(2)
            sent.add(words_of(play(node, Rehearsal(plan, folders), 3)))
            node.end()
        assert [line["door"] for line in lines if "door" in line] == [door.value]
        assert made[0] is door
    assert len(sent) == 1


def test_the_app_finds_whose_folder_it_is_the_plan_and_what_left(node: Node) -> None:
    node.start()
    until(lambda: node.link.joins == 1)
    node.link.put(finished=pb.Finished(reason="over"))
    until(lambda: node.phase == "finished")
    node.end()
    state = node.folders.state
    assert state.read_plan() == make_plan()
    assert b'"name":"h0"' in state.node.read_bytes()
    leaves = read_leaves(state.leaves)
    assert leaves is not None
    assert leaves.study == "lidc"


def test_training_goes_on_while_orders_come(node: Node) -> None:
    node.trainer.gate = threading.Event()
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(1)
    node.link.put(wait=pb.Wait(reason="patience"))
    until(lambda: node.phase == "training")
    node.trainer.gate.set()
    assert node.link.wait_for(2).state == READY
    until(lambda: node.phase == "ready")


def test_a_stop_ends_training_after_its_step_and_charges_nothing(node: Node) -> None:
    node.trainer.gate = threading.Event()
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(1)
    node.end()
    assert node.error is None
    assert node.charges == []


def test_a_newer_round_replaces_the_one_in_training(node: Node) -> None:
    node.trainer.gate = threading.Event()
    node.start()
    node.link.put(train=train_order(1))
    node.link.wait_for(1)
    node.link.put(train=train_order(2))
    assert node.link.wait_for(2).round == 2
    node.trainer.gate.set()
    ready = node.link.wait_for(3)
    assert (ready.round, ready.state) == (2, READY)


def test_the_same_order_while_training_does_not_begin_again(node: Node) -> None:
    node.trainer.gate = threading.Event()
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(1)
    node.link.put(train=train_order())
    assert node.link.wait_for(2).state == TRAINING
    node.trainer.gate.set()
    assert node.link.wait_for(3).state == READY
    assert node.trainer.rounds == [1]


def test_preparation_in_the_background_does_not_hide_what_came_after(node: Node) -> None:
    gate = threading.Event()

    def prepare(plan: Any, count: Any) -> Any:
        gate.wait(120)
        return ()

    node.prepare = prepare
    node.start()
    node.ledger.pause("Dr Keller", "holidays", datetime.fromtimestamp(NOW_S, UTC))
    node.link.put(train=train_order())
    assert node.link.wait_for(1).code == "paused"
    gate.set()
    node.link.put(finished=pb.Finished(reason="over"))
    node.future.result(120)
    assert node.phase == "finished"


def test_training_from_another_model_than_named_is_not_released(node: Node) -> None:
    node.trainer.base_digest = bytes(32)
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(2).state == FAILED


def test_the_same_order_again_does_not_train_again(node: Node) -> None:
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(2).state == READY
    node.link.put(train=train_order())
    assert node.link.wait_for(3).state == READY
    assert node.trainer.rounds == [1]


# ---- declines ----


def test_a_plan_that_nobody_approved_is_declined_until_somebody_does(folders: Folders) -> None:
    plan = make_plan()
    node = Node(folders, FakeLink(plan), Trainer())
    node.start()
    try:
        node.link.put(train=train_order())
        declined = node.link.wait_for(1)
        assert (declined.state, declined.code) == (DECLINED, "not-approved")
        until(lambda: node.phase == "declined")
        approve(node.ledger, plan)
        node.link.put(wait=pb.Wait(reason="long poll over"))
        assert [node.link.wait_for(number).state for number in (2, 3)] == [TRAINING, READY]
    finally:
        node.end()
    assert node.error is None


def test_an_approval_of_another_plan_is_none(folders: Folders) -> None:
    approved_ledger(folders, make_plan(rounds=6))
    node = Node(folders, FakeLink(make_plan(rounds=5)), Trainer())
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(1).code == "not-approved"
    node.end()


def test_the_cap_stops_the_node_by_itself(folders: Folders) -> None:
    plan = make_plan(sigma=1.0)
    approved_ledger(folders, plan, epsilon=0.1)
    node = Node(folders, FakeLink(plan), Trainer())
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(1).code == "budget-exhausted"
    node.end()
    assert node.trainer.rounds == []
    shown = read_progress(folders.state.progress)
    assert shown is not None
    assert "cap of 0.1" in shown.sentence


def test_a_paused_node_declines_and_goes_on_when_resumed(node: Node) -> None:
    now = datetime.fromtimestamp(NOW_S, UTC)
    node.ledger.pause("Dr Keller", "holidays", now)
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(1).code == "paused"
    until(lambda: node.phase == "paused")
    node.ledger.resume("Dr Keller", "back", now)
    node.link.put(wait=pb.Wait(reason="long poll over"))
    assert node.link.wait_for(2).state == TRAINING


def test_a_damaged_ledger_stops_training_and_is_named(node: Node) -> None:
    path = node.folders.state.ledger
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(1).code == "ledger-damaged"
    node.end()
    assert node.trainer.rounds == []


def test_peers_that_nobody_confirmed_are_a_matter_of_policy(node: Node) -> None:
    path = node.folders.root / "peers.toml"
    write_peers(path, PeerList(tuple(peer for peer in load_peers(path).peers if peer.uri in {ME, uri("h1")})))
    node.start()
    node.link.put(train=train_order())
    declined = node.link.wait_for(1)
    assert (declined.state, declined.code) == (DECLINED, "policy")


def test_a_training_that_fails_is_reported_without_its_reason(node: Node) -> None:
    node.trainer.error = WorkFailed("training-failed", "the trained model is not finite")
    node.start()
    node.link.put(train=train_order())
    failed = node.link.wait_for(2)
    assert (failed.state, failed.code) == (FAILED, "training-failed")
    until(lambda: node.phase == "failed")
    assert node.charges == []


def test_a_training_that_failed_is_not_tried_again_in_its_round(node: Node) -> None:
    """Whether it failed may depend on the patients: trying until it succeeds would release what no epsilon counts."""
    node.trainer.error = WorkFailed("training-failed", "the trained model is not finite")
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(2).state == FAILED
    node.trainer.error = None
    node.link.put(train=train_order())
    again = node.link.wait_for(3)
    assert (again.state, again.code, again.round) == (FAILED, "training-failed", 1)
    assert node.trainer.rounds == [1]
    node.link.put(train=train_order(2))
    assert [node.link.wait_for(number).state for number in (4, 5)] == [TRAINING, READY]
    assert node.trainer.rounds == [1, 2]


@pytest.mark.parametrize("error", [None, WorkFailed("training-failed", "the trained model is not finite")])
def test_neither_success_nor_failure_is_reported_before_the_plans_moment(folders: Folders, error: WorkFailed | None) -> None:
    plan = make_plan(ready_after_s=3600)
    approved_ledger(folders, plan)
    ended = threading.Event()

    class Ending(Trainer):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            try:
                return super().__call__(*arguments, **options)
            finally:
                ended.set()

    node = Node(folders, FakeLink(plan), Ending(error=error))
    node.start()
    node.link.put(train=train_order())
    assert ended.wait(120)
    node.link.put(wait=pb.Wait(reason="long poll over"))
    node.link.put(finished=pb.Finished(reason="over"))
    node.future.result(120)  # it gives the round up at once, however long the moment was away
    assert [report.state for report in node.link.sent] == [TRAINING]


@given(begun_s=st.floats(0, 2e9), took_s=st.floats(0, 1e5), every_s=st.floats(1, 1e5))
def test_only_whole_periods_show(begun_s: float, took_s: float, every_s: float) -> None:
    """Two trainings that end within one period are reported at one moment, which is neither before their end nor long after."""
    reported_s = moment(begun_s, begun_s + took_s, every_s)
    periods = (reported_s - begun_s) / every_s
    assert periods == pytest.approx(round(periods), abs=1e-4)
    assert round(periods) >= 1
    assert -1e-6 <= reported_s - (begun_s + took_s) <= every_s + 1e-3
    assert moment(begun_s, begun_s + took_s, 0.0) == begun_s + took_s


def test_preparing_counts_towards_the_plans_moment(folders: Folders) -> None:
    """How long the studies took to prepare follows the number of patients."""
    plan = make_plan(ready_after_s=3600)
    approved_ledger(folders, plan)
    node, now_s = Node(folders, FakeLink(plan), Trainer()), [NOW_S]

    def prepare(plan: Any, count: Any) -> Any:
        until(lambda: len(node.link.sent) == 1)  # the order is here
        now_s[0] += 3600.0
        return ()

    node.prepare, node.clock = prepare, lambda: now_s[0]
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(2).state == READY, "the hour of preparing was the hour of the plan"
    node.end()


def test_too_many_unreadable_studies_decline_and_are_read_again_in_the_next_round(node: Node) -> None:
    tries: list[int] = []

    def prepare(plan: Any, count: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise WorkFailed("too-few-patients", "9 of 10 studies cannot be used")
        return ()

    node.prepare = prepare
    node.start()
    node.link.put(train=train_order(1))
    declined = node.link.wait_for(2)
    assert (declined.state, declined.code) == (DECLINED, "too-few-patients")
    node.link.put(train=train_order(2))
    assert [node.link.wait_for(number).state for number in (3, 4)] == [TRAINING, READY]


def test_a_model_of_another_size_is_not_trained_on(node: Node) -> None:
    node.trainer.update = np.zeros(LAYOUT.length + 1, np.float32)
    node.start()
    node.link.put(train=train_order())
    assert node.link.wait_for(2).state == FAILED


# ---- losses and restarts ----


@pytest.mark.parametrize("call", ["report", "answer", "upload", "fetch"])
def test_a_lost_connection_ends_nothing(node: Node, call: str) -> None:
    node.link.lose = [call]
    node.start()
    node.link.put(train=train_order())
    link, coordinator = node.link, Rehearsal(make_plan(), node.folders)

    def next_of(kind: type | str) -> Any:
        """The next thing of this kind; what a loss made the node send again must be the same."""

        def matches(item: Any) -> bool:
            if kind == "ready":
                return isinstance(item, pb.NodeReport) and item.state == READY
            if kind == "upload":
                return isinstance(item, list)
            return isinstance(item, pb.PhaseAnswer) and item.WhichOneof("answer") == kind

        until(lambda: any(matches(item) for item in list(link.sent)))
        return next(item for item in link.sent if matches(item))

    next_of("ready")
    link.put(open=coordinator.order)
    link.put(share=coordinator.take_advert(next_of("advert")))
    link.put(mask=coordinator.take_shares(next_of("shares")))
    link.put(confirm=coordinator.take_upload(words_of(next_of("upload"))))
    link.put(reveal=coordinator.take_confirmation(next_of("confirmation")))
    link.put(result=coordinator.take_revealed(next_of("revealed")))
    until(lambda: any(event.kind == "verified" for event in node.ledger.events()))
    assert link.joins == 2
    assert len(node.charges) == 1
    assert node.trainer.rounds == [1]
    uploads = [item for item in link.sent if isinstance(item, list)]
    assert all(upload == uploads[0] for upload in uploads)
    adverts = [item.advert for item in link.sent if isinstance(item, pb.PhaseAnswer) and item.WhichOneof("answer") == "advert"]
    assert len(adverts) == (2 if call == "answer" else 1)
    assert all(advert == adverts[0] for advert in adverts)


def test_a_restart_before_the_release_trains_again(node: Node) -> None:
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(2)
    node.restart()
    assert node.link.wait_for(4).state == READY
    assert node.trainer.rounds == [1, 1]


def test_a_restart_after_the_release_sits_the_round_out(node: Node) -> None:
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(2)
    coordinator = Rehearsal(make_plan(), node.folders)
    node.link.put(open=coordinator.order)
    node.link.put(share=coordinator.take_advert(node.link.wait_for(3)))
    node.link.put(mask=coordinator.take_shares(node.link.wait_for(4)))
    confirm = coordinator.take_upload(words_of(node.link.wait_for(5)))
    node.end()
    sent = len(node.link.sent)
    node.link.box = []
    node.link.put(confirm=confirm)
    node.link.put(train=train_order())
    node.stop = threading.Event()
    node.start()
    refusal = node.link.wait_for(sent + 1)
    assert refusal.refusal.code == "unknown-session"
    declined = node.link.wait_for(sent + 2)
    assert (declined.state, declined.code) == (DECLINED, "already-released")
    assert len(node.charges) == 1
    assert node.trainer.rounds == [1]


def test_a_refusal_names_code_and_culprit_and_the_node_goes_on(node: Node) -> None:
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(2)
    coordinator = Rehearsal(make_plan(), node.folders)
    order = coordinator.open()
    order.members[1].weight = 9
    node.link.put(open=order)
    refusal = node.link.wait_for(3).refusal
    assert (refusal.code, refusal.culprit) == ("wrong-roster", "unknown")
    play(node, coordinator, 4)
    until(lambda: any(event.kind == "verified" for event in node.ledger.events()))


def test_another_plan_drops_the_update_of_the_old_one(node: Node) -> None:
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(2)
    node.link.reply.plan = make_plan(rounds=9).canonical()
    node.link.lose = ["answer"]
    coordinator = Rehearsal(make_plan(), node.folders)
    node.link.put(open=coordinator.order)
    node.link.wait_for(3)
    until(lambda: node.link.joins == 2)
    node.link.put(open=coordinator.order)
    refusal = node.link.wait_for(4).refusal
    assert refusal.code == "no-update"


# ---- mistakes that end a node, each with one sentence ----


def ends_with(node: Node, kind: type[Exception], text: str) -> None:
    node.start()
    error = node.future.exception(120)
    assert isinstance(error, kind)
    assert text in str(error)
    assert "\n" not in str(error)


def test_a_coordinator_that_sees_somebody_else(node: Node) -> None:
    node.link.reply.identity = uri("h1")
    ends_with(node, LinkRefused, "the coordinator sees this node as")


def test_another_protocol_version(node: Node) -> None:
    node.link.reply.protocol_version = 99
    ends_with(node, LinkRefused, "update the older of the two")


def test_a_plan_without_this_hospital(node: Node) -> None:
    fields = make_plan().model_dump(mode="json")
    fields["hospitals"] = [one for one in fields["hospitals"] if one["uri"] != ME]
    node.link.reply.plan = type(make_plan()).model_validate(fields).canonical()
    ends_with(node, PlanError, "ask the coordinator to add it")


def test_a_plan_in_another_form(node: Node) -> None:
    node.link.reply.plan = node.link.reply.plan + b" "
    ends_with(node, PlanError, "canonical form")


def test_a_second_process_on_the_same_folder(node: Node) -> None:
    node.start()
    until(lambda: node.link.joins == 1)
    second = Node(node.folders, node.link, Trainer())
    ends_with(second, StateError, "another node process uses")
    second.end()


def test_the_identity_of_an_evaluator_is_no_hospitals(node: Node) -> None:
    text = node.folders.config_file.read_text().replace('identity = "h0"', 'identity = "public"')
    node.folders.config_file.write_text(text)
    ends_with(node, ConfigError, f"{EVALUATOR}, which is not a hospital")
