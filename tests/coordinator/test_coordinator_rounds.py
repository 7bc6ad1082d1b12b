"""The round engine by simulation: what must hold for every schedule, then each rule by an example."""

from __future__ import annotations

import pytest
from coordinator_world import START, World, make_plan, uri
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import events as ev
from coordinator import orders
from coordinator.rounds import step
from coordinator.state import MASKING, Phase, Standing, fits, smallest_cohort, waiting_for, why_not
from proto.plan import Masking, PlanError
from secagg.messages import Advert

NODES = 5
NODE = st.integers(0, NODES - 1)
ACTION = st.one_of(
    st.tuples(st.just("act"), NODE),
    st.tuples(st.just("act"), NODE),
    st.tuples(st.just("all"), st.integers(1, 4)),
    st.tuples(st.just("all"), st.integers(1, 4)),
    st.tuples(st.just("tick"), st.sampled_from([0.5, 5, 25, 40, 120])),
    st.tuples(st.just("die"), NODE),
    st.tuples(st.just("restart"), NODE),
    st.tuples(st.just("repeat"), NODE),
    st.tuples(st.just("decline"), st.tuples(NODE, st.sampled_from(["not-approved", "budget-exhausted", "paused"]))),
    st.tuples(st.just("fail"), NODE),
    st.tuples(st.just("refuse"), st.tuples(NODE, NODE)),
    st.tuples(st.just("stale"), NODE),
    st.tuples(st.just("bad-opening"), NODE),
    st.tuples(st.just("crash"), NODE),
    st.tuples(st.just("people"), st.sampled_from(["hold", "let on", "end"])),
    st.tuples(st.just("revoke"), NODE),
    st.tuples(st.just("put back"), NODE),
)


def perform(world: World, name: str, argument: object, last: dict[int, ev.Event]) -> None:
    """One action of a schedule."""
    hospitals = list(world.hospitals.values())
    session = world.state.session.id if world.state.session else b"\0" * 16
    match name, argument:
        case "act", int(node):
            answer = world.act(node)
            if answer is not None:
                last[node] = answer
        case "all", int(times):
            for _ in range(times):
                for node in range(NODES):
                    perform(world, "act", node, last)
        case "tick", float() | int():
            world.tick(float(argument))
        case "die", int(node):
            hospitals[node].alive = False
        case "restart", int(node):
            hospitals[node].restart()
        case "repeat", int(node):
            if node in last:
                world.feed(last[node])
        case "decline", (int(node), str(code)):
            world.feed(ev.Reported(uri(node), world.state.round, ev.Report.DECLINED, code=code))
        case "fail", int(node):
            world.feed(ev.Reported(uri(node), world.state.round, ev.Report.FAILED, code="training-failed"))
        case "refuse", (int(node), int(culprit)):
            world.feed(ev.Refused(uri(node), session, "bad-box", uri(culprit)))
        case "stale", int(node):
            for old in world.sessions:
                if old != session:
                    world.feed(ev.UploadAccepted(uri(node), old))
                    world.feed(ev.Revealed(uri(node), old))
        case "bad-opening", _:
            world.fail_opening = True
        case "crash", _:
            world.crash()
        case "people", str(asked):
            round_ended = ev.RoundEnded(world.state.round, "Operator", "why")
            world.feed({"hold": ev.RoundsHeld("paused"), "let on": ev.RoundsLetOn("Operator"), "end": round_ended}[asked])
        case "revoke", int(node):
            world.revoke(node)
        case "put back", int(node):
            world.put_back(node)


@settings(max_examples=300)
@given(st.lists(ACTION, max_size=60), st.sampled_from([0.0, 3.0]))
def test_no_schedule_breaks_the_rules(schedule, drill_pause_s):
    """The world asserts on every effect: one opening per session, no id twice, no update in two sums, no round twice."""
    world = World(make_plan(NODES, rounds=6), drill_pause_s)
    last: dict[int, ev.Event] = {}
    for name, argument in schedule:
        perform(world, name, argument, last)


@settings(max_examples=150)
@given(st.lists(ACTION, max_size=40))
def test_every_schedule_ends_once_hospitals_behave(schedule):
    """Progress: whatever happened before, the run ends and everybody is told so."""
    world = World(make_plan(NODES, rounds=4))
    last: dict[int, ev.Event] = {}
    for name, argument in schedule:
        perform(world, name, argument, last)
    for hospital in world.hospitals.values():
        if not hospital.alive:
            hospital.restart()
    world.fail_opening = False
    world.feed(ev.RoundsLetOn("Operator"))
    world.revoked.clear()
    assert world.settle(turns=600, seconds=2.0), (world.state.phase, waiting_for(world.state, world.now_s))
    assert all(row.state in {"opened", "aborted"} for row in world.saved.values()) or "remain" in world.state.finished


def test_undisturbed_run_opens_every_round():
    world = World(make_plan(4, rounds=3))
    assert world.settle()
    assert [world.saved[number].state for number in (1, 2, 3)] == ["opened"] * 3
    assert all(len(survivors) == 4 for survivors in world.opened.values())
    assert len(world.sessions) == 3
    assert "refused" not in world.kinds()
    assert world.state.finished == "all 3 rounds are done"
    assert world.evaluations == [0, 1, 2, 3]
    assert [result.round for result in world.hospitals[uri(0)].results] == [1, 2, 3]


def test_one_step_is_pure():
    world = World(make_plan())
    before = world.state
    joined = ev.Joined(uri(0), b"key")
    assert step(before, joined, 5.0) == step(before, joined, 5.0)
    assert world.state is before


def test_first_cohort_waits_for_hospitals_that_have_not_joined_yet():
    world = World(make_plan(4))
    for _ in range(3):
        for node in range(3):
            world.act(node)
    assert world.state.phase is Phase.TRAIN
    assert "h3 (to join)" in waiting_for(world.state, world.now_s)
    world.act(3)
    world.act(3)
    assert len(world.state.session.roster) == 4


def test_a_hospital_not_heard_of_does_not_hold_up_the_cohort():
    world = World(make_plan(4))
    for seconds in (0, 16, 15):
        world.tick(seconds)
        for node in range(3):
            world.act(node)
    assert world.state.session.uris == (uri(0), uri(1), uri(2))
    assert ("lost", uri(3)) in [(record.kind, record.party) for record in world.records]


def test_a_live_but_slow_hospital_holds_up_the_cohort_only_until_the_deadline():
    world = World(make_plan(4))
    world.feed(ev.Joined(uri(3), b"key"))
    for _ in range(7):
        world.tick(14)
        for node in range(3):
            world.act(node)
        world.feed(ev.Reported(uri(3), 1, ev.Report.TRAINING))
        assert world.state.phase is Phase.TRAIN
    world.tick(3)
    assert world.state.session.uris == (uri(0), uri(1), uri(2))


def test_a_straggler_is_in_no_session_of_the_round_that_it_missed_and_in_the_next_cohort():
    """Its late update is of an older model: it trains again, on the new one."""
    world = World(make_plan(4, rounds=2))
    world.feed(ev.Joined(uri(3), b"key"))
    for _ in range(8):
        world.tick(14)
        for node in range(3):
            world.act(node)
        world.feed(ev.Reported(uri(3), 1, ev.Report.TRAINING))
    assert world.state.session.uris == (uri(0), uri(1), uri(2))
    world.feed(ev.Reported(uri(3), 1, ev.Report.READY, world.state.base_digest))
    assert world.settle()
    assert world.saved[1].cohort == (uri(0), uri(1), uri(2))
    assert world.saved[2].cohort == tuple(uri(node) for node in range(4))
    assert 1 not in world.hospitals[uri(3)].released
    assert 2 in world.hospitals[uri(3)].released


def test_a_hospital_may_join_while_the_training_phase_is_open():
    world = World(make_plan(4))
    world.act(0)
    world.tick(25)
    world.act(3)
    assert isinstance(world.mail[uri(3)].task[1], orders.Train)
    assert world.state.members[uri(3)].standing is Standing.READY


def test_fewer_than_the_minimum_never_open_a_session():
    world = World(make_plan(4))
    world.hospitals[uri(2)].alive = world.hospitals[uri(3)].alive = False
    assert not world.settle(turns=200)
    assert world.sessions == {}
    assert "waiting" in world.kinds()
    assert "2 ready, 3 needed" in waiting_for(world.state, world.now_s)
    world.hospitals[uri(2)].restart()
    assert world.settle(turns=400)


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "confirm", "reveal"])
def test_one_of_four_lost_before_a_phase_does_not_lose_the_round(phase):
    world = World(make_plan(4, rounds=1))
    world.until(Phase(phase))
    world.hospitals[uri(3)].alive = False
    assert world.settle()
    row = world.saved[1]
    assert row.state == "opened"
    assert row.dropped == ((uri(3), phase),)
    uploaded = phase in {"confirm", "reveal"}
    assert row.survivors == tuple(uri(node) for node in range(4 if uploaded else 3))


def test_lost_members_end_a_phase_before_its_deadline():
    world = World(make_plan(4, rounds=1, phase_deadline_s=1000, lost_after_s=30))
    world.until(Phase.ADVERTISE)
    for _ in range(4):
        world.tick(9)
        for node in range(3):
            world.act(node)
    assert world.state.session.dropped == {uri(3): "advertise"}


def test_a_refusal_before_the_mask_phase_excludes_the_named_member_and_opens_another_session():
    world = World(make_plan(5, rounds=1))
    world.until(Phase.SHARE)
    first = world.state.session.id
    world.feed(ev.Refused(uri(0), first, "repeated-key", uri(4)))
    assert world.sessions[first] == "aborted"
    assert world.state.session.id != first
    assert world.state.session.uris == tuple(uri(node) for node in range(4))
    assert world.settle()
    assert world.saved[1].survivors == tuple(uri(node) for node in range(4))


def test_a_refusal_that_names_nobody_drops_its_sender_only():
    world = World(make_plan(4, rounds=1))
    world.until(Phase.SHARE)
    session = world.state.session.id
    world.feed(ev.Refused(uri(0), session, "policy", "unknown"))
    assert world.state.session.id == session
    assert world.state.session.dropped == {uri(0): "share"}


def test_after_the_mask_phase_an_abort_ends_the_round_and_keeps_the_model():
    world = World(make_plan(3, rounds=2))
    world.until(Phase.MASK)
    world.act(0)
    world.hospitals[uri(2)].alive = False
    world.tick(15)
    world.act(1)
    world.tick(15)
    assert world.saved[1].state == "aborted"
    assert world.state.round == 2
    assert world.state.base_digest == START
    world.hospitals[uri(2)].restart()
    assert world.settle()
    assert world.saved[2].state == "opened"
    result = world.hospitals[uri(0)].results[0]
    assert not result.opened
    assert "of 3" in result.reason


def test_a_sum_that_cannot_be_opened_aborts_the_round():
    world = World(make_plan(4, rounds=2))
    world.fail_opening = True
    assert world.settle()
    assert [world.saved[number].state for number in (1, 2)] == ["aborted", "opened"]
    assert world.saved[1].reason == "opening: bad shares"


@pytest.mark.parametrize("phase", [*MASKING])
def test_a_restart_in_a_masking_phase_goes_on_with_the_session(phase):
    world = World(make_plan(4, rounds=1))
    world.until(phase)
    world.act(0)
    answered = world.state.session.answered
    world.crash()
    assert (world.state.phase, world.state.session.answered) == (phase, answered)
    asked = [u for u in world.hospitals if world.mail[u].task is not None]
    assert set(asked) == set(world.hospitals) - answered
    assert world.settle()
    assert len(world.saved[1].survivors) == 4
    assert world.saved[1].dropped == ()
    assert list(world.sessions.values()) == ["opened"]
    assert "resumed" in world.kinds()


def test_a_restart_in_a_drill_pause_waits_for_the_pause():
    world = World(make_plan(4, rounds=1), drill_pause_s=5.0)
    world.until(Phase.MASK) if world.settle(turns=11) else None
    while world.state.session is None or world.state.session.closed_at_s is None:
        world.settle(turns=1)
    phase = world.state.phase
    world.crash()
    assert world.state.phase is phase
    world.tick(4)
    assert world.state.phase is phase
    world.tick(1)
    assert world.state.phase is not phase
    assert world.settle()


def test_the_run_ends_when_too_few_hospitals_have_budget_left():
    world = World(make_plan(4, rounds=50))
    for node in range(4):
        world.act(node)
    world.feed(ev.Reported(uri(0), 1, ev.Report.DECLINED, code="budget-exhausted"))
    assert world.state.phase is not Phase.FINISHED
    world.feed(ev.Reported(uri(1), 1, ev.Report.DECLINED, code="budget-exhausted"))
    assert world.state.phase is Phase.FINISHED
    assert "2 hospitals remain and 3 are needed" in world.state.finished
    assert "h0: the next round would cross the privacy cap" in world.state.finished


def test_a_decline_that_people_can_lift_keeps_the_run_waiting():
    world = World(make_plan(3, rounds=1))
    for node in range(3):
        world.feed(ev.Joined(uri(node), b"key"))
    world.feed(ev.Reported(uri(0), 1, ev.Report.DECLINED, code="not-approved"))
    assert world.state.phase is Phase.TRAIN
    assert "h0 (declined: not-approved)" in waiting_for(world.state, world.now_s)
    world.feed(ev.Joined(uri(0), b"key"))
    assert world.settle()
    assert world.saved[1].state == "opened"


def test_one_cap_is_reached_and_the_others_go_on():
    world = World(make_plan(4, rounds=3))
    world.hospitals[uri(3)].budget = 1
    assert world.settle()
    assert world.hospitals[uri(3)].finished is not None
    assert [len(world.saved[number].survivors) for number in (1, 2, 3)] == [4, 3, 3]


def test_an_update_on_another_model_is_not_taken():
    world = World(make_plan(4))
    world.feed(ev.Joined(uri(0), b"key"))
    world.feed(ev.Reported(uri(0), 1, ev.Report.READY, b"other model"))
    assert "wrong-base" in world.kinds()
    assert world.state.members[uri(0)].code == "wrong-base"


def test_reports_about_another_round_change_nothing():
    world = World(make_plan(4))
    world.feed(ev.Joined(uri(0), b"key"))
    before = world.state
    world.feed(ev.Reported(uri(0), 7, ev.Report.READY, START))
    assert world.state == before


def test_strangers_change_nothing():
    world = World(make_plan(4))
    before = world.state
    stranger = "secagg://lidc/hospital/stranger"
    for event in (
        ev.Joined(stranger, b"key"),
        ev.Seen(stranger),
        ev.Reported(stranger, 1, ev.Report.READY, START),
        ev.Refused(stranger, bytes(16), "policy"),
        ev.UploadAccepted(stranger, bytes(16)),
    ):
        world.feed(event)
        assert world.state == before


def test_the_drill_pause_stands_between_masking_phases():
    world = World(make_plan(4, rounds=1), drill_pause_s=5.0)
    world.until(Phase.ADVERTISE)
    for node in range(4):
        world.act(node)
    assert world.state.phase is Phase.ADVERTISE
    assert why_not(world.state, uri(0), world.state.session.id, Phase.ADVERTISE) is not None
    world.tick(4)
    assert world.state.phase is Phase.ADVERTISE
    world.tick(1)
    assert world.state.phase is Phase.SHARE
    assert world.settle()


def test_an_impossible_roster_is_not_tried_again_until_it_changes():
    world = World(make_plan(4))
    state, _ = step(world.state, ev.Joined(uri(0), b"key"), world.now_s)
    for node in range(4):
        state, _ = step(state, ev.Joined(uri(node), b"key"), world.now_s)
        state, effects = step(state, ev.Reported(uri(node), 1, ev.Report.READY, START), world.now_s)
    roster = next(effect.roster for effect in effects if isinstance(effect, ev.NewSession))
    state, effects = step(state, ev.SessionImpossible(roster, "lanes overflow"), world.now_s)
    assert not any(isinstance(effect, ev.NewSession) for effect in effects)
    assert any(isinstance(effect, ev.Record) and effect.kind == "cohort-refused" for effect in effects)
    state, effects = step(state, ev.Tick(), world.now_s + 1)
    assert effects == ()


def test_a_threshold_that_does_not_fit_the_roster_opens_nothing_and_says_so():
    world = World(make_plan(6, masking=Masking(threshold=3, max_colluders=1)))
    for _ in range(3):
        for node in range(6):
            world.act(node)
    assert world.sessions == {}
    assert world.kinds().count("cohort-refused") == 1


@pytest.mark.parametrize(
    ("size", "threshold", "colluders", "expected"),
    [
        (3, None, 1, True),
        (3, None, 2, False),
        (4, None, 1, True),
        (4, None, 2, False),
        (10, None, 3, True),
        (4, 4, 2, True),
        (5, 3, 1, False),
        (5, 3, 0, True),
        (4, 2, 0, False),
    ],
)
def test_bounds_of_a_cohort(size, threshold, colluders, expected):
    """c < 2t - n and t - c >= 2, written out by hand for each case."""
    assert fits(make_plan(10, masking=Masking(threshold=threshold, max_colluders=colluders)), size) is expected


def test_a_plan_without_any_safe_cohort_is_refused_with_the_remedy():
    with pytest.raises(PlanError, match=r"lower masking\.max_colluders"):
        smallest_cohort(make_plan(4, masking=Masking(max_colluders=3)))


def test_evaluations_follow_the_plan_and_include_the_last_model():
    plan = make_plan(4, rounds=5).model_copy(update={"evaluate_every": 2})
    world = World(plan)
    assert world.settle()
    assert world.evaluations == [0, 2, 4, 5]


def test_while_a_session_id_is_drawn_no_other_is_asked_for():
    world = World(make_plan(3))
    state = world.state
    for node in range(3):
        state, _ = step(state, ev.Joined(uri(node), b"key"), world.now_s)
    for node in range(3):
        state, effects = step(state, ev.Reported(uri(node), 1, ev.Report.READY, START), world.now_s)
    assert [type(effect) for effect in effects].count(ev.NewSession) == 1
    state, effects = step(state, ev.Tick(), world.now_s + 1)
    assert effects == ()
    after, effects = step(state, ev.SessionNamed(b"x" * 16, (uri(0), uri(1))), world.now_s + 1)
    assert (after, effects) == (state, ())


def test_the_first_answer_of_a_party_stands():
    world = World(make_plan(4))
    world.until(Phase.ADVERTISE)
    session = world.state.session.id
    first, second = (Advert(uri(0), bytes([k]) * 32, bytes(32), bytes(32), b"s") for k in (1, 2))
    world.feed(ev.Advertised(uri(0), session, first))
    world.feed(ev.Advertised(uri(0), session, second))
    assert world.state.session.adverts[uri(0)] == first


def test_a_sum_cannot_be_opened_before_its_time():
    world = World(make_plan(4))
    world.until(Phase.MASK)
    before = world.state
    world.feed(ev.Opened(before.session.id, b"S" * 32, b"M" * 32))
    assert world.state == before


def test_an_upload_after_the_list_was_closed_does_not_count():
    world = World(make_plan(4), drill_pause_s=5.0)
    while world.state.phase is not Phase.MASK:
        for node in range(4):
            world.act(node)
        world.tick(2)
    for node in range(3):
        world.act(node)
    world.tick(20)
    assert world.state.session.survivors == (uri(0), uri(1), uri(2))
    before = world.state.session
    world.act(3)
    assert world.state.session == before


def test_a_member_that_leaves_in_the_drill_pause_does_not_close_the_list_twice():
    """The world refuses a second CloseList of one session."""
    world = World(make_plan(4, rounds=1), drill_pause_s=5.0)
    while not (world.state.phase is Phase.MASK and world.state.session.closed_at_s is not None):
        for node in range(4):
            world.act(node)
        world.tick(1)
    world.feed(ev.Reported(uri(3), 1, ev.Report.DECLINED, code="paused"))
    world.hospitals[uri(3)].alive = False
    assert world.settle()
    assert world.saved[1].survivors == tuple(uri(node) for node in range(4))
    assert world.saved[1].dropped == ((uri(3), "mask"),)


def test_nobody_waits_for_a_hospital_whose_budget_is_spent():
    world = World(make_plan(4))
    for node in range(4):
        world.act(node)
    world.feed(ev.Reported(uri(0), 1, ev.Report.DECLINED, code="budget-exhausted"))
    world.feed(ev.Reported(uri(1), 1, ev.Report.DECLINED, code="paused"))
    said = waiting_for(world.state, world.now_s)
    assert "h0" not in said
    assert "h1 (declined: paused)" in said
