"""A node under a buffered plan: its update may leave in a later round, weighed by its age, beside enough of its own model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node_world import (
    BASE,
    LAYOUT,
    ME,
    NAMES,
    NOW_S,
    Counter,
    FakeLink,
    Folders,
    Rehearsal,
    Trainer,
    approved_ledger,
    make_desk,
    make_folders,
    make_plan,
    make_workshop,
    train_order,
    until,
    uri,
)

from hospital_node.config import NodePolicy
from hospital_node.ledger import Charge, Ledger
from hospital_node.release import Outcome, ReleaseDesk
from hospital_node.runner import run_with
from hospital_node.session import SessionRefused
from hospital_node.study import policy_obstacle
from proto import federation_pb2 as pb
from proto.layout import model_digest
from proto.plan import Plan
from secagg import policy, seat

UPDATE = np.linspace(-0.5, 0.5, LAYOUT.length, dtype=np.float32)
DEAD = b"d" * 32  # digest of a model at which nothing is learned


def plan_of(updates: int = 3, max_staleness: int = 2) -> Plan:
    fields = make_plan(rounds=9).model_dump()
    return Plan.model_validate(fields | {"buffer": {"updates": updates, "max_staleness": max_staleness}})


PLAN = plan_of()
FACTORS = PLAN.session_weights(ME)


@dataclass
class Session(Rehearsal):
    """A session in which members may have other weights and models; the honest one of this staleness by default."""

    weights: dict[str, int] = field(default_factory=dict)
    bases: dict[str, bytes] = field(default_factory=dict)
    staleness: int = 0

    def open(self) -> pb.Open:
        order = super().open()
        for member in order.members:
            name = member.uri.rsplit("/", 1)[-1]
            member.weight = self.weights.get(name, FACTORS[self.staleness])
            member.base_digest = self.bases.get(name, member.base_digest)
        return order


@dataclass
class Here:
    """A node that holds an update that it began in round 1."""

    folders: Folders
    ledger: Ledger
    desk: ReleaseDesk
    study: Folders

    def session(self, number: int, **given: Any) -> Session:
        return Session(PLAN, self.study, round=number, **given)

    def charges(self) -> list[Charge]:
        return [event.entry for event in self.ledger.events() if isinstance(event.entry, Charge)]

    def refused(self, session: Session) -> SessionRefused:
        with pytest.raises(SessionRefused) as caught:
            self.desk.open(session.order)
        assert self.charges() == []
        return caught.value


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("study"))


@pytest.fixture
def here(study: Folders, tmp_path: Path) -> Iterator[Here]:
    folders = Folders(tmp_path, study.identities)
    ledger = approved_ledger(folders, PLAN)
    desk = make_desk(folders, PLAN, lambda: ledger)
    desk.hold(UPDATE.copy(), model_digest(BASE), ledger.authorize(PLAN, 1))
    return Here(folders, ledger, desk, study)


def played(here: Here, session: Session) -> Outcome:
    """A session to its end."""
    desk = here.desk
    sets = session.take_shares(desk.share(session.take_advert(desk.open(session.order))))
    _, upload = desk.mask(sets)
    listed = session.take_upload(b"".join(bytes(part) for part in upload.pieces()))
    revealed = desk.reveal(session.take_confirmation(desk.confirm(listed)))
    return desk.result(session.take_revealed(revealed))


# ---- the honest session ----


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_an_update_leaves_in_a_later_round_and_is_charged_there_once(here, staleness):
    session = here.session(1 + staleness, staleness=staleness)
    assert played(here, session) is Outcome.COUNTED
    expected = np.mean([UPDATE, *(peer.update for peer in session.peers)], axis=0)
    assert np.allclose(session.opened.mean, expected, atol=2e-6)
    (charge,) = here.charges()
    assert (charge.round, charge.session, charge.steps) == (1 + staleness, session.session.hex(), 2)
    assert [event.kind for event in here.ledger.events()][-2:] == ["charge", "verified"]


def test_an_update_that_left_enters_no_later_session(here):
    played(here, here.session(1))
    with pytest.raises(SessionRefused) as caught:
        here.desk.open(here.session(2, session=b"\x02" * 16, staleness=1).order)
    assert caught.value.code == "no-update"
    assert len(here.charges()) == 1


def test_rounds_of_others_end_and_the_update_stays(here):
    result = pb.RoundResult(round=1, session=b"\x07" * 16, survivors=[uri("h1")], opened=True, sum_digest=bytes(32))
    assert here.desk.result(result) is Outcome.NOT_HERE
    assert here.desk.kept_for(2) is not None
    assert here.desk.kept_for(3) is not None
    assert here.desk.kept_for(4) is None, "older than the plan allows"
    assert played(here, here.session(2, staleness=1)) is Outcome.COUNTED


def test_weights_of_the_members_count_by_their_age(here):
    """One began a round later at the same model, because a round between was aborted."""
    session = here.session(2, staleness=1, weights={"h1": FACTORS[0]})
    assert played(here, session) is Outcome.COUNTED
    weights = [FACTORS[1], FACTORS[0], FACTORS[1], FACTORS[1]]
    updates = [UPDATE, *(peer.update for peer in session.peers)]
    assert np.allclose(session.opened.mean, np.average(updates, axis=0, weights=weights), atol=2e-6)


# ---- ways to cheat ----


def test_an_update_that_is_too_old_is_let_go_and_nothing_is_charged(here):
    refusal = here.refused(here.session(4, staleness=2))
    assert refusal.code == "stale-update"
    assert refusal.detail == "this node's update is 3 rounds old, more than the plan allows: it was let go"
    assert here.refused(here.session(1)).code == "no-update"
    assert here.folders.state.seen_sessions() == frozenset()


@pytest.mark.parametrize(("number", "staleness"), [(3, 0), (3, 1), (2, 2)])
def test_a_weight_of_another_age_is_refused(here, number, staleness):
    refusal = here.refused(here.session(number, staleness=staleness))
    assert refusal.code == "wrong-roster"
    assert "does not weigh this node's update as one of" in refusal.detail
    assert here.desk.kept_for(number) is not None, "a lie costs the update nothing"


def test_a_weight_that_no_age_gives_is_refused_for_everybody(here):
    order = here.session(1).order
    order.members[2].weight = 1
    with pytest.raises(SessionRefused, match="another weight than the plan") as caught:
        here.desk.open(order)
    assert caught.value.code == "wrong-roster"


def test_a_round_before_the_update_began_is_refused(here):
    here.desk.hold(UPDATE.copy(), model_digest(BASE), here.ledger.authorize(PLAN, 3))
    assert here.refused(here.session(2)).code == "no-update"


def test_my_own_row_with_another_model_is_refused(here):
    assert here.refused(here.session(1, bases={"h0": DEAD})).code == "wrong-model"
    assert here.refused(here.session(1, bases=dict.fromkeys(NAMES, DEAD))).code == "wrong-model"


@pytest.mark.parametrize("parked", [("h2", "h3"), ("h1", "h2", "h3")])
def test_others_who_are_parked_on_a_dead_model_are_no_company(here, parked):
    """Their updates say nothing, so that the sum would be mine and that of those the coordinator may own."""
    refusal = here.refused(here.session(1, bases=dict.fromkeys(parked, DEAD)))
    assert refusal.code == "too-few"
    kin = len(NAMES) - len(parked)
    text = f"{kin} members are left with this member's own model, beside {len(parked)} with others, where threshold"
    assert refusal.detail.startswith(text)
    assert here.folders.state.seen_sessions() == frozenset()


def test_company_at_my_model_is_counted_again_on_the_survivors(here, monkeypatch):
    """h3, at a dead model, plays along against its own rules; then a true companion is left out of the list."""
    against_the_rules(monkeypatch, uri("h3"))
    session = here.session(1, bases={"h3": DEAD})
    desk = here.desk
    _, upload = desk.mask(session.take_shares(desk.share(session.take_advert(desk.open(session.order)))))
    order = session.take_upload(b"".join(bytes(part) for part in upload.pieces()), [uri(name) for name in ("h0", "h1", "h3")])
    with pytest.raises(SessionRefused, match="2 members are left with this member's own model, beside 1 with others") as caught:
        desk.confirm(order)
    assert caught.value.code == "too-few"
    with pytest.raises(SessionRefused) as caught:
        desk.reveal(pb.Reveal(session=session.session))
    assert caught.value.code == "session-ended"


def against_the_rules(monkeypatch: pytest.MonkeyPatch, liar: str) -> None:
    """This member checks nothing about its company."""
    for module in (policy, seat):
        really = module.check_cohort

        def checked(params, cohort, me, own, phase, really=really):
            if me != liar:
                really(params, cohort, me, own, phase)

        monkeypatch.setattr(module, "check_cohort", checked)


# ---- the conversation ----


@pytest.mark.parametrize("anew", [False, True])
def test_a_node_goes_on_with_what_it_has_unless_it_is_told_to_begin_anew(tmp_path, anew):
    folders = make_folders(tmp_path)
    approved_ledger(folders, PLAN)
    link, trainer = FakeLink(PLAN), Trainer()
    with running(folders, link, trainer):
        link.put(train=train_order(1))
        assert [link.wait_for(number).state for number in (1, 2)] == [pb.NodeReport.TRAINING, pb.NodeReport.READY]
        later = train_order(3)
        later.anew = anew
        link.put(train=later)
        answer = link.wait_for(3)
        if anew:
            assert (answer.state, answer.round) == (pb.NodeReport.TRAINING, 3)
            assert (link.wait_for(4).state, link.wait_for(4).round) == (pb.NodeReport.READY, 3)
        else:
            assert (answer.state, answer.round, answer.base_digest) == (pb.NodeReport.READY, 1, model_digest(BASE))
    assert trainer.rounds == ([1, 3] if anew else [1])


def test_a_training_under_way_goes_on_while_rounds_end_and_is_given_up_when_it_is_too_old(tmp_path):
    folders = make_folders(tmp_path)
    approved_ledger(folders, PLAN)
    link, gate = FakeLink(PLAN), threading.Event()
    trainer = Trainer(gate=gate)
    with running(folders, link, trainer):
        link.put(train=train_order(1))
        assert link.wait_for(1).state == pb.NodeReport.TRAINING
        until(lambda: trainer.rounds == [1])  # said before the training's thread runs
        link.put(train=train_order(3))
        assert (link.wait_for(2).state, link.wait_for(2).round) == (pb.NodeReport.TRAINING, 1)
        link.put(train=train_order(4))
        assert (link.wait_for(3).state, link.wait_for(3).round) == (pb.NodeReport.TRAINING, 4)
        gate.set()
        assert (link.wait_for(4).state, link.wait_for(4).round) == (pb.NodeReport.READY, 4)
    assert trainer.rounds == [1, 4]


@contextmanager
def running(folders: Folders, link: FakeLink, trainer: Trainer) -> Iterator[None]:
    """A node in a thread, ended with the block."""
    stop = threading.Event()
    given = {"dial": lambda *_: link, "clock": lambda: NOW_S, "rand": Counter(), "stop": stop}
    with ThreadPoolExecutor(1) as pool:
        node = pool.submit(run_with, folders.config, make_workshop(trainer), **given)
        try:
            yield
        finally:
            stop.set()
        node.result(120)


def test_a_plan_whose_sums_are_smaller_than_this_node_demands_is_an_obstacle():
    pinned = {uri(name): bytes(32) for name in NAMES}
    said = policy_obstacle(PLAN, ME, NodePolicy(minimum_cohort=4), pinned)
    assert said == "its sums open with 3 updates and this node demands 4"
    assert policy_obstacle(plan_of(updates=4), ME, NodePolicy(minimum_cohort=4), pinned) is None
