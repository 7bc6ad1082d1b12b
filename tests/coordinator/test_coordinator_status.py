"""Whom a run waits for, how old what it says is, and the figures and log lines of a running coordinator."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from coordinator_federation import coordinating, hospitals, live_all, small_plan, until, write_study
from coordinator_world import World, make_plan, uri

from coordinator import events as ev
from coordinator import logs
from coordinator.awaited import Awaited, awaited
from coordinator.cli import _plain
from coordinator.config import ConfigError
from coordinator.metrics import MAX_REQUEST_BYTES
from coordinator.state import MASKING, Phase
from coordinator.status import STALE_AFTER_S, status_of
from coordinator.store import open_store


def test_in_training_everybody_who_is_not_ready_is_awaited():
    world = World(make_plan(4))
    assert awaited(world.state, world.now_s) == tuple(Awaited(uri(k), "to join", survives_without=True) for k in range(4))
    for node in (0, 1):
        world.act(node)
    world.feed(ev.Joined(uri(2), b"key"))
    world.feed(ev.Reported(uri(2), 1, ev.Report.DECLINED, code="not-approved"))
    assert awaited(world.state, world.now_s) == (
        Awaited(uri(2), "declined: not-approved", survives_without=True),
        Awaited(uri(3), "to join", survives_without=False),
    ), "three are needed: the two that are ready and the one that may still come"
    world.tick(31)
    assert [one.state for one in awaited(world.state, world.now_s)][-1] == "not heard of"


@pytest.mark.parametrize("phase", MASKING)
def test_in_masking_the_engine_agrees_with_what_is_said_to_survive(phase):
    """Of four members three are needed in every phase: one may be lost, and then no other."""
    world = World(make_plan(4, rounds=1))
    world.until(phase)
    assert {one.survives_without for one in awaited(world.state, world.now_s)} == {True}
    world.feed(ev.Refused(uri(3), world.state.session.id, "policy", "unknown"))
    missing = awaited(world.state, world.now_s)
    assert [(one.uri, one.survives_without) for one in missing] == [(uri(k), False) for k in range(3)]
    session = world.state.session.id
    world.feed(ev.Refused(uri(0), session, "policy", "unknown"))
    assert world.sessions[session] == "aborted"


def test_nobody_is_awaited_while_the_coordinator_works_or_the_run_is_over():
    world = World(make_plan(4, rounds=1), drill_pause_s=5.0)
    world.until(Phase.ADVERTISE)
    for node in range(4):
        world.act(node)
    assert awaited(world.state, world.now_s) == ()
    assert world.settle()
    assert awaited(world.state, world.now_s) == ()


def test_status_says_who_is_awaited_since_when_and_whether_it_can_be_believed(tmp_path, identities):
    plan = small_plan(4, rounds=1, training_deadline_s=60, lost_after_s=STALE_AFTER_S)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)

    async def scenario():
        async with coordinating(config) as run:
            lives = [asyncio.create_task(node.live()) for node in nodes[:3]]
            await until(lambda: sum(m.standing.value == "ready" for m in run.state.members.values()) == 3)
            await until(lambda: [one["uri"] for one in run.store.awaited()] == [uri(3)])
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)

    asyncio.run(scenario())
    now = datetime.now(UTC)
    with open_store(config.database) as store:
        said = json.loads(json.dumps(status_of(store, now), default=_plain))
        later = status_of(store, now + timedelta(seconds=STALE_AFTER_S + 1))
    assert said["phase"]["name"] == "train"
    (missing,) = said["awaited"]
    since = datetime.fromisoformat(missing.pop("since"))
    assert 0 <= missing.pop("waited_s") == pytest.approx((now - since).total_seconds())
    assert missing == {"uri": uri(3), "name": "h3", "state": "to join", "phase": "train", "survives_without": True}
    assert said["coordinator"]["stale"] is False
    assert 0 <= said["coordinator"]["heartbeat_age_s"] < STALE_AFTER_S
    heard = {row["uri"]: row["heard_age_s"] for row in said["members"]}
    assert heard[uri(3)] is None
    assert heard[uri(0)] < STALE_AFTER_S
    assert later["coordinator"]["stale"] is True
    assert all(row["stale"] for row in later["members"])


def test_a_finished_run_is_not_stale(tmp_path, identities):
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan)

    async def scenario():
        async with coordinating(config):
            await live_all(hospitals(config, identities, plan))

    asyncio.run(scenario())
    with open_store(config.database) as store:
        assert status_of(store, datetime.now(UTC) + timedelta(days=1))["coordinator"]["stale"] is False


# ---- metrics ----


async def fetched(address, request):
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return (await asyncio.wait_for(reader.read(), 120)).decode()
    finally:
        writer.close()


def test_metrics_are_what_happened(tmp_path, identities, unused_port):
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan).model_copy(update={"metrics": f"127.0.0.1:{unused_port}"})

    async def scenario():
        async with coordinating(config) as run:
            await live_all(hospitals(config, identities, plan))
            page = await fetched(config.metrics, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            other = await fetched(config.metrics, b"GET / HTTP/1.1\r\n\r\n")
            flooded = await fetched(config.metrics, b"GET /metrics " + b"x" * 2 * MAX_REQUEST_BYTES)
            return page, other, flooded, dict(run.meter.totals)

    page, other, flooded, totals = asyncio.run(scenario())
    head, _, body = page.partition("\r\n\r\n")
    assert "200 OK" in head
    assert "404" in other
    assert flooded == ""
    line = re.compile(r"(# (HELP|TYPE) secagg_\w+ .+)|(secagg_\w+(\{\w+=\"[^\"]*\"(,\w+=\"[^\"]*\")*\})? [0-9.e+-]+)")
    assert all(line.fullmatch(one) for one in body.splitlines())
    values = {name: float(value) for name, _, value in (one.rpartition(" ") for one in body.splitlines() if one[0] != "#")}
    assert values["secagg_sessions_total"] == values['secagg_rounds_total{state="opened"}'] == 1
    assert values['secagg_rounds_total{state="aborted"}'] == 0
    assert values['secagg_phase{phase="finished"}'] == 1
    assert values['secagg_bytes_total{direction="up",phase="mask"}'] == totals["up", "mask"] > 0
    assert values["secagg_peak_memory_bytes"] > 1e7


def test_metrics_stay_on_this_machine(tmp_path, identities):
    with pytest.raises(ConfigError, match="reachable from other machines"):
        write_study(tmp_path, identities, small_plan(), metrics="0.0.0.0:9464")


# ---- the log ----


def test_only_listed_fields_reach_the_log(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    before = structlog.get_config()
    try:
        logs.configure(as_json=True)
        structlog.get_logger().info("Round 1", party="h0", share="deadbeef", update=[0.5], score=0.8)
    finally:
        structlog.configure(**before)
    line = json.loads(said.getvalue())
    assert line.pop("timestamp")[:4] == str(time.gmtime().tm_year)
    assert line == {"event": "Round 1", "level": "info", "party": "h0"}
