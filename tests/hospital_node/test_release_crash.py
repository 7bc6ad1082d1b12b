"""Kill -9 at every point between asking the ledger and the last byte of a round, then start again and look at what is left.

A point is whatever another process or the disk could notice: a statement of SQLite that changes something, a write, a sync, a
rename, an answer, a piece of the upload. Reading is none: how often a young ledger is read anew depends on the clock, and
points are numbered. What a child says through its pipe is what left the hospital. Of every point: the ledger is never below
what was released, no training is released twice, and the node goes on. The suite kills at every third point;
`SECAGG_KILLS=100 pytest tests/hospital_node/test_release_crash.py -s` kills a hundred times at each.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import node_world
import numpy as np
import pytest
from node_world import BASE, LAYOUT, ME, Folders, Rehearsal, approve, make_desk, make_folders, make_plan

from hospital_node import ledger_store
from hospital_node.ledger import AlreadyReleased, Charge, Ledger
from hospital_node.session import SessionRefused
from hospital_node.state import StateFolder
from proto import federation_pb2 as pb
from proto.layout import model_digest

PLAN = make_plan()
UPDATE = np.linspace(-0.5, 0.5, LAYOUT.length, dtype=np.float32)
KILLS = int(os.environ.get("SECAGG_KILLS", "0"))  # at each point; 0: once at every third, as long as a test may take
RANDOM_KILLS = max(15, KILLS)
TIMEOUT_S = 600 * max(1, KILLS)
WITNESS = "witness.counter"
CALLS = ("fsync", "replace", "write", "open", "link")  # of the system, before and after
READS = ("SELECT", "PRAGMA")


@dataclass
class Life:
    """One process of the node: dies at point `ends_at`, or runs to the end of the round and counts the points."""

    folders: Folders
    session: int
    say: Callable[[str], None]
    ends_at: int | None = None
    points: list[str] = field(default_factory=list)

    def point(self, name: str) -> None:
        self.points.append(name)
        if len(self.points) == self.ends_at:
            die()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        connect = ledger_store._connect

        def connected(database: Path, mode: str) -> sqlite3.Connection:
            connection = connect(database, mode)
            connection.set_trace_callback(self.stated)
            return connection

        patch.setattr(ledger_store, "_connect", connected)
        for name in CALLS:
            patch.setattr(os, name, self.around(name, getattr(os, name)))

    def stated(self, statement: str) -> None:
        if not statement.startswith(READS):
            self.point(statement.split("\n", maxsplit=1)[0][:40])

    def around(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def watched(*arguments: object, **options: object) -> object:
            self.point(f"before {name}")
            done = call(*arguments, **options)
            self.point(f"after {name}")
            return done

        return watched

    def round(self) -> None:
        """Authorize, train, mask, reveal, record: everything that one round does to the disk and the network."""
        desk = make_desk(self.folders, PLAN, lambda: ledger_of(self.folders))
        coordinator = Rehearsal(PLAN, self.folders, bytes([self.session]) * 16)
        authorization = ledger_of(self.folders).authorize(PLAN, 1)
        self.point("authorized")
        desk.hold(UPDATE.copy(), model_digest(BASE), authorization)
        training = os.urandom(4).hex()
        self.say(f"trained {training}")
        share = coordinator.take_advert(self.answered(desk.open(coordinator.order)))
        mask = coordinator.take_shares(self.answered(desk.share(share)))
        _, upload = desk.mask(mask)
        words = b""
        for piece in upload.pieces():
            self.point("before a piece")
            self.say(f"left {training}")
            self.point("after a piece")
            words += bytes(piece)
        confirm = coordinator.take_upload(words)
        reveal = coordinator.take_confirmation(self.answered(desk.confirm(confirm)))
        result = coordinator.take_revealed(self.answered(desk.reveal(reveal)))
        desk.result(result)
        self.point("recorded")

    def answered(self, answer: pb.PhaseAnswer) -> pb.PhaseAnswer:
        self.point("before an answer leaves")
        self.say(f"answered {self.session}")
        self.point("after an answer left")
        return answer


def ledger_of(folders: Folders) -> Ledger:
    """As the node opens it, with its second counter."""
    return Ledger.open(folders.state.ledger, witness=folders.root / WITNESS)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def in_a_child(life: Callable[[Callable[[str], None]], None]) -> tuple[list[str], int]:
    """What it said, and how it ended."""
    hear, say = os.pipe()
    write = os.write
    child = os.fork()
    if child == 0:
        status = 1
        try:
            life(lambda text: write(say, text.encode() + b"\n") and None)
            status = 0
        except (ArithmeticError, AssertionError, LookupError, OSError, RuntimeError, ValueError, sqlite3.Error) as error:
            write(say, f"failed with {error!r}\n".encode())
        finally:
            os._exit(status)
    os.close(say)
    with os.fdopen(hear) as pipe:
        said = pipe.read().splitlines()
    return said, os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folders = make_folders(tmp_path_factory.mktemp("crash"))
    folders.state.create()
    state = StateFolder(folders.state.path, folders.root / WITNESS)
    approve(state.open_ledger(ME, datetime.fromtimestamp(node_world.NOW_S, UTC)), PLAN)
    return folders


def fresh(template: Folders, folder: Path) -> Folders:
    """The same hospital with a ledger on which only an approval was written."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template.state.path, folder / "state")
    shutil.copy(template.root / WITNESS, folder / WITNESS)
    return Folders(folder, template.identities)


def lived(folders: Folders, session: int, ends_at: int | None = None) -> tuple[list[str], int]:
    def life(say: Callable[[str], None]) -> None:
        one = Life(folders, session, say, ends_at)
        with pytest.MonkeyPatch.context() as patch:
            one.watch(patch)
            one.round()
        if ends_at is None:
            say("points " + "|".join(one.points))

    return in_a_child(life)


def what_holds(folders: Folders, said: list[str]) -> int:
    """Check what must hold after any history, and return how many releases were charged."""
    events = ledger_of(folders).events()  # verifies chain and counter: a crash is no false alarm
    charged = sum(isinstance(event.entry, Charge) for event in events)
    trained = [line.split()[1] for line in said if line.startswith("trained")]
    left = {line.split()[1] for line in said if line.startswith("left")}
    assert len(left) <= charged <= 1, "the ledger is below what was released, or a round was charged twice"
    assert left <= set(trained)
    answered = [line.split()[1] for line in said if line.startswith("answered")]
    assert {bytes([int(name)]) * 16 for name in answered} <= folders.state.seen_sessions()
    return charged


def goes_on(folders: Folders, said: list[str], charged: int) -> None:
    """Start again: a round that was not charged is trained anew and released; one that was is over."""
    if charged:
        with pytest.raises(AlreadyReleased):
            ledger_of(folders).authorize(PLAN, 1)
        return
    if any(line.startswith("answered") for line in said):  # the session that was answered is over, too
        desk = make_desk(folders, PLAN, lambda: ledger_of(folders))
        desk.hold(UPDATE.copy(), model_digest(BASE), ledger_of(folders).authorize(PLAN, 1))
        with pytest.raises(SessionRefused):
            desk.open(Rehearsal(PLAN, folders, b"\x01" * 16).order)
    again, status = lived(folders, session=2)
    assert status == 0
    assert what_holds(folders, said + again) == 1
    assert len({line for line in again if line.startswith("left")}) == 1


@pytest.mark.timeout(TIMEOUT_S)
def test_killed_at_every_point_of_a_release(template: Folders, tmp_path: Path) -> None:
    whole, status = lived(fresh(template, tmp_path / "whole"), session=1)
    assert status == 0
    points = whole[-1].removeprefix("points ").split("|")
    assert {"COMMIT", "before replace", "after fsync", "authorized", "after a piece", "recorded"} <= set(points)
    outcomes: Tally[tuple[int, bool]] = Tally()
    for at in range(1, len(points) + 1, 1 if KILLS else 3):
        for _ in range(KILLS or 1):
            folders = fresh(template, tmp_path / "one")
            said, status = lived(folders, session=1, ends_at=at)
            assert os.WIFSIGNALED(status), (points[at - 1], said)
            charged = what_holds(folders, said)
            outcomes[charged, any(line.startswith("left") for line in said)] += 1
            goes_on(folders, said, charged)
    print(f"{sum(outcomes.values())} kills at {len(points)} points; (charged, left the hospital): {dict(outcomes)}")
    assert set(outcomes) == {(0, False), (1, False), (1, True)}, "each of the three ends came up"
    assert min(outcomes.values()) >= 3


@pytest.mark.timeout(TIMEOUT_S)
def test_killed_at_any_moment_of_a_release(template: Folders, tmp_path: Path) -> None:
    whole, _ = lived(fresh(template, tmp_path / "whole"), session=1)
    count = len(whole[-1].split("|"))
    chance = random.Random(3)
    for _ in range(RANDOM_KILLS):
        folders, said = fresh(template, tmp_path / "one"), []
        for session in range(1, 6):  # killed again and again, until one life reaches the end or the round is charged
            heard, _status = lived(folders, session, ends_at=chance.randint(1, count))
            said += heard
            if what_holds(folders, said):
                break
        assert len({line for line in said if line.startswith("left")}) <= 1
