"""Long local work in one background thread: preparing studies, then training, while the conversation goes on.

The heavy modules are behind `Workshop`, so that everything around them can be tested without them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from proto.layout import Layout, Vector
from proto.plan import DECLINE_CODES, Plan
from secagg.params import Integers

Result = TypeVar("Result")
Count = Callable[[int, int], None]  # (done, in all)


class WorkFailed(RuntimeError):
    """Preparation or training gave nothing. `code` may leave the hospital, the sentence stays."""

    def __init__(self, code: str, sentence: str) -> None:
        if code not in DECLINE_CODES:
            raise ValueError(f"'{code}' is not one of proto.plan.DECLINE_CODES")
        super().__init__(sentence)
        self.code = code


class Interrupted(RuntimeError):
    """The work was given up because the node stops or went on to another round."""


class Step(Protocol):
    """hospital_node.train.StepProgress."""

    @property
    def step(self) -> int:
        """Steps done."""
        ...

    @property
    def steps(self) -> int:
        """Steps in all."""
        ...


class Trained(Protocol):
    """hospital_node.train.TrainedUpdate."""

    @property
    def update(self) -> Vector | Integers:
        """Trained minus base; with shared noise sums in whole numbers."""
        ...

    @property
    def base_digest(self) -> bytes:
        """The model that training started from."""
        ...


class Trainer(Protocol):
    """hospital_node.train.train_round, or something that wraps it."""

    def __call__(
        self,
        plan: Plan,
        uri: str,
        base: Vector,
        patients: Sequence[Any],
        *,
        threads: int = 1,
        round: int = 1,  # noqa: A002  (the plan's word)
        on_step: Callable[[Any], None] = ...,
        drift: Vector | None = ...,
    ) -> Trained:
        """Train one round and return the difference; `drift` is given where the plan has control variates."""
        ...


def drifting(drift: Vector | None) -> dict[str, Any]:
    """The argument of a trainer that corrects its steps; none for all others, which need not know of it."""
    return {} if drift is None else {"drift": drift}


@dataclass(frozen=True, slots=True)
class Scored:
    """One public case: Dice by label (None where the truth holds none), and the predicted labels (z, y, x)."""

    dice: Mapping[str, float | None]
    prediction: NDArray[np.uint8]


Score = Callable[[Any], Scored]  # of one hospital_node.prepared.PreparedCase


@dataclass(frozen=True, slots=True)
class Workshop:
    """The heavy parts. `prepare` and `train` raise WorkFailed and pass Interrupted on."""

    layout: Callable[[Plan], Layout]
    prepare: Callable[[Plan, Count], Sequence[Any]]
    train: Trainer
    scorer: Callable[[Plan, Vector, int], Score]  # plan, model, threads


class Background:
    """One thread; work is done in the order in which it was given."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")

    def start(self, work: Callable[[], Result]) -> Future[Result]:
        """Do `work` after what was given before."""
        return self._pool.submit(work)

    def close(self) -> None:
        """Give everything up and wait for the thread, which looks at `stopping` after each step."""
        self.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
