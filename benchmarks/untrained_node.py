"""A real hospital's node whose training is nothing: conversation, checks, ledger, masking and connection are the real ones.

`python -m benchmarks.untrained_node START_MODEL NODE_TOML`. It loads no torch, so that one machine can carry many.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certs  # noqa: F401  sets the TLS floor before anything imports grpc
from benchmarks.masking_round import update_of
from hospital_node import logs
from hospital_node.config import NodeConfig, load_config
from hospital_node.link import GrpcLink
from hospital_node.memory import share_one_heap
from hospital_node.progress import Item
from hospital_node.runner import run_with
from hospital_node.traffic import ByteMeter
from hospital_node.work import Workshop
from proto.layout import Layout, Vector
from proto.modelfile import read_model
from proto.plan import Plan


@dataclass(frozen=True, slots=True)
class Trained:
    """What a trainer returns."""

    update: Vector
    base_digest: bytes


class NotingLink(GrpcLink):
    """Notes the digest that a model was compared with as it came: training digests the model once more, and is not measured."""

    came: tuple[Vector, bytes] | None = None  # of the process, which has one connection at a time

    def fetch_model(self, digest: bytes, announced_bytes: int, length: int, item: Item) -> Vector:
        """See Link."""
        vector = super().fetch_model(digest, announced_bytes, length, item)
        NotingLink.came = vector, digest
        return vector


def noting(config: NodeConfig, meter: ByteMeter) -> NotingLink:
    """As hospital_node.link.dial."""
    return NotingLink(config, meter)


def digest_of(base: Vector) -> bytes:
    """Of the model that came last, which is the one to train on; it is not kept any longer."""
    assert NotingLink.came is not None
    vector, digest = NotingLink.came
    assert vector is base
    NotingLink.came = None
    return digest


def untrained_workshop(layout: Layout) -> Workshop:
    """Nothing to prepare, nothing to learn; the update is made once."""
    update = update_of(layout.length)

    def prepare(plan: Plan, count: Callable[[int, int], None]) -> Sequence[Any]:
        del plan
        count(1, 1)
        return ()

    def train(
        plan: Plan,
        uri: str,
        base: Vector,
        patients: Sequence[Any],
        *,
        threads: int = 1,
        round: int = 1,  # noqa: A002  (the plan's word)
        on_step: Callable[[Any], None] = lambda _: None,
        drift: Vector | None = None,
    ) -> Trained:
        del plan, uri, patients, threads, round, on_step, drift
        return Trained(update, digest_of(base))

    def scorer(plan: Plan, model: Vector, threads: int) -> Any:
        raise NotImplementedError(plan, model, threads)

    return Workshop(lambda _plan: layout, prepare, train, scorer)


def main() -> None:
    """Run until the study is over or the parent asks to stop."""
    share_one_heap()  # as the command does
    layout, config = read_model(Path(sys.argv[1])).layout, load_config(Path(sys.argv[2]))
    logs.configure()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run_with(config, untrained_workshop(layout), dial=noting, clock=time.time, rand=os.urandom, stop=stop)


if __name__ == "__main__":
    main()
