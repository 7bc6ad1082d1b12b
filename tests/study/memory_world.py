"""Hospitals without patients for federations in one process: their updates are known, so every sum can be checked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hospital_node.work import Scored, Workshop
from proto.layout import Layout, model_digest
from proto.modelfile import Model
from proto.plan import Plan
from study.bench.federation import Seats

LAYOUT = Layout((("layer.weight", (30, 6)), ("layer.bias", (20,))))
CLIP = 1.0


def make_plan(hospitals: int = 4, rounds: int = 2, *, study: str = "bench", noise: float = 0.0, **fields: Any) -> Plan:
    base = {
        "study": study,
        "rounds": rounds,
        "network": {"labels": ["even", "odd"]},
        "preparation": {"modality": "CT", "spacing_xyz_mm": [1, 1, 1], "patch_zyx": [8, 8, 8]},
        "training": {"local_steps": 2},
        "privacy": {"noise_multiplier": noise, "no_guarantee": noise == 0, "inverse_sampling_rate": 2, "delta": 1e-3},
        "masking": {"update_clip": CLIP},
        "hospitals": [{"uri": f"secagg://{study}/hospital/h{n}", "declared_patients": 10} for n in range(hospitals)],
        "evaluators": [f"secagg://{study}/evaluator/public-test"],
    }
    return Plan.model_validate(base | fields)


def update_of(uri: str, number: int, length: int) -> np.ndarray:
    """Differs by hospital, round and coordinate, so that any double count or omission shows."""
    seed = int.from_bytes(hashlib.sha256(f"{uri} {number}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).uniform(-0.5, 0.5, length).astype(np.float32)


@dataclass
class Step:
    step: int
    steps: int


@dataclass
class Trained:
    update: np.ndarray
    base_digest: bytes


@dataclass
class Case:
    image: np.ndarray
    label: np.ndarray


@dataclass
class Patient:
    key: str
    cases: tuple[Case, ...]


@dataclass
class Ward:
    """What all workshops of one federation share: what happened, and what is to happen to whom."""

    layout: Layout = LAYOUT
    disturb: Callable[[str, int, Callable[[Any], None]], None] = lambda *_: None  # of (name, round, on_step)
    trained: list[tuple[str, int]] = field(default_factory=list)
    at_work: int = 0
    most_at_work: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def seats(self, plan: Plan) -> Seats:
        return Seats({hospital.uri: self.workshop() for hospital in plan.hospitals}, self.workshop())

    def start(self) -> Model:
        return Model(self.layout, np.linspace(-1, 1, self.layout.length, dtype=np.float32), {})

    def workshop(self) -> Workshop:
        return Workshop(lambda _: self.layout, self.prepare, self.train, self.scorer)

    def prepare(self, plan: Plan, count: Callable[[int, int], None]) -> list[Patient]:
        count(1, 1)
        volume = np.zeros((2, 2, 2), np.uint8)
        return [Patient(str(number), (Case(volume, volume),)) for number in range(3)]

    def train(self, plan, uri, base, patients, *, threads=1, round=1, on_step=lambda _: None) -> Trained:  # noqa: A002
        with self.lock:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            on_step(Step(1, 2))
            self.disturb(uri.rsplit("/", 1)[-1], round, on_step)
            on_step(Step(2, 2))
            self.trained.append((uri, round))
            return Trained(update_of(uri, round, self.layout.length), model_digest(base))
        finally:
            with self.lock:
                self.at_work -= 1

    def scorer(self, plan: Plan, model: np.ndarray, threads: int) -> Callable[[Case], Scored]:
        """The share of coordinates above 0, so that every model has its own score."""
        share = float((model > 0).mean())
        return lambda case: Scored({"even": share, "odd": None if share > 0.9 else 1 - share}, case.label)

    def expected(self, plan: Plan, cohorts: dict[int, list[str]]) -> np.ndarray:
        """The start plus the mean update of each round's cohort."""
        model = self.start().vector.astype(np.float64)
        for number, uris in cohorts.items():
            model += np.mean([update_of(uri, number, self.layout.length) for uri in uris], axis=0, dtype=np.float64)
        return model


def error_bound(plan: Plan, rounds: int) -> float:
    """Each coordinate of each member is rounded to a step of the quantizer; the mean is off by half a step at most."""
    lane_bits = 64 // plan.masking.lanes
    steps = 2**lane_bits // (2 * len(plan.hospitals))
    return rounds * (2 * plan.masking.update_clip / steps + 1e-6)
