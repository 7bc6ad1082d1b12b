"""A node at work: a fork of the log stops it at any point with nothing charged, and every round leaves a receipt."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from node_world import (
    ME,
    NOW_S,
    FakeLink,
    Folders,
    Rehearsal,
    Trainer,
    approved_ledger,
    log_after,
    log_of,
    make_folders,
    make_plan,
    train_order,
    until,
    uri,
)
from test_node_runner import DECLINED, READY, TRAINING, Node, play
from typer.testing import CliRunner

from hospital_node import durable, loop
from hospital_node.attendance import AttendanceBook
from hospital_node.cli import app
from hospital_node.evidence import Evidence
from hospital_node.ledger import Ledger
from hospital_node.link import OrderStale
from hospital_node.receipt_book import RECEIPTS_FILE, read_book
from hospital_node.receipts import Receipt, ReceiptError, check_ledger, check_log, verify
from hospital_node.roundlog import KeptLog, LogForked
from hospital_node.traffic import ByteMeter
from proto import federation_pb2 as pb
from proto.roundlog import Entry
from proto.wire import framed_bytes

PLAN = make_plan()
MINE = b"\x01" * 16  # of the rehearsed session
EVERYBODY = tuple(uri(name) for name in ("h0", "h1", "h2", "h3"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(loop, "LONGEST_WAIT_S", 0.01)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folders = make_folders(tmp_path)
    approved_ledger(folders, PLAN)
    made = Node(folders, FakeLink(PLAN), Trainer())
    made.link.log = []
    yield made
    made.end()


def receipts(node: Node) -> tuple[Receipt, ...]:
    """All of them, verified on their own, against the ledger and against the log."""
    found = verify(read_book(node.folders.state.path / RECEIPTS_FILE))
    note_of(node, found)
    check_log(found, KeptLog(node.folders.state.path, PLAN).read())
    return found


def note_of(node: Node, found: tuple[Receipt, ...]) -> str:
    return check_ledger(found, node.ledger.events(), "lidc")


def opened(node: Node, coordinator: Rehearsal, survivors: tuple[str, ...] = EVERYBODY) -> Entry:
    """What an honest coordinator logs of the rehearsed round."""
    log = node.link.log or []
    return log_after(PLAN, log, session=coordinator.session, survivors=survivors, model=b"\x01" * 32)


def result_of(coordinator: Rehearsal, entry: Entry) -> pb.RoundResult:
    result = coordinator.result()
    result.model_digest, result.sum_digest, result.opened = entry.model, entry.sum_digest, entry.state == "opened"
    del result.survivors[:]
    result.survivors.extend(entry.survivors)
    return result


def whole_round(node: Node, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """Round 1 to its result, with an honest log."""
    coordinator = Rehearsal(PLAN, node.folders)
    entry = opened(node, coordinator)
    monkeypatch.setattr(Rehearsal, "result", lambda self, **_: logged(node, self, entry))
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(2)
    play(node, coordinator, 3)
    monkeypatch.undo()
    until(lambda: len(read_book(node.folders.state.path / RECEIPTS_FILE)) == 1)
    return coordinator


def logged(node: Node, coordinator: Rehearsal, entry: Entry) -> pb.RoundResult:
    node.link.log = [*(node.link.log or []), entry]
    return pb.RoundResult(
        round=coordinator.round,
        session=coordinator.session,
        survivors=entry.survivors,
        opened=True,
        sum_digest=entry.sum_digest,
        model_digest=entry.model,
    )


# ---- receipts of a node at work ----


def test_a_round_in_the_sum_leaves_a_receipt_of_everything(node, monkeypatch):
    whole_round(node, monkeypatch)
    (one,) = receipts(node)
    assert (one.round, one.outcome, one.in_sum, one.lanes, one.cohort, one.dropped) == (1, "counted", True, 3, 4, ())
    assert one.session == MINE.hex()
    assert one.model == "01" * 32
    assert one.hospital == ME
    assert one.epsilon is not None
    assert one.epsilon.of_round == one.epsilon.spent > 0
    assert one.epsilon.left == pytest.approx(8.0 - one.epsilon.spent)
    assert one.epsilon.spent == pytest.approx(node.ledger.budget(PLAN).spent)
    assert one.charge is not None
    assert node.ledger.events()[one.charge.entry - 1].entry == node.charges[0]
    assert one.log_head == node.link.log[-1].head.hex()
    assert not one.made_up
    assert one.unknown == ()


def test_rounds_without_a_charge_leave_receipts_too(node):
    node.link.log = log_of(PLAN, "oa")
    node.trainer.error = None
    node.start()
    until(lambda: len(read_book(node.folders.state.path / RECEIPTS_FILE)) == 2)
    node.link.put(train=pb.Train(round=3, base_digest=b"\x09" * 32, base_bytes=76))  # a model that nobody published
    assert node.link.wait_for(1).code == "log-forked"
    node.link.log = log_of(PLAN, "oaa")
    last = node.link.log[-1]
    node.link.put(result=pb.RoundResult(round=3, session=last.session, model_digest=last.model, survivors=last.survivors))
    until(lambda: len(read_book(node.folders.state.path / RECEIPTS_FILE)) == 3)
    first, second, third = receipts(node)
    assert [(r.outcome, r.code, r.in_sum, r.charge) for r in (first, second)] == [
        ("sat-out", "", False, None),
        ("aborted", "", False, None),
    ]
    assert first.epsilon is not None
    assert (first.epsilon.of_round, first.epsilon.spent) == (0, 0)
    assert (third.outcome, third.code) == ("declined", "log-forked")
    assert third.previous == read_book(node.folders.state.path / RECEIPTS_FILE)[1].digest
    assert "bytes" in first.unknown


def test_without_a_log_the_rounds_done_are_the_coordinators_word(node):
    node.link.log = None
    node.link.reply.rounds_done = 2
    node.start()
    until(lambda: len(read_book(node.folders.state.path / RECEIPTS_FILE)) == 2)
    assert [(one.outcome, one.log_head, one.model) for one in receipts(node)] == [("sat-out", None, None)] * 2


def test_bytes_of_a_receipt_are_what_crossed_since_the_one_before(tmp_path):
    folders = make_folders(tmp_path)
    approved_ledger(folders, PLAN)
    meter = ByteMeter()
    evidence = evidence_of(folders, meter)
    meter.count_sent("mask", pb.Chunk(data=bytes(1000)))
    meter.count_received("broadcast", pb.Chunk(data=bytes(500)))
    link = FakeLink(PLAN)
    link.log = []
    evidence.joined(link.join())
    for number in (1, 2):
        link.log = log_of(PLAN, "a" * number)
        last = link.log[-1]
        told = pb.RoundResult(round=number, session=last.session, model_digest=last.model, survivors=last.survivors)
        evidence.result(link, told)
    one, two = verify(read_book(folders.state.path / RECEIPTS_FILE))
    sizes = [framed_bytes(pb.Chunk(data=bytes(size))) for size in (1000, 500)]
    assert (one.sent_bytes, one.received_bytes) == ({"mask": sizes[0]}, {"broadcast": sizes[1]})
    assert sizes[0] > 1000
    assert (two.sent_bytes, two.received_bytes) == ({"mask": 0}, {"broadcast": 0})


@pytest.fixture
def alone(tmp_path: Path) -> tuple[Evidence, FakeLink, Path]:
    """The evidence of a node without its loop."""
    folders = make_folders(tmp_path)
    approved_ledger(folders, PLAN)
    link = FakeLink(PLAN)
    link.log = []
    return evidence_of(folders), link, folders.state.path / RECEIPTS_FILE


def test_rounds_that_the_log_does_not_have_get_no_receipt_whatever_is_claimed(alone):
    evidence, link, path = alone
    link.log = log_of(PLAN, "a")
    reply = link.join()
    reply.rounds_done = 10**6
    evidence.joined(reply)
    evidence.follow(link)
    evidence.finished()
    assert [one.round for one in verify(read_book(path))] == [1]
    with pytest.raises(LogForked):
        evidence.before_training(link, pb.Train(round=PLAN.rounds, base_digest=link.log[-1].model))
    with pytest.raises(LogForked):
        evidence.result(link, pb.RoundResult(round=PLAN.rounds, session=b"\x07" * 16))
    assert [one.round for one in verify(read_book(path))] == [1]


def test_a_round_that_nobody_told_of_gets_the_receipt_that_the_log_says(alone):
    evidence, link, path = alone
    evidence.joined(link.join())
    evidence.follow(link)
    link.log = log_of(PLAN, "a")
    evidence.before_training(link, pb.Train(round=2, base_digest=link.log[-1].model))
    (one,) = verify(read_book(path))
    assert (one.round, one.outcome, one.model) == (1, "aborted", link.log[-1].model.hex())


def test_a_log_that_is_not_read_at_a_result_is_read_later(alone, monkeypatch):
    def stale(_after: int) -> pb.LogPage:
        raise OrderStale("ended already")

    evidence, link, path = alone
    evidence.joined(link.join())
    evidence.follow(link)
    link.log = log_of(PLAN, "a")
    last = link.log[-1]
    with monkeypatch.context() as patch:
        patch.setattr(link, "read_log", stale)
        told = pb.RoundResult(round=1, session=last.session, model_digest=last.model, survivors=last.survivors)
        evidence.result(link, told)
    assert evidence.due
    evidence.follow(link)
    assert not evidence.due
    assert [(one.round, one.outcome, one.made_up) for one in verify(read_book(path))] == [(1, "aborted", False)]


def test_the_receipt_of_a_recorded_result_is_written_from_what_that_left(alone, monkeypatch):
    evidence, link, path = alone
    ledger = Ledger.open(path.parent / "ledger.db")
    ledger.commit(ledger.authorize(PLAN, 1), b"u" * 32, MINE, datetime.fromtimestamp(NOW_S, UTC))
    left = ledger.record_verified(PLAN, 1, datetime.fromtimestamp(NOW_S, UTC))
    evidence.joined(link.join())
    evidence.follow(link)
    link.log = log_of(PLAN, "a")
    last = link.log[-1]
    told = pb.RoundResult(round=1, session=last.session, model_digest=last.model, survivors=last.survivors)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "open", lambda *_, **__: pytest.fail("the ledger is verified once more"))
        evidence.result(link, told, left)
    (one,) = verify(read_book(path))
    check_ledger((one,), ledger.events(), "lidc")
    assert (one.outcome, one.ledger_entries, one.ledger_head) == ("counted", len(left), ledger.head.hex())


def test_a_long_past_is_made_up_for_a_piece_at_a_time(alone):
    evidence, link, path = alone
    plan = make_plan(rounds=120)
    evidence.take_plan(plan)
    link.log = None
    reply = link.join()
    reply.rounds_done = 120
    evidence.joined(reply)
    for count in (50, 100, 120, 120):
        evidence.follow(link)
        assert [one.round for one in verify(read_book(path))] == list(range(1, count + 1))


def evidence_of(folders: Folders, meter: ByteMeter | None = None) -> Evidence:
    identity = folders.identities[ME]
    ledger = folders.state.ledger
    made = Evidence(
        folders.state,
        lambda: identity,
        meter or ByteMeter(),
        lambda: Ledger.open(ledger),
        lambda: datetime.fromtimestamp(NOW_S, UTC),
    )
    made.take_plan(PLAN)
    return made


# ---- after a kill ----


@pytest.mark.parametrize(
    ("ending", "in_sum", "unknown"),
    [
        ("opened with it", None, ["in_sum"]),
        ("opened as it signed", True, []),
        ("opened without it", False, []),
        ("aborted", False, []),
        ("no log", None, ["in_sum", "dropped", "model"]),
    ],
)
def test_a_kill_between_charge_and_receipt_is_made_up_for_and_says_what_it_cannot_know(node, ending, in_sum, unknown):
    coordinator = charged(node)
    if ending == "opened as it signed":
        AttendanceBook(node.folders.state.path).sign(MINE, EVERYBODY)
    match ending:
        case "opened with it" | "opened as it signed":
            node.link.log = [opened(node, coordinator)]
        case "opened without it":
            node.link.log = [opened(node, coordinator, EVERYBODY[1:])]
        case "aborted":
            node.link.log = [log_after(PLAN, [], opened=False, session=MINE, survivors=())]
        case _:
            node.link.log = None
            node.link.reply.rounds_done = 1
    for _ in range(2):  # a second start adds nothing
        node.restart()
        until(lambda: len(read_book(node.folders.state.path / RECEIPTS_FILE)) == 1)
    (one,) = receipts(node)
    assert (one.outcome, one.in_sum, one.made_up, one.session) == ("lost", in_sum, True, MINE.hex())
    assert one.epsilon is not None
    assert one.epsilon.of_round > 0
    assert sorted({*one.unknown} - {"bytes before bytes_since"}) == sorted(unknown)


def charged(node: Node) -> Rehearsal:
    """Round 1 up to the upload; then the node ends without a result."""
    coordinator = Rehearsal(PLAN, node.folders)
    node.start()
    node.link.put(train=train_order())
    node.link.wait_for(2)
    node.link.put(open=coordinator.order)
    node.link.put(share=coordinator.take_advert(node.link.wait_for(3)))
    node.link.put(mask=coordinator.take_shares(node.link.wait_for(4)))
    node.link.wait_for(5)
    node.end()
    node.link.box.clear()
    assert len(node.charges) == 1
    return coordinator


def test_the_round_under_way_has_no_receipt_yet_and_that_is_said(node):
    charged(node)
    node.restart()
    until(lambda: node.link.joins == 2)
    node.end()
    assert read_book(node.folders.state.path / RECEIPTS_FILE) == ()
    assert "round 1, the newest charged, has no receipt yet" in note_of(node, ())


def test_a_kill_at_any_point_of_writing_loses_and_doubles_nothing(tmp_path):
    """Kill -9 before and after every call that the file's writer makes to the system."""
    folders = make_folders(tmp_path)
    approved_ledger(folders, PLAN)
    link = FakeLink(PLAN)
    link.log = log_of(PLAN, "oa")
    points = 0
    for at in range(1, 40, 2):
        path = folders.state.path / RECEIPTS_FILE
        path.unlink(missing_ok=True)
        status = in_a_child(folders, link, at)
        before = len(read_book(path))
        again = evidence_of(folders)
        again.joined(link.join())
        again.follow(link)
        assert [one.round for one in verify(read_book(path))] == [1, 2], f"killed at point {at}"
        assert before in (0, 2)
        if not os.WIFSIGNALED(status):
            break
        points += 1
    assert points >= 3


def in_a_child(folders: Folders, link: FakeLink, ends_at: int) -> int:
    child = os.fork()
    if child == 0:
        count = 0

        def around(call: Any) -> Any:
            def watched(*arguments: Any, **options: Any) -> Any:
                point()
                done = call(*arguments, **options)
                point()
                return done

            return watched

        def point() -> None:
            nonlocal count
            count += 1
            if count == ends_at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            evidence = evidence_of(folders)
            evidence.joined(link.join())
            for name in ("open", "ftruncate", "lseek", "fsync", "dup"):
                setattr(durable.os, name, around(getattr(os, name)))
            evidence.follow(link)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_disk_that_takes_no_receipt_stops_no_round_and_it_is_made_up_later(node, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hospital_node.receipt_book.append_lines", full)
        node.link.log = log_of(PLAN, "o")
        node.start()
        node.link.put(wait=pb.Wait(reason="-"))
        until(lambda: node.link.log_reads > 0)
        node.end()
    assert read_book(node.folders.state.path / RECEIPTS_FILE) == ()
    node.restart()
    until(lambda: len(read_book(node.folders.state.path / RECEIPTS_FILE)) == 1)
    receipts(node)


def test_a_damaged_book_is_named_and_is_not_continued(node):
    path = node.folders.state.path / RECEIPTS_FILE
    path.write_bytes(b'{"receipt": 1}\n')
    node.link.log = log_of(PLAN, "o")
    node.start()
    until(lambda: node.link.log_reads > 0)
    node.end()
    assert node.error is None
    with pytest.raises(ReceiptError, match="receipt 1 cannot be read"):
        read_book(path)
    assert path.read_bytes() == b'{"receipt": 1}\n'


# ---- a fork, at every point of a round ----


def fork(node: Node) -> None:
    """The coordinator comes back with another history than it showed."""
    node.link.log = [log_after(PLAN, [], opened=False, session=b"\x55" * 16, survivors=())]
    node.link.lose.append("answer")


def test_a_fork_before_training_declines_the_round(node):
    node.link.log = log_of(PLAN, "a")
    node.start()
    until(lambda: KeptLog(node.folders.state.path, PLAN).count == 1)
    node.link.log = [log_after(PLAN, [], opened=False, session=b"\x55" * 16, survivors=())]
    node.link.put(train=train_order(2))
    declined = node.link.wait_for(1)
    assert (declined.state, declined.code) == (DECLINED, "log-forked")
    assert node.phase == "declined"
    assert node.trainer.rounds == []
    assert node.charges == []


@pytest.mark.parametrize("after", ["open", "share"])
def test_a_fork_in_a_session_ends_it_before_anything_is_charged(node, after):
    node.link.log = log_of(PLAN, "a")
    node.start()
    node.link.put(train=train_order(2))
    assert [node.link.wait_for(k).state for k in (1, 2)] == [TRAINING, READY]
    coordinator = Rehearsal(PLAN, node.folders, round=2)
    if after == "open":
        fork(node)  # the answer gets there and the connection breaks: the node joins again and is shown the fork
    node.link.put(open=coordinator.order)
    share = coordinator.take_advert(node.link.wait_for(3))
    if after == "open":
        until(lambda: node.phase == "declined")
    else:
        fork(node)
    node.link.put(share=share)
    sent = node.link.wait_for(4 if after == "share" else 5)
    if after == "share":
        assert sent.WhichOneof("answer") == "shares"
        until(lambda: node.phase == "declined")
        node.link.put(mask=coordinator.take_shares(sent))
    until(lambda: any(refusal_code(one) == "log-forked" for one in node.link.sent))
    assert node.charges == []
    assert not any(isinstance(one, list) for one in node.link.sent), "no upload"
    assert any(isinstance(one, pb.NodeReport) and one.code == "log-forked" for one in node.link.sent)


def refusal_code(one: Any) -> str:
    return one.refusal.code if isinstance(one, pb.PhaseAnswer) else ""


def test_a_fork_told_with_a_result_stops_the_next_round(node, monkeypatch):
    whole_round(node, monkeypatch)
    node.link.log = [log_after(PLAN, [], opened=True, session=MINE, survivors=EVERYBODY[:3], model=b"\x01" * 32)]
    node.link.put(train=pb.Train(round=2, base_digest=b"\x01" * 32, base_bytes=76))
    until(lambda: any(isinstance(one, pb.NodeReport) and one.code == "log-forked" for one in node.link.sent))
    assert len(node.charges) == 1
    assert [one.outcome for one in receipts(node)] == ["counted"]


# ---- the command line, and openssl alone ----


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_receipts_are_listed_exported_and_verified_by_openssl_alone(node, monkeypatch, tmp_path):
    whole_round(node, monkeypatch)
    node.end()
    config = str(node.folders.config_file)
    assert "counted: the update is in the sum" in run("receipts", "list", "--config", config)[1]
    assert run("receipts", "list", "--json", "--config", config)[1].startswith('{"at":')
    status, said = run("receipts", "verify", "--config", config)
    assert (status, "1 receipts in an unbroken chain" in said) == (0, True)
    out = tmp_path / "receipts.json"
    assert run("receipts", "export", "--config", config, "--out", str(out))[0] == 0
    assert run("receipts", "verify", str(out))[0] == 0
    folder = tmp_path / "one"
    status, command = run("receipts", "export", "--config", config, "--number", "1", "--out", str(folder))
    assert status == 0
    assert run("receipts", "verify", str(out), "--key", str(folder / "key.pem"))[0] == 0
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "Verified OK")
    body = (folder / "receipt.json").read_bytes()
    (folder / "receipt.json").write_bytes(body.replace(b'"cohort":4', b'"cohort":5'))
    assert subprocess.run(command.split(), capture_output=True, check=False).returncode != 0


def test_another_nodes_key_and_a_changed_file_are_named(node, monkeypatch, tmp_path):
    whole_round(node, monkeypatch)
    node.end()
    out, other = tmp_path / "receipts.json", tmp_path / "other.pem"
    run("receipts", "export", "--config", str(node.folders.config_file), "--out", str(out))
    key = node.folders.identities[uri("h1")].key.public_key()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    other.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert "a key that nobody confirmed" in run("receipts", "verify", str(out), "--key", str(other))[1]
    out.write_text(out.read_text().replace("counted", "sat-out"))
    assert "receipt 1 does not verify" in run("receipts", "verify", str(out))[1]
    out.write_text("{}")
    assert "holds no receipts" in run("receipts", "verify", str(out))[1]
    assert "name either" in run("receipts", "verify")[1]
