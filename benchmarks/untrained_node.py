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
from hospital_node.config import load_config
from hospital_node.link import dial
from hospital_node.memory import share_one_heap
from hospital_node.runner import run_with
from hospital_node.work import Workshop
from proto.layout import Layout, Vector, model_digest
from proto.modelfile import read_model
from proto.plan import Plan


@dataclass(frozen=True, slots=True)
class Trained:
    """What a trainer returns."""

    update: Vector
    base_digest: bytes


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
        return Trained(update, model_digest(base))

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
    run_with(config, untrained_workshop(layout), dial=dial, clock=time.time, rand=os.urandom, stop=stop)


if __name__ == "__main__":
    main()
