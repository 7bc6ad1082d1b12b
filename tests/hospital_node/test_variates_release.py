"""Control variates on the road of an update: after the commit, before the first masked byte, only for rounds that counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node_world import BASE, LAYOUT, ME, NOW_S, Counter, Folders, Rehearsal, approve, make_folders, make_plan

from hospital_node.ledger import BudgetExhausted, Ledger
from hospital_node.release import Outcome, ReleaseDesk
from hospital_node.session import MaskingSession, Member, SessionRefused
from hospital_node.variates import Variates
from proto import federation_pb2 as pb
from proto.layout import model_digest
from proto.plan import Plan
from secagg import Policy

DRIFT = np.linspace(1, -1, LAYOUT.length, dtype=np.float32)
UPDATE = np.linspace(-3, 3, LAYOUT.length, dtype=np.float32)  # beyond the session's clip of 1 on both sides
WANTED = -DRIFT - np.clip(UPDATE, -1, 1) / np.float32(2 * 0.5)  # two steps at rate 0.5


def scaffold_plan() -> Plan:
    fields = make_plan().model_dump()
    fields["training"] |= {"optimizer": "sgd", "learning_rate": 0.5}
    return Plan.model_validate(fields | {"aggregation": {"rule": "scaffold"}})


PLAN = scaffold_plan()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("study"))


@dataclass
class Here:
    """A node that holds an update of a plan with control variates, and an honest coordinator."""

    folders: Folders
    coordinator: Rehearsal
    desk: Any = None

    def start(self) -> None:
        identities = self.folders.identities
        pinned = {party: one.fingerprint for party, one in identities.items() if "/hospital/" in party}
        member = Member(ME, identities[ME].key, Policy(pinned, 3, 1), Counter())
        arguments = (member, PLAN, LAYOUT, self.folders.state, self.ledger, lambda: NOW_S, self.variates)
        self.desk = ReleaseDesk(*arguments)

    def ledger(self) -> Ledger:
        return Ledger.open(self.folders.state.ledger)

    @property
    def variates(self) -> Variates:
        state = self.folders.state
        return Variates(state.variate, state.proposed_variate, PLAN, LAYOUT)

    @property
    def proposed(self) -> bool:
        return self.folders.state.proposed_variate.exists()

    def to_mask(self) -> pb.Mask:
        share = self.coordinator.take_advert(self.desk.open(self.coordinator.order))
        return self.coordinator.take_shares(self.desk.share(share))

    def to_result(self) -> pb.RoundResult:
        _, upload = self.desk.mask(self.to_mask())
        confirm = self.coordinator.take_upload(b"".join(bytes(part) for part in upload.pieces()))
        reveal = self.coordinator.take_confirmation(self.desk.confirm(confirm))
        return self.coordinator.take_revealed(self.desk.reveal(reveal))


@pytest.fixture
def here(study: Folders, tmp_path: Path) -> Here:
    folders = Folders(tmp_path, study.identities)
    folders.state.create()
    approve(folders.state.open_ledger(ME, datetime.fromtimestamp(NOW_S, UTC)), PLAN)
    world = Here(folders, Rehearsal(PLAN, study))
    world.start()
    authorization = world.ledger().authorize(PLAN, 1)
    world.desk.hold(UPDATE.copy(), model_digest(BASE), authorization, (), DRIFT.copy())
    return world


def test_a_round_that_counted_moves_the_variate_by_what_was_sent(here: Here) -> None:
    result = here.to_result()
    assert here.desk.result(result) is Outcome.COUNTED
    np.testing.assert_allclose(here.variates.own(), WANTED, atol=1e-6)
    assert not here.proposed


def test_the_next_variate_is_on_disk_after_the_charge_and_before_masked_words_exist(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    propose, mask = Variates.propose, MaskingSession.mask

    def proposing(self: Variates, *args: Any) -> None:
        charges = [event.kind for event in here.ledger().events()].count("charge")
        order.append(f"propose after {charges} charges")
        propose(self, *args)

    def masking(self: MaskingSession, *args: Any) -> Any:
        order.append(f"mask, proposed {here.proposed}")
        return mask(self, *args)

    monkeypatch.setattr(Variates, "propose", proposing)
    monkeypatch.setattr(MaskingSession, "mask", masking)
    here.desk.mask(here.to_mask())
    assert order == ["propose after 1 charges", "mask, proposed True"]
    assert not here.variates.own().any()


def test_a_commit_that_is_refused_leaves_no_trace_of_the_training(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    order = here.to_mask()

    def refusing(*_: Any) -> None:
        raise BudgetExhausted("spent")

    monkeypatch.setattr(Ledger, "commit", refusing)
    with pytest.raises(SessionRefused):
        here.desk.mask(order)
    assert not here.proposed
    assert not here.variates.own().any()


@pytest.mark.parametrize(
    "after",
    [
        lambda here, result: here.desk.result(here.coordinator.result(opened=False)),
        lambda here, result: here.desk.result(pb.RoundResult(round=1, session=result.session, survivors=["x"], opened=True)),
    ],
    ids=["aborted", "without this hospital"],
)
def test_a_round_that_did_not_count_leaves_the_variate(here: Here, after: Callable[[Here, pb.RoundResult], Outcome]) -> None:
    result = here.to_result()
    assert here.proposed
    assert after(here, result) is Outcome.LOST
    assert not here.proposed
    assert not here.variates.own().any()


@pytest.mark.parametrize("listed", [True, False])
def test_a_node_that_was_restarted_in_between_learns_from_the_result(here: Here, listed: bool) -> None:
    result = here.to_result()
    if not listed:
        result.survivors.remove(ME)
    here.start()
    assert here.desk.result(result) is Outcome.NOT_HERE
    np.testing.assert_allclose(here.variates.own(), WANTED if listed else np.zeros_like(WANTED), atol=1e-6)
    assert not here.proposed
