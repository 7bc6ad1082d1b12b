"""Noise on whole updates: clips, scales and composition against closed forms, and whose epsilon the report says it is."""

from __future__ import annotations

import csv
import math
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_world import result, row, written
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from test_bench_plain import LENGTH, START, Sums, plan_of, units, uri

from hospital_node.accounting import Mechanism, epsilon
from hospital_node.noise import NormalStream
from study.bench.cell import Setting
from study.bench.cells import Cell, DataKind, Method
from study.bench.charge import refuse_hopeless
from study.bench.draws import draws_for, seeded
from study.bench.figures import draw
from study.bench.groups import grouped
from study.bench.hospital_units import HospitalNoise, clipped, laplace, laplace_epsilon, noise_for, run_hospital_units
from study.bench.naming import cell_name, labels_of
from study.bench.report import write_report
from study.bench.task import StudyError
from study.results import StudyRow, open_results
from study.results_write import ResultsWriter, write_csv

DELTA, BOUND, ROUNDS = 1e-3, 0.5, 4
BOTH = [Method.LAPLACE, Method.HOSPITAL_LEVEL]
UPDATES = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e3, 1e3, width=32))
HEAD = """
study = "units"
task = "bench_world:TASK"
plan = "hippocampus"
seeds = [1]
[data]
kind = "synthetic"
[partition]
kind = "sites"
[set]
rounds = 3
"""
GRID = """
[[grid]]
method = ["laplace", "hospital-level", "plain"]
epsilon = 8
hospital_clip = 0.3
"privacy.delta" = 1e-3
"""
SCAFFOLD = '"aggregation.rule" = "scaffold"\n"training.optimizer" = "sgd"'
PRECISION = '"aggregation.weights" = "precision"\n"masking.lanes" = 2'


@given(update=UPDATES, bound=st.floats(1e-3, 1e3), order=st.sampled_from([1, 2]))
def test_no_update_is_longer_than_its_bound_and_a_short_one_stays(update: np.ndarray, bound: float, order: int) -> None:
    norm = np.linalg.norm(update.astype(np.float64), order)
    found = clipped(update, bound, order)
    assert np.linalg.norm(found, order) <= bound * (1 + 1e-12)
    if norm <= bound:
        assert np.array_equal(found, update)
    else:
        assert np.allclose(found * norm, update.astype(np.float64) * bound, rtol=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_no_number_counts_as_zero(value: float) -> None:
    assert not clipped(np.array([1.0, value], np.float32), BOUND, 1).any()


def test_laplace_values_are_of_that_distribution_and_scale() -> None:
    found = laplace(seeded("laplace"), 20_000, 0.7)
    assert stats.kstest(found, "laplace", args=(0, 0.7)).pvalue > 0.01
    assert stats.kstest(found, "laplace", args=(0, 0.75)).pvalue < 0.01, "the test would see a wrong scale"


@settings(max_examples=25, deadline=None)
@given(multiplier=st.floats(0.5, 20), delta=st.floats(1e-6, 1e-2))
def test_one_release_costs_what_the_closed_form_says(multiplier: float, delta: float) -> None:
    """delta(epsilon) = 1 - exp((epsilon - 1 / b) / 2) below 1 / b (Balle and Wang 2018), solved for epsilon."""
    exact = max(0.0, 1 / multiplier + 2 * math.log1p(-delta))
    assert exact <= laplace_epsilon(multiplier, 1, delta) <= exact + 1e-4


@settings(max_examples=15, deadline=None)
@given(multiplier=st.floats(1, 20), rounds=st.integers(2, 30))
def test_rounds_compose_no_worse_than_by_adding_and_never_below_one_of_them(multiplier: float, rounds: int) -> None:
    found = laplace_epsilon(multiplier, rounds, DELTA)
    assert laplace_epsilon(multiplier, rounds - 1, DELTA) <= found <= rounds / multiplier
    gaussian = HospitalNoise(Method.HOSPITAL_LEVEL, multiplier)
    assert gaussian.epsilon(rounds, DELTA) == epsilon([Mechanism(multiplier, 1.0, rounds)], DELTA)
    assert gaussian.epsilon(0, DELTA) == 0


def test_many_small_laplace_losses_cost_what_their_variance_says() -> None:
    """By the central limit their sum is the loss of one Gaussian mechanism; within a few percent."""
    b, k = 10.0, 100
    mean = math.exp(-1 / b) - 1 + 1 / b  # of one loss: the divergence of two Laplace distributions 1 / b scales apart
    mu = math.sqrt(2 * k * mean)  # the Gaussian mechanism whose divergence is that of all k

    def delta_of(at: float) -> float:
        return float(stats.norm.cdf(mu / 2 - at / mu) - math.exp(at) * stats.norm.cdf(-mu / 2 - at / mu))

    found = laplace_epsilon(b, k, DELTA)
    assert delta_of(0.95 * found) > DELTA > delta_of(1.05 * found)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_noise_is_the_least_that_keeps_to_the_target(method: Method, target: float) -> None:
    noise = noise_for(method, target, DELTA, ROUNDS)
    less = HospitalNoise(method, noise.multiplier - 0.001)
    assert noise.epsilon(ROUNDS, DELTA) <= target < less.epsilon(ROUNDS, DELTA)


def test_what_no_noise_reaches_is_a_sentence() -> None:
    with pytest.raises(StudyError, match=r"method laplace: no Laplace noise .*ask for a larger epsilon or fewer rounds"):
        noise_for(Method.LAPLACE, 1e-9, 1e-12, ROUNDS)


# ---- whole trainings ----


def setting_of(method: Method) -> Setting:
    plan = plan_of(weights=(1, 1, 1))
    cell = SimpleNamespace(method=method, epsilon=8.0, hospital_clip=BOUND, label="trial", seed=1)
    dealt = {uri(f"h{at}"): units(f"h{at}", 2 + at) for at in range(3)}
    return Setting(cell, Sums(), plan, START, dealt, units("t", 2), draws_for(DataKind.PUBLIC, 1))


@pytest.mark.parametrize("method", BOTH)
def test_rounds_are_clipped_updates_with_their_noise(method: Method) -> None:
    """By hand: the same draws, added where the method says, and one mean over the hospitals."""
    setting = setting_of(method)
    rows, noise, readings = run_hospital_units(setting, lambda _: None, threading.Event())
    model = START.astype(np.float64)
    for number in range(1, ROUNDS + 1):
        total = np.zeros(LENGTH)
        for party, held in setting.hospitals.items():
            update = (0.1 * number * (1 + int(party[-1])) - 0.01 * model.astype(np.float32) * len(held)).astype(np.float32)
            total += clipped(update, BOUND, 1 if method is Method.LAPLACE else 2)
            if method is Method.LAPLACE:
                total += laplace(seeded(f"1\n{party}/noise\n{number}"), LENGTH, noise.multiplier * BOUND)
        if method is Method.HOSPITAL_LEVEL:
            total += noise.multiplier * BOUND * NormalStream(seeded(f"1\nserver/noise\n{number}")).draw(LENGTH)
        model = model + total / 3
    assert rows[-1].scores["near"][0] == pytest.approx(model[0], abs=1e-5)
    assert [row.epsilon for row in rows] == [noise.epsilon(number, 1e-3) for number in range(ROUNDS + 1)]
    assert 7.9 < rows[-1].epsilon <= 8
    assert readings.at_default == noise.epsilon(ROUNDS, 1e-5) >= rows[-1].epsilon
    assert [row.upload_bytes for row in rows[1:]] == [3 * 4 * LENGTH] * ROUNDS


@pytest.mark.parametrize("method", BOTH)
def test_control_variates_are_refused(method: Method) -> None:
    setting = setting_of(method)
    plan = setting.plan.model_copy(update={"aggregation": setting.plan.aggregation.model_copy(update={"rule": "scaffold"})})
    changed = Setting(setting.cell, setting.task, plan, START, setting.hospitals, setting.test, setting.draws)
    with pytest.raises(StudyError, match="use another \\[aggregation\\]"):
        run_hospital_units(changed, lambda _: None, threading.Event())


# ---- study files and reports ----


def test_what_hides_one_patient_is_not_read(tmp_path: Path) -> None:
    grid = GRID + '"privacy.noise_mode" = "local"\n"masking.lanes" = [2, 3]\n'
    listed = [cell for cell in written(tmp_path, HEAD + grid).cells() if cell.method in BOTH]
    assert [cell.method for cell in listed] == BOTH
    assert {cell.plan["privacy"]["noise_multiplier"] for cell in listed} == {0.0}
    assert all("masking.lanes" not in cell.settings for cell in listed)
    (plain,) = (cell for cell in written(tmp_path, HEAD + GRID).cells() if cell.method is Method.PLAIN)
    assert plain.hospital_clip is None
    assert "hospital_clip" not in plain.settings


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("hospital_clip = 0.3\n", ""), "method laplace clips whole updates: say hospital_clip"),
        (("epsilon = 8\n", ""), "needs a finite epsilon"),
        (("epsilon = 8", "epsilon = inf"), "needs a finite epsilon"),
        (("epsilon = 8", "epsilon = 8\nparticipants = 3"), "leave out participants"),
        (("0.3", "0.0"), "hospital_clip"),
        (
            ("epsilon = 8", f"epsilon = 8\n{SCAFFOLD}"),
            r"\[\[grid\]\] 1, cell .*leave out aggregation.rule 'scaffold'",
        ),
        (("epsilon = 8", f"epsilon = 8\n{PRECISION}"), r"\[\[grid\]\] 1, cell .*leave out aggregation.weights 'precision'"),
    ],
)
def test_what_the_methods_need(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        written(tmp_path, HEAD + GRID.replace(*change))


def test_patients_whom_nothing_hides_are_never_private(tmp_path: Path) -> None:
    head = HEAD.replace('kind = "synthetic"', f'kind = "private"\nledger = "{tmp_path}"')
    (first, *_) = written(tmp_path, head + GRID).cells()
    with pytest.raises(StudyError, match="method 'laplace' trains without noise on patients"):
        refuse_hopeless([first])


def test_the_report_says_whose_epsilon_it_is(tmp_path: Path) -> None:
    listed = written(tmp_path, HEAD + GRID).cells()
    store(tmp_path / "out", listed)
    write_report(tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| epsilon | epsilon of |" in lines[0]
    found = [line.split(" | ")[-2] for line in lines[2:5]]
    assert found == ["a hospital (Laplace)", "a hospital (Gaussian)", "a patient (Gaussian)"]
    assert "no such figure can be compared with a patient's" in text


def test_no_name_and_no_table_leaves_open_whose_epsilon_it_is(tmp_path: Path) -> None:
    grid = GRID.replace("epsilon = 8", "epsilon = [4, 8]")
    listed = written(tmp_path, HEAD + grid).cells()
    store(tmp_path / "out", listed)
    with open_results(tmp_path / "out") as results:
        rows = results.cells()
    (picture, *_) = draw(grouped(rows), "Dice", tmp_path)
    labels = labels_of(listed)
    for cell in listed:
        units = cell.method in BOTH
        for name in (cell.label, labels[cell.id], cell_name(cell, ())):
            assert (name.split(" · ")[0] == f"{cell.method.value} (epsilon of a hospital)") is units
        assert f"{cell.method.value}{' (epsilon of a hospital)' if units else ''}, epsilon" in picture.finding
    write_csv(rows, tmp_path)
    for name in ("cells.csv", "rounds.csv"):
        with (tmp_path / name).open(encoding="utf-8") as handle:
            for line in csv.DictReader(handle):
                assert line["epsilon_of"].startswith("a patient" if line["method"] == "plain" else "a hospital"), name


def test_where_all_are_patients_no_column_says_so(tmp_path: Path) -> None:
    listed = [cell for cell in written(tmp_path, HEAD + GRID).cells() if cell.method is Method.PLAIN]
    store(tmp_path / "out", listed)
    write_report(tmp_path / "out")
    assert "epsilon of" not in (tmp_path / "out" / "report.md").read_text()


def store(out: Path, listed: list[Cell] | tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(StudyRow("units", "fake", "Dice", "Nobody is charged.", "text"), listed)
        for cell in listed:
            as_plain = cell.model_copy(update={"method": Method.PLAIN})
            rounds = [row(as_plain, number) for number in range(4)]
            writer.started(cell.id, 1.0)
            writer.finished(result(cell, rounds), 2.0)
