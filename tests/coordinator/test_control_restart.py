"""The common control variate over a restart of the coordinator: it is part of the published model, and so of its digest."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from coordinator_federation import LAYOUT, coordinating, hospitals, live_all, make_identities, small_plan, write_study

from coordinator.export import export_run
from coordinator.replay import replay
from coordinator.store import open_store
from proto import scaffold
from proto.layout import model_digest
from proto.plan import Plan

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
START = np.linspace(-1, 1, LAYOUT.length, dtype=np.float32)


def make_plan() -> Plan:
    fields = small_plan(3, rounds=2).model_dump()
    fields["training"] |= {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 2}
    return Plan.model_validate(fields | {"aggregation": {"rule": "scaffold"}})


def expected(plan: Plan, means: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """With everybody in every sum c is minus the newest mean over K eta, whatever it was before."""
    return START + np.sum(means, axis=0), -means[-1] / (2 * 0.5)


def test_a_restarted_coordinator_goes_on_with_the_common_variate(tmp_path: Path) -> None:
    asyncio.run(two_starts(tmp_path))


async def two_starts(tmp_path: Path) -> None:
    plan = make_plan()
    identities = make_identities(tmp_path / "identities", 3)
    config = write_study(tmp_path / "study", identities, plan, START)
    first = hospitals(config, identities, plan)
    for node in first:
        node.die_before = "result"
    async with coordinating(config):
        await live_all(first)
    means = [np.mean([node.updates[1] for node in first], axis=0)]
    async with coordinating(config) as run:
        published = run.models.read(run.state.base_digest.hex())
        assert run.state.base_digest == model_digest(published)
        model, common = scaffold.taken_apart(plan, published)
        for found, wanted in zip((model, common), expected(plan, means), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-3)
        second = hospitals(config, identities, plan)
        await live_all(second)
        means.append(np.mean([node.updates[2] for node in second], axis=0))
        model, common = scaffold.taken_apart(plan, run.models.read(run.state.base_digest.hex()))
        for found, wanted in zip((model, common), expected(plan, means), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-3)
    with open_store(config.database) as store:
        assert [row.state for row in store.rounds()] == ["opened", "opened"]
        export_run(store, config.state / "models", tmp_path / "run", NOON)
    assert [one.round for one in replay(tmp_path / "run")] == [1, 2]  # model and variate, bit for bit
