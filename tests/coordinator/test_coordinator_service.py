"""The service on loopback with mutual TLS, driven by nodes that use secagg as a hospital does."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from coordinator_federation import (
    EVALUATOR,
    LAYOUT,
    LOSES_ONE,
    ScriptedEvaluator,
    connected,
    coordinating,
    hospitals,
    live_all,
    make_identities,
    refusal_of,
    small_plan,
    until,
    update_of,
    write_study,
)
from coordinator_world import uri

from coordinator import optimizer
from coordinator.store import open_store
from proto import federation_pb2 as pb
from proto.aggregation import Aggregation
from proto.layout import model_digest
from proto.plan import PROTOCOL_VERSION
from proto.wire import CHUNK_BYTES

pytestmark = pytest.mark.sockets
TOLERANCE = 2e-5  # a lane of 21 bits over [-1, 1] for four members: steps of about 4e-6, rounded at random


def final_model(config):
    """The newest published model."""
    with open_store(config.database) as store:
        digest = store.models()[-1].digest
    vector = np.fromfile(config.state / "models" / f"{digest}.f32", "<f4")
    assert model_digest(vector).hex() == digest
    return vector


def mean_of(nodes, number):
    """Mean of the updates that these nodes trained for a round."""
    return np.mean([node.updates[number] for node in nodes], axis=0)


def test_two_rounds_open_the_right_means_and_are_measured(tmp_path, identities):
    plan = small_plan(4, rounds=2)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    judge = ScriptedEvaluator(config, plan, identities / "e0", {}, lambda _: np.zeros(0, np.float32))

    async def scenario():
        async with coordinating(config) as run:
            await live_all([*nodes, judge])
            assert run.spool.held() == []
            assert run.views == {}
            assert run.over()

    asyncio.run(scenario())
    assert np.abs(final_model(config) - mean_of(nodes, 1) - mean_of(nodes, 2)).max() < TOLERANCE
    with open_store(config.database) as store:
        assert [(row.state, row.survivors) for row in store.rounds()] == [("opened", tuple(uri(k) for k in range(4)))] * 2
        assert [row.round for row in store.scores()] == [0, 1, 2]
        assert store.scores()[0].per_case == (0.0, 0.5)
        assert store.scores()[0].evaluator == EVALUATOR
        assert store.finished() == "all 2 rounds are done"
        phases = set(store.rounds()[0].phase_seconds)
        assert phases == {"train", "advertise", "share", "mask", "confirm", "reveal", "result"}
    for node in nodes:
        assert [(r.round, r.opened) for r in node.results] == [(1, True), (2, True)]
        assert node.results[-1].model_digest == bytes.fromhex(open_store(config.database).models()[-1].digest)


def test_bytes_are_counted_by_party_direction_and_phase(tmp_path, identities):
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)

    async def scenario():
        async with coordinating(config):
            await live_all(nodes)

    asyncio.run(scenario())
    with open_store(config.database) as store:
        rows = {(row.party, row.direction, row.phase): row.bytes for row in store.traffic() if row.round == 1}
    words_bytes = 8 * -(-LAYOUT.length // 3)
    for number in range(4):
        assert words_bytes < rows[uri(number), "up", "mask"] < words_bytes + 2000
        assert 4 * LAYOUT.length < rows[uri(number), "down", "broadcast"] < 4 * LAYOUT.length + 200
        for phase in ("join", "train", "advertise", "share", "confirm", "reveal"):
            assert rows[uri(number), "up", phase] > 0
            assert rows[uri(number), "down", phase] > 0


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "confirm", "reveal"])
def test_a_node_lost_before_a_phase_does_not_lose_the_round(phase, tmp_path, identities):
    plan = small_plan(4, rounds=1, **LOSES_ONE)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    nodes[2].die_before = phase

    async def scenario():
        async with coordinating(config):
            await live_all(nodes)

    asyncio.run(scenario())
    in_sum = nodes if phase in {"confirm", "reveal"} else [nodes[0], nodes[1], nodes[3]]
    assert np.abs(final_model(config) - mean_of(in_sum, 1)).max() < TOLERANCE
    with open_store(config.database) as store:
        row = store.rounds()[0]
    assert row.survivors == tuple(node.identity.uri for node in in_sum)
    assert row.dropped == {uri(2): phase}


def longer(messages):
    """One word more than announced."""
    for message in messages:
        if message.WhichOneof("part") == "trailer":
            yield pb.UploadChunk(words=bytes(8))
        yield message


def shorter(messages):
    """The last eight bytes are missing."""
    for message in messages:
        yield pb.UploadChunk(words=message.words[:-8]) if message.words else message


def altered(messages):
    """One bit is flipped."""
    for message in messages:
        yield pb.UploadChunk(words=bytes([message.words[0] ^ 1]) + message.words[1:]) if message.words else message


def cut(messages):
    """The stream ends before the trailer."""
    return (message for message in messages if message.WhichOneof("part") != "trailer")


def forged(messages):
    """A digest that fits the words, signed by nobody."""
    for message in messages:
        if message.WhichOneof("part") == "trailer":
            message.trailer.signature = b"\x30" + bytes(70)
        yield message


def announced_larger(messages):
    """The header announces a gigabyte."""
    for message in messages:
        if message.WhichOneof("part") == "header":
            message.header.total_bytes = 1 << 30
        yield message


def without_header(messages):
    """Words come first."""
    return (message for message in messages if message.WhichOneof("part") != "header")


def in_huge_chunks(messages):
    """A chunk above the limit."""
    for message in messages:
        yield pb.UploadChunk(words=bytes(CHUNK_BYTES + 8)) if message.words else message


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (longer, "longer than"),
        (shorter, "8 bytes too short"),
        (altered, "did not arrive as it was sent"),
        (cut, "ended before its trailer"),
        (forged, "sign"),
        (announced_larger, "are announced"),
        (without_header, "begins with a header"),
        (in_huge_chunks, "chunks of 1 to"),
    ],
)
def test_a_bad_upload_is_refused_with_the_reason_and_leaves_nothing(tamper, sentence, tmp_path, identities):
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    nodes[1].tamper = tamper

    async def scenario():
        async with coordinating(config):
            await live_all(nodes)

    asyncio.run(scenario())
    code, text = nodes[1].refused[0]
    assert code is (grpc.StatusCode.UNAVAILABLE if tamper is cut else grpc.StatusCode.INVALID_ARGUMENT)
    assert sentence in text
    rest = [nodes[0], nodes[2], nodes[3]]
    assert np.abs(final_model(config) - mean_of(rest, 1)).max() < TOLERANCE


def test_an_upload_is_taken_once_and_acknowledged_again(tmp_path, identities):
    plan = small_plan(4, rounds=1, **LOSES_ONE)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    sent = []
    nodes[0].tamper = lambda messages: iter(sent.extend(messages) or sent)
    nodes[1].die_before = "mask"

    async def scenario():
        async with coordinating(config) as run:
            living = asyncio.create_task(live_all(nodes))
            await until(lambda: run.state.session is not None and uri(0) in run.state.session.seals)
            async with connected(config, nodes[0].folder) as stub:
                await stub.Upload(iter(sent))
            await living

    asyncio.run(scenario())
    assert np.abs(final_model(config) - mean_of([nodes[0], nodes[2], nodes[3]], 1)).max() < TOLERANCE


def test_a_refusal_in_the_share_phase_excludes_the_named_member_and_the_others_go_on(tmp_path, identities):
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    nodes[0].refuse = {"share": ("repeated-key", uri(3))}

    async def scenario():
        async with coordinating(config):
            await live_all(nodes)

    asyncio.run(scenario())
    assert np.abs(final_model(config) - mean_of(nodes[:3], 1)).max() < TOLERANCE
    with open_store(config.database) as store:
        assert store.sessions_used() == 2
        assert "excluded" in [event.kind for event in store.events()]


def test_a_stranger_with_a_certificate_of_the_study_is_refused(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())

    async def scenario():
        async with coordinating(config), connected(config, identities / "stranger") as stub:
            code, text = await refusal_of(stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION)))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "not on the list of confirmed keys" in text

    asyncio.run(scenario())


def test_a_certificate_of_another_authority_gets_no_connection(tmp_path, identities):
    config = write_study(tmp_path / "study", identities, small_plan())
    others = make_identities(tmp_path / "others", hospitals=1)

    async def scenario():
        async with coordinating(config), connected(config, others / "h0") as stub:
            code, _ = await refusal_of(stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION), timeout=120))
            assert code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_roles_are_kept(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())
    join = pb.JoinRequest(protocol_version=PROTOCOL_VERSION)

    async def scenario():
        async with (
            coordinating(config),
            connected(config, identities / "e0") as judge,
            connected(config, identities / "h0") as node,
        ):
            await judge.Join(join)
            await node.Join(join)
            header = pb.UploadChunk(header=pb.UploadHeader(session=bytes(16), total_bytes=8))
            answer = pb.PhaseAnswer(session=bytes(16), refusal=pb.Refusal(code="policy"))
            for call in (
                judge.Upload(iter([header])),
                judge.Report(pb.NodeReport(round=1, state=pb.NodeReport.READY)),
                judge.Answer(answer),
                node.Measure(pb.Measurement(round=0)),
            ):
                code, _ = await refusal_of(call)
                assert code is grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(scenario())


def test_requests_that_do_not_fit_are_refused_with_the_reason(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())
    advert = pb.Advert(party=uri(1), seal_key=bytes(32), mask_key=bytes(32), seed_commitment=bytes(32), signature=b"s")

    async def scenario():
        async with coordinating(config) as run, connected(config, identities / "h0") as stub:
            before = await refusal_of(stub.Poll(pb.PollRequest()))
            assert before[0] is grpc.StatusCode.UNAVAILABLE
            assert "join again" in before[1]
            old = await refusal_of(stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION + 1)))
            assert old[0] is grpc.StatusCode.UNIMPLEMENTED
            assert "protocol version" in old[1]
            await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION))
            state = run.state
            bad = [
                (stub.Answer(pb.PhaseAnswer(session=bytes(16))), "empty"),
                (stub.Answer(pb.PhaseAnswer(session=bytes(16), advert=advert)), "name of another party"),
                (stub.Answer(pb.PhaseAnswer(session=bytes(16), advert=pb.Advert(party=uri(0)))), "cannot be read"),
                (stub.Answer(pb.PhaseAnswer(session=bytes(16), refusal=pb.Refusal(code="Not A Code"))), "short code"),
                (stub.Answer(pb.PhaseAnswer(session=bytes(16), refusal=pb.Refusal(code="policy"))), "no masking session"),
                (stub.Report(pb.NodeReport(round=1)), "no training state"),
                (stub.Report(pb.NodeReport(round=1, state=pb.NodeReport.DECLINED, code="rm -rf")), "one of the codes"),
                (stub.Upload(iter([pb.UploadChunk(header=pb.UploadHeader(session=bytes(16)))])), "is over"),
            ]
            for call, sentence in bad:
                _, text = await refusal_of(call)
                assert sentence in text
            model = stub.FetchModel(pb.ModelRequest(digest=bytes(32)))
            assert "no model of this digest" in (await refusal_of(model.read()))[1]
            assert run.state.members[uri(0)].standing == state.members[uri(0)].standing
            assert run.state.session is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"round": 3}, "published no such model"),
        ({"model_digest": bytes(32)}, "published no such model"),
        ({"scores": [pb.LabelScore(label="liver", per_case=[0.5])]}, "one row for each label"),
        ({"scores": [pb.LabelScore(label="nodule", per_case=[1.5])]}, "between 0 and 1"),
        ({"scores": [pb.LabelScore(label="nodule", per_case=[float("nan")])]}, "between 0 and 1"),
        ({"scores": [pb.LabelScore(label="nodule")]}, "between 0 and 1"),
    ],
)
def test_a_measurement_that_cannot_be_true_is_refused(change, sentence, tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())

    async def scenario():
        async with coordinating(config) as run, connected(config, identities / "e0") as stub:
            await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION))
            good = {
                "round": 0,
                "model_digest": run.state.base_digest,
                "scores": [pb.LabelScore(label="nodule", per_case=[0.5])],
            }
            _, text = await refusal_of(stub.Measure(pb.Measurement(**{**good, **change})))
            assert sentence in text
            await stub.Measure(pb.Measurement(**good))
            assert [row.per_case for row in run.store.scores()] == [(0.5,)]

    asyncio.run(scenario())


def test_a_restarted_coordinator_goes_on_after_the_last_finished_round(tmp_path, identities):
    plan = small_plan(4, rounds=3)
    config = write_study(tmp_path, identities, plan)
    first, second = hospitals(config, identities, plan), hospitals(config, identities, plan)
    for node in first:
        node.last_round = 1

    async def scenario():
        async with coordinating(config):
            await live_all(first)
        assert all(node.results for node in first)
        done_before = max(node.done for node in first)
        for node in second:
            node.done = 0
        async with coordinating(config) as run:
            assert run.state.round > 1
            await live_all(second)
            assert min(node.done for node in second) > done_before

    asyncio.run(scenario())
    with open_store(config.database) as store:
        rows = store.rounds()
        assert [row.number for row in rows] == [1, 2, 3]
        assert [row.state for row in rows if row.number in {1, 3}] == ["opened", "opened"]
        opened = [row.number for row in rows if row.state == "opened"]
    expected = sum(np.mean([update_of(place)(number) for place in range(4)], axis=0) for number in opened)
    assert np.abs(final_model(config) - expected).max() < len(opened) * TOLERANCE


HEAVY_BALL = Aggregation(momentum=0.5, learning_rate=0.25)
ADAM = Aggregation(rule="adam", momentum=0.5, learning_rate=0.25, adaptivity=1.0, learning_rate_decay=0.5)


@pytest.mark.parametrize("aggregation", [HEAVY_BALL, ADAM], ids=["momentum", "adam"])
def test_the_servers_memory_survives_a_restart(tmp_path, identities, aggregation):
    plan = small_plan(3, rounds=2).model_copy(update={"aggregation": aggregation})
    config = write_study(tmp_path, identities, plan)
    first, second = hospitals(config, identities, plan), hospitals(config, identities, plan)
    for node in first:
        node.last_round = 1

    async def scenario():
        async with coordinating(config) as run:
            await live_all(first)
            assert run.state.round == 2
        async with coordinating(config):
            await live_all(second)

    asyncio.run(scenario())
    one, two = (np.mean([update_of(place)(number) for place in range(3)], axis=0) for number in (1, 2))
    expected, memory = np.zeros_like(one), None
    for number, mean in enumerate((one, two), 1):
        expected, memory = optimizer.apply(aggregation, expected, mean, memory, number)
    forgetful = optimizer.apply(aggregation, optimizer.apply(aggregation, 0 * one, one, None, 1)[0], two, None, 2)[0]
    assert np.abs(final_model(config) - expected).max() < TOLERANCE < np.abs(forgetful - expected).max()
