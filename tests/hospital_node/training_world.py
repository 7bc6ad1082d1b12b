"""Small plans and invented patients for the tests of training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.noise import NormalStream
from proto.plan import Plan

URI = "secagg://trial/hospital/a"
DECLARED = 20


@dataclass(frozen=True)
class Scan:
    image: NDArray[np.float32]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class Person:
    key: str
    cases: tuple[Scan, ...]


def person(name: str, scans: int = 1, side: int = 16) -> Person:
    """A patient whose voxels follow from the name alone."""
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest())))
    cases = []
    for _ in range(scans):
        label = np.zeros((side, side, side), np.uint8)
        z, y, x = rng.integers(2, side - 6, 3)
        label[z : z + 4, y : y + 4, x : x + 4] = 1
        cases.append(Scan((rng.standard_normal(label.shape) + 2 * label).astype(np.float32), label))
    return Person(name, tuple(cases))


def people(count: int) -> list[Person]:
    return [person(f"p{index}") for index in range(count)]


def plan(**changes: dict[str, object]) -> Plan:
    """A valid plan; each keyword replaces fields of one table."""
    tables: dict[str, dict[str, object]] = {
        "network": {"channels": (4, 4, 8), "labels": ("lesion",)},
        "preparation": {"modality": "MR", "spacing_xyz_mm": (1, 1, 1), "patch_zyx": (8, 8, 8)},
        "training": {"local_steps": 3, "learning_rate": 1e-2},
        "privacy": {"noise_multiplier": 1.0, "inverse_sampling_rate": 2, "delta": 1e-3},
    }
    for table, fields in changes.items():
        tables[table] = {**tables[table], **fields}
    hospitals = [{"uri": f"secagg://trial/hospital/{name}", "declared_patients": DECLARED} for name in "abc"]
    return Plan.model_validate({"study": "trial", "rounds": 4, "hospitals": hospitals, **tables})


SILENT = {"noise_multiplier": 0.0, "no_guarantee": True}


def replayed(seed: bytes) -> Callable[[int], bytes]:
    """A random source for replays: a hash chain that stands in for the operating system."""
    state = [hashlib.sha256(seed).digest()]

    def rand(count: int) -> bytes:
        state[0] = hashlib.sha256(state[0]).digest()
        return hashlib.shake_256(state[0]).digest(count)

    return rand


def normals(seed: bytes = b"normals") -> NormalStream:
    return NormalStream(replayed(seed))


def recorded_contributions(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.float32]]:
    """A list that fills with the clipped contribution of every patient drawn, in order."""
    seen, original = [], PatientOptimizer.clip_and_accumulate

    def recorded(self: PatientOptimizer) -> None:
        before = [None if p.summed_grad is None else p.summed_grad.clone() for p in self.params]
        for p in self.params:
            p.summed_grad = None
        original(self)
        seen.append(np.concatenate([p.summed_grad.reshape(-1).numpy() for p in self.params]))
        for p, old in zip(self.params, before, strict=True):
            p.summed_grad = p.summed_grad if old is None else old + p.summed_grad

    monkeypatch.setattr(PatientOptimizer, "clip_and_accumulate", recorded)
    return seen
