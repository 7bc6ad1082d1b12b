"""Evaluation on the hospitals' own patients in whole federations: node, ledger, masks, coordinator and store as they are."""

from __future__ import annotations

import math
import os
import struct
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from memory_world import Case, Patient, Ward, make_plan

from certs.party import parse_certificate, uri_of
from coordinator.store import ValidationRow, open_store
from hospital_node.cap import Cap
from hospital_node.ledger import Charge, Ledger
from hospital_node.noise import NormalStream
from hospital_node.validation import is_measured, noised_sums, parts
from hospital_node.work import Scored, Workshop
from proto.plan import Plan, short_name
from study.bench.cell import planned_epsilon
from study.bench.federation import Federated, Seats, run_federation
from study.bench.memory import MemoryLink

EVERY_SECOND = {"every": 2, "share": 0.5, "noise_multiplier": 0.0}
PATIENTS = 10  # of each hospital, as declared
EXACT = 1e-5  # steps of the sums: 32 bits a number


@dataclass
class MeasuredCase(Case):
    quality: float = 0.0  # of this patient, from 0 to 1
    has_odd: bool = True


class Measured(Ward):
    """Hospitals whose patients have scores that are known: quality times the model's mean magnitude."""

    def __init__(self, empty: str = "") -> None:
        super().__init__()
        self.empty = empty  # a hospital none of whose patients is in the validation part
        self.given: list[tuple[str, ...]] = []  # keys that each training saw

    def seats(self, plan: Plan) -> Seats:
        hospitals = {
            hospital.uri: Workshop(lambda _: self.layout, partial(self.patients, hospital.uri), self.training_seen, self.scorer)
            for hospital in plan.hospitals
        }
        return Seats(hospitals, self.workshop())

    def patients(self, uri: str, plan: Plan, count=lambda *_: None) -> list[Patient]:
        name, volume = short_name(uri), np.zeros((2, 2, 2), np.uint8)
        keys = [f"{name} {number}" for number in range(PATIENTS)]
        if name == self.empty:
            keys = [key for key in keys if not is_measured(plan, key)]
        return [Patient(key, (MeasuredCase(volume, volume, (7 * at % 10) / 10, at % 3 > 0),)) for at, key in enumerate(keys)]

    def training_seen(self, plan, uri, base, patients, **options):
        self.given.append(tuple(patient.key for patient in patients))
        return self.train(plan, uri, base, patients, **options)

    def scorer(self, plan, model, threads):
        factor = brightness(model)

        def score(case):
            if not isinstance(case, MeasuredCase):
                return Scored({"even": 0.5, "odd": 0.5}, case.label)
            return Scored({"even": factor * case.quality, "odd": 1 - case.quality if case.has_odd else None}, case.label)

        return score

    def expected(self, plan: Plan, uris: list[str], model: np.ndarray) -> dict[str, tuple[float, int]]:
        """Label -> mean and number of the validation patients of these hospitals, by hand."""
        cases = [patient.cases[0] for uri in uris for patient in self.patients(uri, plan) if is_measured(plan, patient.key)]
        even = [brightness(model) * case.quality for case in cases]
        odd = [1 - case.quality for case in cases if case.has_odd]
        return {"even": (float(np.mean(even)), len(even)), "odd": (float(np.mean(odd)), len(odd))}


def brightness(model: np.ndarray) -> float:
    return float(np.clip(np.abs(model).mean(), 0, 1))


def play(folder: Path, plan: Plan, ward: Ward, cap: Cap | None = None) -> Federated:
    go = threading.Event()
    return run_federation(
        folder, plan, ward.start(), ward.seats(plan), cap=cap, data_is_public=True, on_round=lambda _: None, stop=go
    )


def validations(folder: Path) -> list[ValidationRow]:
    with open_store(folder / "coordinator" / "state" / "store.db") as store:
        return store.validations()


def model_of_round(folder: Path, number: int) -> np.ndarray:
    with open_store(folder / "coordinator" / "state" / "store.db") as store:
        digest = next(row.digest for row in store.models() if row.round == number)
    return np.fromfile(folder / "coordinator" / "state" / "models" / f"{digest}.f32", dtype="<f4")


def uris(plan: Plan) -> list[str]:
    return [hospital.uri for hospital in plan.hospitals]


def test_without_noise_the_opened_means_are_those_of_the_validation_patients(tmp_path: Path) -> None:
    plan, ward = make_plan(4, rounds=4, evaluation=EVERY_SECOND), Measured()
    play(tmp_path, plan, ward)
    rows = validations(tmp_path)
    assert [(row.round, row.model_round, row.label) for row in rows] == [
        (2, 1, "even"),
        (2, 1, "odd"),
        (4, 3, "even"),
        (4, 3, "odd"),
    ]
    for row in rows:
        mean, count = ward.expected(plan, uris(plan), model_of_round(tmp_path, row.model_round))[row.label]
        assert row.mean == pytest.approx(mean, abs=EXACT)
        assert row.patients == pytest.approx(count, abs=PATIENTS * EXACT)
        assert (row.hospitals, row.standard_error) == (4, 0.0)
    assert rows[0].mean != pytest.approx(rows[2].mean, abs=10 * EXACT), "each evaluation is of its own model"


def test_validation_patients_are_never_trained_on(tmp_path: Path) -> None:
    plan, ward = make_plan(3, rounds=3, evaluation=EVERY_SECOND), Measured()
    play(tmp_path, plan, ward)
    assert len(ward.given) == 9
    assert not any(is_measured(plan, key) for keys in ward.given for key in keys)
    everybody = [patient.key for uri in uris(plan) for patient in ward.patients(uri, plan)]
    assert {key for keys in ward.given for key in keys} == {key for key in everybody if not is_measured(plan, key)}


def test_the_model_is_the_same_with_and_without_evaluation(tmp_path: Path) -> None:
    plain = play(tmp_path / "a", make_plan(3, rounds=2), Measured())
    evaluated = play(tmp_path / "b", make_plan(3, rounds=2, evaluation=EVERY_SECOND), Measured())
    assert np.max(np.abs(plain.model - evaluated.model)) < 1e-5


def test_a_hospital_without_validation_patients_sends_its_noise_like_any_other(tmp_path: Path) -> None:
    plan, ward = make_plan(4, rounds=2, evaluation=EVERY_SECOND), Measured(empty="h1")
    play(tmp_path, plan, ward)
    others = [uri for uri in uris(plan) if short_name(uri) != "h1"]
    for row in validations(tmp_path):
        mean, count = ward.expected(plan, others, model_of_round(tmp_path, 1))[row.label]
        assert (row.hospitals, row.mean) == (4, pytest.approx(mean, abs=EXACT))
        assert row.patients == pytest.approx(count, abs=PATIENTS * EXACT)


def test_a_hospital_that_drops_out_loses_its_own_patients_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h2 vanishes in the middle of the masking session: its upload never arrives."""
    plan = make_plan(4, rounds=2, evaluation=EVERY_SECOND, timing={"phase_deadline_s": 1.5})
    ward, upload, begun = Measured(), MemoryLink.upload, []

    def lost(self, parts, total_bytes):
        certificate = parse_certificate(self._context.certificate_pem, "caller")
        if short_name(uri_of(certificate, "caller")) == "h2":
            begun.append(total_bytes)
            if len(begun) == 2:  # of round 2, which evaluates
                return
        upload(self, parts, total_bytes)

    monkeypatch.setattr(MemoryLink, "upload", lost)
    play(tmp_path, plan, ward)
    others = [uri for uri in uris(plan) if short_name(uri) != "h2"]
    rows = validations(tmp_path)
    assert [row.hospitals for row in rows] == [3, 3]
    for row in rows:
        mean, _ = ward.expected(plan, others, model_of_round(tmp_path, 1))[row.label]
        assert row.mean == pytest.approx(mean, abs=EXACT)


# ---- with noise ----

NOISED = {"every": 2, "share": 0.5, "noise_multiplier": 1.0}


def test_with_noise_the_means_are_off_by_what_is_said_and_every_hospital_pays(tmp_path: Path) -> None:
    plan, ward = make_plan(4, rounds=4, noise=4.0, evaluation=NOISED), Measured()
    cap = Cap(epsilon=1.001 * (planned_epsilon(plan, 4) or math.inf), delta=plan.privacy.delta)
    done = play(tmp_path, plan, ward, cap)
    assert done.stopped == {}, "the cap is exactly what the plan was said to cost, evaluations included"
    rows = validations(tmp_path)
    assert [row.round for row in rows] == [2, 2, 4, 4]
    for row in rows:
        mean, count = ward.expected(plan, uris(plan), model_of_round(tmp_path, row.model_round))[row.label]
        assert row.patients == pytest.approx(count, abs=6 * 2 * 2.0)
        assert row.patients != pytest.approx(count, abs=1e-6), "noise is on the count too"
        if row.mean is not None:
            assert abs(row.mean - mean) < 6 * row.standard_error
            assert abs(row.mean - mean) > 1e-6
    for hospital in ("h0", "h1", "h2", "h3"):
        events = Ledger.open_readonly(tmp_path / hospital / "state" / "ledger.db").events()
        charged = [event.entry for event in events if isinstance(event.entry, Charge)]
        assert [(one.round, one.evaluation is not None) for one in charged] == [(1, False), (2, True), (3, False), (4, True)]


def test_epsilon_of_the_rounds_holds_the_evaluations(tmp_path: Path) -> None:
    plan = make_plan(3, rounds=2, noise=4.0, evaluation=NOISED)
    done = play(tmp_path, plan, Measured())
    assert [row.epsilon for row in done.rounds] == [pytest.approx(planned_epsilon(plan, number)) for number in (0, 1, 2)]
    assert done.rounds[-1].epsilon > planned_epsilon(make_plan(3, rounds=2, noise=4.0), 2)


def test_nothing_of_a_patient_is_left_on_the_disk_or_in_a_log(tmp_path: Path) -> None:
    """Sums without noise, counts and keys of validation patients are in no file that a hospital or the coordinator wrote."""
    plan, ward = make_plan(3, rounds=2, noise=4.0, evaluation=NOISED), Measured()
    play(tmp_path, plan, ward)
    hospitals = [ward.patients(uri, plan) for uri in uris(plan)]
    score, normals = ward.scorer(plan, model_of_round(tmp_path, 1), 1), NormalStream(os.urandom)
    silent = make_plan(3, rounds=2, evaluation=EVERY_SECOND)
    clear = [value for one in hospitals for value in noised_sums(silent, parts(silent, one).validation, score, normals)]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [patient.key for one in hospitals for patient in one if patient.key.encode() in written]
    assert not [value for value in clear if value and value % 0.5 and repr(value).encode() in written]
    assert not [value for value in clear if value % 0.5 for code in "<>" if struct.pack(f"{code}d", value) in written]
