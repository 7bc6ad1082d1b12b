"""The evaluator: measures what it is told to, on public cases only, and says so once the numbers were taken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node_world import (
    BASE,
    EVALUATOR,
    LAYOUT,
    NOW_S,
    Counter,
    FakeLink,
    Folders,
    Trainer,
    make_folders,
    make_plan,
    make_workshop,
)

from hospital_node import loop, measuring
from hospital_node.config import ConfigError, load_config
from hospital_node.evaluator import evaluate_with, measurement_of
from hospital_node.link import LinkLost, LinkRefused, OrderStale
from hospital_node.measuring import said_meanwhile
from hospital_node.prepared import PreparedCase, PreparedPatient
from hospital_node.progress import read_progress
from hospital_node.state import StateFolder
from hospital_node.work import Scored, WorkFailed
from proto import federation_pb2 as pb
from proto.layout import model_digest
from proto.plan import Network, PlanError


def patients(count: int = 2) -> tuple[PreparedPatient, ...]:
    label = np.zeros((4, 5, 6), np.uint8)
    label[2, 1:3, 1:3] = 1
    image = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    return tuple(PreparedPatient(str(number), (PreparedCase(image, label),)) for number in range(count))


@dataclass
class Running:
    folders: Folders
    link: FakeLink
    stop: threading.Event = field(default_factory=threading.Event)
    future: Future[None] = field(default_factory=Future)
    prepared: list[int] = field(default_factory=list)
    fails: bool = False
    config_name: str = "evaluator.toml"

    def prepare(self, plan: Any, count: Any) -> Any:
        self.prepared.append(1)
        if self.fails:
            raise WorkFailed("too-few-patients", "nothing can be read")
        count(1, 2)
        return patients()

    def start(self) -> None:
        self.future = ThreadPoolExecutor(max_workers=1).submit(
            evaluate_with,
            load_config(self.folders.root / self.config_name),
            make_workshop(Trainer(), self.prepare),
            dial=lambda _config, _meter: self.link,
            clock=lambda: NOW_S,
            rand=Counter(),
            stop=self.stop,
        )

    def end(self) -> None:
        self.stop.set()
        wait([self.future], 120)
        assert self.future.done()

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.folders.root / "state-public")


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(loop, "FIRST_WAIT_S", 0.001)
    made = Running(make_folders(tmp_path), FakeLink(make_plan(), EVALUATOR))
    yield made
    made.end()


def order(round_number: int = 1) -> pb.Evaluate:
    return pb.Evaluate(round=round_number, model_digest=model_digest(BASE), model_bytes=4 * LAYOUT.length)


def test_every_model_is_measured_on_cases_that_are_prepared_once(running: Running) -> None:
    running.start()
    running.link.put(evaluate=order(0))
    running.link.put(evaluate=order(1))
    first, second = running.link.wait_for(1), running.link.wait_for(2)
    assert [(one.round, one.model_digest) for one in (first, second)] == [(0, model_digest(BASE)), (1, model_digest(BASE))]
    assert [(score.label, list(score.per_case)) for score in first.scores] == [("nodule", [0.5, 0.5])]
    assert running.prepared == [1]
    running.link.put(finished=pb.Finished(reason="over"))
    assert running.future.exception(120) is None
    shown = read_progress(running.state.progress)
    assert shown is not None
    assert shown.phase == "finished"


def test_a_picture_of_one_public_case_is_kept(running: Running) -> None:
    running.start()
    running.link.put(evaluate=order(3))
    running.link.wait_for(1)
    with np.load(running.state.prediction) as picture:
        assert picture["image"].shape == picture["truth"].shape == picture["prediction"].shape == (5, 6)
        assert picture["truth"].sum() == 4
        assert int(picture["round"]) == 3


def test_a_measurement_that_was_lost_is_made_again(running: Running) -> None:
    running.link.lose = ["measure"]
    running.start()
    running.link.put(evaluate=order())
    assert running.link.wait_for(2) == running.link.wait_for(1)
    assert running.link.joins == 2


def test_public_cases_that_cannot_be_read_end_the_evaluator_with_a_sentence(running: Running) -> None:
    running.fails = True
    running.start()
    running.link.put(evaluate=order())
    assert str(running.future.exception(120)) == "nothing can be read"


def test_a_hospitals_identity_does_not_evaluate(running: Running) -> None:
    running.config_name = "node.toml"
    running.start()
    assert isinstance(running.future.exception(120), ConfigError)


def test_an_evaluator_that_the_plan_does_not_name(running: Running) -> None:
    fields = make_plan().model_dump(mode="json") | {"evaluators": []}
    running.link.reply.plan = type(make_plan()).model_validate(fields).canonical()
    running.start()
    assert isinstance(running.future.exception(120), PlanError)


def test_a_label_that_no_truth_holds_is_left_out_for_that_case() -> None:
    plan = make_plan().model_copy(update={"network": Network(labels=("anterior", "posterior"))})
    empty = np.zeros((1, 1, 1), np.uint8)
    scored = [Scored({"anterior": 0.5, "posterior": None}, empty), Scored({"anterior": 0.75, "posterior": 0.25}, empty)]
    message = measurement_of(order(), plan, scored)
    assert [(score.label, list(score.per_case)) for score in message.scores] == [
        ("anterior", [0.5, 0.75]),
        ("posterior", [0.25]),
    ]


def test_while_it_measures_the_evaluator_says_that_it_is_at_work(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LONGEST_S", 0.001)
    prepare = running.prepare

    def slowly(plan: Any, count: Any) -> Any:
        running.link.wait_for(3)
        return prepare(plan, count)

    monkeypatch.setattr(running, "prepare", slowly)
    running.start()
    running.link.put(evaluate=order(7))
    running.link.put(finished=pb.Finished(reason="over"))
    assert running.future.exception(120) is None
    *said, numbers = running.link.sent
    assert {(one.round, one.state) for one in said} == {(7, pb.NodeReport.MEASURING)}
    assert isinstance(numbers, pb.Measurement)


@pytest.mark.parametrize("error", [LinkLost("gone"), LinkRefused("no hospital"), OrderStale("unknown")])
def test_a_report_that_nobody_wants_ends_no_measurement(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LONGEST_S", 0.001)
    link, asked = FakeLink(make_plan(), EVALUATOR), threading.Semaphore(0)

    def refuse(_: pb.NodeReport) -> None:
        asked.release()
        raise error

    monkeypatch.setattr(link, "report", refuse)
    with said_meanwhile(link, 1, 60.0):
        assert asked.acquire(timeout=120)
        again = asked.acquire(timeout=120 if isinstance(error, LinkLost) else 0.05)
    assert again == isinstance(error, LinkLost)
