"""The studies and the training of one plan at this node, in the background, and what became of them.

It sends nothing and holds no ledger: it is told to begin, says when it is done, and forgets an update that is not fetched.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hospital_node.display import Clock, Display
from hospital_node.ledger import Authorization
from hospital_node.logs import logger
from hospital_node.noise import NormalStream, Rand
from hospital_node.progress import NodePhase
from hospital_node.validation import noised_sums, parts
from hospital_node.work import Background, Interrupted, Scored, Trained, WorkFailed, Workshop, drifting
from proto.layout import Vector, model_digest
from proto.plan import Plan
from secagg.params import Integers

PREPARING = "preparing the studies of this hospital"
WAITING = "studies prepared; waiting for the coordinator"
TRAINING = "training on this hospital's patients"
MEASURING = "measuring the model on this hospital's validation patients"


@dataclass(frozen=True, slots=True)
class Ready:
    """Training is done."""

    authorization: Authorization
    base_digest: bytes
    update: Vector | Integers = field(repr=False)
    sums: tuple[float, ...] = field(repr=False)  # noised, over validation patients; () in a round without evaluation
    drift: Vector | None = field(repr=False, default=None)  # of SCAFFOLD, with which it was trained


@dataclass(frozen=True, slots=True)
class Failed:
    """Preparation or training gave nothing. The sentence stays in the hospital."""

    round: int
    code: str
    sentence: str


@dataclass(slots=True, eq=False)
class _Job:
    authorization: Authorization
    base_digest: bytes  # of all that the coordinator published for the round
    begun_s: float
    drift: Vector | None = field(repr=False, default=None)
    given_up: threading.Event = field(default_factory=threading.Event)
    outcome: Future[_Done] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Done:
    trained: Trained = field(repr=False)
    wanted_digest: bytes  # of the model alone
    sums: tuple[float, ...] = field(repr=False)


class LocalTraining:
    """Prepares once, trains one round at a time. `wake` is called from the background thread when a round is done."""

    def __init__(
        self,
        plan: Plan,
        uri: str,
        workshop: Workshop,
        background: Background,
        display: Display,
        clock: Clock,
        wake: Callable[[], None],
        threads: int,
        rand: Rand,
    ) -> None:
        self._plan = plan
        self._uri = uri
        self._workshop = workshop
        self._background = background
        self._display = display
        self._clock = clock
        self._wake = wake
        self._threads = threads
        self._rand = rand
        self._patients: Future[Sequence[Any]] | None = None
        self._without = 0  # how many had withdrawn when these were prepared
        self._job: _Job | None = None
        self._failed: tuple[bytes, Failed] | None = None  # the last training that came to nothing, and the model it began from

    @property
    def busy(self) -> bool:
        """Whether a round is being trained."""
        return self._job is not None

    def is_at(self, round_number: int, base_digest: bytes) -> bool:
        """Whether exactly this round is being trained."""
        job = self._job
        return job is not None and (job.authorization.round, job.base_digest) == (round_number, base_digest)

    @property
    def under_way(self) -> tuple[int, bytes] | None:
        """Round and model of the training under way."""
        return None if self._job is None else (self._job.authorization.round, self._job.base_digest)

    def failed_at(self, round_number: int, base_digest: bytes) -> Failed | None:
        """How the training of exactly this round ended, where it failed: the patients may be why, so it is not tried again."""
        if self._failed is None or (self._failed[1].round, self._failed[0]) != (round_number, base_digest):
            return None
        return self._failed[1]

    def prepare(self, withdrawn: int = 0) -> None:
        """Start preparing the studies, once; anew where more or fewer patients have withdrawn than when it was done."""
        if self._patients is None or withdrawn != self._without:
            self._without = withdrawn
            self._patients = self._background.start(self._prepare)

    def begin(self, authorization: Authorization, base_digest: bytes, base: Vector, drift: Vector | None = None) -> None:
        """Start training; a round under way is given up. `drift`: of SCAFFOLD, part of what `base_digest` names."""
        self.give_up()
        self.prepare(authorization.withdrawn)
        job = _Job(authorization, base_digest, self._clock(), drift)
        self._job = job
        self._display.show("training", TRAINING, round_number=authorization.round)
        job.outcome = self._background.start(lambda: self._train(job, base))
        job.outcome.add_done_callback(lambda _: self._wake())

    def give_up(self) -> None:
        """Drop the round under way; its model and optimizer go with it."""
        if self._job is not None:
            self._job.given_up.set()
            self._job = None

    def collect(self) -> Ready | Failed | None:
        """What became of the round, once; None while it runs or where there is none."""
        job = self._job
        if job is None or not job.outcome.done():
            return None
        self._job = None
        number = job.authorization.round
        try:
            done = job.outcome.result()
        except Interrupted:
            return None
        except WorkFailed as error:
            failed = Failed(number, error.code, str(error))
            if not self._forgot_failed_preparation():
                self._failed = job.base_digest, failed
            return failed
        if done.trained.base_digest != done.wanted_digest:
            return Failed(number, "training-failed", "training started from another model than the coordinator named")
        return Ready(job.authorization, job.base_digest, done.trained.update, done.sums, job.drift)

    def _forgot_failed_preparation(self) -> bool:
        if self._patients is None or self._patients.exception() is None:
            return False
        self._patients = None  # no gradient was taken, and people may have mended the studies when the round is asked for again
        return True

    def _prepare(self) -> Sequence[Any]:
        """In the background thread."""
        self._display.show("preparing", PREPARING, only_after=("connecting", "waiting", "training"))
        started_s = self._clock()
        try:
            patients = self._workshop.prepare(self._plan, self._count)
        except WorkFailed as error:
            self._display.show("failed", str(error), only_after=("preparing",))
            raise
        logger().info("studies prepared", seconds=round(self._clock() - started_s, 1))
        self._display.show("waiting", WAITING, only_after=("preparing",))
        return patients

    def _count(self, done: int, total: int) -> None:
        if self._background.stopping.is_set():
            raise Interrupted
        self._display.steps("preparing", done, total)

    def _train(self, job: _Job, base: Vector) -> _Done:
        """In the background thread, after preparation: measure the model as it was released, then train on other patients."""

        def unless_given_up() -> None:
            if job.given_up.is_set() or self._background.stopping.is_set():
                raise Interrupted

        def on_step(progress: Any) -> None:
            unless_given_up()
            self._display.steps("training", progress.step, progress.steps)

        assert self._patients is not None
        number = job.authorization.round
        try:
            sides = parts(self._plan, self._patients.result())
            unless_given_up()
            sums = self._measure(number, base, sides.validation, unless_given_up)
            after: tuple[NodePhase, ...] = ("preparing", "waiting", "training", "evaluating")
            self._display.show("training", TRAINING, round_number=number, only_after=after)
            trained = self._workshop.train(
                self._plan,
                self._uri,
                base,
                sides.training,
                threads=self._threads,
                round=number,
                on_step=on_step,
                **drifting(job.drift),
            )
        except WorkFailed:
            self._until_the_plans_moment(job)
            raise
        self._until_the_plans_moment(job)
        return _Done(trained, job.base_digest if job.drift is None else model_digest(base), sums)

    def _until_the_plans_moment(self, job: _Job) -> None:
        """When preparing and training end, well or badly, follows the number of patients and of those who were drawn."""
        now_s = self._clock()
        job.given_up.wait(moment(job.begun_s, now_s, self._plan.timing.ready_after_s) - now_s)

    def _measure(
        self, number: int, base: Vector, patients: Sequence[Any], unless_given_up: Callable[[], None]
    ) -> tuple[float, ...]:
        """Noised sums over the validation patients; () in a round without evaluation."""
        if self._plan.evaluation is None or not self._plan.evaluation.is_due(number):
            return ()
        self._display.show("evaluating", MEASURING, round_number=number, only_after=("preparing", "waiting", "training"))
        score = self._workshop.scorer(self._plan, base, self._threads)
        total, done = sum(len(patient.cases) for patient in patients), 0

        def counted(case: Any) -> Scored:
            nonlocal done
            unless_given_up()
            scored, done = score(case), done + 1
            self._display.steps("evaluating", done, total)
            return scored

        return noised_sums(self._plan, patients, counted, NormalStream(self._rand))


def moment(begun_s: float, now_s: float, every_s: float) -> float:
    """When to report: a whole number of periods after the beginning, at least one, not before now; now where none is asked for.

    What takes longer than one period is hidden in the same way: only the number of periods is seen.
    """
    if every_s == 0:
        return now_s
    return max(now_s, begun_s + every_s * max(1, math.ceil((now_s - begun_s) / every_s)))
