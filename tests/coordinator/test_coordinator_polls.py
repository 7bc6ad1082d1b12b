"""A poll takes what it says before it waits, as Report and Answer do: counted once, refused with the same reason."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from coordinator_federation import (
    EVALUATOR,
    LAYOUT,
    ScriptedNode,
    connected,
    coordinating,
    hospitals,
    live_all,
    refusal_of,
    small_plan,
    until,
    write_study,
)
from coordinator_world import uri

from coordinator.store import open_store
from proto import federation_pb2 as pb
from proto.layout import model_digest
from proto.plan import PROTOCOL_VERSION

pytestmark = pytest.mark.sockets
TOLERANCE = 2e-5  # as in test_coordinator_service
HEARD_S = 0.05  # long enough for the first of two polls to be taken, most times; either way the sum is the same


class Saying:
    """A stub whose reports and answers go with the next poll, which is given up once and made again."""

    def __init__(self, stub) -> None:
        self._stub, self._said = stub, {}

    def __getattr__(self, name):
        return getattr(self._stub, name)

    async def Report(self, report) -> None:
        self._said = {"report": report}

    async def Answer(self, answer) -> None:
        self._said = {"answer": answer}

    async def Poll(self, request):
        said, self._said = pb.PollRequest(done=request.done, **self._said), {}
        if said.WhichOneof("said") is not None:
            given_up = self._stub.Poll(said)
            await asyncio.sleep(HEARD_S)
            given_up.cancel()
        try:
            return await self._stub.Poll(said)
        except grpc.aio.AioRpcError as error:  # the round was over with what the first of the two said
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return await self._stub.Poll(request)


class SayingNode(ScriptedNode):
    """Joins, and says everything with polls."""

    async def live(self) -> None:
        async with connected(self.config, self.folder) as stub:
            reply = await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version="test"))
            assert reply.polls_say
            stub = Saying(stub)
            while not self.finished:
                order = await stub.Poll(pb.PollRequest(done=self.done))
                self.done = order.id
                kind = order.WhichOneof("order")
                await getattr(self, f"_on_{kind}")(stub, getattr(order, kind))


def test_rounds_of_nodes_that_say_everything_with_polls_open_the_same_sums(tmp_path, identities):
    plan = small_plan(4, rounds=2)
    config = write_study(tmp_path, identities, plan)
    older = hospitals(config, identities, plan)
    nodes = [SayingNode(one.config, one.plan, one.folder, one.pinned, one.train) for one in older[:3]] + older[3:]

    async def scenario():
        async with coordinating(config) as run:
            await live_all(nodes)
            assert run.over()

    asyncio.run(scenario())
    with open_store(config.database) as store:
        digest = store.models()[-1].digest
        assert [(row.state, len(row.survivors)) for row in store.rounds()] == [("opened", 4)] * 2
        bytes_up = {(row.party, row.phase): row.bytes for row in store.traffic() if row.direction == "up" and row.round == 1}
    vector = np.fromfile(config.state / "models" / f"{digest}.f32", "<f4")
    assert model_digest(vector).hex() == digest
    expected = sum(np.mean([node.updates[number] for node in nodes], axis=0) for number in (1, 2))
    assert np.abs(vector - expected).max() < TOLERANCE
    for phase in ("train", "advertise", "share", "confirm", "reveal"):
        assert bytes_up[uri(0), phase] >= bytes_up[uri(3), phase] / 2, "what a poll says is counted for its phase"


def test_what_a_poll_says_is_refused_as_a_call_of_its_own_is_and_the_next_poll_goes_on(tmp_path, identities):
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan)
    late = pb.PhaseAnswer(session=bytes(16), confirmation=pb.Confirmation(party=uri(0), signature=b"x"))
    unknown = pb.NodeReport(round=1)
    declined = pb.NodeReport(round=1, state=pb.NodeReport.DECLINED, code="because")

    async def scenario():
        async with coordinating(config):
            async with connected(config, identities / "h0") as stub:
                await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version="test"))
                pairs = [
                    (await refusal_of(stub.Answer(late)), await refusal_of(stub.Poll(pb.PollRequest(answer=late)))),
                    (await refusal_of(stub.Report(unknown)), await refusal_of(stub.Poll(pb.PollRequest(report=unknown)))),
                    (await refusal_of(stub.Report(declined)), await refusal_of(stub.Poll(pb.PollRequest(report=declined)))),
                ]
                order = await stub.Poll(pb.PollRequest())
            async with connected(config, identities / "e0") as stub:
                await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version="test"))
                pairs.append((await refusal_of(stub.Answer(late)), await refusal_of(stub.Poll(pb.PollRequest(answer=late)))))
            return pairs, order

    pairs, order = asyncio.run(scenario())
    assert all(own == with_poll for own, with_poll in pairs)
    codes = [own[0] for own, _ in pairs]
    status = grpc.StatusCode
    assert codes == [
        status.FAILED_PRECONDITION,
        status.INVALID_ARGUMENT,
        status.INVALID_ARGUMENT,
        status.PERMISSION_DENIED,
    ]
    assert order.WhichOneof("order") == "train"
    assert order.train.base_bytes == 4 * LAYOUT.length
    assert EVALUATOR.endswith("e0")


def test_a_report_counts_although_its_poll_is_still_waiting(tmp_path, identities):
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan)

    async def scenario():
        async with coordinating(config) as run, connected(config, identities / "h0") as stub:
            await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version="test"))
            order = await stub.Poll(pb.PollRequest())
            ready = pb.NodeReport(round=1, state=pb.NodeReport.READY, base_digest=order.train.base_digest)
            waiting = stub.Poll(pb.PollRequest(done=order.id, report=ready))
            await until(lambda: run.state.members[uri(0)].standing.value == "ready")
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(scenario())
