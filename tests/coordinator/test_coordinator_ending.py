"""A run that is over ends the program only when whoever is waited for knows it, an evaluator at work among them."""

from __future__ import annotations

import asyncio
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

from coordinator.ending import Ending, Evaluator
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
