"""Several plans on one address: each has its own roster, rounds, models and store; an unknown one is refused."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from functools import partial

import grpc
import numpy as np
import pytest
from coordinator_federation import connected, hospitals, live_all, refusal_of, small_plan, until, write_study
from coordinator_world import uri

from coordinator.config import ConfigError, load_config
from coordinator.run import Run
from coordinator.serving import Desk, serve
from coordinator.store import StoreError, open_store
from proto import federation_pb2 as pb
from proto.plan import PROTOCOL_VERSION

pytestmark = pytest.mark.sockets
JOIN = pb.JoinRequest(protocol_version=PROTOCOL_VERSION)
TOLERANCE = 2e-5


def plan_for(places, rounds=1):
    """A plan for some of the four hospitals of the study."""
    whole = small_plan(4, rounds)
    return whole.model_copy(update={"hospitals": tuple(whole.hospitals[place] for place in places), "evaluators": ()})


@pytest.fixture
def two(tmp_path, identities):
    """Configurations of two plans that share two hospitals."""
    first, second = plan_for((0, 1, 2)), plan_for((1, 2, 3), rounds=2)
    configs = [write_study(tmp_path / name, identities, plan) for name, plan in (("one", first), ("two", second))]
    return (first, second), configs


@asynccontextmanager
async def side_by_side(configs):
    """Both plans on one address while the block runs."""
    for config in configs:
        config.state.mkdir(exist_ok=True)
    desks, stop = [Desk(config, partial(Run, config, os.urandom)) for config in configs], asyncio.Event()
    task = asyncio.create_task(serve(desks, configs[0], stop))
    try:
        await until(lambda: all(config.address_file.exists() for config in configs) or task.done())
        yield desks
    finally:
        stop.set()
        await task


def naming(config, identities, plan):
    """The plan's nodes; those of several plans name theirs."""
    nodes = hospitals(config, identities, plan)
    for node in nodes:
        node.names_plan = node.identity.uri in {uri(1), uri(2)}
    return nodes


def opened(config):
    with open_store(config.database) as store:
        assert {row.state for row in store.rounds()} == {"opened"}
        digest, members = store.models()[-1].digest, [row.uri for row in store.members()]
    return np.fromfile(config.state / "models" / f"{digest}.f32", "<f4"), members


def test_two_plans_run_side_by_side_and_apart(two, identities):
    plans, configs = two

    async def scenario():
        async with side_by_side(configs):
            nodes = [naming(config, identities, plan) for config, plan in zip(configs, plans, strict=True)]
            await live_all([*nodes[0], *nodes[1]])
        return nodes

    nodes = asyncio.run(scenario())
    for config, mine, rounds in zip(configs, nodes, (1, 2), strict=True):
        model, members = opened(config)
        means = [np.mean([node.updates[number] for node in mine], axis=0) for number in range(1, rounds + 1)]
        assert np.allclose(model, np.sum(means, axis=0), atol=2 * TOLERANCE)
        assert members == sorted(node.identity.uri for node in mine)
        assert all(len(node.results) == rounds for node in mine)


def test_an_unknown_plan_and_an_unnamed_one_of_several_are_refused(two, identities):
    plans, configs = two

    async def scenario():
        async with side_by_side(configs):
            async with connected(configs[0], identities / "h1", "ab" * 32) as stub:
                code, text = await refusal_of(stub.Join(JOIN))
                assert (code, "does not serve plan abababababab" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
                assert "ab" * 32 not in text
            async with connected(configs[0], identities / "h1") as stub:
                code, text = await refusal_of(stub.Join(JOIN))
                assert (code, "2 plans of this coordinator name this party" in text) == (
                    grpc.StatusCode.PERMISSION_DENIED,
                    True,
                )
            async with connected(configs[0], identities / "h0", plans[1]) as stub:
                code, text = await refusal_of(stub.Join(JOIN))
                assert (code, "h0 is not" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
            async with connected(configs[0], identities / "stranger") as stub:
                assert (await refusal_of(stub.Join(JOIN)))[0] is grpc.StatusCode.PERMISSION_DENIED
            for party, plan in (("h0", plans[0]), ("h3", plans[1])):
                async with connected(configs[0], identities / party) as stub:
                    assert (await stub.Join(JOIN)).plan == plan.canonical()

    asyncio.run(scenario())


def failing_store(run):
    """No transaction of this run succeeds."""

    def batch(**_):
        raise StoreError("disk full")

    run.store.batch = batch


def failing_tick(run):
    """What nobody foresaw."""

    def feed(_):
        raise ZeroDivisionError

    run.feed = feed


@pytest.mark.parametrize("failing", [failing_store, failing_tick])
def test_one_plan_fails_alone(two, identities, failing):
    plans, configs = two

    async def scenario():
        async with side_by_side(configs) as desks:
            batch, feed = desks[0].run.store.batch, desks[0].run.feed
            failing(desks[0].run)
            await until(lambda: not desks[0].serving)
            async with connected(configs[0], identities / "h0") as stub:
                code, text = await refusal_of(stub.Join(JOIN))
                assert code is grpc.StatusCode.UNAVAILABLE
                assert text
            await live_all(naming(configs[1], identities, plans[1]))
            assert desks[1].serving
            desks[0].run.store.batch, desks[0].run.feed = batch, feed
            return desks[0].stopped

    stopped = asyncio.run(scenario())
    assert bool(stopped) == (failing is failing_tick), (
        "a full disk may have room again; what nobody foresaw does not mend itself"
    )
    opened(configs[1])


def test_a_configuration_of_two_plans(two, tmp_path):
    text = (tmp_path / "one" / "coordinator.toml").read_text()
    further = '\n[[further]]\nplan = "../two/plan.toml"\nstart = "../two/start.safetensors"\nallow = "../two/peers.toml"\n'
    path = tmp_path / "one" / "both.toml"
    path.write_text(text + further + 'state = "../two/state"\n')
    first, second = load_config(path).each()
    assert first == load_config(tmp_path / "one" / "coordinator.toml")
    assert (second.plan.resolve(), second.listen) == ((tmp_path / "two" / "plan.toml").resolve(), first.listen)
    path.write_text(text + further + 'state = "state"\n')
    with pytest.raises(ConfigError, match="two plans share one state folder"):
        load_config(path)
