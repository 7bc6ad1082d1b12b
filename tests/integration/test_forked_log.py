"""A coordinator that shows other histories of rounds, told over real TLS to real node processes: each refuses it by name.

Nothing is charged for it and no masked word leaves; a split view between two nodes breaks the session that binds the log.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
from lying_session import PHASES, Session
from wary_hospitals import FIELDS, NODES, WaryHospitals

from hospital_node.ledger import Ledger
from hospital_node.receipt_book import RECEIPTS_FILE, read_book
from hospital_node.receipts import check_ledger, check_log, verify
from hospital_node.roundlog import KeptLog
from proto import federation_pb2 as pb
from proto.layout import model_digest
from proto.roundlog import Entry, head_of, next_entry
from study.processes import Family

pytestmark = pytest.mark.sockets

BOUND = {**FIELDS, "masking": {**FIELDS["masking"], "bind_log": True}}
ROUNDS = 2  # honest ones before the lies


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    with Family(1) as family:
        made = WaryHospitals(tmp_path_factory.mktemp("forked") / "study", family, BOUND)
        made.coordinator.log = []
        made.approve(made.plan)
        made.start_all()
        for _ in range(ROUNDS):
            honest_round(made)
        yield made
        made.coordinator.stop()


def ended(hospitals, log: list[Entry], done: Session | None, **change) -> Entry:
    """The entry of the round that the session `done` opened, or of one that was aborted."""
    opened = done is not None
    base = model_digest(hospitals.base)
    entry = next_entry(
        log[-1] if log else None,
        hospitals.plan.digest(),
        round_number=len(log) + 1,
        state="opened" if opened else "aborted",
        session=done.id if opened else b"",
        base=base,
        model=base,
        sum_digest=bytes(32) if opened else b"",
        survivors=map(done.uri, done.answers["mask"]) if opened else (),
    )
    entry = dataclasses.replace(entry, **change)
    return dataclasses.replace(entry, head=head_of(entry)) if change else entry


def honest_round(hospitals) -> Session:
    hospitals.ready(*NODES)
    session = Session(hospitals, *NODES)
    for phase in PHASES:
        session.step(phase)
    hospitals.coordinator.log = [*hospitals.coordinator.log, ended(hospitals, hospitals.coordinator.log, session)]
    for name in NODES:
        session.tell_result(name, session.result(model_digest=model_digest(hospitals.base)))
    assert session.refusals == []
    return session


def kept(hospitals, name: str) -> KeptLog:
    return KeptLog(hospitals.state(name).path, hospitals.plan)


def test_honest_rounds_are_kept_alike_and_leave_receipts(hospitals):
    for name in NODES:
        log = hospitals.coordinator.log
        assert list(kept(hospitals, name).read()) == log
        receipts = verify(read_book(hospitals.state(name).path / RECEIPTS_FILE))
        assert [one.outcome for one in receipts] == ["counted"] * len(receipts)
        assert len(receipts) == len(log) >= ROUNDS
        events = Ledger.open_readonly(hospitals.state(name).ledger).events()
        assert check_ledger(receipts, events, "wary") == ""
        check_log(receipts, log)
        assert all(one.sent_bytes["mask"] > 0 and not one.made_up for one in receipts)


def rewritten(hospitals, log):
    bent = dataclasses.replace(log[0], survivors=log[0].survivors[1:])
    return rechained([dataclasses.replace(bent, head=head_of(bent)), *log[1:]])


def swapped_model(hospitals, log):
    bent = dataclasses.replace(log[-1], model=b"\xee" * 32)
    return [*log[:-1], dataclasses.replace(bent, head=head_of(bent))]


def dropped(hospitals, log):
    return rechained([dataclasses.replace(entry, index=k, round=k) for k, entry in enumerate(log[1:], start=1)])


def forked_tail(hospitals, log):
    return [*log[:-1], ended(hospitals, log[:-1], None)]


def rechained(log: list[Entry]) -> list[Entry]:
    made: list[Entry] = []
    for entry in log:
        one = dataclasses.replace(entry, previous=made[-1].head if made else entry.previous)
        made.append(dataclasses.replace(one, head=head_of(one)))
    return made


CHEATS = {
    "rewritten survivors": rewritten,
    "another model": swapped_model,
    "a dropped entry": dropped,
    "a forked tail": forked_tail,
    "rolled back": lambda _, log: log[:-1],
}


def show(hospitals, name: str, log: list[Entry]) -> None:
    """From now on this node is shown this history; it looks at it when it joins."""
    hospitals.coordinator.logs[hospitals.uri(name)] = log
    hospitals.coordinator.rejoin(hospitals.uri(name))


def honest_again(hospitals, *names: str) -> None:
    hospitals.coordinator.logs.clear()
    hospitals.coordinator.rejoin(*map(hospitals.uri, names))


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_another_history_than_the_kept_one_stops_the_node_until_it_is_gone(hospitals, cheat):
    log, charged = hospitals.coordinator.log, hospitals.kinds("north")
    before = len(hospitals.coordinator.received)
    show(hospitals, "north", cheat(hospitals, list(log)))
    uri = hospitals.uri("north")
    hospitals.coordinator.wait(
        lambda: any(one.message.code == "log-forked" for one in hospitals.coordinator.after(before, uri, {"report"})),
        "north says that it declines",
    )
    declined = hospitals.train("north", number=len(log) + 1)["north"]
    assert (declined.state, declined.code) == (pb.NodeReport.DECLINED, "log-forked")
    session = Session(hospitals, "north")
    refusal = session.refused("open", "north", session.honest("open", "north"))
    assert refusal.code == "log-forked"
    assert session.sent("north") == ["refusal"]
    assert hospitals.kinds("north") == charged
    assert list(kept(hospitals, "north").read()) == log
    assert "another history of rounds" in hospitals.sentence("north")
    honest_again(hospitals, "north")
    hospitals.ready("north")


def test_a_fork_between_share_and_mask_is_not_charged_and_no_mask_leaves(hospitals):
    hospitals.ready("north")
    session = Session(hospitals, "north").until("mask")
    show(hospitals, "north", forked_tail(hospitals, list(hospitals.coordinator.log)))
    refusal = session.refused("mask", "north", session.honest("mask", "north"))
    assert refusal.code == "log-forked"
    assert "upload" not in session.sent("north")
    assert not hospitals.charged("north", session.id)
    honest_again(hospitals, "north")
    hospitals.ready("north")


def test_a_session_under_another_head_is_refused(hospitals):
    hospitals.ready("north")
    session = Session(hospitals, "north")
    order = session.honest("open", "north")
    order.log_head = os.urandom(32)
    assert session.refused("open", "north", order).code == "log-forked"
    honest_again(hospitals, "north")


def test_a_power_cut_does_not_make_a_node_forget(hospitals):
    log = hospitals.coordinator.log
    hospitals.coordinator.logs[hospitals.uri("north")] = forked_tail(hospitals, list(log))
    hospitals.power_cut("north")
    declined = hospitals.train("north", number=len(log) + 1)["north"]
    assert declined.code == "log-forked"
    assert list(kept(hospitals, "north").read()) == log
    honest_again(hospitals, "north")


def test_two_members_that_were_shown_two_histories_cannot_finish_a_session(hospitals):
    """The last test: each history fits what its node kept so far, so that neither node can tell alone."""
    log = hospitals.coordinator.log
    told = {"north": ended(hospitals, log, None), "east": ended(hospitals, log, None, session=b"\x05" * 16)}
    for name, entry in told.items():
        show(hospitals, name, [*log, entry])
    hospitals.round = len(log) + 2
    for name, entry in told.items():
        hospitals.ready(name)
        assert kept(hospitals, name).head == entry.head
    identity = os.urandom(16)
    ours, theirs = (Session(hospitals, name, session=identity) for name in ("north", "east"))
    assert ours.params.context() != theirs.params.context()
    ours.step("open")
    theirs.step("open")
    for session, other, mine, peer in ((ours, theirs, "north", "east"), (theirs, ours, "east", "north")):
        session.answers["open"][peer] = other.answers["open"][peer]
        refusal = session.refused("share", mine, session.honest("share", mine))
        assert refusal.code == "bad-signature"
        assert "upload" not in session.sent(mine)
        assert not hospitals.charged(mine, identity)
