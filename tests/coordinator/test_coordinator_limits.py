"""What one party may ask of a coordinator: more is refused with the reason, memory stays bounded, and the others go on."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from coordinator_federation import (
    connected,
    coordinating,
    hospitals,
    live_all,
    refusal_of,
    small_plan,
    until,
    write_study,
)
from hypothesis import given
from hypothesis import strategies as st

from certs.tls import channel_credentials
from coordinator.gate import BURST, CALLS_OPEN, CALLS_PER_S, Gate, TooMuch
from coordinator.health import NOT_SERVING, SERVING, service_of, status_message
from coordinator.mailbox import MAX_NOTES, Mailbox
from coordinator.orders import Evaluate
from coordinator.store import StoreError
from proto import federation_pb2 as pb
from proto.layout import Layout
from proto.plan import PROTOCOL_VERSION

JOIN = pb.JoinRequest(protocol_version=PROTOCOL_VERSION)


@given(st.lists(st.floats(0, 0.1), max_size=1200))
def test_a_party_gets_its_burst_and_then_its_rate(pauses):
    gate, now_s, passed = Gate(), 100.0, 0
    for pause in pauses:
        now_s += pause
        try:
            gate.ask("a", now_s)
        except TooMuch:
            assert passed >= BURST, "refused before the burst was used up"
        else:
            passed += 1
    assert passed <= BURST + (now_s - 100.0) * CALLS_PER_S + 1


def test_one_party_s_calls_do_not_count_for_another_and_old_ones_are_forgotten():
    gate = Gate()
    for number in range(1000):
        gate.ask(f"party {number}", float(number))
    assert len(gate._left) <= BURST / CALLS_PER_S + 2
    for _ in range(int(BURST)):
        gate.ask("loud", 2000.0)
    with pytest.raises(TooMuch):
        gate.ask("loud", 2000.0)
    gate.ask("quiet", 2000.0)


def test_calls_that_ended_are_open_no_more():
    gate = Gate()
    for _ in range(3 * CALLS_OPEN):
        with gate.held("a"):
            pass
    assert not gate._open


def test_a_mailbox_is_bounded_however_long_its_reader_is_away():
    box = Mailbox(0)
    for number in range(MAX_NOTES + 100):
        box.put(Evaluate(number, b"d"))
    assert len(box.notes) == MAX_NOTES
    assert box.after(0)[1] == Evaluate(100, b"d")


def test_a_flood_from_one_party_is_refused_and_the_round_goes_on(tmp_path, identities, monkeypatch):
    monkeypatch.setattr("coordinator.gate.CALLS_PER_S", 1.0)
    monkeypatch.setattr("coordinator.gate.BURST", 80.0)
    plan = small_plan(4, rounds=1)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    refused = []

    async def flood():
        async with connected(config, identities / "e0") as stub:
            await stub.Join(JOIN)
            for _ in range(20):
                calls = [stub.Measure(pb.Measurement(round=0)) for _ in range(8)]
                answers = await asyncio.gather(*calls, return_exceptions=True)
                refused.extend(answer.code() for answer in answers)

    async def scenario():
        async with coordinating(config) as run:
            await asyncio.gather(flood(), live_all(nodes))
            return run.counts["refused flood"]

    counted = asyncio.run(scenario())
    assert counted == refused.count(grpc.StatusCode.RESOURCE_EXHAUSTED) > 0
    assert [node.results[0].opened for node in nodes] == [True] * 4
    assert all(not node.refused for node in nodes)


def test_open_calls_of_one_party_are_bounded_over_all_its_connections(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())

    async def scenario():
        async with (
            coordinating(config),
            connected(config, identities / "h0") as one,
            connected(config, identities / "h0") as two,
        ):
            await one.Join(JOIN)
            await one.Poll(pb.PollRequest())
            uploads = [stub.Upload(endless()) for stub in (one, two) for _ in range(CALLS_OPEN)]
            polls = [asyncio.ensure_future(refusal_of(call)) for call in uploads]
            await until(lambda: sum(poll.done() for poll in polls) >= CALLS_OPEN)
            await asyncio.sleep(0.5)  # for one more that should not be refused
            answered = [poll.result() for poll in polls if poll.done()]
            for poll in polls:
                poll.cancel()
            async with connected(config, identities / "h1") as other:
                await other.Join(JOIN)
            return answered

    answered = asyncio.run(scenario())
    assert len(answered) == CALLS_OPEN
    assert {code for code, _ in answered} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert "open already" in answered[0][1]


async def endless():
    """An upload that never says anything."""
    await asyncio.Event().wait()
    yield pb.UploadChunk()


def in_crumbs(messages):
    """The same words in chunks of 8 bytes."""
    for message in messages:
        if message.words:
            yield from (pb.UploadChunk(words=message.words[at : at + 8]) for at in range(0, len(message.words), 8))
        else:
            yield message


def test_a_vector_in_crumbs_is_refused(tmp_path, identities):
    plan, layout = small_plan(4, rounds=1), Layout((("w", (9000,)),))
    config = write_study(tmp_path, identities, plan, layout=layout)
    nodes = hospitals(config, identities, plan)
    nodes[1].tamper = in_crumbs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordinator_federation.LAYOUT", layout)

        async def scenario():
            async with coordinating(config):
                await live_all(nodes)

        asyncio.run(scenario())
    code, text = nodes[1].refused[0]
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "chunks of at least" in text
    assert [len(node.results[0].survivors) for node in (nodes[0], nodes[2])] == [3, 3]


# ---- health ----


def test_health_is_served_to_the_parties_of_the_study_only(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]

    async def ask(identity, request=b"", method="Check"):
        address = config.address_file.read_text().strip()
        async with grpc.aio.secure_channel(address, channel_credentials(identity), options=options) as channel:
            if method == "Check":
                return await channel.unary_unary(f"/grpc.health.v1.Health/{method}")(request, timeout=120)
            stream = channel.unary_stream(f"/grpc.health.v1.Health/{method}")(request, timeout=120)
            return await stream.read()

    async def scenario():
        async with coordinating(config) as run:
            name = b"hospital.federation.v1.Federation"
            assert await ask(identities / "h0") == status_message(SERVING)
            assert await ask(identities / "h0", bytes([10, len(name)]) + name, "Watch") == status_message(SERVING)
            assert (await refusal_of(ask(identities / "h0", b"\x0a\x01x")))[0] is grpc.StatusCode.NOT_FOUND
            assert (await refusal_of(ask(identities / "h0", b"\xff")))[0] is grpc.StatusCode.INVALID_ARGUMENT
            assert (await refusal_of(ask(identities / "stranger")))[0] is grpc.StatusCode.PERMISSION_DENIED
            run.flush = broken
            while await ask(identities / "h0") != status_message(NOT_SERVING):  # noqa: ASYNC110  it looks every half second
                await asyncio.sleep(0.1)
            del run.flush

    asyncio.run(scenario())


def broken():
    """A store that cannot be written."""
    raise StoreError("disk full")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_health_check_or_an_error(data):
    try:
        name = service_of(data)
    except ValueError:
        return
    assert data == b"" or data == bytes([10, len(name.encode())]) + name.encode()
