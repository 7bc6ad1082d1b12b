"""progress.json and leaves.json: old, new or none, never half; and bytes add up by item."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_world import START, at
from pydantic import ValidationError

from hospital_node import display, durable
from hospital_node.display import REWRITE_S, Display
from hospital_node.progress import (
    ITEMS,
    Item,
    Leaves,
    LocalProgress,
    NodePhase,
    read_leaves,
    read_progress,
    write_leaves,
    write_progress,
)
from hospital_node.state import StateFolder
from hospital_node.traffic import ByteMeter
from proto import federation_pb2 as pb
from proto.wire import framed_bytes

EMPTY = Leaves(study="lidc", updated_at=START)
READERS = pytest.mark.parametrize("read", [read_progress, read_leaves])


def progress(step: int = 3) -> LocalProgress:
    return LocalProgress(
        study="lidc",
        round=2,
        rounds=30,
        phase="training",
        step=step,
        steps=1000,
        since=START,
        sentence=f"training, step {step} of 1000",
        updated_at=at(1),
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_progress(tmp_path / "progress.json", progress())
    assert read_progress(tmp_path / "progress.json") == progress()
    leaves = EMPTY.sent(1, {"mask": 10}, at(1))
    write_leaves(tmp_path / "leaves.json", leaves)
    assert read_leaves(tmp_path / "leaves.json") == leaves
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leaves.json", "progress.json"]


@READERS
def test_an_absent_file_is_none(tmp_path: Path, read: Callable[[Path], object]) -> None:
    assert read(tmp_path / "absent.json") is None


@READERS
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"study": "lidc", "of another": "version"}'])
def test_another_versions_file_is_none(tmp_path: Path, read: Callable[[Path], object], text: str) -> None:
    (tmp_path / "file.json").write_text(text)
    assert read(tmp_path / "file.json") is None


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    write_progress(path, progress(0))
    stop = threading.Event()

    def write() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            write_progress(path, progress(step))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [read_progress(path) for _ in range(2000)]
    finally:
        stop.set()
        writer.join()
    steps = [one.step for one in seen if one is not None]
    assert len(steps) == 2000
    assert steps == sorted(steps)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path, old = tmp_path / "leaves.json", EMPTY.sent(1, {"mask": 10}, at(1))
    write_leaves(path, old)
    monkeypatch.setattr(durable.os, call, fail)
    with pytest.raises(OSError, match="no space"):
        write_leaves(path, old.sent(2, {"mask": 10}, at(2)))
    assert read_leaves(path) == old


def fail(*_: object) -> None:
    raise OSError("no space")


@pytest.mark.parametrize("call", ["write", "replace"])
def test_progress_that_cannot_be_written_is_said_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "progress.json"
    write_progress(path, progress(1))
    monkeypatch.setattr(durable.os, call, fail)
    with pytest.raises(OSError, match="no space"):
        write_progress(path, progress(2))
    assert read_progress(path) == progress(1)


def test_what_adds_up_is_synced_and_a_view_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync
    names = Path("/proc/self/fd")
    monkeypatch.setattr(durable.os, "fsync", lambda fd: (synced.append((names / str(fd)).resolve().name), real(fd))[1])
    write_progress(tmp_path / "progress.json", progress())
    assert not synced
    write_leaves(tmp_path / "leaves.json", EMPTY)
    assert synced == ["leaves.json.partial", tmp_path.name]  # the content, then its name


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_a_system_that_writes_a_little_at_a_time_gets_everything_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    real, data = os.write, os.urandom(size)
    monkeypatch.setattr(durable.os, "write", lambda fd, some: real(fd, some[:4097]))
    durable.write_whole(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "fields",
    [{"round": -1}, {"phase": "thinking"}, {"loss": 0.3}, {"since": START.replace(tzinfo=None)}],
    ids=str,
)
def test_progress_holds_only_what_it_may(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LocalProgress(**{**progress().model_dump(), **fields})


def test_a_new_round_starts_its_own_column(tmp_path: Path) -> None:
    leaves = EMPTY.sent(1, {"mask": 100, "share": 5}, at(1)).sent(1, {"mask": 20}, at(2)).sent(2, {"mask": 7}, at(3))
    assert (leaves.round, leaves.updated_at) == (2, at(3))
    assert leaves.bytes_of("mask", "share") == 7
    assert {entry.item: entry.sent_bytes for entry in leaves.totals} == {"share": 5, "mask": 127}


@given(st.lists(st.tuples(st.integers(1, 4), st.dictionaries(st.sampled_from(ITEMS), st.integers(0, 10**12))), max_size=12))
def test_totals_are_the_sum_of_everything_sent(sent: list[tuple[int, dict[Item, int]]]) -> None:
    leaves = EMPTY
    for round_number, amounts in sorted(sent, key=lambda one: one[0]):
        leaves = leaves.sent(round_number, amounts, at(1))
    for item in ITEMS:
        total = sum(amounts.get(item, 0) for _, amounts in sent)
        last = sum(amounts.get(item, 0) for round_number, amounts in sent if round_number == leaves.round)
        assert sum(entry.sent_bytes for entry in leaves.totals if entry.item == item) == total
        assert leaves.bytes_of(item) == last
    assert Leaves.model_validate(json.loads(leaves.model_dump_json())) == leaves


def test_a_secret_is_never_replaced(tmp_path: Path) -> None:
    durable.write_secret(tmp_path / "key", b"one")
    with pytest.raises(FileExistsError):
        durable.write_secret(tmp_path / "key", b"two")
    assert (tmp_path / "key").read_bytes() == b"one"


def test_what_is_shown_already_is_not_written_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[LocalProgress] = []
    monkeypatch.setattr(display, "write_progress", lambda _, shown: written.append(shown))
    seconds = [1e9]
    screen = Display(StateFolder(tmp_path), "lidc", lambda: seconds[0])
    for sentence in ("one", "one", "two", "two"):
        screen.show("training", sentence, round_number=3)
    assert [one.sentence for one in written] == ["one", "two"]
    screen.steps("training", 4, 1000)
    assert len(written) == 2  # too soon
    seconds[0] += REWRITE_S
    screen.steps("training", 5, 1000)
    screen.show("training", "two", round_number=3)  # a new beginning: its steps are not those
    seconds[0] += REWRITE_S
    screen.show("training", "two", round_number=3)  # so that people see that it is alive
    assert [(one.sentence, one.step) for one in written[2:]] == [("two", 5), ("two", 0), ("two", 0)]
    assert written[-1].updated_at > written[-2].updated_at
    assert written[-1].since == written[1].since


@dataclass
class Counting:
    """A display that counts into leaves.json."""

    folder: StateFolder
    seconds: float = 1e9
    meter: ByteMeter = field(default_factory=ByteMeter)

    def __post_init__(self) -> None:
        self.display = Display(self.folder, "lidc", lambda: self.seconds)

    def count(self, round_number: int, size: int, *, at_once: bool = True) -> int:
        """Send so many bytes, and count them."""
        self.meter.count_sent("mask", pb.Chunk(data=bytes(size)))
        return self.display.count(self.meter, round_number, at_once=at_once)

    def counted(self) -> tuple[int, int]:
        """The file: bytes in its last round, and since ever."""
        leaves = read_leaves(self.folder.leaves)
        assert leaves is not None
        return leaves.bytes_of("mask"), sum(entry.sent_bytes for entry in leaves.totals)


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(StateFolder(tmp_path))


def test_bytes_are_counted_at_once_or_with_those_that_follow(counting: Counting) -> None:
    first = counting.count(1, 1000)
    assert counting.counted() == (first, first)
    later = counting.count(1, 500, at_once=False)
    assert counting.counted() == (first, first)  # the file was written just now
    second = counting.count(2, 2000)
    assert counting.counted() == (second, first + later + second)
    counting.seconds += REWRITE_S
    third = counting.count(2, 10, at_once=False)
    assert counting.counted() == (second + third, first + later + second + third)


def test_a_count_that_was_written_goes_on_after_a_restart(counting: Counting) -> None:
    first = counting.count(1, 1000)
    again = Counting(counting.folder)
    assert again.count(2, 0) + first == again.counted()[1]


@pytest.mark.parametrize("call", ["read_leaves", "write_leaves"])
def test_a_disk_that_fails_loses_no_count(counting: Counting, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    sizes = framed_bytes(pb.Chunk(data=bytes(1000))), framed_bytes(pb.Chunk(data=bytes(10)))
    with monkeypatch.context() as patch:
        patch.setattr(display, call, fail)
        counting.count(1, 1000)
    counting.count(2, 10)
    assert counting.counted()[1] == sum(sizes)


def test_the_file_says_what_the_display_shows(tmp_path: Path) -> None:
    screen = Display(StateFolder(tmp_path), "lidc", lambda: 1e9)
    shown: tuple[tuple[NodePhase, str], ...] = (("training", "one"), ("ready", "one"), ("ready", "one"), ("masking", "two"))
    for phase, sentence in shown:
        screen.show(phase, sentence)
        assert read_progress(tmp_path / "progress.json") == screen.shown
