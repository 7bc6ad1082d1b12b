"""Rounds that belong to some of the hospitals: who is asked, who counts, and what follows where too few of them can."""

from __future__ import annotations

import pytest
import tomli_w
from coordinator_world import START, World, make_plan, uri
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coordinator_rounds import ACTION, NODES, perform
from typer.testing import CliRunner

from coordinator import events as ev
from coordinator import orders
from coordinator.cli import app
from coordinator.rounds import step
from coordinator.state import Phase, Standing, member_view, needs_people, smallest_cohort, waiting_for
from proto.plan import Masking, Plan, PlanError

EVERYBODY = [uri(number) for number in range(NODES)]


def make(rounds: int = 4, participants: int = 3, hospitals: int = NODES, **masking: int) -> Plan:
    fields = make_plan(hospitals, rounds, masking=Masking(**masking)).model_dump()
    return Plan.model_validate({**fields, "participants": participants})


def rosters(world: World) -> dict[int, set[str]]:
    """Who was in a session of each round."""
    return {number: set(row.cohort) for number, row in world.saved.items() if row.cohort}


def number_of(party: str) -> int:
    return int(party.rpartition("/h")[2])


@settings(max_examples=200)
@given(st.lists(ACTION, max_size=50), st.sampled_from([3, 4]))
def test_no_schedule_brings_a_hospital_into_a_round_that_is_not_its_own(schedule, participants):
    """On top of what the world asserts for every schedule."""
    world = World(make(rounds=6, participants=participants))
    last: dict[int, ev.Event] = {}
    for name, argument in schedule:
        perform(world, name, argument, last)
        asked = world.plan.selected(world.state.round)
        assert world.state.asked == set(asked)
        assert world.state.session is None or set(world.state.session.uris) <= set(asked)
    for number, members in rosters(world).items():
        assert members <= set(world.plan.selected(number))


@settings(max_examples=100)
@given(st.lists(ACTION, max_size=40))
def test_every_schedule_ends_once_hospitals_behave(schedule):
    world = World(make(rounds=4))
    last: dict[int, ev.Event] = {}
    for name, argument in schedule:
        perform(world, name, argument, last)
    for hospital in world.hospitals.values():
        if not hospital.alive:
            hospital.restart()
    world.fail_opening = False
    world.feed(ev.RoundsLetOn("Operator"))  # people may have held rounds back, or taken a key from the list
    world.revoked.clear()
    assert world.settle(turns=600, seconds=2.0), (world.state.phase, waiting_for(world.state, world.now_s))
    ended = [row for row in world.saved.values() if row.state in {"opened", "aborted"}]
    assert len(ended) == 4 or "remain" in world.state.finished


def test_each_round_is_offered_to_its_hospitals_and_opened_by_them():
    world = World(make())
    assert world.settle()
    assert [world.saved[number].state for number in range(1, 5)] == ["opened"] * 4
    for number in range(1, 5):
        asked = set(world.plan.selected(number))
        assert set(world.saved[number].cohort) == asked
        released = {u for u, hospital in world.hospitals.items() if number in hospital.released}
        assert released == asked


def test_the_others_are_told_to_wait_and_hear_every_result():
    world = World(make(rounds=1))
    idle = next(u for u in EVERYBODY if u not in world.plan.selected(1))
    world.feed(ev.Joined(idle, b"key"))
    _, order = world.mail[idle].after(0)
    assert order == orders.Wait("the plan does not select this hospital for round 1")
    assert world.settle()
    assert [result.round for result in world.hospitals[idle].results] == [1]


def test_a_report_of_a_hospital_that_was_not_asked_changes_nothing():
    world = World(make())
    idle = next(u for u in EVERYBODY if u not in world.state.asked)
    world.feed(ev.Joined(idle, b"key"))
    for report, code in ((ev.Report.READY, ""), (ev.Report.TRAINING, ""), (ev.Report.DECLINED, "budget-exhausted")):
        before = world.state
        state, effects = step(before, ev.Reported(idle, 1, report, START, code), world.now_s)
        assert (state, effects) == (before, ())


def test_nobody_waits_for_a_hospital_that_is_not_asked():
    world = World(make(rounds=1))
    for _ in range(12):
        for party in world.plan.selected(1):
            world.act(number_of(party))
    assert world.saved[1].state == "opened"
    assert all(world.state.members[u].standing is Standing.ABSENT for u in set(EVERYBODY) - set(world.plan.selected(1)))


def test_what_is_shown_names_only_hospitals_of_the_round():
    world = World(make())
    asked, idle = set(world.state.asked), set(EVERYBODY) - set(world.state.asked)
    for party in EVERYBODY:
        world.feed(ev.Joined(party, b"key"))
    text = waiting_for(world.state, world.now_s)
    assert all(f"{u.rpartition('/')[2]} (to begin)" in text for u in asked)
    assert not any(u.rpartition("/")[2] in text for u in idle)
    assert {member_view(world.state, u) for u in idle} == {("joined", "", "")}
    assert {member_view(world.state, u) for u in asked} == {("joined", "train", "")}


def test_a_round_whose_hospitals_have_no_budget_left_is_passed_over_and_nobody_replaces_them():
    """Four of five hospitals go on; rounds that need the fifth are ended unopened, the others open."""
    plan = make(rounds=8)
    poor = plan.selected(1)[0]
    world = World(plan)
    world.hospitals[poor].budget = 0
    assert world.settle()
    assert world.state.finished == "all 8 rounds are done"
    for number in range(1, 9):
        expected = "aborted" if poor in plan.selected(number) else "opened"
        assert world.saved[number].state == expected, number
    assert {world.saved[n].state for n in range(1, 9)} == {"aborted", "opened"}, "the example shows both"
    assert world.saved[1].reason == "2 of its 3 hospitals have budget left and 3 are needed"
    said = next(record.text for record in world.records if record.kind == "round-aborted")
    assert said == "Round 1 · passed over: 2 of its 3 hospitals have budget left and 3 are needed"
    measured = [0, *(n for n in range(1, 9) if world.saved[n].state == "opened")]
    assert world.evaluations == measured


def test_passed_over_rounds_ask_nobody_to_train_again():
    plan = make(rounds=8)
    poor = plan.selected(1)[0]
    world = World(plan)
    world.hospitals[poor].budget = 0
    assert world.settle()
    released = [number for hospital in world.hospitals.values() for number in hospital.released]
    assert sorted(released) == sorted(n for n in range(1, 9) if poor not in plan.selected(n) for _ in range(3))


def test_the_run_ends_where_too_few_hospitals_of_the_whole_plan_have_budget_left():
    world = World(make(rounds=50))
    for party in EVERYBODY[:3]:
        world.hospitals[party].budget = 0
    assert world.settle()
    assert world.state.phase is Phase.FINISHED
    assert world.state.finished.startswith("2 hospitals remain and 3 are needed")


def test_after_a_restart_the_same_hospitals_are_asked():
    world = World(make())
    for party in EVERYBODY:
        world.act(number_of(party))
    asked = world.state.asked
    world.crash()
    assert world.state.asked == asked
    assert world.settle()
    assert [world.saved[number].state for number in range(1, 5)] == ["opened"] * 4


def test_a_round_stands_still_only_once_all_its_hospitals_are_ready_or_out():
    world = World(make(participants=4))
    asked = [number_of(party) for party in world.plan.selected(1)]
    for node in asked:
        world.feed(ev.Joined(uri(node), b"key"))
    assert not needs_people(world.state)
    for node in asked[:2]:
        world.feed(ev.Reported(uri(node), 1, ev.Report.FAILED, code="training-failed"))
    assert not needs_people(world.state)
    for node in asked[2:]:
        world.feed(ev.Reported(uri(node), 1, ev.Report.READY, START))
    assert needs_people(world.state)
    world.feed(ev.Reported(uri(asked[0]), 1, ev.Report.READY, START))
    assert not needs_people(world.state)
    assert len(world.state.session.roster) == 3


def test_a_cohort_that_can_never_be_safe_is_refused_when_the_run_begins():
    """Five hospitals could stand two colluders, the three of a round cannot."""
    assert smallest_cohort(make(participants=5, max_colluders=2)) == 5
    with pytest.raises(PlanError, match="no n up to 3; let more hospitals take part"):
        smallest_cohort(make(participants=3, max_colluders=2))


def test_check_plan_speaks_of_the_cohorts_that_a_round_can_have(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(make(participants=4).model_dump(mode="json", exclude_none=True)))
    result = CliRunner().invoke(app, ["check-plan", str(path)])
    assert result.exit_code == 0, result.stderr
    first, *_, paid = result.stdout.splitlines()[:4]
    sizes = result.stdout.splitlines()[4:]
    most = max(sum(h.uri in make(participants=4).selected(number) for number in range(1, 5)) for h in make().hospitals)
    assert f"at most {most} steps" in paid
    assert first.startswith("Study 'lidc': 5 hospitals, 4 rounds, 4 of them in each, digest ")
    assert [line.split(" ")[0] for line in sizes] == ["3", "4"]
