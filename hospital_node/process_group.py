"""Several processes inside one hospital, started by torchrun: the first talks to the coordinator, all of them train.

Rule: one mechanism, however many processes. The first process draws one key a step and hands it to the others; each drawn
patient falls to exactly one process, by its place among the drawn, which is why all must see the same patients; clipped
gradients are summed over the processes in float64, by NCCL where each has a CUDA device to itself and by gloo otherwise
(device.py); the first process adds the noise, once, and hands the noised sum out. So
every process takes the same step, and the update of the first is that of one process but for the rounding of sums in another
order.

The conversation keeps step however a round ends:
- a job: plan, hospital, round, base model, drift of SCAFFOLD (empty: none); an empty job ends the group;
- the digest of the patients, and whether all see the same;
- for each step GO and its key, whether all are fine, the sums, the noised sums;
- DONE or STOP.
A process that failed stays in the conversation until the first one has ended the round, so that nobody waits for ever. One
that died closes its connections: the others fail with a sentence, and torchrun ends all of them.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from functools import partial
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist

from hospital_node import runner
from hospital_node.config import NodeConfig
from hospital_node.device import PROCESSOR, backend
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.logs import logger
from hospital_node.network import NetworkError
from hospital_node.noise import KEY_BYTES, Rand, StepCoins
from hospital_node.studies import withdrawals_at
from hospital_node.train import TrainedUpdate, TrainingError, train_round
from hospital_node.work import WorkFailed
from hospital_node.workshop import configured_device, prepare_studies
from proto.layout import Vector
from proto.plan import Plan, PlanError, from_canonical

FIRST: Final = 0
PATIENCE: Final = timedelta(days=30)  # between rounds a process waits as long as the study does
KEYS_LABEL: Final = b"hospital-secagg patients of a process group v1\n"


class Word(IntEnum):
    """What the first process says before each step."""

    GO = 1
    DONE = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class Job:
    """One round to train."""

    plan: Plan
    uri: str
    round: int
    base: Vector
    drift: Vector | None  # of SCAFFOLD: every process takes the same steps


class Stopped(TrainingError):
    """The first process ended the round, or another one did and the first said so."""


class ProcessGroup:
    """The processes of one hospital. Implements hospital_node.ranks.Ranks; the same calls in the same order in each process."""

    def __init__(self, meeting: str | None = None, device: torch.device = PROCESSOR) -> None:
        """Join at `meeting`, a URL of torch.distributed; by the environment that torchrun sets where it is None."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL takes the current one
        if meeting is None:
            dist.init_process_group(backend(device), timeout=PATIENCE)
        else:
            index, count = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
            dist.init_process_group(backend(device), meeting, PATIENCE, count, index)
        self.index, self.count = dist.get_rank(), dist.get_world_size()
        self._in_step = False  # since GO, until all have said whether they are fine
        self._over = True  # the first process has said that the round is over, or it has not begun
        self._broken = False  # a process is gone

    # ---- jobs ----

    def train(self, plan: Plan, uri: str, base: Vector, patients: Sequence[Any], **options: Any) -> TrainedUpdate:
        """In the first process: a hospital_node.work.Trainer that lets all processes train."""
        number = str(options.get("round", 1)).encode()
        self._hand_out(b"\0".join([number, uri.encode(), plan.canonical()]))
        for vector in (base, options.get("drift")):
            self._hand_out(b"" if vector is None else np.ascontiguousarray(vector, dtype="<f4").tobytes())
        return train_round(plan, uri, base, patients, ranks=self, device=self._device, **options)

    def dismiss(self) -> None:
        """In the first process: the others end."""
        if not self._broken:
            self._hand_out(b"")

    def follow(self, patients_of: Callable[[Plan], Sequence[Any]], threads: int) -> None:
        """In the others: train every round that the first process trains, until it dismisses them.

        `patients_of` raises WorkFailed. Raises TrainingError where a process of the group is gone.
        """
        while (job := self._next_job()) is not None:
            try:
                patients = patients_of(job.plan)
            except WorkFailed as error:
                logger().warning("this process cannot take part", round=job.round, code=error.code)
                self._decline()
                continue
            try:
                train = partial(train_round, threads=threads, round=job.round, ranks=self, device=self._device)
                train(job.plan, job.uri, job.base, patients, drift=job.drift)
            except (TrainingError, NetworkError, PlanError) as error:
                if self._broken:
                    raise
                logger().warning("the round ended early", round=job.round, reason=str(error))

    def _next_job(self) -> Job | None:
        head = self._hand_out(None)
        if not head:
            return None
        number, uri, plan = head.split(b"\0", 2)
        base, drift = (np.frombuffer(self._hand_out(None), dtype="<f4").astype(np.float32) for _ in range(2))
        return Job(from_canonical(plan), uri.decode(), int(number), base, drift if len(drift) else None)

    def _decline(self) -> None:
        self._hand_out(None)
        self._all_fine(fine=False)

    # ---- a round ----

    @contextmanager
    def round(self, patients: Sequence[Any]) -> Iterator[None]:
        """All see the same patients or nobody begins. TrainingError where any process fails."""
        mine = digest_of(patients)
        same = self._hand_out(mine if self.index == FIRST else None) == mine
        if not self._all_fine(fine=same):
            raise TrainingError(
                "the processes of this hospital do not see the same patients, or one of them could not read them: give all of "
                "them the same data folder, and look into the log of each"
            )
        self._over = False
        try:
            yield
            self._listen(Word.DONE)
        finally:
            self._leave()

    def key(self, rand: Rand) -> bytes:
        """GO and the key, which only the first process draws. Raises Stopped where that one ended the round."""
        return self._listen(Word.GO, rand(KEY_BYTES) if self.index == FIRST else b"")

    def share(self, patients: Sequence[Any], coins: StepCoins, inverse_rate: int) -> Sequence[Any]:
        """Every `count`-th of the drawn patients, from this process's place on."""
        drawn = [patient for patient in patients if coins.drawn(patient.key, inverse_rate)]
        return drawn[self.index :: self.count]

    def optimizer(self, kind: type[PatientOptimizer]) -> Callable[..., PatientOptimizer]:  # noqa: ARG002  always shared
        """A PatientOptimizer whose sum and noise are those of all processes."""
        return partial(SharedOptimizer, self)

    def sum_and_noise(self, optimizer: SharedOptimizer) -> None:
        """Sums over the processes into each `p.summed_grad`, then the first process's noised sums into each `p.grad`."""
        if not self._all_fine(fine=True):
            raise TrainingError("another process of this hospital could not finish the step: its log says why")
        fresh = torch.tensor([float(optimizer.nonfinite - optimizer.counted)], device=optimizer.params[0].device)
        sums = torch.cat([*(p.summed_grad.reshape(-1) for p in optimizer.params), fresh]).double()
        self._talk(lambda: dist.all_reduce(sums))
        optimizer.counted += int(sums[-1])
        optimizer.nonfinite = optimizer.counted
        for p, part in zip(optimizer.params, _parts(sums, optimizer), strict=True):
            p.summed_grad = part.to(p.dtype)
        noised = torch.empty_like(sums[:-1])
        if self.index == FIRST:
            PatientOptimizer.add_noise(optimizer)
            noised = torch.cat([p.grad.reshape(-1) for p in optimizer.params]).double()
        self._talk(lambda: dist.broadcast(noised, FIRST))
        for p, part in zip(optimizer.params, _parts(noised, optimizer), strict=True):
            p.grad, p.summed_grad = part.to(p.dtype), None

    # ---- the conversation ----

    def _listen(self, wanted: Word, more: bytes = b"") -> bytes:
        """What follows the first process's word, which it says here itself. Raises Stopped where the word is another one."""
        said = self._hand_out(bytes([wanted]) + more if self.index == FIRST else None)
        self._in_step, self._over = said[0] == Word.GO, said[0] != Word.GO
        if said[0] != wanted:
            raise Stopped("the first process of this hospital ended the round")
        return said[1:]

    def _leave(self) -> None:
        """However this process comes to the end of a round: the others hear of it as soon as they listen."""
        while not (self._over or self._broken):
            if self._in_step:
                self._all_fine(fine=False)
            elif self.index == FIRST:
                self._hand_out(bytes([Word.STOP]))
                self._over = True
            else:
                said = self._hand_out(None)
                self._in_step, self._over = said[0] == Word.GO, said[0] != Word.GO

    def _all_fine(self, *, fine: bool) -> bool:
        self._in_step = False
        failed = torch.tensor([int(not fine)])
        self._talk(lambda: dist.all_reduce(failed))
        return int(failed) == 0

    def _hand_out(self, data: bytes | None) -> bytes:
        """The first process's bytes, in every process."""
        size = torch.tensor([len(data or b"")])
        self._talk(lambda: dist.broadcast(size, FIRST))
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(int(size), dtype=torch.uint8)
        if len(content):
            self._talk(lambda: dist.broadcast(content, FIRST))
        return content.numpy().tobytes()

    def _talk(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            self._broken = True
            raise TrainingError("a process of this hospital's group is gone: start the group again") from error


class SharedOptimizer(PatientOptimizer):
    """One step of all processes."""

    def __init__(self, group: ProcessGroup, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.counted = 0  # patients of all processes that counted as zero
        self._group = group

    def add_noise(self) -> None:
        """Noise on the sum of all processes, once."""
        self._group.sum_and_noise(self)


def live(config: NodeConfig, stop: threading.Event) -> None:
    """One process of a hospital that torchrun started: the node itself in the first, training alone in the others."""
    group = ProcessGroup(device=configured_device(config))
    if group.index != FIRST:
        prepared: dict[tuple[bytes, int], Sequence[Any]] = {}

        def patients_of(plan: Plan) -> Sequence[Any]:
            kind = plan.digest(), len(withdrawals_at(config).entries)
            if kind not in prepared:
                prepared.clear()
                prepared[kind] = prepare_studies(config, plan, lambda _done, _total: None).patients
            return prepared[kind]

        try:
            group.follow(patients_of, config.threads)
        except TrainingError as error:
            raise WorkFailed("training-failed", str(error)) from error
        return
    try:
        runner.run(config, stop=stop, train=group.train)
    finally:
        group.dismiss()


def digest_of(patients: Sequence[Any]) -> bytes:
    """Names the patients and their order; stays inside the hospital's own processes."""
    state = hashlib.sha256(KEYS_LABEL)
    for patient in patients:
        key = patient.key.encode()
        state.update(len(key).to_bytes(4, "big") + key)
    return state.digest()


def _parts(flat: torch.Tensor, optimizer: PatientOptimizer) -> Iterator[torch.Tensor]:
    start = 0
    for p in optimizer.params:
        yield flat[start : start + p.numel()].view_as(p)
        start += p.numel()
