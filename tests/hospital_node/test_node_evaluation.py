"""Sums over validation patients at one node: measured before training, held with the update, released with it or never."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from node_world import (
    BASE,
    LAYOUT,
    ME,
    NOW_S,
    Counter,
    Folders,
    Peer,
    Rehearsal,
    Trained,
    approve,
    make_desk,
    make_folders,
    make_plan,
    until,
)

from hospital_node.display import Display
from hospital_node.ledger import Charge, Ledger
from hospital_node.ledger_rules import Authorization
from hospital_node.local_training import Failed, LocalTraining, Ready
from hospital_node.noise import NormalStream
from hospital_node.progress import read_progress
from hospital_node.release import Outcome, ReleaseDesk, UpdateUnusable
from hospital_node.session import SessionRefused
from hospital_node.validation import is_measured, noised_sums
from hospital_node.work import Background, Scored, Workshop
from proto.evaluation import Evaluation, sensitivity
from proto.layout import model_digest
from secagg import node

PLAN = make_plan().model_copy(update={"evaluation": Evaluation(every=2, share=0.5, noise_multiplier=3.0)})
UPDATE = np.linspace(-0.5, 0.5, LAYOUT.length, dtype=np.float32)
SUMS = (1.25, -7.5)  # noised already, of one label
STEP = 100 / 2**28  # of a sum: clip over offset, with room


# ---- the road out ----


@dataclass
class SummingPeer(Peer):
    """Another hospital whose sums are known too."""

    sums: tuple[float, float] = (0.0, 0.0)

    def answer(self, params: Any, phase: str, given: Any, rand: Any) -> Any:
        if phase != "mask":
            return super().answer(params, phase, given, rand)
        ready = node.ready_to_mask(self.state, [item.for_receiver(self.identity.uri) for item in given])
        self.state, upload = node.mask(ready, self.update, extras=self.sums if params.extra_clips else ())
        return upload


@dataclass
class Here:
    """The node under test, with its desk, and an honest coordinator of one session."""

    folders: Folders
    study: Folders
    desk: ReleaseDesk
    coordinator: Rehearsal

    def rehearse(self, session: int, round_number: int = 2) -> None:
        self.coordinator = Rehearsal(PLAN, self.study, session=bytes([session]) * 16, round=round_number)
        self.coordinator.peers = [
            SummingPeer(peer.identity, peer.update, sums=(place + 0.5, -place))
            for place, peer in enumerate(self.coordinator.peers)
        ]

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.folders.state.ledger)

    def charges(self) -> list[Charge]:
        return [event.entry for event in self.ledger.events() if isinstance(event.entry, Charge)]

    def hold(self, sums: tuple[float, ...] = SUMS, round_number: int = 2) -> None:
        self.desk.hold(UPDATE.copy(), model_digest(BASE), self.ledger.authorize(PLAN, round_number), sums)

    def to_mask(self) -> Any:
        share = self.coordinator.take_advert(self.desk.open(self.coordinator.order))
        return self.coordinator.take_shares(self.desk.share(share))

    def open_sum(self) -> Any:
        _, upload = self.desk.mask(self.to_mask())
        confirm = self.coordinator.take_upload(b"".join(bytes(part) for part in upload.pieces()))
        reveal = self.coordinator.take_confirmation(self.desk.confirm(confirm))
        return self.coordinator.take_revealed(self.desk.reveal(reveal))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("study"))


@pytest.fixture
def here(study: Folders, tmp_path: Path) -> Here:
    folders = Folders(tmp_path, study.identities)
    folders.state.create()
    approve(folders.state.open_ledger(ME, datetime.fromtimestamp(NOW_S, UTC)), PLAN)
    desk = make_desk(folders, PLAN, lambda: Ledger.open(folders.state.ledger))
    world = Here(folders, study, desk, Rehearsal(PLAN, study))
    world.rehearse(1)
    return world


def test_the_sums_ride_with_the_update_and_both_are_charged_at_once(here: Here) -> None:
    here.hold()
    assert here.desk.result(here.open_sum()) is Outcome.COUNTED
    expected = [SUMS[0] + 0.5 + 1.5 + 2.5, SUMS[1] - 0 - 1 - 2]
    assert here.coordinator.opened.extras == pytest.approx(expected, abs=4 * STEP)
    (charge,) = here.charges()
    assert charge.evaluation is not None
    assert (charge.evaluation.noise_multiplier, charge.evaluation.sensitivity) == (3.0, sensitivity(1))


def test_a_round_that_does_not_evaluate_carries_and_charges_nothing_more(here: Here) -> None:
    here.rehearse(1, round_number=1)
    here.hold((), round_number=1)
    here.desk.result(here.open_sum())
    assert here.coordinator.opened.extras == ()
    assert here.charges()[0].evaluation is None


@pytest.mark.parametrize("sums", [(), (1.0,), (1.0, 2.0, 3.0), (np.nan, 1.0), (np.inf, 1.0)])
def test_sums_that_do_not_fit_the_round_are_not_held(here: Here, sums: tuple[float, ...]) -> None:
    with pytest.raises(UpdateUnusable, match="sums"):
        here.hold(sums)
    assert not here.desk.holds(2, model_digest(BASE))


def test_sums_in_a_round_that_does_not_evaluate_are_not_held(here: Here) -> None:
    with pytest.raises(UpdateUnusable, match="sums"):
        here.hold(SUMS, round_number=1)


def test_uncommitted_sums_join_another_session_with_the_same_noise(here: Here) -> None:
    here.hold()
    here.to_mask()
    here.rehearse(2)
    here.desk.result(here.open_sum())
    assert here.coordinator.opened.extras[0] == pytest.approx(SUMS[0] + 4.5, abs=4 * STEP)
    assert len(here.charges()) == 1


def test_committed_sums_are_gone_when_the_session_aborts(here: Here) -> None:
    here.hold()
    here.desk.mask(here.to_mask())
    here.desk.result(here.coordinator.result(opened=False))
    here.rehearse(2)
    with pytest.raises(SessionRefused) as refused:
        here.desk.open(here.coordinator.order)
    assert refused.value.code == "no-update"
    assert here.charges()[0].evaluation is not None, "charged, not refunded"


def test_an_upload_asked_for_again_has_the_same_bytes(here: Here) -> None:
    here.hold()
    order = here.to_mask()
    first, again = here.desk.mask(order)[1], here.desk.mask(order)[1]
    words = [b"".join(bytes(part) for part in upload.pieces()) for upload in (first, again)]
    assert words[0] == words[1]


def test_a_session_of_several_base_models_is_refused_before_anything_is_signed(here: Here) -> None:
    here.hold()
    here.coordinator.order.members[-1].base_digest = b"x" * 32
    with pytest.raises(SessionRefused, match="extra coordinates need one base model"):
        here.desk.open(here.coordinator.order)


# ---- measuring ----


@dataclass(frozen=True)
class Person:
    key: str
    cases: tuple[float, ...] = (0.75,)


PATIENTS = [Person(f"p{number}") for number in range(12)]
MEASURED = [one for one in PATIENTS if is_measured(PLAN, one.key)]


def score(case: float) -> Scored:
    return Scored({"nodule": case}, np.zeros((1, 1, 1), np.uint8))


@dataclass
class Ward:
    """A workshop that writes down what it is asked, in order."""

    patients: Sequence[Person] = tuple(PATIENTS)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    gate: threading.Event | None = None

    def workshop(self) -> Workshop:
        return Workshop(lambda _: LAYOUT, lambda _plan, _count: self.patients, self.train, self.scorer)

    def scorer(self, plan: Any, model: Any, threads: int) -> Any:
        self.asked.append(("score with", model.tobytes()))

        def measured(case: float) -> Scored:
            self.asked.append(("case", case))
            if self.gate is not None:
                self.gate.wait(120)
            return score(case)

        return measured

    def train(self, plan: Any, uri: str, base: Any, patients: Any, **_: Any) -> Trained:
        self.asked.append(("train on", [one.key for one in patients]))
        return Trained(UPDATE, model_digest(base))


@dataclass
class Work:
    """LocalTraining of one node."""

    ward: Ward
    training: LocalTraining
    background: Background
    folders: Folders

    def begin(self, round_number: int) -> None:
        leave = Authorization("ledger", "plan", "lidc", round_number, None, 1.0, None, 0.0, 0.0, "pld")  # type: ignore[arg-type]
        self.training.begin(leave, model_digest(BASE), BASE)

    def become(self) -> Any:
        found: list[Any] = []
        until(lambda: bool(found.append(self.training.collect()) or found[-1] is not None))
        return found[-1]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    folders = Folders(tmp_path, {})
    folders.state.create()
    ward, background = Ward(), Background()
    display = Display(folders.state, "lidc", lambda: NOW_S)
    training = LocalTraining(PLAN, ME, ward.workshop(), background, display, lambda: NOW_S, lambda: None, 1, Counter())
    yield Work(ward, training, background, folders)
    if ward.gate is not None:
        ward.gate.set()
    background.close()


def test_the_released_model_is_measured_on_some_and_then_trained_on_the_others(work: Work) -> None:
    with structlog.testing.capture_logs() as logs:
        work.begin(2)
        ready = work.become()
    assert isinstance(ready, Ready)
    assert 0 < len(MEASURED) < len(PATIENTS)
    assert work.ward.asked == [
        ("score with", BASE.tobytes()),
        *[("case", 0.75)] * len(MEASURED),
        ("train on", [one.key for one in PATIENTS if one not in MEASURED]),
    ]
    assert ready.sums == noised_sums(PLAN, MEASURED, score, NormalStream(Counter()))
    clear = (len(MEASURED) * 0.25, len(MEASURED) * 0.5)
    assert not set(clear) & set(ready.sums)
    assert all(set(entry) <= {"event", "log_level", "seconds"} for entry in logs), "no figure of any patient"
    assert repr(ready).count(str(ready.sums[0])) == 0


def test_a_round_that_does_not_evaluate_measures_nothing_and_spares_the_same_patients(work: Work) -> None:
    work.begin(1)
    ready = work.become()
    assert ready.sums == ()
    assert work.ward.asked == [("train on", [one.key for one in PATIENTS if one not in MEASURED])]


def test_a_round_given_up_while_measuring_leaves_nothing(work: Work) -> None:
    work.ward.gate = threading.Event()
    work.begin(2)
    until(lambda: ("case", 0.75) in work.ward.asked)
    shown = read_progress(work.folders.state.progress)
    assert shown is not None
    assert (shown.phase, shown.sentence) == ("evaluating", "measuring the model on this hospital's validation patients")
    work.training.give_up()
    work.ward.gate.set()
    work.background.start(lambda: None).result(120)
    assert work.training.collect() is None
    assert work.ward.asked.count(("case", 0.75)) == 1
    assert not any(what == "train on" for what, _ in work.ward.asked)


def test_a_person_listed_twice_ends_the_round_before_anything_is_measured(work: Work) -> None:
    work.ward.patients = (*PATIENTS, PATIENTS[0])
    work.begin(2)
    failed = work.become()
    assert isinstance(failed, Failed)
    assert (failed.code, work.ward.asked) == ("training-failed", [])
