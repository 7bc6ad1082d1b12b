"""Processes of one hospital without privacy: each way does the work that it says it does, on tiny volumes."""

import numpy as np
import pytest
import torch

from hospital_node import network
from hospital_node.prepared import PreparedCase, PreparedPatient
from hospital_node.train import train_round
from proto.plan import Plan
from study.bench.asynchrony import Job, Way, train_together
from study.bench.task import StudyError

URI = "secagg://trial/hospital/a"
SIDE = 8


def plan_of(**changes):
    fields = {
        "study": "trial",
        "rounds": 2,
        "network": {"channels": (4, 4, 8), "labels": ("lesion",)},
        "preparation": {"modality": "MR", "spacing_xyz_mm": (1, 1, 1), "patch_zyx": (SIDE,) * 3},
        "training": {"local_steps": 2, "optimizer": "sgd", "learning_rate": 0.05},
        "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 1, "clip_norm": 10.0},
        "hospitals": [{"uri": f"secagg://trial/hospital/{name}", "declared_patients": 4} for name in "abc"],
    }
    return Plan.model_validate(fields | changes)


def people(count):
    rng = np.random.default_rng(1)
    found = []
    for at in range(count):
        label = (rng.random((SIDE,) * 3) < 0.3).astype(np.uint8)
        image = (label + 0.1 * rng.standard_normal(label.shape)).astype(np.float32)
        found.append(PreparedPatient(f"p{at}", (PreparedCase(image, label),)))
    return found


def job_in(folder, plan=None, count=2):
    plan = plan or plan_of()
    torch.manual_seed(3)
    start = network.vector_of(network.build(plan.network))
    return Job(plan, URI, start, people(4), seed=1, count=count, folder=folder)


def test_in_step_is_the_training_of_one_process(tmp_path):
    job = job_in(tmp_path)
    alone, in_step = (train_together(way, job).model for way in (Way.ALONE, Way.IN_STEP))
    assert in_step == pytest.approx(alone, abs=2e-6)
    assert np.abs(alone - job.start).max() > 1e-3


def test_averaged_is_the_mean_of_what_the_shares_give(tmp_path):
    job = job_in(tmp_path, plan_of(rounds=1))
    updates = []
    for index in range(2):
        plan, mine = job.share(index)
        assert (len(mine), plan.expected_batch(URI)) == (2, 2.0)
        updates.append(train_round(plan, URI, job.start, mine, round=1, rand=job.rand(1, index)).update)
    assert not np.array_equal(*updates)
    assert train_together(Way.AVERAGED, job).model == pytest.approx(job.start + np.mean(updates, axis=0), abs=1e-6)


def test_a_shared_model_takes_the_steps_of_every_process(tmp_path):
    """One process on it is the plain loop; two move it further than one of them does."""
    job = job_in(tmp_path, count=1)
    shared, alone = (train_together(way, job).model for way in (Way.SHARED, Way.ALONE))
    assert shared == pytest.approx(alone, abs=2e-6)
    both = train_together(Way.SHARED, job_in(tmp_path)).model
    assert np.linalg.norm(both - job.start) > 1.2 * np.linalg.norm(alone - job.start)


def test_a_plan_with_noise_is_refused_before_anything_starts(tmp_path):
    plan = plan_of(privacy={"noise_multiplier": 1.0, "inverse_sampling_rate": 2, "delta": 1e-3})
    with pytest.raises(StudyError, match="without noise"):
        train_together(Way.SHARED, job_in(tmp_path, plan))


def test_a_process_that_fails_is_said_and_nobody_waits(tmp_path, capfd):
    job = job_in(tmp_path, plan_of(training={"local_steps": 1, "parts": ("nowhere",)}))
    with pytest.raises(StudyError, match="averaged: a process of the hospital ended early"):
        train_together(Way.AVERAGED, job)
    assert "nowhere" in capfd.readouterr().err
