"""A whole federation in one process, through the code that hospitals and coordinator run.

Real: plan, certificates, pinned keys, ledgers, state folders, the node's conversation, quantizer and masks, the coordinator's
engine, service and store. Left out: gRPC and TLS (study/bench/memory.py). Every party has a thread; trainings and
measurements happen one at a time, so a federation takes the memory and the processor time of one trainer, and deadlines of
the plan must leave time for all of them.

Whatever fails in any thread ends the federation with one StudyError that names the party. Every thread has ended on return.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from certs.identity import load_identity
from certs.party import CertificateError
from coordinator.config import load_config
from coordinator.models import ModelError
from coordinator.store import StoreError, open_store
from hospital_node.cap import Cap
from hospital_node.config import ConfigError, NodeConfig
from hospital_node.evaluator import evaluate_with
from hospital_node.ledger import LedgerError
from hospital_node.link import Link, LinkRefused
from hospital_node.releases import Release
from hospital_node.runner import run_with
from hospital_node.state import StateError, StateFolder
from hospital_node.traffic import ByteMeter
from hospital_node.work import Count, Interrupted, Score, Scored, Trained, WorkFailed, Workshop
from proto.layout import Vector
from proto.modelfile import Model
from proto.plan import Plan, PlanError
from study.bench import world
from study.bench.cells import RoundRow
from study.bench.coordinating import Hooks, coordinate
from study.bench.memory import Exchange, MemoryLink
from study.bench.rows import RoundReader
from study.bench.task import StudyError
from study.cast import Role
from study.sites import COORDINATOR, Sites

STOP_LOOK_S = 0.1  # how soon a stop is noticed
LOG_FILE = "log.txt"  # warnings of all parties
SENTENCES = (  # exceptions whose text says what and where
    CertificateError,
    ConfigError,
    LedgerError,
    LinkRefused,
    ModelError,
    PlanError,
    StateError,
    StoreError,
    StudyError,
    WorkFailed,
)


@dataclass(frozen=True, slots=True)
class Seats:
    """What each party works with."""

    hospitals: Mapping[str, Workshop]  # by URI: exactly the plan's
    evaluator: Workshop  # of the plan's one evaluator


@dataclass(frozen=True, slots=True)
class Federated:
    """What a federation gave."""

    rounds: list[RoundRow]  # the start (round 0) and every round that ended
    model: Vector = field(repr=False)  # the last one
    charged: tuple[tuple[Release, ...], ...]  # by hospital: what its ledger says
    stopped: Mapping[str, str]  # name -> reason of each hospital that took no part any more


def run_federation(
    folder: Path,
    plan: Plan,
    start: Model,
    seats: Seats,
    *,
    cap: Cap | None,
    data_is_public: bool,
    on_round: Callable[[RoundRow], None],
    stop: threading.Event,
) -> Federated:
    """Play `plan` from `start` in `folder`, which is fresh; everything that it writes lies there.

    `cap` is what each hospital's ledger grants; None grants whatever has a finite epsilon. `on_round` hears of the start and of
    each round once its figures are complete. Raises StudyError, and Interrupted soon after `stop` was set.
    """
    admitted = {hospital.uri for hospital in plan.hospitals}
    if admitted != set(seats.hospitals):
        strange = ", ".join(sorted(admitted ^ set(seats.hospitals)))
        raise StudyError(f"seats and plan of study '{plan.study}' name different hospitals: {strange}")
    made = world.build(folder, plan, start, cap, data_is_public=data_is_public)
    with world.logs_to(folder / LOG_FILE):
        return _Play(made, plan, seats, on_round, stop).run()


class _Play:
    """One federation under way."""

    def __init__(
        self, made: Sites, plan: Plan, seats: Seats, on_round: Callable[[RoundRow], None], stop: threading.Event
    ) -> None:
        self._world = made
        self._plan = plan
        self._seats = seats
        self._on_round = on_round
        self._stop = stop
        self._parties_end = threading.Event()
        self._coordinator_ends = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._opened: Future[Exchange] = Future()
        self._complete: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # rounds; None: a thread has ended

    def run(self) -> Federated:
        """Play to the end."""
        with ThreadPoolExecutor(len(self._world.roles) + 1, "party") as pool:
            try:
                coordinator = self._begin(pool, COORDINATOR, self._coordinate)
                exchange = self._exchange(coordinator)
                parties = {
                    role.name: self._begin(pool, role.name, partial(self._take_part, role, exchange))
                    for role in self._world.roles
                }
                return self._follow(coordinator, parties)
            finally:
                self._parties_end.set()
                self._coordinator_ends.set()

    def _begin(self, pool: ThreadPoolExecutor, name: str, work: Callable[[], Any]) -> Future[Any]:
        begun = pool.submit(_under_name, name, work)
        begun.add_done_callback(lambda _: self._complete.put(None))
        return begun

    # ---- the coordinator ----

    def _coordinate(self) -> Vector:
        hooks = Hooks(self._opened.set_result, self._complete.put, self._coordinator_ends)
        return asyncio.run(coordinate(load_config(self._world.coordinator_config), hooks))

    def _exchange(self, coordinator: Future[Any]) -> Exchange:
        wait([self._opened, coordinator], return_when=FIRST_COMPLETED)
        _raise_failed({COORDINATOR: coordinator})
        return self._opened.result()

    # ---- the other parties ----

    def _take_part(self, role: Role, exchange: Exchange) -> None:
        """A hospital's or the evaluator's whole life."""
        uri, config = self._world.uri(role), world.node_config(self._world, role, self._plan)
        measures = role == self._world.cast.evaluator
        workshop = self._in_turn(self._seats.evaluator if measures else self._seats.hospitals[uri])
        live = evaluate_with if measures else run_with
        dial = _Dial(exchange, self._world.folder / LOG_FILE)
        live(config, workshop, dial=dial, clock=time.time, rand=os.urandom, stop=self._parties_end)

    def _in_turn(self, workshop: Workshop) -> Workshop:
        """The same workshop, of which one in the whole federation works at a time."""

        def prepare(plan: Plan, count: Count) -> Sequence[Any]:
            with self._turn():
                return workshop.prepare(plan, count)

        def train(*given: Any, **named: Any) -> Trained:
            with self._turn():
                return workshop.train(*given, **named)

        def scorer(plan: Plan, model: Vector, threads: int) -> Score:
            with self._turn():
                score = workshop.scorer(plan, model, threads)
            return partial(self._scored, score)

        return Workshop(workshop.layout, prepare, train, scorer)

    def _scored(self, score: Score, case: Any) -> Scored:
        with self._turn():
            return score(case)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._one_at_a_time:
            if self._parties_end.is_set():
                raise Interrupted
            yield

    # ---- the caller's thread ----

    def _follow(self, coordinator: Future[Vector], parties: Mapping[str, Future[None]]) -> Federated:
        """Tell the caller of rounds until every party has ended; then end the coordinator and read the rest."""
        ledgers = {self._world.uri(role): StateFolder(self._world.state(role)).ledger for role in self._world.cast.hospitals}
        with open_store(self._world.store) as store:
            reader = RoundReader(store, self._plan, ledgers)
            while not all(party.done() for party in parties.values()):
                self._tell(reader, self._next_complete())
                self._check(coordinator, parties)
            self._coordinator_ends.set()
            wait([coordinator])
            self._check(coordinator, parties)
            self._tell(reader, reader.ended())
            return Federated(reader.rows, coordinator.result(), reader.charged(), reader.stopped())

    def _next_complete(self) -> int | None:
        """A round whose figures are complete; None after a while, or where a thread has ended."""
        try:
            return self._complete.get(timeout=STOP_LOOK_S)
        except queue.Empty:
            return None

    def _tell(self, reader: RoundReader, number: int | None) -> None:
        for row in reader.read_to(number) if number is not None else ():
            self._on_round(row)

    def _check(self, coordinator: Future[Vector], parties: Mapping[str, Future[None]]) -> None:
        """Raise what ended a thread. The coordinator comes first: when it fails, every other party loses its connection."""
        if self._stop.is_set():
            raise Interrupted
        if coordinator.done() or any(party.done() and party.exception() for party in parties.values()):
            self._coordinator_ends.set()
            wait([coordinator])
            _raise_failed({COORDINATOR: coordinator, **parties})


@dataclass(slots=True, eq=False)
class _Dial:
    """The one connection of a party. In memory none is lost by chance: who would dial again is told why it cannot."""

    exchange: Exchange
    log: Path
    link: MemoryLink | None = None

    def __call__(self, config: NodeConfig, meter: ByteMeter) -> Link:
        if self.link is not None:
            raise StudyError(f"it lost the coordinator ({self.link.lost}){_last_error(self.log)}")
        self.link = MemoryLink(self.exchange, load_identity(config.identity).certificate_pem, meter)
        return self.link


def _under_name(name: str, work: Callable[[], Any]) -> Any:
    """In a thread: log lines say whose they are."""
    with structlog.contextvars.bound_contextvars(party=name):
        return work()


def _raise_failed(threads: Mapping[str, Future[Any]]) -> None:
    """StudyError for the first of `threads` that ended with an exception."""
    for name, thread in threads.items():
        error = thread.exception() if thread.done() else None
        if error is not None:
            kind = "" if isinstance(error, SENTENCES) else f"{type(error).__name__}: "
            raise StudyError(f"{name}: {kind}{error}") from error


def _last_error(log: Path) -> str:
    """The last error in the log, for a sentence."""
    errors = [line for line in log.read_text(encoding="utf-8").splitlines() if "[error" in line]
    return f"; its log says: {errors[-1].strip()}" if errors else ""
