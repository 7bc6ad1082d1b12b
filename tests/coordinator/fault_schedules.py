"""Schedules of faults from a seed, their run over the pure engine, and how a failing one is made short.

A schedule is a list of small JSON values, so that a failing one can be kept as it is. Everything that happens in it is one of
OPERATIONS; the world (coordinator_world.py) asserts on every effect. Nothing depends on time, hash order or the machine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coordinator_world import World, make_plan, uri

from coordinator import events as ev
from coordinator.state import waiting_for
from proto.buffering import Buffer

Operation = tuple[str, int, int]
Schedule = tuple[Operation, ...]
NODES, ROUNDS, LONGEST = 5, 4, 45
BUFFER = Buffer(updates=3, max_staleness=3)
PACES = (1, 1, 1, 2, 4, 5, 6)
SECONDS = (0.1, 1, 5, 25, 40, 120)  # some above the deadlines of the plan, some below
CODES = ("not-approved", "budget-exhausted", "paused")
OPERATIONS: dict[str, int] = {  # with their weights; the first three are no faults
    "all": 12,
    "act": 10,
    "wait": 6,
    "kill coordinator": 3,
    "kill coordinator in a step": 5,
    "kill node": 1,
    "restart node": 2,
    "leave": 1,
    "lose request": 3,
    "lose response": 3,
    "delay": 3,
    "deliver": 3,
    "duplicate": 2,
    "cut off": 2,
    "heal": 3,
    "decline": 1,
    "fail": 1,
    "refuse": 1,
    "stale": 1,
    "bad opening": 1,
}
FAULTLESS = ("all", "act", "wait", "deliver", "heal")
HARMLESS = {  # cost no round and no member: nobody's time runs out
    "all": 12,
    "act": 10,
    "kill coordinator": 4,
    "kill coordinator in a step": 6,
    "lose request": 3,
    "lose response": 3,
    "delay": 3,
    "deliver": 3,
    "duplicate": 2,
}


@dataclass(frozen=True)
class Broken:
    """A schedule after which a rule did not hold, and which."""

    seed: int
    rule: str
    schedule: Schedule


def draw(seed: int, weights: dict[str, int] = OPERATIONS, nodes: int = NODES) -> Schedule:
    """The schedule of a seed."""
    chance = random.Random(seed)
    names = chance.choices(tuple(weights), tuple(weights.values()), k=chance.randint(1, LONGEST))
    return tuple((name, chance.randrange(nodes), chance.randrange(60)) for name in names)


class Player:
    """Plays one schedule; `paces` are turns that the hospitals' trainings take, of a buffered plan."""

    def __init__(self, buffer: Buffer | None = None, paces: tuple[int, ...] = ()) -> None:
        self.world = World(make_plan(len(paces) or NODES, ROUNDS, buffer=buffer))
        self.nodes = len(self.world.hospitals)
        for place, pace in enumerate(paces):
            self.hospital(place).pace = pace
        self.late: list[ev.Event] = []
        self.last: dict[int, ev.Event] = {}

    def play(self, schedule: Schedule) -> None:
        """Everything in it, then the end: whoever can comes back, and the run must end. AssertionError where a rule breaks."""
        for name, node, number in schedule:
            self.perform(name, node, number)
        for place in range(self.nodes):
            self.perform("heal", place, 0)
            if not self.hospital(place).alive:
                self.perform("restart node", place, 0)
        self.world.fail_opening = False
        assert self.world.settle(600, 2.0), f"the run stands still: {waiting_for(self.world.state, self.world.now_s)}"
        self.check_the_end()

    def check_the_end(self) -> None:
        """What must hold of the whole run."""
        world = self.world
        assert all(row.state in {"opened", "aborted"} for row in world.saved.values()) or "remain" in world.state.finished
        published = [session for session, state in world.sessions.items() if state == "opened"]
        summed = Counter((party, world.session_round[one]) for one in published for party in world.opened[one])
        assert all(count == 1 for count in summed.values()), "an update is counted twice"
        for session in published:
            assert set(world.opened[session]) == world.uploads[session], "an accepted update is in no sum"
        charged = {(h.uri, number) for h in world.hospitals.values() for number in h.released}
        assert set(summed) <= charged, "a ledger is under the true spend"
        assert world.outline is None, "a session that ended left its record"

    def hospital(self, place: int):
        return self.world.hospitals[uri(place)]

    def act(self, place: int, fault: str = "") -> ev.Event | None:
        answer = self.world.act(place, fault)
        if answer is not None:
            self.last[place] = answer
        return answer

    def leave(self, place: int) -> None:
        """Its goodbye arrives, at whatever moment, and it is gone."""
        self.world.feed(ev.Reported(uri(place), 0, ev.Report.LEFT))
        self.hospital(place).alive = False

    def perform(self, name: str, place: int, number: int) -> None:
        """One operation; `place` is a hospital's, `number` whatever the operation needs."""
        world = self.world
        session = world.state.session.id if world.state.session else bytes(16)
        match name:
            case "all":
                for _ in range(1 + number % 3):
                    for one in range(self.nodes):
                        self.act((one + place) % self.nodes)
            case "act":
                self.act(place)
            case "wait":
                world.tick(SECONDS[number % len(SECONDS)])
            case "kill coordinator":
                world.crash()
            case "kill coordinator in a step":
                world.doom = number // 2, ("before", "after")[number % 2]
            case "kill node":
                self.hospital(place).alive = False
            case "leave":
                self.leave(place)
            case "restart node":
                self.hospital(place).restart()
            case "lose request":
                self.act(place, "no request")
            case "lose response":
                self.act(place, "no response")
            case "delay":
                answer = self.act(place, "late")
                self.late += [answer] if answer is not None else []
            case "deliver":
                if self.late:
                    world.feed(self.late.pop(number % len(self.late)))
            case "duplicate":
                if place in self.last:
                    world.feed(self.last[place])
            case "cut off" | "heal":
                self.hospital(place).reachable = name == "heal"
            case "decline":
                code = CODES[number % len(CODES)]
                world.feed(ev.Reported(uri(place), world.state.round, ev.Report.DECLINED, code=code))
            case "fail":
                world.feed(ev.Reported(uri(place), world.state.round, ev.Report.FAILED, code="training-failed"))
            case "refuse":
                world.feed(ev.Refused(uri(place), session, "bad-box", uri(number % self.nodes)))
            case "stale":
                for old in [old for old in world.sessions if old != session]:
                    world.feed(ev.UploadAccepted(uri(place), old))
                    world.feed(ev.Revealed(uri(place), old))
            case "bad opening":
                world.fail_opening = True
            case _:
                raise ValueError(name)


def play(schedule: Schedule) -> World:
    """Run a schedule of any faults. AssertionError where a rule breaks."""
    player = Player()
    player.play(schedule)
    return player.world


def play_harmless(schedule: Schedule) -> World:
    """Run a schedule of faults that may cost nothing: every round opens with everybody, in one session each."""
    world = play(schedule)
    assert [row.state for row in world.saved.values()] == ["opened"] * ROUNDS, "a round was lost"
    assert all(len(row.survivors) == NODES for row in world.saved.values()), "a member was lost"
    return world


def play_buffered(schedule: Schedule) -> World:
    """Run a schedule of any faults under a buffered plan, with hospitals of different speeds."""
    player = Player(BUFFER, PACES)
    player.play(schedule)
    for row in player.world.saved.values():
        assert row.state != "opened" or len(row.cohort) >= BUFFER.updates, "a cohort is below the plan's number of updates"
    return player.world


def broken_by(schedule: Schedule, run: Callable[[Schedule], World] = play) -> str:
    """The rule that a schedule breaks; empty where all hold."""
    try:
        run(schedule)
    except (AssertionError, KeyError, IndexError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def shortened(schedule: Schedule, run: Callable[[Schedule], World] = play) -> Schedule:
    """A shorter schedule that still breaks a rule: stretches are left out first, then single operations, until none can be."""
    size = max(1, len(schedule) // 2)
    while True:
        for start in range(0, len(schedule), size):
            without = schedule[:start] + schedule[start + size :]
            if broken_by(without, run):
                schedule = without
                break
        else:
            if size == 1:
                return schedule
            size = max(1, size // 2)


def search(
    seeds: range, run: Callable[[Schedule], World] = play, weights: dict[str, int] = OPERATIONS, nodes: int = NODES
) -> Iterator[tuple[Schedule, Broken | None]]:
    """Every seed's schedule, with what it broke."""
    for seed in seeds:
        schedule = draw(seed, weights, nodes)
        rule = broken_by(schedule, run)
        yield schedule, Broken(seed, rule, shortened(schedule, run)) if rule else None
