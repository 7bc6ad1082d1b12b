"""What orders bring of the log of rounds: enough where it fits what is kept, and a question or a refusal where it does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from node_world import log_after, log_of, uri
from test_node_log import PLAN, World, rechained

from hospital_node.roundlog import LogForked
from proto import federation_pb2 as pb
from proto import wire
from proto.roundlog import Entry


@pytest.fixture
def five(tmp_path: Path) -> World:
    """Five rounds ended and are kept."""
    world = World(tmp_path)
    world.link.log = log_of(PLAN, "oaooa")
    world.join()
    return world


def brought(rounds: list[Entry], **change: Any) -> pb.RoundResult:
    """The result of the last round with its entry, as a coordinator gives it that keeps a log."""
    entry = rounds[-1]
    fields = {
        "round": entry.round,
        "session": entry.session,
        "survivors": entry.survivors,
        "sum_digest": entry.sum_digest,
        "model_digest": entry.model,
        "opened": entry.state == "opened",
        "entry": wire.to_entry(entry),
        "log": pb.LogState(entries=entry.index, head=entry.head),
    }
    return pb.RoundResult(**{**fields, **change})


def offered(rounds: list[Entry], **change: Any) -> pb.Train:
    state = pb.LogState(entries=len(rounds), head=rounds[-1].head)
    return pb.Train(**{"round": len(rounds) + 1, "base_digest": rounds[-1].model, "log": state, **change})


def test_a_round_is_followed_by_what_orders_bring_and_nothing_is_asked_for(five):
    reads = five.link.log_reads
    for outcome in (True, False, True):
        five.link.log = [*five.link.log, log_after(PLAN, five.link.log, opened=outcome)]
        five.watch.result(five.link, brought(five.link.log))
        five.watch.before_training(five.link, offered(five.link.log))
    assert five.link.log_reads == reads
    assert five.kept() == five.link.log
    five.restart()
    assert five.watch.rounds == 8


@pytest.mark.parametrize(
    "change",
    [{"log": None}, {"log": pb.LogState(entries=5, head=bytes(32))}, {"log": pb.LogState(entries=6, head=bytes(32))}],
    ids=["none", "another head", "another length"],
)
def test_an_order_that_brings_anything_else_makes_the_node_ask(five, change):
    reads = five.link.log_reads
    five.watch.before_training(five.link, offered(five.link.log, **change))
    assert five.link.log_reads == reads + 1


def test_after_a_new_connection_the_log_is_read_whatever_orders_bring(five):
    five.watch.joined(five.link.join())
    reads = five.link.log_reads
    five.watch.before_training(five.link, offered(five.link.log))
    assert five.link.log_reads == reads + 1


def test_while_a_fork_stands_the_log_is_read_whatever_orders_bring(five):
    honest, five.link.log = five.link.log, rechained([*log_of(PLAN, "oaoa"), log_after(PLAN, log_of(PLAN, "oaoa"))], 4)
    with pytest.raises(LogForked):
        five.watch.follow(five.link)
    for order, phase in ((offered(honest), five.watch.before_training), (brought(honest), five.watch.result)):
        with pytest.raises(LogForked):
            phase(five.link, order)


def test_the_result_of_an_older_round_is_no_fork(five):
    reads = five.link.log_reads
    older = five.link.log[:3]
    five.watch.result(five.link, brought(older))
    assert (five.link.log_reads, five.watch.stopped) == (reads + 1, None)


def test_entries_that_are_missing_before_the_one_brought_are_read(five):
    reads = five.link.log_reads
    for _ in range(2):
        five.link.log = [*five.link.log, log_after(PLAN, five.link.log)]
    five.watch.result(five.link, brought(five.link.log))
    assert five.link.log_reads > reads
    assert five.kept() == five.link.log


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        (lambda entry: {"survivors": [uri("h1")]}, "something else than its result did, in survivors"),
        (lambda entry: {"model_digest": bytes(32)}, "something else than its result did, in model_digest"),
        (
            lambda entry: {"entry": wire.to_entry(dataclasses.replace(entry, previous=bytes(32)))},
            "does not go on from the entry before it",
        ),
        (lambda entry: {"entry": wire.to_entry(dataclasses.replace(entry, head=bytes(32)))}, "head"),
        (lambda entry: {"log": pb.LogState(entries=entry.index, head=bytes(32))}, "not that of its last entry"),
    ],
    ids=["other survivors", "another model", "does not follow", "another hash", "another head"],
)
def test_a_lie_in_what_a_result_brings_stops_the_node(five, lie, sentence):
    told = [*five.link.log, log_after(PLAN, five.link.log)]
    with pytest.raises(LogForked, match=sentence):
        five.watch.result(five.link, brought(told, **lie(told[-1])))
    with pytest.raises(LogForked):
        five.watch.refuse_if_stopped()
    assert five.kept()[:5] == five.link.log
