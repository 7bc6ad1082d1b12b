"""A hospital that leaves in order, at any moment: nobody waits for it, nobody calls it lost, and it comes back by joining."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from coordinator_federation import (
    connected,
    coordinating,
    hospitals,
    live_all,
    make_identities,
    small_plan,
    until,
    write_study,
)
from coordinator_world import World, make_plan, uri

from coordinator import events as ev
from coordinator.awaited import awaited
from coordinator.service import REPORTS
from coordinator.state import MASKING, Phase, Standing, member_view, needs_people, waiting_for
from coordinator.store import open_store
from proto import federation_pb2 as pb
from proto.buffering import Buffer
from proto.plan import PROTOCOL_VERSION

LEFT = ev.Report.LEFT


def leave(world: World, place: int) -> None:
    """The node says goodbye and is gone."""
    world.feed(ev.Reported(uri(place), 0, LEFT))
    world.hospitals[uri(place)].alive = False


def test_between_two_rounds_a_hospital_leaves_and_the_others_do_not_wait() -> None:
    world = World(make_plan(4, rounds=3))
    while world.state.round == 1:
        for place in range(4):
            world.act(place)
    leave(world, 3)
    began_s = world.now_s
    while world.state.round == 2:
        for place in range(3):
            world.act(place)
    assert world.now_s == began_s, "nobody waited"
    assert world.saved[2].cohort == (uri(0), uri(1), uri(2))
    assert member_view(world.state, uri(3)) == ("left", "", "")
    assert uri(3) not in {one.uri for one in awaited(world.state, world.now_s)}
    offers = [record.text for record in world.records if record.kind == "round"]
    assert "h3" in offers[0]
    assert "h3" not in offers[-1]


def test_a_hospital_that_left_is_never_called_lost() -> None:
    world = World(make_plan(4, rounds=1))
    for place in range(4):
        world.act(place)
    leave(world, 3)
    world.tick(10_000)
    lost = [record.text for record in world.records if record.kind == "lost"]
    assert not any("h3" in text for text in lost)
    assert [record.text for record in world.records if record.kind == "left"] == [
        "Round 1 · h3 left in order; nobody waits for it until it joins again"
    ]


def test_it_comes_back_by_joining_and_takes_part_again() -> None:
    world = World(make_plan(4, rounds=2))
    for place in range(4):
        world.act(place)
    leave(world, 3)
    world.feed(ev.Reported(uri(3), 1, ev.Report.TRAINING))  # said before, heard after
    assert world.state.members[uri(3)].standing is Standing.LEFT
    world.hospitals[uri(3)].restart()
    world.act(3)
    assert world.state.members[uri(3)].standing is not Standing.LEFT
    assert world.settle()
    assert world.saved[2].survivors == tuple(uri(place) for place in range(4))
    assert [record.text for record in world.records if record.kind == "returned"] == ["Round 1 · h3 is back"]


def test_where_too_few_are_left_the_round_stays_open_and_says_for_whom() -> None:
    world = World(make_plan(4, rounds=1))
    for place in range(4):
        world.act(place)
    for place in (2, 3):
        leave(world, place)
        world.act(place - 2)
    assert waiting_for(world.state, world.now_s) == "Round 1 · 2 ready, 3 needed · waiting for h2 (left), h3 (left)"
    assert {one.state for one in awaited(world.state, world.now_s)} == {"left"}
    assert needs_people(world.state)
    world.tick(500)
    assert world.state.phase is Phase.TRAIN
    for place in (2, 3):
        world.hospitals[uri(place)].restart()
    assert world.settle()
    assert world.saved[1].state == "opened"


@pytest.mark.parametrize("phase", MASKING)
def test_one_that_leaves_a_session_is_dropped_like_one_that_falls_silent(phase: Phase) -> None:
    world = World(make_plan(4, rounds=1))
    world.until(phase)
    leave(world, 3)
    for _ in range(20):
        for place in range(3):
            world.act(place)
    assert world.saved[1].state == "opened"
    kept = phase in {Phase.CONFIRM, Phase.REVEAL}  # its upload was taken before
    assert (uri(3) in world.saved[1].survivors) is kept


def test_in_a_buffered_plan_nobody_waits_for_its_model_either() -> None:
    world = World(make_plan(4, rounds=2, buffer=Buffer(updates=3, max_staleness=2)))
    for place in range(4):
        world.act(place)
    leave(world, 3)
    began_s = world.now_s
    for _ in range(40):
        for place in range(3):
            world.act(place)
    assert world.now_s == began_s
    assert [world.saved[number].state for number in (1, 2)] == ["opened"] * 2


def test_a_goodbye_without_a_hello_or_after_a_revocation_changes_nothing() -> None:
    world = World(make_plan(4, rounds=1))
    leave(world, 0)
    assert world.state.members[uri(0)].standing is Standing.ABSENT
    world.act(1)
    world.revoke(1)
    leave(world, 1)
    assert world.state.members[uri(1)].standing is Standing.REVOKED
    assert "left" not in world.kinds()


def test_every_report_of_the_wire_has_its_meaning() -> None:
    assert set(REPORTS) == set(pb.NodeReport.State.values()) - {pb.NodeReport.STATE_UNSPECIFIED, pb.NodeReport.MEASURING}
    assert set(REPORTS.values()) == set(ev.Report)


def test_a_restarted_coordinator_knows_who_has_left(tmp_path: Path) -> None:
    plan = small_plan(4, rounds=1, lost_after_s=3600.0, phase_deadline_s=3600.0)
    identities = make_identities(tmp_path / "certs")
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)

    async def says_goodbye() -> None:
        async with coordinating(config), connected(config, nodes[3].folder) as stub:
            await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION))
            await stub.Report(pb.NodeReport(state=pb.NodeReport.LEFT))

    async def goes_on() -> None:
        async with coordinating(config) as run:
            assert [member.standing for member in run.state.members.values()] == [Standing.ABSENT] * 3 + [Standing.LEFT]
            await live_all(nodes[:3])  # which has less patience than `lost_after_s`

    asyncio.run(says_goodbye())
    asyncio.run(goes_on())
    with open_store(config.database) as store:
        assert [len(row.survivors) for row in store.rounds()] == [3]


def test_over_real_connections_one_leaves_after_a_round_and_the_run_ends_without_it(tmp_path: Path) -> None:
    """With `lost_after_s` of an hour: whoever waited for the one that left would not end in time."""
    plan = small_plan(4, rounds=2, lost_after_s=3600.0, phase_deadline_s=3600.0)
    identities = make_identities(tmp_path / "certs")
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    leaving = nodes[3]
    leaving.die_before = "result"

    async def scenario() -> None:
        async with coordinating(config) as run:
            others = asyncio.create_task(live_all(nodes[:3]))
            await leaving.live()
            async with connected(config, leaving.folder) as stub:
                await stub.Report(pb.NodeReport(state=pb.NodeReport.LEFT))
            await until(lambda: run.state.members[uri(3)].standing is Standing.LEFT)
            await others
            assert run.over()

    asyncio.run(scenario())
    with open_store(config.database) as store:
        assert [len(row.survivors) for row in store.rounds()] == [4, 3]
        assert next(row.state for row in store.members() if row.uri == uri(3)) == "left"
        kinds = {row.kind for row in store.events()}
    assert "left" in kinds
    assert "lost" not in kinds
