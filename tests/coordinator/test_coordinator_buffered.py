"""Buffered rounds of the engine: who forms a cohort with whom, who is waited for, what is let go, what a restart keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tomli_w
from coordinator_world import START, World, make_plan, uri
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coordinator import events as ev
from coordinator import orders
from coordinator.buffered import base_of, ready_cohort
from coordinator.cli import app
from coordinator.rounds import step
from coordinator.state import Member, Phase, Standing, begin, waiting_for
from proto.buffering import Buffer
from proto.plan import Masking, PlanError

IDLE = Standing.IDLE
SECOND = b"model-of-round" + (1).to_bytes(18, "big")  # as the world names what round 1 published


def make_world(paces, rounds=4, *, updates=3, max_staleness=4, **timing):
    buffer = Buffer(updates=updates, max_staleness=max_staleness)
    world = World(make_plan(len(paces), rounds, buffer=buffer, **timing))
    for number, pace in enumerate(paces):
        world.hospitals[uri(number)].pace = pace
    return world


def cohorts(world):
    return {number: tuple(int(party[-1]) for party in row.cohort) for number, row in world.saved.items() if row.cohort}


def texts(world, kind):
    return [record.text for record in world.records if record.kind == kind]


def test_fast_hospitals_go_on_while_slow_ones_train_and_the_slow_ones_are_weighed_by_their_staleness():
    world = make_world((1, 1, 1, 30, 30, 30), rounds=5)
    assert world.settle(seconds=0.5)
    fast, slow = (0, 1, 2), (3, 4, 5)
    assert cohorts(world)[1] == cohorts(world)[2] == fast
    late = next(number for number, members in cohorts(world).items() if members == slow)
    assert late > 2
    order = next(one for one in (order for _, order in opens(world)) if one.round == late)
    assert {seat.weight for seat in order.members} == {Buffer(updates=3).factor(late - 1)}
    assert {seat.base_digest for seat in order.members} == {START}
    assert f"Round {late} · h5 has an update from round 1" in texts(world, "ready")
    assert all(row.state == "opened" for row in world.saved.values())
    assert not texts(world, "let-go")


def opens(world):
    """Every Open order that a hospital was given, by its answers."""
    for hospital in world.hospitals.values():
        for order in hospital.opened:
            yield hospital.uri, order


def test_whoever_would_be_left_without_a_cohort_is_waited_for():
    """Three of five are ready: the two others could open nothing by themselves."""
    world = make_world((1, 1, 1, 9, 9), rounds=2)
    assert world.settle(seconds=0.5)
    assert cohorts(world) == {1: (0, 1, 2, 3, 4), 2: (0, 1, 2, 3, 4)}


def test_but_no_longer_than_the_training_deadline_and_then_begins_anew():
    world = make_world((1, 1, 1, 1000), rounds=2, training_deadline_s=20)
    for _ in range(60):
        for number in range(4):
            world.act(number)
        world.tick(0.5)
    assert cohorts(world)[1] == (0, 1, 2)
    said = "Round 2 · too few hospitals are left at the model of h3: it begins anew, and nothing of its update has left"
    assert texts(world, "let-go") == [said]
    assert world.hospitals[uri(3)].training[:2] == (2, SECOND)
    assert world.hospitals[uri(3)].released == {}


def test_an_update_that_is_too_stale_is_let_go_before_anything_of_it_leaves():
    world = make_world((1, 1, 1, 40, 40, 40), rounds=4, max_staleness=1)
    assert world.settle(seconds=0.5)
    assert texts(world, "let-go")[0] == (
        "Round 3 · h3 is at its update since round 1, longer than the plan allows: it begins anew, and nothing of its update "
        "has left"
    )
    slow = [world.hospitals[uri(number)] for number in (3, 4, 5)]
    assert [hospital.released for hospital in slow] == [{}, {}, {}]


def test_a_cohort_never_mixes_models_even_where_each_has_too_few():
    world = make_world((1, 1, 1, 30, 30, 30), rounds=3)
    world.until(Phase.MASK)
    world.feed(ev.Reported(uri(3), 1, ev.Report.READY, START))
    while world.state.round == 1:
        world.act(0), world.act(1), world.act(2)
    for number in (0, 1):
        world.feed(ev.Reported(uri(number), 2, ev.Report.READY, SECOND))
    assert world.state.session is None
    assert ready_cohort(world.state, world.now_s) == ()
    assert waiting_for(world.state, world.now_s).startswith("Round 2 · 2 ready, 3 needed")


def test_a_report_of_a_model_that_the_round_did_not_have_is_refused():
    world = make_world((1, 1, 1, 1))
    world.feed(ev.Joined(uri(0), b"key"))
    world.feed(ev.Reported(uri(0), 1, ev.Report.READY, b"x" * 32))
    assert world.state.members[uri(0)].code == "wrong-base"
    for number in (0, 2):
        assert step(world.state, ev.Reported(uri(1), number, ev.Report.READY, START), world.now_s)[0] == world.state


def test_what_was_let_go_does_not_count_when_its_report_comes_late():
    world = make_world((1, 1, 1, 1000), rounds=3, training_deadline_s=20)
    while not texts(world, "let-go"):
        for number in range(4):
            world.act(number)
        world.tick(0.5)
    before = world.state.members[uri(3)]
    after = step(world.state, ev.Reported(uri(3), 1, ev.Report.READY, START), world.now_s)[0].members[uri(3)]
    assert (after.standing, after.base, after.began) == (before.standing, before.base, before.began) == (IDLE, SECOND, 2)


@pytest.mark.parametrize("while_masking", [False, True])
def test_after_a_restart_the_ready_list_is_made_of_what_hospitals_still_have(while_masking):
    """Six are ready or train at two models when the coordinator dies; nobody trains anything twice."""
    world = make_world((1, 1, 1, 6, 6, 6), rounds=4)
    while world.state.round < 2 or not (world.state.session if while_masking else world.hospitals[uri(3)].update):
        for number in range(6):
            world.act(number)
    busy = {u: len(h.begun) for u, h in world.hospitals.items() if h.update or h.training}
    assert len(busy) >= 3
    kept = world.state.session
    world.crash()
    if while_masking:
        assert world.state.session == kept, "an open session goes on with the same members, weights and models"
    for number in range(6):
        world.act(number)
    assert {party: len(world.hospitals[party].begun) for party in busy} == busy, "a training was thrown away"
    assert not texts(world, "let-go")
    assert world.settle(seconds=0.5)
    assert all(row.state == "opened" for row in world.saved.values())


def test_who_joins_while_others_mask_begins_at_once():
    world = make_world((1, 1, 1, 1, 1, 1), rounds=2)
    for _ in range(4):
        for number in range(3):
            world.act(number)
    assert world.state.phase in {Phase.ADVERTISE, Phase.SHARE, Phase.MASK}
    world.feed(ev.Joined(uri(4), b"key"))
    assert world.mail[uri(4)].after(0)[1] == orders.Train(1, START)


def test_a_failed_session_after_the_commit_ends_the_round_and_its_members_begin_anew_at_the_same_model():
    world = make_world((1, 1, 1, 60, 60, 60), rounds=3)
    world.fail_opening = True
    while world.state.round == 1:
        for number in range(6):
            world.act(number)
        world.tick(0.5)
    assert world.saved[1].state == "aborted"
    assert world.mail[uri(0)].task[1] == orders.Train(2, START, anew=True)
    assert world.state.members[uri(4)].began == 1, "the others stay at their work"
    assert base_of(world.state, 1) == base_of(world.state, 2) == START


def test_no_cohort_that_the_plan_can_open_is_safe():
    plan = make_plan(6, buffer=Buffer(updates=3), masking=Masking(threshold=3, max_colluders=1))
    with pytest.raises(PlanError, match="no cohort of study"):
        World(make_plan(6, buffer=Buffer(updates=6), masking=Masking(threshold=3, max_colluders=1))).settle()
    assert plan.fewest_updates == 3


def test_a_roster_that_cannot_open_does_not_hold_up_another_model():
    world = make_world((1, 1, 1, 1, 1, 1))
    state = replace(world.state, round=2, models=((0, START), (1, SECOND)))
    for number in range(6):
        began, base = (1, START) if number < 3 else (2, SECOND)
        member = Member(uri(number), 1, world.now_s, b"key", Standing.READY, base=base, began=began, not_before=1)
        state = replace(state, members={**state.members, uri(number): member})
    first = ready_cohort(state, world.now_s)
    assert first == (uri(0), uri(1), uri(2))
    assert ready_cohort(replace(state, impossible=first), world.now_s) == (uri(3), uri(4), uri(5))


def test_check_plan_says_what_the_buffer_means(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(make_plan(9, buffer=Buffer(updates=4)).model_dump(mode="json", exclude_none=True)))
    said = CliRunner().invoke(app, ["check-plan", str(path)]).stdout.splitlines()
    assert said[4].startswith(
        "Buffered: a sum opens as soon as 4 updates of one model are ready; the 9 hospitals can go on in 2"
    )
    assert said[5].startswith("An update counts 1, 0.71, 0.58, 0.5, 0.45 where so many rounds from none on ended")
    assert [line.split(" ")[0] for line in said[6:]] == [str(size) for size in range(4, 10)]


def test_held_rounds_offer_nothing_and_lose_nothing():
    world = make_world((1, 1, 1, 30, 30, 30), rounds=3)
    world.until(Phase.MASK)
    world.feed(ev.RoundsHeld("Dr Weber: maintenance"))
    for _ in range(12):
        for number in range(5):
            world.act(number)
    assert world.state.phase is Phase.HELD
    world.feed(ev.Joined(uri(5), b"key"))
    assert [order for _, order in (world.mail[uri(5)].task,) if order.round == 2] == []
    world.feed(ev.RoundsLetOn("Dr Weber"))
    assert world.state.members[uri(4)].began == 1, "whoever trained goes on"
    assert world.mail[uri(0)].task[1] == orders.Train(2, SECOND, anew=True)
    assert world.settle(seconds=0.5)


STANDINGS = st.sampled_from([Standing.IDLE, Standing.TRAINING, Standing.READY, Standing.READY, Standing.DECLINED])


@settings(max_examples=300)
@given(
    st.lists(st.tuples(STANDINGS, st.integers(1, 4), st.booleans(), st.booleans()), min_size=9, max_size=9), st.integers(3, 5)
)
def test_a_cohort_has_one_model_enough_members_and_leaves_nobody_alone(hospitals, updates):
    """Standing, round of the model, heard of lately, within its deadline: whatever they are."""
    plan = make_plan(9, buffer=Buffer(updates=updates))
    state = begin(plan, round=4, base_digest=b"4", base_round=3, due=(), now_s=0.0)
    now_s = 1000.0
    members = {
        uri(n): Member(uri(n), 1, now_s if heard else 0.0, b"key", standing, base=b"%d" % began, began=began, not_before=1)
        for n, (standing, began, heard, _) in enumerate(hospitals)
    }
    asked = {uri(n): now_s - (1 if within else 500) for n, (*_, within) in enumerate(hospitals)}
    members = {party: replace(member, asked_s=asked[party]) for party, member in members.items()}
    state = replace(state, members=members)
    cohort = ready_cohort(state, now_s)
    groups = {}
    for n, (standing, began, heard, within) in enumerate(hospitals):
        if heard and standing is not Standing.DECLINED:
            groups.setdefault(began, []).append((uri(n), standing is Standing.READY, within))

    def may_open(group):
        ready = [party for party, is_ready, _ in group if is_ready]
        coming = sum(not is_ready and within for _, is_ready, within in group)
        return tuple(ready) if len(ready) >= updates and (coming == 0 or coming >= updates) else ()

    expected = next((found for began in sorted(groups) if (found := may_open(groups[began]))), ())
    assert cohort == expected
