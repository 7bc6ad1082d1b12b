"""Uneven hospitals in one round: one is quick, one trains long, one sends slowly, one loses its connection all the time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import pytest
from coordinator_federation import ScriptedNode, connected, coordinating, hospitals, small_plan, write_study
from coordinator_world import uri

from coordinator.store import open_store
from proto import federation_pb2 as pb
from proto.plan import PROTOCOL_VERSION

pytestmark = pytest.mark.sockets
TOLERANCE = 2e-5
TRAINS_S = 1.0
SENDS_S = 1.0
WITHIN_S = 300


@dataclass
class Slow(ScriptedNode):
    """Trains and sends as slowly as it is told."""

    trains_s: float = 0.0
    sends_s: float = 0.0

    async def _on_train(self, stub, order) -> None:
        await asyncio.sleep(self.trains_s)
        await super()._on_train(stub, order)

    async def _on_mask(self, stub, order) -> None:
        await super()._on_mask(Sending(stub, self.sends_s), order)


class Sending:
    """A stub that sends the parts of an upload with a pause between any two."""

    def __init__(self, stub, takes_s: float) -> None:
        self._stub, self._takes_s = stub, takes_s

    async def Upload(self, messages):
        parts = list(messages)

        async def slowly():
            for part in parts:
                await asyncio.sleep(self._takes_s / len(parts))
                yield part

        return await self._stub.Upload(slowly())


@dataclass
class Breaking(ScriptedNode):
    """Makes a new connection for every order, after one that it leaves with a poll open."""

    async def live(self) -> None:
        while not self.finished:
            async with connected(self.config, self.folder) as stub:
                await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION))
                stub.Poll(pb.PollRequest(done=self.done))  # nobody reads what it brings
                await asyncio.sleep(0.02)
            async with connected(self.config, self.folder) as stub:
                await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION))
                order = await stub.Poll(pb.PollRequest(done=self.done))
                self.done = order.id
                kind = order.WhichOneof("order")
                await getattr(self, f"_on_{kind}")(stub, getattr(order, kind))


def test_nobody_is_lost_and_nobody_s_calls_wait_for_the_slowest(tmp_path, identities):
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan)
    kinds = [
        ScriptedNode,
        lambda *about: Slow(*about, trains_s=TRAINS_S),
        lambda *about: Slow(*about, sends_s=SENDS_S),
        Breaking,
    ]
    nodes = [
        kind(one.config, one.plan, one.folder, one.pinned, one.train)
        for kind, one in zip(kinds, hospitals(config, identities, plan), strict=True)
    ]
    answered_s = []

    async def quick_calls(run):
        """What another party's call takes while the others train and send."""
        async with connected(config, identities / "e0") as stub:
            while not run.state.finished:
                began_s = time.monotonic()
                await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION))
                answered_s.append((run.state.phase.value, time.monotonic() - began_s))
                await asyncio.sleep(0.1)

    async def scenario():
        async with coordinating(config) as run, asyncio.timeout(WITHIN_S):
            await asyncio.gather(*(node.live() for node in nodes), quick_calls(run))

    asyncio.run(scenario())
    with open_store(config.database) as store:
        (row,) = store.rounds()
        digest = store.models()[-1].digest
        assert (row.state, row.survivors, row.dropped) == ("opened", tuple(uri(place) for place in range(4)), {})
        assert row.phase_seconds["train"] >= TRAINS_S
        assert row.phase_seconds["mask"] >= SENDS_S
        assert not [event for event in store.events() if event.kind in {"dropped", "lost"}]
    model = np.fromfile(config.state / "models" / f"{digest}.f32", "<f4")
    assert np.allclose(model, np.mean([node.updates[1] for node in nodes], axis=0), atol=TOLERANCE)
    assert {"train", "mask"} <= {phase for phase, _ in answered_s}, "it was served while they trained and sent"
