"""A sparse session through the real service: seven hospitals whose graph is made sparse, as a hundred and one would be."""

import asyncio

import numpy as np
import pytest
from coordinator_federation import LOSES_ONE, coordinating, hospitals, live_all, make_identities, small_plan, write_study
from coordinator_world import uri

from coordinator import orders
from coordinator.store import open_store
from coordinator.wire_orders import Instructions
from proto import wire
from secagg import Sparse, UploadSeal

TOLERANCE = 4e-5  # a lane of 21 bits over [-1, 1] for seven members, rounded at random


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    return make_identities(tmp_path_factory.mktemp("identities"), 7)


@pytest.fixture
def _sparse(monkeypatch):
    monkeypatch.setattr(wire, "graph_for", lambda members, threshold, colluders: Sparse(members - 2, 3))


@pytest.mark.usefixtures("_sparse")
@pytest.mark.parametrize("phase", ["", "share", "mask", "confirm", "reveal"])
@pytest.mark.sockets
def test_a_sparse_session_opens_the_mean_of_the_survivors(phase, tmp_path, identities):
    plan = small_plan(7, **LOSES_ONE)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    nodes[3].die_before = phase

    async def scenario():
        async with coordinating(config):
            await live_all(nodes)

    asyncio.run(scenario())
    counted = [one for one in nodes if not (one is nodes[3] and phase in ("share", "mask"))]
    with open_store(config.database) as store:
        digest, row = store.models()[-1].digest, store.rounds()[0]
    assert row.survivors == tuple(one.identity.uri for one in counted)
    assert {one.params.graph for one in nodes} == {Sparse(5, 3)}
    mean = np.mean([one.updates[1] for one in counted], axis=0)
    assert np.abs(np.fromfile(config.state / "models" / f"{digest}.f32", "<f4") - mean).max() < TOLERANCE


def test_each_reader_is_sent_the_seals_that_it_has_a_use_for():
    seals = tuple(
        orders.Sealed(uri(number), UploadSeal(bytes([number]) * 32, b"s"), frozenset({uri(number + 1), uri(number + 2)}))
        for number in range(3)
    )
    order = orders.Confirm(bytes(16), tuple(uri(number) for number in range(5)), seals)
    told = {number: wire.from_seals(Instructions().instruction(1, order, uri(number), 1).confirm.seals) for number in range(5)}
    assert {number: sorted(seals) for number, seals in told.items()} == {
        0: [],
        1: [uri(0)],
        2: [uri(0), uri(1)],
        3: [uri(1), uri(2)],
        4: [uri(2)],
    }
