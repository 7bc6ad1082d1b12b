"""A real hospital node whose training is a formula: its conversation, checks, ledger, masking and connection are the real ones.

It loads no torch, so a test can afford many of them. Exists in the tests only. Usage: formula_node.py NODE_TOML START_MODEL
[FOLDER]; with a folder, the training of a round ends once the folder holds a file of its number.
"""

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import certs  # noqa: F401  sets the TLS floor before anything imports grpc
from hospital_node import logs
from hospital_node.config import load_config
from hospital_node.link import dial
from hospital_node.runner import run_with
from hospital_node.work import Workshop
from proto.layout import Layout, Vector, model_digest
from proto.modelfile import read_model


@dataclass(frozen=True)
class Trained:
    """What a trainer returns."""

    update: Vector
    base_digest: bytes


@dataclass(frozen=True)
class Step:
    """How far a training is."""

    step: int
    steps: int


def update_of(uri: str, number: int, length: int) -> Vector:
    """The update of one hospital in one round: differs in every coordinate from every other one."""
    seed = int.from_bytes(hashlib.sha256(f"{uri} {number}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).uniform(-0.4, 0.4, length).astype(np.float32)


def signs_of(uri: str, number: int, length: int) -> Vector:
    """An update of -1, 0 and 1, which the quantizer of a clip of 1 rounds nowhere: sums of it are exact."""
    return np.sign(np.round(2 * update_of(uri, number, length))).astype(np.float32)


def formula_workshop(
    layout: Layout, formula: Callable[[str, int, int], Vector] = update_of, gates: Path | None = None
) -> Workshop:
    """Nothing to prepare, nothing to learn."""

    def prepare(plan, count):
        del plan
        count(1, 1)
        return ()

    def train(plan, uri, base, patients, *, threads=1, round=1, on_step):  # noqa: A002  (the plan's word)
        del plan, patients, threads
        while gates is not None and not (gates / str(round)).exists():
            on_step(Step(0, 1))
            time.sleep(0.02)
        return Trained(formula(uri, round, layout.length), model_digest(base))

    def scorer(plan, model, threads):
        raise NotImplementedError(plan, model, threads)

    return Workshop(lambda _plan: layout, prepare, train, scorer)


def main() -> None:
    config, layout = load_config(Path(sys.argv[1])), read_model(Path(sys.argv[2])).layout
    logs.configure()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    gates = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    parent, workshop = os.getppid(), formula_workshop(layout, gates=gates)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(run_with, config, workshop, dial=dial, clock=time.time, rand=os.urandom, stop=stop)
        while not work.done():
            wait([work], 0.5)
            if os.getppid() != parent:  # the test is gone
                stop.set()
        work.result()


if __name__ == "__main__":
    main()
