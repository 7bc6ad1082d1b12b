"""The log of rounds in the store and on the wire: with the round's end or not at all, and whole after any restart."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from coordinator_federation import LAYOUT, small_plan
from coordinator_world import make_plan, uri
from kill_world import KillWorld
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.export import ExportError, export_run
from coordinator.log_pages import KEPT_PAGES, PAGE_ENTRIES, Pages, log_page
from coordinator.replay import log_of
from coordinator.store import StoreError, open_store
from coordinator.store_write import StoreWriter
from proto import federation_pb2 as pb
from proto import wire
from proto.plan import Plan
from proto.roundlog import check_log, first_head, read_exported

PLAN = make_plan(4)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
RECORDED = Path(__file__).parent / "stores" / "version_1.sql"
START = "aa" * 32


@pytest.fixture
def writer(url: str) -> Iterator[StoreWriter]:
    with StoreWriter.create(url, PLAN, LAYOUT) as store:
        with store.batch() as changes:
            changes.model(0, START, LAYOUT.length, NOON.timestamp())
        yield store


def end(writer: StoreWriter, number: int, *, opened: bool) -> None:
    """One round as the engine's effects write it."""
    session, at = bytes([number]) * 16, NOON.timestamp() + number
    roster = [uri(k) for k in range(4)]
    with writer.batch() as changes:
        changes.new_session(session, number, roster, at)
        changes.round_state(number, "masking", at, cohort=roster)
    with writer.batch() as changes:
        model = f"{number:02x}" * 32 if opened else None
        if opened:
            changes.session_state(session, "opened", roster[:3], "cd" * 32)
            changes.model(number, str(model), LAYOUT.length, at)
        else:
            changes.session_state(session, "aborted")
        changes.round_state(
            number,
            "opened" if opened else "aborted",
            at,
            cohort=roster,
            survivors=roster[:3] if opened else (),
            model_digest=model,
        )


def test_each_round_that_ends_is_one_entry_of_a_chain_that_holds(writer, url):
    for number, opened in ((1, True), (2, False), (3, True)):
        end(writer, number, opened=opened)
    with open_store(url) as store:
        entries = store.log_entries()
        assert store.log_state() == (3, entries[-1].head)
    check_log(entries, PLAN.digest(), bytes.fromhex(START))
    assert [(e.round, e.state, e.base.hex()[:2], e.model.hex()[:2]) for e in entries] == [
        (1, "opened", "aa", "01"),
        (2, "aborted", "01", "01"),
        (3, "opened", "01", "03"),
    ]
    assert entries[0].survivors == tuple(uri(k) for k in range(3))
    assert [e.session for e in entries] == [bytes([n]) * 16 for n in (1, 2, 3)]


def test_a_store_without_rounds_has_the_plans_first_head(writer):
    assert writer.log_state() == (0, first_head(PLAN.digest()))
    assert writer.log_entries() == []


def test_a_round_passed_over_is_an_entry_without_a_session(writer):
    with writer.batch() as changes:
        changes.round_state(1, "aborted", NOON.timestamp(), reason="too few have budget left")
    (entry,) = writer.log_entries()
    assert (entry.session, entry.survivors, entry.model) == (b"", (), bytes.fromhex(START))
    check_log([entry], PLAN.digest())


def test_entry_and_round_are_one_transaction(writer):
    def ends_and_fails() -> None:
        with writer.batch() as changes:
            changes.round_state(1, "aborted", NOON.timestamp())
            changes.new_session(b"\x09" * 16, 1, [], NOON.timestamp())
            changes.new_session(b"\x09" * 16, 1, [], NOON.timestamp())

    with pytest.raises(StoreError):
        ends_and_fails()
    assert (writer.log_state()[0], writer.rounds()) == (0, [])


def test_a_round_cannot_end_twice(writer):
    end(writer, 1, opened=True)
    with pytest.raises(StoreError), writer.batch() as changes:
        changes.round_state(1, "aborted", NOON.timestamp())
    assert [e.state for e in writer.log_entries()] == ["opened"]
    assert [row.state for row in writer.rounds()] == ["opened"]


def test_a_round_that_a_restart_ends_is_an_entry_too(writer):
    session = b"\x07" * 16
    with writer.batch() as changes:
        changes.new_session(session, 1, [uri(0)], NOON.timestamp())
        changes.round_state(1, "masking", NOON.timestamp(), cohort=[uri(0)])
        changes.session_state(session, "masking")
    assert writer.resume(NOON.timestamp()).round == 2
    (entry,) = writer.log_entries()
    assert (entry.round, entry.state, entry.session) == (1, "aborted", session)
    check_log([entry], PLAN.digest())


def test_rounds_of_an_older_release_are_entered_when_its_store_is_opened(tmp_path):
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(RECORDED.read_text())
    connection.close()
    plan = make_plan(4, 3)
    with open_store(path) as store:
        assert store.log_entries() == []
        assert store.log_state()[0] == 0
    for _ in range(2):  # a second opening adds nothing
        with StoreWriter.create(f"sqlite:///{path}", plan, LAYOUT) as store:
            (entry,) = store.log_entries()
            assert (entry.index, entry.round, entry.state, entry.plan) == (1, 1, "opened", plan.digest())
            assert entry.model.hex() == store.rounds()[0].model_digest


def test_pages_are_bounded_and_give_everything(writer):
    for number in range(1, PAGE_ENTRIES + 3):
        with writer.batch() as changes:
            changes.round_state(number, "aborted", NOON.timestamp() + number)
    entries, after = [], 0
    while True:
        page = log_page(writer, after)
        if not page.entries:
            break
        assert len(page.entries) <= PAGE_ENTRIES
        entries += [wire.from_entry(one) for one in page.entries]
        after = entries[-1].index
    assert entries == writer.log_entries()
    assert page.state.entries == PAGE_ENTRIES + 2
    assert page.state.head == entries[-1].head
    assert not log_page(writer, 2**63).entries


def test_a_page_of_long_entries_is_cut_by_its_bytes(writer, monkeypatch):
    end(writer, 1, opened=True)
    end(writer, 2, opened=True)
    monkeypatch.setattr("coordinator.log_pages.PAGE_BYTES", 10)
    assert [one.index for one in log_page(writer, 0).entries] == [1]


def test_pages_are_read_once_while_no_round_ends(writer, monkeypatch):
    reads, ended = [], 0
    monkeypatch.setattr("coordinator.log_pages.log_page", lambda store, after: reads.append(after) or log_page(store, after))
    pages = Pages(writer, lambda: ended)
    for number in range(1, 4):
        for after in (number - 1, number - 2, number - 1, number - 2, number - 1):
            assert pages.after(max(0, after)) == log_page(writer, max(0, after))
        end(writer, number, opened=True)
        ended += 1
    assert reads == [0, 1, 0, 2, 1]
    for after in range(20):
        assert pages.after(after) == log_page(writer, after)
    assert len(pages._kept) <= KEPT_PAGES


def test_orders_bring_the_state_of_the_log_and_a_result_its_own_entry(writer):
    ended = 0
    pages = Pages(writer, lambda: ended)
    for number in range(1, 4):
        end(writer, number, opened=number != 2)
        ended += 1
        result, train = pb.Instruction(result=pb.RoundResult(round=number)), pb.Instruction(train=pb.Train(round=number + 1))
        for order in (result, train):
            pages.show(order)
        entry = writer.log_entries()[-1]
        state = pb.LogState(entries=number, head=entry.head)
        assert (result.result.log, train.train.log) == (state, state)
        assert wire.from_entry(result.result.entry) == entry
    older, wait = pb.Instruction(result=pb.RoundResult(round=1)), pb.Instruction(wait=pb.Wait())
    pages.show(older)
    pages.show(wait)
    assert older == pb.Instruction(result=pb.RoundResult(round=1)), "whoever is behind reads the log"
    assert wait == pb.Instruction(wait=pb.Wait())


def test_a_result_of_a_round_that_the_log_does_not_have_brings_nothing(writer):
    end(writer, 1, opened=True)
    order = pb.Instruction(result=pb.RoundResult(round=2))
    Pages(writer, lambda: 0).show(order)
    assert order == pb.Instruction(result=pb.RoundResult(round=2))


# ---- a whole run, killed on its way, and its export ----


@pytest.fixture(scope="module")
def run(identities: Path, tmp_path_factory: pytest.TempPathFactory) -> KillWorld:
    plan: Plan = small_plan(4, 3)
    masking = plan.masking.model_copy(update={"bind_log": True})
    world = KillWorld(tmp_path_factory.mktemp("run"), identities, plan.model_copy(update={"masking": masking}), LAYOUT)
    world.kill_at = ("after", 40)
    asyncio.run(world.live())
    assert world.starts == 2
    return world


@pytest.fixture
def exported(run: KillWorld, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    with open_store(run.config.database) as store:
        export_run(store, run.config.state / "models", folder, NOON)
    return folder


def test_a_run_that_was_killed_has_a_log_that_holds_and_is_exported(run, exported):
    with open_store(run.config.database) as store:
        entries = store.log_entries()
        check_log(entries, store.plan().digest())
    assert len(entries) == 3
    assert log_of(exported) == tuple(entries)
    said = CliRunner().invoke(app, ["replay", str(exported)])
    assert said.exit_code == 0
    assert "3 entries of the log in an unbroken chain" in said.stdout


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda log: log["entries"][1]["survivors"].pop(), "entry 2 .* was changed"),
        (lambda log: log["entries"].pop(1), "entry 2 .* is missing"),
        (lambda log: log["entries"].pop(), "2 entries and 3 rounds ended"),
        (lambda log: log["entries"][0].update(model="00" * 32), "entry 1 .* was changed"),
        (lambda log: log.update(format="another"), "is no log of rounds"),
    ],
)
def test_an_exported_log_that_was_changed_is_named(exported, change, sentence):
    file = exported / "log.json"
    log = json.loads(file.read_bytes())
    change(log)
    file.write_text(json.dumps(log))
    with pytest.raises(ExportError, match=sentence):
        log_of(exported)
    assert CliRunner().invoke(app, ["replay", str(exported)]).exit_code == 1


def test_a_log_that_holds_and_tells_another_story_than_the_rounds_is_named(exported):
    rounds = json.loads((exported / "rounds.json").read_bytes())
    rounds[1]["survivors"] = rounds[1]["survivors"][1:]
    (exported / "rounds.json").write_text(json.dumps(rounds))
    with pytest.raises(ExportError, match="entry 2 of the log does not say of round 2"):
        log_of(exported)


def test_an_export_of_an_older_release_has_no_log(exported):
    (exported / "log.json").unlink()
    assert log_of(exported) is None


def test_two_exports_of_one_run_have_one_log(run, exported, tmp_path):
    with open_store(run.config.database) as store:
        export_run(store, run.config.state / "models", tmp_path / "again", NOON)
    assert read_exported((tmp_path / "again" / "log.json").read_bytes()) == log_of(exported)
