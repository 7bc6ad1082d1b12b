"""A node and the coordinator's log of rounds: it keeps what fits, and one test for each way to show another history."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import BASE, ME, NAMES, NOW_S, FakeLink, log_after, log_of, make_plan, uri
from typer.testing import CliRunner

from certs.audit_file import AuditLog
from certs.words import words_of
from hospital_node import durable
from hospital_node.attendance import Attendance, AttendanceBook
from hospital_node.cli import app
from hospital_node.follow_log import LogWatch
from hospital_node.roundlog import KeptLog, LogDamaged, LogForked, log_file, set_aside
from hospital_node.state import StateFolder
from proto import federation_pb2 as pb
from proto import scaffold
from proto.layout import model_digest
from proto.plan import Plan
from proto.roundlog import Entry, exported, first_head, head_of, next_entry

PLAN = make_plan(rounds=9)
SESSION = b"\x07" * 16


def now() -> datetime:
    return datetime.fromtimestamp(NOW_S, UTC)


class World:
    """A state folder, a link, and the watch that reads from one into the other."""

    def __init__(self, folder: Path, plan: Plan = PLAN) -> None:
        self.folder, self.plan = folder, plan
        self.link = FakeLink(plan)
        self.sessions: frozenset[bytes] = frozenset()
        self.restart()

    def restart(self) -> None:
        self.book = AttendanceBook(self.folder)
        self.watch = LogWatch(self.folder, self.plan, ME, self.book, self.may_have_answered, now)

    def may_have_answered(self, session: bytes) -> bool:
        return not self.sessions or session in self.sessions

    def join(self) -> None:
        self.watch.joined(self.link.join())
        self.watch.follow(self.link)

    def kept(self) -> list[Entry]:
        return list(KeptLog(self.folder, self.plan).read())

    def refuses(self, sentence: str) -> LogForked:
        """The next look ends in a named refusal, everything after it too, and what was kept is as it was."""
        before = self.kept()
        with pytest.raises(LogForked, match=sentence) as error:
            self.watch.follow(self.link)
        assert error.value.code == "log-forked"
        with pytest.raises(LogForked, match=sentence):
            self.watch.refuse_if_stopped()
        for phase in (self.watch.before_training, self.watch.before_session):
            with pytest.raises(LogForked):
                phase(self.link, pb.Train(round=1) if phase == self.watch.before_training else pb.Open(round=1))
        assert self.kept()[: len(before)] == before
        return error.value


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def five(world: World) -> World:
    """Five rounds ended and are kept."""
    world.link.log = log_of(PLAN, "oaooa")
    world.join()
    assert world.kept() == world.link.log
    return world


def rechained(log: list[Entry], start: int) -> list[Entry]:
    """Everything from place `start` on hashed again, as a liar would."""
    made = log[:start]
    for entry in log[start:]:
        previous = made[-1] if made else None
        one = dataclasses.replace(entry, previous=entry.previous if previous is None else previous.head)
        if previous is not None and one.base != previous.model:
            one = dataclasses.replace(one, base=previous.model, model=previous.model if one.state == "aborted" else one.model)
        made.append(dataclasses.replace(one, head=head_of(one)))
    return made


@pytest.mark.parametrize(("first", "last"), [(1, 1), (2, 4), (4, 5), (5, 5), (5, 9), (6, 9), (1, 9)])
def test_entries_of_some_rounds_are_those_of_the_file(five, first, last):
    kept = KeptLog(five.folder, PLAN)
    assert kept.between(first, last) == {entry.round: entry for entry in kept.read() if first <= entry.round <= last}


def test_heads_and_models_of_every_round_are_those_of_the_log(five):
    kept, log = KeptLog(five.folder, PLAN), five.link.log
    assert [kept.head_after(rounds) for rounds in range(7)] == [first_head(PLAN.digest()), *(one.head for one in log), None]
    assert [kept.model_after(rounds) for rounds in range(7)] == [log[0].base, *(one.model for one in log), None]
    kept.path.write_bytes(b"not read\n")
    assert (kept.head_after(5), kept.model_after(4)) == (log[4].head, log[3].model)
    with pytest.raises(LogDamaged):
        kept.model_after(2)


@pytest.mark.parametrize("rounds", [-1, -2, 6, 1 << 32])
def test_of_rounds_that_no_entry_is_of_nothing_is_said(five, rounds):
    kept = KeptLog(five.folder, PLAN)
    assert (kept.head_after(rounds), kept.model_after(rounds)) == (None, None)


def test_a_copy_that_is_cut_back_while_the_node_runs_is_damage(five):
    kept = KeptLog(five.folder, PLAN)
    lines = kept.path.read_bytes().splitlines(keepends=True)
    kept.path.write_bytes(lines[0])
    with pytest.raises(LogDamaged, match="entry 2 of 5 is gone"):
        kept.head_after(2)
    kept.path.unlink()
    with pytest.raises(LogDamaged, match="entry 1 of 5 is gone"):
        kept.model_after(1)


def test_the_newest_round_is_known_without_reading_the_others_again(five):
    kept = KeptLog(five.folder, PLAN)
    kept.path.write_bytes(b"not read\n")
    assert kept.between(5, 5) == {5: five.link.log[-1]}
    assert kept.between(6, 6) == {}
    with pytest.raises(LogDamaged):
        kept.between(4, 5)


def test_what_fits_is_kept_page_by_page_and_survives_a_restart(five):
    five.restart()
    five.link.log += [log_after(PLAN, five.link.log)]
    five.join()
    assert five.kept() == five.link.log
    assert five.watch.head() == five.link.log[-1].head


def test_a_coordinator_of_an_older_release_keeps_no_log(world):
    world.join()
    assert (world.watch.head(), world.link.log_reads, world.watch.stopped) == (None, 0, None)
    world.watch.before_training(world.link, pb.Train(round=4, base_digest=b"m" * 32))


# ---- one for each way to cheat; each was hashed again, so that only the kept copy tells ----


def rewritten(log: list[Entry]) -> list[Entry]:
    log[2] = dataclasses.replace(log[2], survivors=log[2].survivors[:-1])
    return rechained(log, 2)


def swapped_model(log: list[Entry]) -> list[Entry]:
    log[3] = dataclasses.replace(log[3], model=b"\xee" * 32)
    return rechained(log, 3)


def dropped(log: list[Entry]) -> list[Entry]:
    return rechained([dataclasses.replace(e, index=k, round=k) for k, e in enumerate(log[:2] + log[3:], start=1)], 2)


def forked_tail(log: list[Entry]) -> list[Entry]:
    return [*log[:4], log_after(PLAN, log[:4], opened=True, model=b"\xdd" * 32)]


CHEATS: dict[str, tuple[Callable[[list[Entry]], list[Entry]], str]] = {
    "a rewritten survivor list": (rewritten, "entry 3 is another one than was kept, in head, survivors"),
    "another model": (swapped_model, "entry 4 is another one than was kept, in model, head"),
    "a dropped entry": (dropped, "entry 3 is another one than was kept"),
    "a forked tail": (forked_tail, "entry 5 is another one than was kept, in state"),
    "a log cut back": (lambda log: log[:3], "it has 3 entries and this node has kept 5: it was cut back"),
    "an empty log": (lambda _: [], "it has 0 entries and this node has kept 5"),
    "another log from the start": (lambda _: log_of(PLAN, "aaaaao"), "entry 1 is another one"),
}


@pytest.mark.parametrize("name", CHEATS)
def test_another_history_than_the_kept_one_is_refused_by_name(five, name):
    cheat, sentence = CHEATS[name]
    honest = list(five.link.log)
    five.link.log = cheat(list(honest))
    five.refuses(sentence)
    five.restart()  # and still after a restart
    five.watch.joined(five.link.join())
    five.refuses(sentence)
    evidence = json.loads(log_file(five.folder, PLAN.digest()).with_suffix(".fork.json").read_bytes())["about"]
    assert evidence["kept_head"] == honest[-1].head.hex()
    assert [record.action.kind for record in AuditLog.within(five.folder).read()] == ["log-forked"]
    five.link.log = honest  # the kept history is shown again: an honest store was brought back
    five.join()
    five.watch.refuse_if_stopped()


def test_a_coordinator_that_shows_no_log_any_more(five):
    five.link.log = None
    five.watch.joined(five.link.join())
    five.refuses("it shows none any more, and 5 entries were kept")


@pytest.mark.parametrize(
    ("bend", "sentence"),
    [
        (lambda e: dataclasses.replace(e, previous=bytes(32)), "does not go on from the entry before it"),
        (lambda e: dataclasses.replace(e, base=b"\x09" * 32), "another model than the round before it ended with"),
        (lambda e: dataclasses.replace(e, index=7), "is missing"),
        (lambda e: dataclasses.replace(e, round=7), "is of round 7"),
        (lambda e: dataclasses.replace(e, plan=bytes(32)), "another plan"),
        (lambda e: dataclasses.replace(e, state="closed"), "unknown state"),
        (lambda e: dataclasses.replace(e, head=bytes(32)), "its head is not the hash"),
    ],
)
def test_a_new_entry_that_does_not_follow_is_not_kept(five, bend, sentence):
    entry = bend(log_after(PLAN, five.link.log))
    if entry.head != bytes(32):
        entry = dataclasses.replace(entry, head=head_of(entry))
    five.link.log = [*five.link.log, entry]
    five.refuses(sentence)
    assert len(five.kept()) == 5


def test_more_entries_than_the_plan_has_rounds(world):
    world.link.log = log_of(PLAN, "oooooooooo")
    world.watch.joined(world.link.join())
    world.refuses("more entries than the plan has rounds, 9")


def test_a_count_without_entries(five, monkeypatch):
    monkeypatch.setattr(five.link, "_log_state", lambda: pb.LogState(entries=2**40, head=bytes(32)))
    five.refuses("says that it has 1099511627776 entries and shows 5")


def test_a_head_that_is_not_the_last_entrys(five, monkeypatch):
    monkeypatch.setattr(five.link, "_log_state", lambda: pb.LogState(entries=5, head=bytes(32)))
    five.refuses("the head that it names is not that of its last entry")


# ---- what this node did itself ----


def attended(world: World, number: int, signed: tuple[str, ...] | None) -> None:
    world.sessions = frozenset({SESSION})
    common = {"plan": PLAN.digest().hex(), "round": number, "session": SESSION.hex(), "base": "00" * 32, "lanes": 3}
    world.book.enter(Attendance(**common, roster=tuple(map(uri, NAMES)), signed=None))
    if signed is not None:
        world.book.sign(SESSION, signed)


def test_its_own_round_lists_whom_it_signed(five):
    mine = tuple(uri(name) for name in NAMES)
    attended(five, 6, mine)
    five.restart()  # what it signed is on disk
    entry = log_after(PLAN, five.link.log, session=SESSION, survivors=mine[:3])
    honest = five.link.log
    five.link.log = [*honest, entry]
    five.watch.joined(five.link.join())
    five.refuses("entry 6 lists other survivors than this node signed")
    five.link.log = [*honest, log_after(PLAN, honest, session=SESSION, survivors=mine)]
    five.join()
    assert len(five.kept()) == 6


def test_a_round_that_lists_it_in_a_session_that_it_never_answered(five):
    attended(five, 6, None)
    five.link.log = [*five.link.log, log_after(PLAN, five.link.log, survivors=[uri(name) for name in NAMES])]
    five.refuses("entry 6 lists this hospital in a session that it never answered")


RESULT: dict[str, Any] = {
    "round": 6,
    "session": b"\x6a" * 16,
    "sum_digest": bytes(32),
    "model_digest": b"\x06" * 32,
    "opened": True,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"survivors": [uri("h1"), uri("h2")]}, "survivors"),
        ({"sum_digest": b"\x01" * 32}, "sum_digest"),
        ({"model_digest": b"\x01" * 32}, "model_digest"),
        ({"opened": False}, "opened"),
        ({"session": b"\x01" * 16}, "session"),
    ],
)
@pytest.mark.parametrize("first", ["result", "log"])
def test_a_result_and_the_log_that_tell_different_stories(five, change, named, first):
    told = pb.RoundResult(**{**RESULT, "survivors": [uri(name) for name in NAMES[1:]], **change})
    five.link.log = [*five.link.log, log_after(PLAN, five.link.log)]
    if first == "log":
        five.watch.follow(five.link)
    with pytest.raises(LogForked, match=f"says of round 6 something else than its result did, in {named}"):
        five.watch.result(five.link, told)
    five.refuses("something else than its result")


def test_the_result_of_a_round_that_the_log_does_not_have(five):
    with pytest.raises(LogForked, match="told how round 6 ended and its log does not have it"):
        five.watch.result(five.link, pb.RoundResult(**RESULT))


def test_an_honest_result(five):
    five.link.log = [*five.link.log, log_after(PLAN, five.link.log)]
    five.watch.result(five.link, pb.RoundResult(**RESULT, survivors=[uri(name) for name in reversed(NAMES[1:])]))
    assert five.watch.rounds == 6


@pytest.mark.parametrize(
    ("number", "base", "sentence"),
    [(6, b"\x09" * 32, "on another model than its log says"), (8, b"\x04" * 32, "offers round 8 and shows how 5 rounds ended")],
)
def test_a_round_on_offer_that_the_log_does_not_lead_to(five, number, base, sentence):
    with pytest.raises(LogForked, match=sentence):
        five.watch.before_training(five.link, pb.Train(round=number, base_digest=base))


def test_the_first_rounds_start_is_the_plans(tmp_path):
    plan = make_plan(rounds=9).model_copy(update={"start_digest": "ab" * 32})
    world = World(tmp_path, plan)
    world.link.log = [log_after(plan, [])]
    world.watch.joined(world.link.join())
    world.refuses("begins from another model")


def test_control_variates_begin_behind_the_plans_start_and_are_no_fork(tmp_path):
    """What such a plan publishes first is the start and as many zeros: another digest than the plan's."""
    start = np.arange(8, dtype=np.float32)
    fields = make_plan(rounds=9).model_dump(mode="json")
    fields["training"] |= {"optimizer": "sgd"}
    plan = Plan.model_validate(fields | {"aggregation": {"rule": "scaffold"}, "start_digest": model_digest(start).hex()})
    world = World(tmp_path, plan)
    begun = model_digest(scaffold.begun(plan, start))
    world.link.log = []
    world.join()
    world.watch.before_training(world.link, pb.Train(round=1, base_digest=begun))
    said = {"state": "aborted", "session": b"", "base": begun, "model": begun, "sum_digest": b"", "survivors": ()}
    world.link.log = [next_entry(None, plan.digest(), round_number=1, **said)]
    world.watch.follow(world.link)
    assert world.kept() == world.link.log


def test_a_plan_that_binds_the_log_admits_a_session_under_the_kept_head_alone(tmp_path):
    plain = make_plan(rounds=9)
    plan = plain.model_copy(update={"masking": plain.masking.model_copy(update={"bind_log": True})})
    world = World(tmp_path, plan)
    world.link.log = log_of(plan, "oo")
    world.join()
    heads = [entry.head for entry in world.link.log]
    world.watch.before_session(world.link, pb.Open(round=3, log_head=heads[1]))
    world.watch.before_session(world.link, pb.Open(round=3))  # claims no history: whoever reads the order refuses it
    assert world.watch.stopped is None
    for number, head in ((3, heads[0]), (2, heads[1]), (4, heads[1]), (0, heads[1])):
        with pytest.raises(LogForked, match="under another head"):
            world.watch.before_session(world.link, pb.Open(round=number, log_head=head))
        world.join()


# ---- the file ----


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_copy_stops_the_node_or_is_a_shorter_one(tmp_path_factory, data):
    """Any byte changed, any cut: the first bad entry is named, or a last line that was never whole is gone."""
    folder = tmp_path_factory.mktemp("kept")
    world = World(folder)
    world.link.log = log_of(PLAN, "oao")
    world.join()
    path = log_file(folder, PLAN.digest())
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:at])
        assert world.kept() == world.link.log[: content[:at].count(b"\n")]
        return
    other = data.draw(st.integers(0, 255).filter(lambda code: code != content[at]))
    path.write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
    place = content[:at].count(b"\n") + 1
    if at == len(content) - 1:  # the last line break: the line counts as never written
        assert len(world.kept()) == 2
        return
    with pytest.raises(LogDamaged, match=f"entry {place}"):
        KeptLog(folder, PLAN)
    world.restart()
    with pytest.raises(LogDamaged):
        world.watch.follow(world.link)
    with pytest.raises(LogDamaged):
        world.watch.before_session(world.link, pb.Open(round=4))
    assert len(lines) == 3


@pytest.mark.parametrize("call", ["fsync", "sync_folder"])
def test_lines_that_could_not_be_synced_are_taken_back_and_not_doubled(tmp_path, monkeypatch, call):
    def fails(_: object) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "lines"
    durable.append_lines(path, b"one\n")
    with monkeypatch.context() as patch:
        patch.setattr(durable.os if call == "fsync" else durable, call, fails)
        with pytest.raises(OSError, match="Input/output"):
            durable.append_lines(path, b"two\nthree\n")
    assert path.read_bytes() == b"one\n"
    durable.append_lines(path, b"two\nthree\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_what_a_power_cut_left_of_a_line_is_overwritten(five):
    path = log_file(five.folder, PLAN.digest())
    with path.open("ab") as file:
        file.write(b'{"index":6,"round"')
    five.restart()
    five.link.log += [log_after(PLAN, five.link.log)]
    five.join()
    assert five.kept() == five.link.log
    assert path.read_bytes().count(b"\n") == 6


def test_a_disk_that_takes_nothing_stops_the_node_and_changes_nothing(five, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    five.link.log += [log_after(PLAN, five.link.log)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LogDamaged, match="free some space"):
            five.watch.follow(five.link)
    five.restart()
    five.join()
    assert five.kept() == five.link.log


def test_a_copy_put_aside_begins_anew(five):
    target = set_aside(five.folder, PLAN.digest(), now())
    assert target.exists()
    five.restart()
    five.link.log = log_of(PLAN, "a")
    five.join()
    assert five.kept() == five.link.log


# ---- the command line ----


def config_of(folder: Path) -> Path:
    state = StateFolder(folder)
    state.write_plan(PLAN)
    file = folder / "node.toml"
    file.write_text(
        f'coordinator = "127.0.0.1:9"\nidentity = "id"\nstate = "{folder}"\ndata = "data"\n[cap]\nepsilon = 8.0\ndelta = 1e-5\n'
    )
    return file


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_two_hospitals_compare_heads_and_whole_logs(five, tmp_path):
    config = str(config_of(five.folder))
    status, said = run("log", "head", "--config", config)
    assert (status, words_of(five.link.log[-1].head) in said) == (0, True)
    out = tmp_path / "log.json"
    assert run("log", "export", "--config", config, "--out", str(out))[0] == 0
    assert "5 entries in an unbroken chain" in run("log", "verify", str(out))[1]
    assert "The same 5 rounds in both." in run("log", "compare", str(out), "--config", config)[1]
    out.write_bytes(exported(five.link.log[:3]))
    assert "The same 3 rounds in both; one of them has 2 more." in run("log", "compare", str(out), "--config", config)[1]
    out.write_bytes(exported(forked_tail(five.link.log)))
    status, said = run("log", "compare", str(out), "--config", config)
    assert status
    assert "entry 5 of" in said
    assert "two histories" in said


@pytest.mark.parametrize("content", [b"", b"{}", exported([])[:-9]])
def test_a_file_that_is_no_log(five, tmp_path, content):
    out = tmp_path / "log.json"
    out.write_bytes(content)
    status, said = run("log", "compare", str(out), "--config", str(config_of(five.folder)))
    assert status
    assert "is no log of rounds" in said


def test_an_exported_log_that_was_changed_is_named(five, tmp_path):
    out = tmp_path / "log.json"
    log = json.loads(exported(five.link.log))
    log["entries"][2]["survivors"].pop()
    out.write_text(json.dumps(log))
    status, said = run("log", "verify", str(out))
    assert status
    assert "entry 3" in said


def test_putting_aside_is_recorded(five):
    config = str(config_of(five.folder))
    status, said = run("log", "set-aside", "--config", config, "--by", "Dr Keller", "--reason", "the store was restored")
    assert (status, "Put aside by Dr Keller" in said) == (0, True)
    assert [record.action.kind for record in AuditLog.within(five.folder).read()] == ["log-set-aside"]
    assert "nothing to put aside" in run("log", "set-aside", "--config", config, "--by", "Dr Keller", "--reason", "again")[1]


def test_the_world_of_these_tests_is_honest():
    assert log_of(PLAN, "o")[0].base == model_digest(BASE)
