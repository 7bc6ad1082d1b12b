"""One cell of every method on real volumes: the same patients, start and draws, so that only the method differs."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from hospital_node.work import Interrupted
from study import cast
from study.bench import segmentation
from study.bench.calibrate import noised
from study.bench.cell import complete_plan, planned_epsilon, prepare_cell, run_cell, task_of, uri_of
from study.bench.cells import Cell, Data, DataKind, Method, Ordinary, Partition
from study.bench.readings import known
from study.bench.task import StudyError

PLAN = {
    "rounds": 2,
    "network": {"architecture": "UNet", "channels": [4, 8], "labels": ["anterior", "posterior"], "norm": "instance"},
    "preparation": {"modality": "MR", "spacing_xyz_mm": [3.0, 3.0, 3.0], "patch_zyx": [8, 8, 8]},
    "training": {"local_steps": 2, "patches_per_patient": 1, "learning_rate": 0.01},
    "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 16},
    "masking": {"lanes": 3, "update_clip": 0.25},
}


def cell_of(method, folder="", epsilon=None, **changes):
    fields = {
        "study": "trial",
        "task": "segmentation",
        "method": method,
        "seed": 5,
        "data": Data(folder=str(folder)),
        "partition": Partition(),
        "start": "random",
        "ordinary": Ordinary(steps=10, batch=1),
        "plan": PLAN,
        "settings": {},
        "epsilon": epsilon,
    }
    return Cell.model_validate(fields | changes)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One cache of prepared volumes for all cells of this file."""
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module")
def volumes(shared_data):
    return shared_data / "msd-hippocampus"


@pytest.mark.data
def test_masks_change_the_mean_by_rounding_alone(workspace, volumes) -> None:
    seen = []
    go = threading.Event()
    plain = run_cell(cell_of("plain", volumes), workspace, lambda _: None, go)
    masked = run_cell(cell_of("masked", volumes), workspace, seen.append, go)
    assert plain.hospitals == masked.hospitals == {"site-a": 53, "site-b": 35, "site-c": 27, "site-d": 16}
    assert [row.round for row in seen] == [0, 1, 2]
    assert [row.round for row in plain.rounds] == [0, 1, 2]
    assert plain.rounds[0].scores == masked.rounds[0].scores  # the same start
    for label, values in plain.rounds[-1].scores.items():
        assert np.allclose(values, masked.rounds[-1].scores[label], atol=0.02), label
    assert plain.epsilon is None
    assert masked.epsilon is None
    assert masked.rounds[1].upload_bytes != plain.rounds[1].upload_bytes
    assert not list((workspace / "cells").iterdir())  # ledgers and keys of a finished cell are gone


@pytest.mark.data
def test_noise_is_charged_as_planned(workspace, volumes) -> None:
    result = run_cell(cell_of("masked", volumes, epsilon=6.0), workspace, lambda _: None, threading.Event())
    assert 5.5 < result.epsilon <= 6.0
    assert result.readings.at_default == result.epsilon  # the template's delta is the product's
    assert result.readings == known(cell_of("masked", volumes, epsilon=6.0), result.model_copy(update={"readings": None}))
    assert result.noise_multiplier > 0
    assert result.rounds[0].epsilon in {0.0, None}
    assert result.rounds[-1].epsilon == pytest.approx(result.epsilon)


@pytest.mark.data
@pytest.mark.parametrize("method", ["pooled", "local"])
def test_ordinary_training_on_the_same_splits(method, workspace, volumes) -> None:
    result = run_cell(cell_of(method, volumes), workspace, lambda _: None, threading.Event())
    assert [row.round for row in result.rounds] == [0, 2]
    assert len(result.rounds[-1].scores["anterior"]) == 30
    assert 0 <= result.score <= 1
    assert result.epsilon is None


@pytest.mark.data
def test_test_patients_are_dealt_to_nobody(workspace, volumes) -> None:
    setting = prepare_cell(cell_of("plain", volumes), workspace / "cache", threading.Event())
    dealt = {unit.name for units in setting.hospitals.values() for unit in units}
    assert len(dealt) == 131
    assert not dealt & {unit.name for unit in setting.test}
    assert setting.plan.start_digest is not None


@pytest.mark.data
def test_a_stop_ends_a_cell_before_it_pays(workspace, volumes) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Interrupted):
        run_cell(cell_of("plain", volumes), workspace, lambda _: None, stopped)


def test_random_starts_follow_the_seed(tmp_path) -> None:
    def start(seed):
        cell = cell_of("plain", seed=seed)
        return segmentation.TASK.start(cell, complete_plan(cell, {"a": 9, "b": 9, "c": 9}), tmp_path)

    assert np.array_equal(start(1), start(1))
    assert not np.array_equal(start(1), start(2))


def test_a_start_of_another_network_is_refused(tmp_path) -> None:
    path = tmp_path / "start.safetensors"
    path.write_bytes(b"no model")
    cell = cell_of("plain", start=str(path))
    with pytest.raises(StudyError, match="start"):
        segmentation.TASK.start(cell, complete_plan(cell, {"a": 9, "b": 9, "c": 9}), tmp_path)


def test_weights_follow_the_declared_sizes_where_the_study_says_so() -> None:
    sizes = {"a": 9, "b": 20, "c": 40}
    plan = complete_plan(cell_of("plain", partition=Partition(weights="patients")), sizes)
    assert {entry.uri: entry.weight for entry in plan.hospitals} == {uri_of("trial", name): n for name, n in sizes.items()}
    assert {entry.weight for entry in complete_plan(cell_of("plain"), sizes).hospitals} == {1}


def test_planned_epsilon_is_none_without_noise_and_grows_with_rounds() -> None:
    sizes = {"a": 9, "b": 9, "c": 9}
    assert planned_epsilon(complete_plan(cell_of("plain"), sizes), 3) is None
    cell = cell_of("plain", epsilon=2.0)
    noisy = noised(cell, complete_plan(cell, sizes))
    assert planned_epsilon(noisy, 0) == 0
    assert 0 < planned_epsilon(noisy, 1) < planned_epsilon(noisy, 2) <= 2.0


def test_private_patients_need_noise(workspace, shared_data, tmp_path) -> None:
    data = Data(folder=str(shared_data / "msd-hippocampus"), kind=DataKind.PRIVATE, ledger=str(tmp_path))
    cell = cell_of("masked", data=data, epsilon=math.inf)
    with pytest.raises(StudyError, match="private"):
        run_cell(cell, workspace, lambda _: None, threading.Event())


@pytest.mark.parametrize("name", ["no_such_module:TASK", "math:TASK", "math"])
def test_an_unknown_task_is_named(name) -> None:
    with pytest.raises(StudyError, match=name.split(":")[0]):
        task_of(name)


def test_synthetic_data_is_said_aloud() -> None:
    with pytest.raises(StudyError, match="synthetic"):
        segmentation.TASK.patients(cell_of("plain"), Path("unused"), lambda *_: None)


def test_a_folder_that_is_not_there_is_named_with_where_it_was_sought(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=f"no folder scans below {tmp_path}, where the command was typed: correct the path"):
        segmentation.TASK.patients(cell_of("plain", "scans"), Path("unused"), lambda *_: None)


def test_the_people_of_every_synthetic_hospital_are_people_of_their_own(tmp_path, monkeypatch) -> None:
    """Each hospital numbers them from 0; every patient is dealt once, under one name."""
    monkeypatch.setattr(cast, "SYNTHETIC_PATIENTS", 3)
    monkeypatch.setattr(cast, "SYNTHETIC_TEST_PATIENTS", 2)
    ct = {"modality": "CT", "spacing_xyz_mm": [8, 8, 8], "window_hu": [-1000, 400], "patch_zyx": [8, 8, 8]}
    network = {"architecture": "UNet", "channels": [4, 8], "labels": ["nodule"], "norm": "instance"}
    plan = PLAN | {"preparation": ct, "network": network}
    cell = cell_of("plain", data=Data(kind=DataKind.SYNTHETIC), plan=plan)
    setting = prepare_cell(cell, tmp_path / "cache", threading.Event())
    assert setting.sizes == {"lakeside": 3, "nordklinik": 3, "riverside": 3, "st-anna": 3}
    units = [unit for units in setting.hospitals.values() for unit in units]
    assert {unit.name for unit in units} == {unit.patient.key for unit in units}
    assert len({unit.name for unit in units} | {unit.name for unit in setting.test}) == 14
    assert all(unit.name.startswith(f"{unit.site}/") for unit in units)


def test_methods_have_ids_of_their_own() -> None:
    assert len({cell_of(method).id for method in Method}) == len(Method)
