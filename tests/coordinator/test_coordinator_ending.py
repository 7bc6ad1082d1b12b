"""A run that is over ends the program only when whoever is waited for knows it, an evaluator at work among them."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import grpc
import numpy as np
import pytest
from coordinator_federation import (
    EVALUATOR,
    ScriptedEvaluator,
    connected,
    coordinating,
    hospitals,
    live_all,
    make_identities,
    small_plan,
    write_study,
)
from coordinator_world import uri
from hypothesis import given
from hypothesis import strategies as st

from coordinator import events as ev
from coordinator.config import ConfigError, load_config
from coordinator.ending import Ending, Evaluator
from coordinator.run import Run
from coordinator.serving import _are_over
from coordinator.state import Member, Standing
from coordinator.store import open_store
from proto import federation_pb2 as pb

LOST_S, PATIENCE_S = 60.0, 900.0


def members(seen_s: float) -> dict[str, Member]:
    return {"h": Member("h", 1, public_key=b"k", last_seen_s=seen_s)}


@given(st.lists(st.integers(1, 59), max_size=40))
def test_an_evaluator_that_says_it_is_at_work_is_waited_for_until_patience_ends(gaps: list[int]) -> None:
    ending, evaluator = Ending(LOST_S, PATIENCE_S), Evaluator("joined", 0.0)
    now_s = 0.0
    assert ending.awaited({}, {"e": evaluator}, now_s, now_s) == {"e"}
    for gap_s in gaps:
        now_s += gap_s
        assert ending.awaited({}, {"e": evaluator}, now_s, now_s) == ({"e"} if now_s < PATIENCE_S else set())
        evaluator.last_seen_at = now_s
    silent_s = now_s + LOST_S
    assert ending.awaited({}, {"e": evaluator}, silent_s, silent_s) == set()


def test_hospitals_heard_of_lately_are_waited_for_and_the_others_are_not() -> None:
    ending = Ending(LOST_S, 0.0)
    assert ending.awaited(members(10.0), {"e": Evaluator("joined", 10.0)}, 11.0, 11.0) == {"h"}
    assert ending.awaited(members(10.0), {}, 10.0 + LOST_S, 0.0) == set()
    absent = {"h": replace(members(10.0)["h"], public_key=b"")}
    assert ending.awaited(absent, {}, 11.0, 11.0) == set()


def test_after_a_restart_everybody_may_still_come_back() -> None:
    ending = Ending(LOST_S, PATIENCE_S, took_over_s=100.0)
    absent, evaluator = {"h": Member("h", 1, 0.0)}, {"e": Evaluator()}
    assert ending.awaited(absent, evaluator, 100.0 + LOST_S / 2, 0.0) == {"h", "e"}
    assert ending.awaited(absent, evaluator, 100.0 + LOST_S, 0.0) == set()
    left = {"h": Member("h", 1, 0.0, standing=Standing.LEFT)}
    assert ending.awaited(left, evaluator, 100.0 + LOST_S / 2, 0.0) == {"e"}


def test_a_hospital_that_is_heard_of_but_never_asks_is_not_waited_for_longer_than_one_that_is_lost() -> None:
    ending = Ending(LOST_S, PATIENCE_S)
    for now_s in (0.0, LOST_S / 2, LOST_S - 1):
        assert ending.awaited(members(now_s), {}, now_s, 0.0) == {"h"}
    assert ending.awaited(members(LOST_S), {}, LOST_S, 0.0) == set()


def test_patience_counts_from_the_end_that_the_store_has_whatever_a_restart_says() -> None:
    for ago_s, waits in ((PATIENCE_S - 1, True), (PATIENCE_S, False)):
        ending, at = Ending(LOST_S, PATIENCE_S, took_over_s=100.0), 5000.0
        found = ending.awaited({}, {"e": Evaluator("joined", at)}, 100.0, at, ended_at=at - ago_s)
        assert found == ({"e"} if waits else set())


def test_a_clock_that_was_set_back_does_not_stretch_patience() -> None:
    ending, at = Ending(LOST_S, PATIENCE_S), 5000.0
    assert ending.awaited({}, {"e": Evaluator("joined", at)}, 0.0, at, ended_at=at + 1e6) == {"e"}
    assert ending.awaited({}, {"e": Evaluator("joined", at)}, PATIENCE_S, at, ended_at=at + 1e6) == set()


@pytest.mark.parametrize("value", ["inf", "nan", "-1.0", "604801.0"])
def test_patience_without_a_bound_is_refused(tmp_path: Path, value: str) -> None:
    paths = "".join(f'{name} = "{name}"\n' for name in ("identity", "allow", "plan", "start", "state"))
    (tmp_path / "coordinator.toml").write_text(f"evaluation_patience_s = {value}\n{paths}")
    with pytest.raises(ConfigError, match="evaluation_patience_s"):
        load_config(tmp_path / "coordinator.toml")


@pytest.mark.sockets
def test_a_run_that_is_started_again_after_its_end_waits_no_longer_for_an_evaluator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, identities = small_plan(4, rounds=1), make_identities(tmp_path / "certs")
    config = write_study(tmp_path, identities, plan, evaluation_patience_s=900.0)

    async def scenario() -> None:
        async with coordinating(config):
            await live_all(hospitals(config, identities, plan))

    asyncio.run(scenario())
    with open_store(config.database) as store:
        name, since = store.phase()
    assert (name, since is not None) == ("finished", True)
    for after_s, over in ((890.0, False), (910.0, True)):
        at = since.timestamp() + after_s
        monkeypatch.setattr(time, "time", lambda at=at: at)
        now_s = 100.0
        again = Run(config, os.urandom, lambda: now_s)  # noqa: B023
        again.feed(ev.Tick())
        again.flush()
        now_s += plan.timing.lost_after_s + 1
        again.evaluators[EVALUATOR].last_seen_at = at
        assert again.over() is over
        again.store.close()


def test_every_run_is_asked_whether_it_is_over_so_that_each_patience_counts_from_its_own_end() -> None:
    unfinished, finished = Mock(), Mock()
    unfinished.run.over.return_value = False
    assert not _are_over([unfinished, finished])
    finished.run.over.assert_called_once_with()
    unfinished.run.over.return_value = True
    assert _are_over([unfinished, finished])


class SlowEvaluator(ScriptedEvaluator):
    """Measures when it is let; says meanwhile that it is at work."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.asked, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def _on_evaluate(self, stub: object, order: pb.Evaluate) -> None:
        self.asked.set()
        await self.may_go_on.wait()
        await super()._on_evaluate(stub, order)


@pytest.mark.sockets
def test_a_finished_run_waits_for_a_slow_evaluator(tmp_path: Path) -> None:
    plan = small_plan(4, rounds=1, lost_after_s=3600.0, phase_deadline_s=3600.0)
    identities = make_identities(tmp_path / "certs")
    config = write_study(tmp_path, identities, plan)

    async def scenario() -> None:
        judge = SlowEvaluator(config, plan, identities / "e0", {}, lambda _: np.zeros(0, np.float32))
        async with coordinating(config) as run:
            measuring = asyncio.create_task(judge.live())
            await judge.asked.wait()
            nodes = hospitals(config, identities, plan)
            await live_all(nodes)
            assert run.state.finished
            run.evaluators[EVALUATOR].last_seen_at = 0.0  # it has been silent for long
            assert run.over()
            async with connected(config, judge.folder) as stub:
                await stub.Report(pb.NodeReport(round=1, state=pb.NodeReport.MEASURING))
            assert not run.over()
            judge.may_go_on.set()
            await measuring
            assert run.over()
            async with connected(config, nodes[0].folder) as stub:
                with pytest.raises(grpc.aio.AioRpcError, match="only a evaluator measures"):
                    await stub.Report(pb.NodeReport(round=1, state=pb.NodeReport.MEASURING))

    asyncio.run(scenario())
    with open_store(config.database) as store:
        assert [row.round for row in store.scores()] == [0, 1]
        assert next(row.state for row in store.members() if row.uri == uri(0)) != "left"
