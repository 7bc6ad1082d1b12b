"""Several processes of one hospital without privacy: in step with each other, averaged once a round, or each by itself.

What a hospital's processes do together in a private round is `in-step` (hospital_node/process_group.py). The other two are what
ordinary distributed training offers beside it: nobody waits for anybody within a round (local SGD, Stich 2019, arXiv
1805.09767), or ever (Hogwild, Recht et al. 2011, arXiv 1106.5730). They are measured here and not offered: a process that steps
on patients of its own would have to add the whole noise of a step to the smaller sum.

Equal work: every way shows as many patients to the network in a round. A process by itself sees its share of the patients only,
in as many steps, so that its steps are of fewer patients; `shared` adds all of them to one model, and so moves it more often.
Only plans without noise and public or synthetic patients are taken; the draws are seeded.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hospital_node import network
from hospital_node.noise import KEY_BYTES, NormalStream, StepCoins
from hospital_node.process_group import FIRST, ProcessGroup
from hospital_node.train import SEGMENTATION, private_optimizer, take_step, train_round
from proto.layout import Vector
from proto.plan import Plan
from study.bench.cell import Setting, prepare_cell
from study.bench.cells import Cell, DataKind, Method
from study.bench.draws import seeded
from study.bench.task import Rand, StudyError, scores_of

FORK = multiprocessing.get_context("fork")  # torch and the patients are there already
TASK = "segmentation"  # whose loss the processes share
NO_NOISE = "the processes of a hospital are compared without noise: say epsilon = inf"


class Way(StrEnum):
    """How the processes of one hospital train together."""

    ALONE = "one-process"
    IN_STEP = "in-step"  # every step is of all
    AVERAGED = "averaged"  # models are averaged at the end of each round
    SHARED = "shared"  # each step is added to one model in memory, on which others go on meanwhile


@dataclass(frozen=True, slots=True)
class Job:
    """What all processes know. `uri`: the hospital whose patients these are."""

    plan: Plan
    uri: str
    start: Vector = field(repr=False)
    patients: Sequence[Any] = field(repr=False)
    seed: int
    count: int  # processes
    folder: Path  # where they meet

    def rand(self, number: int, index: int) -> Rand:
        """Chance of a round in one process."""
        return seeded(f"{self.seed}\n{self.uri}\n{number}\n{index}")

    def share(self, index: int) -> tuple[Plan, Sequence[Any]]:
        """Every `count`-th patient, and the plan of a hospital that declared so many."""
        mine = self.patients[index :: self.count]
        hospitals = [
            one.model_copy(update={"declared_patients": len(mine)}) if one.uri == self.uri else one
            for one in self.plan.hospitals
        ]
        return self.plan.model_copy(update={"hospitals": tuple(hospitals)}), mine

    @property
    def rounds(self) -> range:
        """Numbers of the rounds."""
        return range(1, self.plan.rounds + 1)


@dataclass(frozen=True, slots=True)
class Together:
    """What one way gave. Times are of training alone, from the first process's beginning to the last one's end."""

    way: Way
    seed: int
    model: Vector = field(repr=False)
    wall_s: float
    cpu_s: float  # of all processes


Work = Callable[[Job, int, Any], Vector | None]  # (job, process, shared model): the last model, from the first process at least


def train_together(way: Way, job: Job) -> Together:
    """Train all rounds of `job` one way. Raises StudyError where the plan has noise or a process ended early."""
    if not job.plan.privacy.no_guarantee:
        raise StudyError(NO_NOISE)
    count = 1 if way is Way.ALONE else job.count
    memory = FORK.RawArray("f", job.start.tolist())
    pipes = [FORK.Pipe(duplex=False) for _ in range(count)]
    children = [
        FORK.Process(target=_child, args=(WORK[way], job, index, memory, pipes[index][1]), daemon=True)
        for index in range(count)
    ]
    began_s = time.perf_counter()
    for child, (_, end) in zip(children, pipes, strict=True):
        child.start()
        end.close()
    try:
        given = [_received(way, pipe) for pipe, _ in pipes]
        wall_s = time.perf_counter() - began_s
    finally:
        for child in children:
            child.kill()
            child.join()
    model = np.array(memory, np.float32) if way is Way.SHARED else given[FIRST][0]
    return Together(way, job.seed, model, wall_s, sum(cpu_s for _, cpu_s in given))


def job_of(cell: Cell, cache: Path, count: int, folder: Path) -> tuple[Job, Setting]:
    """The hospital of the cell that has most patients, and the setting that its model is scored in. Raises StudyError."""
    if (cell.task, cell.method) != (TASK, Method.PLAIN) or cell.data.kind is DataKind.PRIVATE:
        raise StudyError(
            f"cell {cell.label}: the processes of a hospital are compared on public or synthetic scans: say task = '{TASK}', "
            f"method = '{Method.PLAIN}' and data.kind = 'public' or 'synthetic'"
        )
    setting = prepare_cell(cell, cache, threading.Event())
    uri = max(setting.hospitals, key=lambda one: len(setting.hospitals[one]))
    patients = [unit.patient for unit in setting.hospitals[uri]]
    return Job(setting.plan, uri, setting.start, patients, cell.seed, count, folder), setting


def compare(cells: Sequence[Cell], cache: Path, count: int) -> Iterator[tuple[Together, float]]:
    """Every cell, every way: what it gave, and the mean score on the test cases. Raises StudyError."""
    for cell in cells:
        for way in Way:
            with tempfile.TemporaryDirectory(prefix="secagg-") as folder:
                job, setting = job_of(cell, cache, count, Path(folder))
                done = train_together(way, job)
            scores = scores_of(setting.task, job.plan, done.model, setting.test, setting.draws)
            yield done, float(np.mean([np.mean(values) for values in scores.values()]))


def _alone(job: Job, _index: int, _memory: Any) -> Vector:
    model = job.start
    for number in job.rounds:
        model = model + train_round(job.plan, job.uri, model, job.patients, round=number, rand=job.rand(number, FIRST)).update
    return model


def _in_step(job: Job, index: int, _memory: Any) -> Vector | None:
    group = ProcessGroup(f"file://{job.folder}/meeting")
    if index != FIRST:
        group.follow(lambda _plan: job.patients, 1)
        return None
    model = job.start
    for number in job.rounds:
        model = model + group.train(job.plan, job.uri, model, job.patients, round=number, rand=job.rand(number, FIRST)).update
    group.dismiss()
    return model


def _averaged(job: Job, index: int, _memory: Any) -> Vector:
    ProcessGroup(f"file://{job.folder}/meeting")
    plan, mine = job.share(index)
    model = job.start
    for number in job.rounds:
        update = train_round(plan, job.uri, model, mine, round=number, rand=job.rand(number, index)).update
        mean = torch.from_numpy(update.astype(np.float64) * (len(mine) / len(job.patients)))
        dist.all_reduce(mean)
        model = (model + mean.numpy()).astype(np.float32)
    return model


def _shared(job: Job, index: int, memory: Any) -> None:
    plan, mine = job.share(index)
    common = np.frombuffer(memory, np.float32)
    module = SEGMENTATION.build(plan)
    layout = network.layout_of(module)
    for number in job.rounds:
        rand = job.rand(number, index)
        optimizer = private_optimizer(module, plan, job.uri, round=number, normals=NormalStream(rand))
        for _ in range(plan.local_steps(job.uri)):
            before = common.copy()  # others write meanwhile: nobody waits for a consistent one
            network.load_vector(module, layout, before)
            take_step(module, optimizer, plan, mine, StepCoins(rand(KEY_BYTES)))
            common += network.vector_of(module) - before


WORK: Mapping[Way, Work] = {Way.ALONE: _alone, Way.IN_STEP: _in_step, Way.AVERAGED: _averaged, Way.SHARED: _shared}


def _child(work: Work, job: Job, index: int, memory: Any, pipe: Connection) -> None:
    os.environ.update(RANK=str(index), WORLD_SIZE=str(job.count))
    torch.set_num_threads(1)
    began_s = time.process_time()
    model = work(job, index, memory)
    pipe.send((model, time.process_time() - began_s))
    pipe.close()
    os._exit(0)  # a group of processes is not taken apart: the others may have left it already


def _received(way: Way, pipe: Connection) -> tuple[Any, float]:
    try:
        model, cpu_s = pipe.recv()
    except EOFError:
        raise StudyError(f"{way}: a process of the hospital ended early: what it printed says why") from None
    return model, float(cpu_s)
