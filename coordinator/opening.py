"""From accepted uploads to the next model: the sum is added and opened, the server takes its step, what it gives is written.

It takes a good part of a second for large models, in another thread than the one that answers calls. What only people read,
`latest.safetensors`, is written when everybody has been told: the next round does not wait for it.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import structlog

from coordinator.events import Opened
from coordinator.machine import Machine
from coordinator.models import ModelError, ModelFolder
from coordinator.optimizer import next_model
from coordinator.spool import Spool
from proto import scaffold
from proto.buffering import damping
from proto.layout import Layout, Vector
from proto.plan import Plan, short_name
from secagg.coordinate import SessionView, add_upload, open_sum

log = structlog.get_logger()

NOT_SHOWN = "the newest model could not be written for people"


@dataclass(frozen=True, slots=True)
class Made:
    """What a round opened, and the model that came of it with all that is published beside it."""

    event: Opened
    published: Vector
    round: int


@dataclass(slots=True)
class Opener:
    """Of one run."""

    plan: Plan
    layout: Layout
    models: ModelFolder
    spool: Spool
    machine: Machine
    _showing: threading.Lock = field(default_factory=threading.Lock)
    _shown: int = -1  # round of `latest.safetensors`, as far as this start has written it

    def open(self, view: SessionView, session: bytes, survivors: tuple[str, ...], base: str) -> Made:
        """Open a session's sum and step from the model `base`; mean and model are durable on return.

        Raises SecaggError, ValueError, SpoolError, ModelError, OSError, and RuntimeError where no thread is left.
        """
        with ThreadPoolExecutor(2) as beside:
            before = beside.submit(self._before, base)
            total = np.zeros(view.params.words, dtype=np.uint64)
            self.spool.add_all(session, survivors, partial(add_upload, total), self.machine.threads)
            opened = open_sum(view, total, threads=self.machine.threads, door=self.machine.door)
            for uri in opened.wrong_shares:
                log.warning("wrong shares were corrected", party=short_name(uri))
            mean, number = self._damped(opened.mean, view, survivors), view.params.round
            mean_written = beside.submit(self.models.write_mean, mean)
            published, memory = next_model(
                self.plan, self.layout, before.result()[0], mean, before.result()[1], number, survivors
            )
            digest = self.models.write(published, memory)
            event = Opened(session, opened.sum_digest, digest, opened.extras, mean_written.result())
        return Made(event, published, number)

    def show(self, made: Made) -> None:
        """Replace `latest.safetensors`, unless a newer one is there; a folder that cannot be written costs no round."""
        self._show(made.published, made.round, made.event.model_digest)

    def catch_up(self, base: bytes, number: int) -> None:
        """Replace `latest.safetensors` where an earlier start ended before it had."""
        if number == 0 or self.models.shown() == (str(number), base.hex()):
            return
        try:
            published = self.models.read(base.hex())
        except ModelError as error:
            log.warning(NOT_SHOWN, round=number, reason=str(error))  # who needs the model to go on says so in time
        else:
            self._show(published, number, base)

    def _show(self, published: Vector, number: int, digest: bytes) -> None:
        model, common = scaffold.taken_apart(self.plan, published)
        with self._showing:
            if number <= self._shown:
                return
            try:
                self.models.export(model, number, digest if common is None else None)
            except (ModelError, OSError) as error:  # of the folder, where it cannot be handed to the disk
                log.warning(NOT_SHOWN, round=number, reason=str(error))
            else:
                self._shown = number

    def _before(self, base: str) -> tuple[Vector, Vector | None]:
        return self.models.read(base), self.models.read_velocity(base)

    def _damped(self, mean: Vector, view: SessionView, survivors: tuple[str, ...]) -> Vector:
        if self.plan.buffer is None:
            return mean
        weights = [self.plan.hospital(uri).weight for uri in survivors]
        return mean * np.float32(damping(weights, [view.params.weight(uri) for uri in survivors]))
