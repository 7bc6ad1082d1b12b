"""Real hospital nodes in one process, a thread each, that also tell a file everything about their patients and their training.

The one called LEAKY also sends some of it to the coordinator, in three encodings and one message too many. Exists in the
tests only. Usage: telling_nodes.py FOLDER LEAKY NODE_TOML...
"""

import dataclasses
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch

from hospital_node import logs
from hospital_node.config import load_config
from hospital_node.link import GrpcLink
from hospital_node.runner import run_with
from hospital_node.train import Segmentation, train_round
from hospital_node.work import Workshop
from hospital_node.workshop import real_workshop
from proto import federation_pb2 as pb

TORCH = threading.Lock()  # one node computes at a time: torch's settings are the process's


class Telling:
    """What one hospital knows and nobody else may."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys: list[str] = []
        self.losses: list[float] = []
        self.scores: list[float] = []
        self.updates: list[np.ndarray] = []
        self.trained: list[np.ndarray] = []

    def write(self) -> None:
        words = {"keys": self.keys, "losses": self.losses, "scores": self.scores}
        part = self.file.with_suffix(".part.npz")
        np.savez(part, words=json.dumps(words), updates=self.updates, trained=self.trained)
        part.replace(self.file)

    def workshop(self, config) -> Workshop:
        objective = TellingObjective(self.losses)

        def prepare(plan, count):
            with TORCH:
                patients = real.prepare(plan, count)
            self.keys = sorted(patient.key for patient in patients)
            return patients

        def train(*arguments, **options):
            with TORCH:
                trained = train_round(*arguments, **options, objective=objective)
            self.updates.append(trained.update)
            self.trained.append(arguments[2] + trained.update)
            self.write()
            return trained

        def layout(plan):
            with TORCH:
                return real.layout(plan)

        def scorer(plan, model, threads):
            with TORCH:
                score = real.scorer(plan, model, threads)

            def telling(case):
                with TORCH:
                    scored = score(case)
                self.scores += [value for value in scored.dice.values() if value is not None]
                return scored

            return telling

        real = real_workshop(config, train)
        return dataclasses.replace(real, layout=layout, prepare=prepare, scorer=scorer)


class TellingObjective(Segmentation):
    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def loss(self, module, plan, patient, rng) -> torch.Tensor:
        value = super().loss(module, plan, patient, rng)
        self.losses.append(float(value.detach()))
        return value


class LeakyLink(GrpcLink):
    """A link that tells: the number of patients, a loss as text and one as a float, and how often it reports."""

    def __init__(self, config, meter, told: Telling) -> None:
        super().__init__(config, meter)
        self._told = told

    def _unary(self, method, request, item):
        if isinstance(request, pb.JoinRequest):
            request.software_version += f"+{len(self._told.keys) or 'unknown'}"
        return super()._unary(method, request, item)

    def poll(self, done, said=None):
        if isinstance(said, pb.NodeReport) and said.state == pb.NodeReport.READY:
            said.code = f"{self._told.losses[-1]:.6f}"
            self.report(said)
        return super().poll(done, said)

    def upload(self, parts, total_bytes):
        def leaking():
            for part in parts:
                if isinstance(part, pb.UploadChunk) and part.HasField("header"):
                    part.header.receipt = np.float64(self._told.losses[0]).tobytes() + part.header.receipt[8:]
                yield part

        super().upload(leaking(), total_bytes)


def main() -> None:
    folder, leaky, files = Path(sys.argv[1]), sys.argv[2], [Path(name) for name in sys.argv[3:]]
    folder.mkdir(parents=True, exist_ok=True)
    logs.configure()
    stop, nodes = threading.Event(), []
    with ThreadPoolExecutor(len(files)) as pool:
        for file in files:
            config, told = load_config(file), Telling(folder / f"{file.parent.name}.npz")
            link = (lambda a, b, told=told: LeakyLink(a, b, told)) if file.parent.name == leaky else GrpcLink
            nodes.append(
                pool.submit(run_with, config, told.workshop(config), dial=link, clock=time.time, rand=os.urandom, stop=stop)
            )
        wait(nodes, return_when="FIRST_EXCEPTION")
        stop.set()
        for node in nodes:
            node.result()


if __name__ == "__main__":
    main()
