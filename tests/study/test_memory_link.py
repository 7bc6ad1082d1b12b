"""The connection in memory against the real service: who calls is known from the certificate, and failures keep their kinds."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from memory_world import Ward, make_plan

from certs.authority import issue
from certs.identity import load_identity
from coordinator.config import load_config
from coordinator.store import open_store
from hospital_node.link import Link, LinkLost, LinkRefused, ModelMismatch, OrderStale
from hospital_node.traffic import ByteMeter
from proto import federation_pb2 as pb
from proto.layout import model_digest
from study.bench import world
from study.bench.coordinating import Hooks, coordinate
from study.bench.memory import Exchange, MemoryContext, MemoryLink


@dataclass
class Served:
    """A coordinator in a thread, and links to it."""

    folder: Path
    ward: Ward
    exchange: Exchange
    over: threading.Event
    coordinator: Future

    def link(self, name: str = "h0", meter: ByteMeter | None = None) -> MemoryLink:
        return MemoryLink(self.exchange, load_identity(self.folder / name / "identity").certificate_pem, meter or ByteMeter())

    def close(self) -> None:
        self.over.set()
        self.coordinator.result(120)


@pytest.fixture
def served(tmp_path):
    ward, plan = Ward(), make_plan(3)
    made = world.build(tmp_path, plan, ward.start(), None, data_is_public=True)
    opened, over = Future(), threading.Event()
    hooks = Hooks(opened.set_result, lambda _: None, over)
    with ThreadPoolExecutor(1) as pool, world.logs_to(tmp_path / "log.txt"):
        coordinator = pool.submit(asyncio.run, coordinate(load_config(made.coordinator_config), hooks))
        one = Served(tmp_path, ward, opened.result(120), over, coordinator)
        try:
            yield one
        finally:
            one.close()


def test_a_link_is_what_a_node_needs_and_its_context_what_the_service_needs(served):
    link: Link = served.link()
    assert link.join().identity == "secagg://bench/hospital/h0"
    assert MemoryContext(b"pem").auth_context()["x509_pem_cert"] == [b"pem"]


def test_the_service_knows_the_caller_from_the_certificate_alone(served):
    assert served.link("h1").join().identity == "secagg://bench/hospital/h1"
    issue(served.folder / "ca", "secagg://bench/hospital/stranger", served.folder / "stranger" / "identity")
    with pytest.raises(LinkRefused, match="not on the list of confirmed keys"):
        served.link("stranger").join()
    issue(served.folder / "ca", "secagg://bench/hospital/h0", served.folder / "again" / "identity")
    with pytest.raises(LinkRefused, match="another key than the confirmed one"):
        served.link("again").join()
    with pytest.raises(LinkRefused, match="only hospitals and evaluators dial in"):
        served.link("coordinator").join()


def test_who_did_not_join_is_told_to_and_the_link_remembers_why_it_is_lost(served):
    link = served.link()
    with pytest.raises(LinkLost, match="join again"):
        link.poll(0)
    assert "join again" in link.lost


def test_a_late_answer_is_stale_and_a_forbidden_one_refused(served):
    link = served.link()
    link.join()
    with pytest.raises(OrderStale, match="masking session is over"):
        link.answer(pb.PhaseAnswer(session=b"x" * 16, revealed=pb.RevealedShares()))
    with pytest.raises(OrderStale):
        link.upload(iter([pb.UploadChunk(words=b"x")]), 1)
    with pytest.raises(LinkRefused, match="no evaluator"):
        link.measure(pb.Measurement(round=0))


def test_a_model_comes_in_chunks_and_is_checked(served):
    link, start = served.link(), served.ward.start().vector
    link.join()
    assert (link.fetch_model(model_digest(start), 4 * len(start), len(start), "train") == start).all()
    with pytest.raises(ModelMismatch, match="is announced"):
        link.fetch_model(model_digest(start), 4, len(start), "train")
    with pytest.raises(ModelMismatch, match="announced"):
        link.fetch_model(model_digest(start), 4 * 3, 3, "train")
    with pytest.raises(OrderStale, match="no model of this digest"):
        link.fetch_model(bytes(32), 4 * len(start), len(start), "train")


def test_a_poll_waits_for_an_order_and_wake_ends_it(served):
    link = served.link()
    link.join()
    order = link.poll(0)
    assert order.WhichOneof("order") == "train"
    waiting = ThreadPoolExecutor(1)
    polled = waiting.submit(link.poll, order.id)
    time.sleep(0.1)
    assert not polled.done()
    link.wake()
    assert polled.result(60) is None
    link.wake()
    assert link.poll(order.id) is None, "a wake between two polls ends the next one"
    assert link.poll(0).train == order.train, "an order that was not carried out is given again"
    waiting.shutdown()


def test_both_sides_count_the_same_bytes(served):
    meter = ByteMeter()
    link = served.link("h2", meter)
    link.join()
    start = served.ward.start().vector
    link.fetch_model(model_digest(start), 4 * len(start), len(start), "train")
    link.close()
    served.close()
    with open_store(served.folder / "coordinator" / "state" / "store.db") as store:
        counted = {(row.phase, row.direction): row.bytes for row in store.traffic() if row.party.endswith("/h2")}
    sent = meter.take()
    assert (sent["join"], meter.received["join"]) == (counted["join", "up"], counted["join", "down"])
    assert (sent["train"], meter.received["train"]) == (counted["broadcast", "up"], counted["broadcast", "down"])


def test_where_the_coordinator_has_ended_no_call_waits(served):
    link = served.link()
    link.join()
    order = link.poll(0)
    with ThreadPoolExecutor(1) as waiting:
        polled = waiting.submit(link.poll, order.id)
        time.sleep(0.05)
        served.close()
        with pytest.raises(LinkLost, match="has ended"):
            polled.result(60)
    with pytest.raises(LinkLost, match="has ended"):
        link.join()
    with pytest.raises(LinkLost, match="has ended"):
        link.fetch_model(bytes(32), 4, 1, "train")
