"""What comes in over the connection and how failures are named; reconnecting; why a coordinator cannot be reached."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_world import BASE, LAYOUT, Counter, Folders, make_folders, make_plan

from hospital_node import link as link_module
from hospital_node.config import NodeConfig
from hospital_node.link import GrpcLink, LinkLost, LinkRefused, ModelMismatch, OrderStale, receive_model
from hospital_node.loop import LONGEST_WAIT_S, Conversation, backoff_s
from hospital_node.reach import find_obstacle, reason_of_loss
from hospital_node.traffic import ByteMeter
from proto import federation_pb2 as pb
from proto.bulk import ModelChunk, to_chunk
from proto.layout import model_digest
from proto.wire import framed_bytes

DIGEST = model_digest(BASE)
DATA = BASE.astype("<f4").tobytes()


def chunked(data: bytes, size: int) -> list[ModelChunk]:
    return [to_chunk(data[at : at + size]) for at in range(0, len(data), size)]


@given(st.integers(1, len(DATA) + 5))
def test_a_model_arrives_whole_whatever_the_chunks(size: int) -> None:
    assert np.array_equal(receive_model(chunked(DATA, size), DIGEST, LAYOUT.length), BASE)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        chunked(DATA[:-4], 7),
        chunked(DATA + b"\0", 7),
        chunked(DATA + bytes(1 << 20), 1 << 20),
        [to_chunk(DATA), to_chunk(b"")],
        [to_chunk(DATA[:-1] + bytes([DATA[-1] ^ 1]))],
    ],
    ids=["nothing", "short", "one byte more", "much more", "an empty chunk", "one bit"],
)
def test_another_model_than_announced_is_refused(chunks: list[ModelChunk]) -> None:
    with pytest.raises(ModelMismatch):
        receive_model(chunks, DIGEST, LAYOUT.length)


def test_more_than_announced_is_refused_without_reading_it_all() -> None:
    read = 0

    def endless() -> Iterator[ModelChunk]:
        nonlocal read
        while True:
            read += 1
            yield to_chunk(bytes(64))

    with pytest.raises(ModelMismatch):
        receive_model(endless(), DIGEST, LAYOUT.length)
    assert read == 2


@given(st.integers(0, LAYOUT.length - 1), st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(1, len(DATA) + 5))
def test_a_model_with_one_value_that_is_not_finite_is_refused(place: int, value: float, size: int) -> None:
    broken = BASE.copy()
    broken[place] = value
    with pytest.raises(ModelMismatch, match="finite"):
        receive_model(chunked(broken.tobytes(), size), model_digest(broken), LAYOUT.length)


class Status(grpc.RpcError):
    """As a client sees it."""

    def __init__(self, status: grpc.StatusCode) -> None:
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return "one sentence"


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_every_status_is_one_of_three_kinds(status: grpc.StatusCode) -> None:
    def failing() -> None:
        raise Status(status)

    with pytest.raises((LinkLost, LinkRefused, OrderStale), match="one sentence") as caught:
        link_module._translated(failing)
    must_wait = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    must_act = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
    gone_on = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT}
    expected = {LinkLost: must_wait, LinkRefused: must_act, OrderStale: gone_on}
    assert all(status not in group or caught.type is kind for kind, group in expected.items())


def test_bytes_are_counted_with_their_framing() -> None:
    meter, message = ByteMeter(), pb.NodeReport(round=3)
    meter.count_sent("train", message)
    meter.count_sent("train", message)
    meter.count_received("poll", message)
    assert meter.take() == {"train": 2 * framed_bytes(message)}
    assert meter.take() == {}
    assert meter.received["poll"] == framed_bytes(message)


# ---- coming back ----


class Silent:
    """A party that does nothing."""

    def __init__(self) -> None:
        self.reasons: list[tuple[str, float]] = []

    def joined(self, reply: pb.JoinReply) -> None:
        pass

    def settle(self, link: Any) -> None:
        pass

    def carry_out(self, link: Any, order: pb.Instruction) -> None:
        pass

    def lost(self, reason: str, wait_s: float) -> None:
        self.reasons.append((reason, wait_s))


def test_attempts_go_on_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hospital_node.loop.FIRST_WAIT_S", 0.001)
    monkeypatch.setattr("hospital_node.loop.LONGEST_WAIT_S", 0.004)
    stop, party = threading.Event(), Silent()

    class Broken:
        def join(self) -> pb.JoinReply:
            if len(party.reasons) == 6:
                stop.set()
            raise LinkLost("nobody there")

        def close(self) -> None:
            pass

    Conversation(Broken, party, stop, Counter()).run()  # type: ignore[arg-type]
    waits = [wait for _, wait in party.reasons]
    assert len(waits) == 7
    assert max(waits) <= 0.004
    assert waits[0] <= 0.001 < waits[-1]


@given(st.integers(1, 10_000), st.binary(min_size=2, max_size=2))
def test_pauses_are_jittered_and_capped(attempt: int, chance: bytes) -> None:
    assert LONGEST_WAIT_S * 0.5 * 2**-7 <= backoff_s(attempt, lambda _: chance) <= LONGEST_WAIT_S


def test_an_order_counts_as_done_only_after_it_was_carried_out() -> None:
    asked: list[int] = []
    stop = threading.Event()

    class Lossy(Silent):
        def carry_out(self, link: Any, order: pb.Instruction) -> None:
            if len(asked) == 1:
                raise LinkLost("cut")
            stop.set()

    class Line:
        polls_say = True

        def join(self) -> pb.JoinReply:
            return pb.JoinReply()

        def poll(self, done: int, said: Any = None) -> pb.Instruction:
            asked.append(done)
            return pb.Instruction(id=7, wait=pb.Wait())

        def wake(self) -> None:
            pass

        def close(self) -> None:
            pass

    conversation = Conversation(Line, Lossy(), stop, Counter())  # type: ignore[arg-type]
    conversation.run()
    assert asked == [0, 0]
    assert conversation._done == 7


# ---- real sockets, briefly ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("study"))


def config_for(folders: Folders, port: int, identity: Path | None = None) -> NodeConfig:
    fields = {"coordinator": f"127.0.0.1:{port}"} | ({"identity": identity} if identity else {})
    return folders.config.model_copy(update=fields)


class TlsServer:
    """Accepts one connection with the certificate in `folder`, asks for one of its root's, says one byte."""

    def __init__(self, folder: Path, roots: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "node.crt", folder / "node.key")
        self._context.load_verify_locations(roots / "ca.crt")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(60)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        raw, _ = self._listener.accept()
        try:
            with self._context.wrap_socket(raw, server_side=True) as secured:
                secured.sendall(b"x")
        except (ssl.SSLError, OSError):
            raw.close()


@pytest.mark.sockets
def test_nothing_is_in_the_way_of_a_coordinator_that_accepts_us(folders: Folders) -> None:
    with TlsServer(folders.root / "main", folders.root / "ca") as server:
        assert find_obstacle(config_for(folders, server.port)) is None


@pytest.mark.sockets
def test_a_closed_port_is_said_and_waiting_may_help(folders: Folders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    obstacle = find_obstacle(config_for(folders, port))
    assert obstacle is not None
    assert (obstacle.step, obstacle.permanent) == ("connection", False)
    assert "is it running" in reason_of_loss(config_for(folders, port), "unavailable")


@pytest.mark.sockets
def test_a_coordinator_of_another_study_is_said(folders: Folders, tmp_path: Path) -> None:
    other = make_folders(tmp_path, fresh=True)
    with TlsServer(other.root / "main", other.root / "ca") as server:
        obstacle = find_obstacle(config_for(folders, server.port))
    assert obstacle is not None
    assert obstacle.permanent
    assert "is not the coordinator's of this study" in obstacle.sentence


@pytest.mark.sockets
def test_our_certificate_refused_is_said_with_the_remedy(folders: Folders, tmp_path: Path) -> None:
    other = make_folders(tmp_path, fresh=True)
    with TlsServer(folders.root / "main", other.root / "ca") as server, pytest.raises(LinkRefused, match="does not accept"):
        reason_of_loss(config_for(folders, server.port), "unavailable")


@pytest.mark.sockets
def test_a_link_to_nobody_is_lost_and_a_poll_can_be_woken(folders: Folders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, says nothing: a half-open connection
        link = GrpcLink(config_for(folders, silent.getsockname()[1]), ByteMeter())
        for _ in range(2):  # the end of a call that was given up must not wake the next one
            started_s = time.monotonic()
            threading.Timer(0.2, link.wake).start()
            assert link.poll(0) is None
            assert time.monotonic() - started_s >= 0.2
        link.wake()
        assert link.poll(0) is None  # asked before the call
        link.close()
    link = GrpcLink(config_for(folders, 9), ByteMeter())
    with pytest.raises(LinkLost):
        link.join()
    link.close()


def test_an_announced_size_that_does_not_fit_the_plan_is_refused_before_a_call(folders: Folders) -> None:
    link = GrpcLink(config_for(folders, 9), ByteMeter())
    with pytest.raises(ModelMismatch, match="announces"):
        link.fetch_model(DIGEST, 1 << 40, LAYOUT.length, "train")
    link.close()


def test_the_plan_of_a_thousand_hospitals_fits_into_one_message() -> None:
    fields = make_plan().model_dump(mode="json")
    fields["hospitals"] = [{"uri": f"secagg://lidc/hospital/h{n}", "declared_patients": 20} for n in range(1000)]
    reply = pb.JoinReply(plan=type(make_plan()).model_validate(fields).canonical())
    assert reply.ByteSize() < link_module.MAX_MESSAGE_BYTES / 16
