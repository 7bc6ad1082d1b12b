"""A node trains and masks only in rounds for which the approved plan selects it, whatever the coordinator asks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from node_world import (
    ME,
    NAMES,
    NOW_S,
    Counter,
    FakeLink,
    Rehearsal,
    Trainer,
    approved_ledger,
    make_desk,
    make_folders,
    make_plan,
    make_workshop,
    train_order,
    uri,
)

from hospital_node.config import NodePolicy
from hospital_node.progress import read_progress
from hospital_node.runner import run_with
from hospital_node.session import SessionRefused
from hospital_node.study import policy_obstacle
from proto import federation_pb2 as pb
from proto.plan import Plan

PINNED = {uri(name): bytes(32) for name in NAMES}


def plan_of_three() -> Plan:
    """Three of four hospitals a round; the first round without h0 is looked up, not assumed."""
    return Plan.model_validate({**make_plan(rounds=40).model_dump(), "participants": 3})


def rounds_of(plan: Plan, *, selected: bool) -> int:
    return next(number for number in range(1, 41) if (ME in plan.selected(number)) is selected)


def test_the_plan_decides_whether_a_round_is_an_obstacle():
    plan = plan_of_three()
    assert policy_obstacle(plan, ME, NodePolicy(), PINNED) is None
    assert policy_obstacle(plan, ME, NodePolicy(), PINNED, rounds_of(plan, selected=True)) is None
    outside = rounds_of(plan, selected=False)
    said = policy_obstacle(plan, ME, NodePolicy(), PINNED, outside)
    assert said == f"it asks 3 hospitals for round {outside} and this one is not among them"


def test_a_node_that_demands_more_than_a_round_can_have_says_so_before_training():
    said = policy_obstacle(plan_of_three(), ME, NodePolicy(minimum_cohort=4), PINNED)
    assert said == "at most 3 hospitals can take part and this node demands 4"
    assert policy_obstacle(make_plan(), ME, NodePolicy(minimum_cohort=4), PINNED) is None


def test_a_round_with_a_hospital_whose_key_nobody_confirmed_is_an_obstacle_and_another_one_is_not():
    plan = plan_of_three()
    pinned = {party: key for party, key in PINNED.items() if party != uri("h3")}
    said = {policy_obstacle(plan, ME, NodePolicy(), pinned, number) for number in range(1, 41) if ME in plan.selected(number)}
    missing = "(1 of 3 hospitals are not on this node's list of confirmed keys)"
    assert said == {None, f"at most 2 hospitals can take part and this node demands 3 {missing}"}


@pytest.mark.parametrize("selected", [True, False])
def test_a_node_declines_a_round_for_which_the_plan_does_not_select_it(tmp_path, selected):
    plan, folders = plan_of_three(), make_folders(tmp_path)
    approved_ledger(folders, plan)
    link, trainer, stop = FakeLink(plan), Trainer(), threading.Event()
    number = rounds_of(plan, selected=selected)
    with ThreadPoolExecutor(1) as pool:
        node = pool.submit(
            run_with,
            folders.config,
            make_workshop(trainer),
            dial=lambda *_: link,
            clock=lambda: NOW_S,
            rand=Counter(),
            stop=stop,
        )
        try:
            link.put(train=train_order(number))
            first = link.wait_for(1)
        finally:
            stop.set()
        node.result(120)
    assert first.round == number
    if selected:
        assert first.state == pb.NodeReport.TRAINING
        return
    assert (first.state, first.code) == (pb.NodeReport.DECLINED, "policy")
    assert trainer.rounds == []
    assert "this one is not among them" in read_progress(folders.state.progress).sentence


def test_a_session_with_a_hospital_that_the_round_does_not_ask_is_refused_before_anything_is_said(tmp_path):
    """A coordinator that fills the roster with a friend of its own."""
    plan, folders = plan_of_three(), make_folders(tmp_path)
    ledger = approved_ledger(folders, plan)
    desk = make_desk(folders, plan, lambda: ledger)
    number = rounds_of(plan, selected=True)
    outside = next(name for name in NAMES if uri(name) not in plan.selected(number))
    names = tuple(name for name in NAMES if uri(name) in plan.selected(number))
    honest = Rehearsal(plan, folders, round=number, names=names)
    desk.hold(Trainer().update, honest.base, ledger.authorize(plan, number))
    everybody = Rehearsal(make_plan(rounds=40), folders, round=number, names=tuple(sorted((*names, outside)))).order.members
    crowded = pb.Open(session=b"\x02" * 16, round=number, members=everybody)
    with pytest.raises(SessionRefused, match="does not select it") as caught:
        desk.open(crowded)
    assert caught.value.code == "wrong-roster"
    assert folders.state.seen_sessions() == frozenset()
    assert desk.open(honest.order).advert.party == ME
