"""Processor or CUDA device: what is asked for is what is used, and the round is the same on either.

Tests on a device are run where there is one, and skipped by name elsewhere.
"""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from training_world import URI, people, plan, replayed

from hospital_node import device, network
from hospital_node.config import ConfigError, NodeConfig
from hospital_node.process_group import ProcessGroup
from hospital_node.train import train_round
from hospital_node.workshop import configured_device

DEVICES = torch.cuda.device_count()
ONE_DEVICE = pytest.mark.skipif(DEVICES < 1, reason=f"needs a CUDA device, this machine has {DEVICES}")
TWO_DEVICES = pytest.mark.skipif(DEVICES < 2, reason=f"needs two CUDA devices, this machine has {DEVICES}")
CUDA = torch.device("cuda", 0)
SGD = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 2}
WAIT_S = 300


@pytest.fixture
def devices(monkeypatch):
    """As if torch found so many devices."""

    def found(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return found


@pytest.mark.parametrize(
    ("count", "nccl", "local", "wanted"),
    [
        (0, True, 1, "gloo"),
        (1, True, 1, "cpu:gloo,cuda:nccl"),
        (2, True, 2, "cpu:gloo,cuda:nccl"),
        (1, True, 2, "gloo"),  # NCCL refuses two processes on one device
        (2, False, 2, "gloo"),
    ],
)
def test_sums_go_by_nccl_where_each_process_has_a_device_to_itself(devices, monkeypatch, count, nccl, local, wanted):
    devices(count)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert device.backend(device.chosen("cuda" if count else "cpu")) == wanted
    assert device.backend(device.chosen("cpu")) == "gloo"


def test_a_group_joins_with_the_backend_of_its_device(devices, monkeypatch):
    devices(2)
    joined, current = [], []
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, *_, **__: joined.append(backend))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    ProcessGroup()
    ProcessGroup(device=CUDA)
    assert joined == ["gloo", "cpu:gloo,cuda:nccl"]
    assert current == [CUDA]


def test_processes_of_a_machine_take_turns_at_its_devices(devices, monkeypatch):
    devices(2)
    places = []
    for index in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(index))
        places.append(device.chosen("cuda").index)
    assert places == [0, 1, 0, 1]


def test_a_device_that_is_not_there_is_refused_before_anything_begins(devices, tmp_path):
    devices(0)
    where = dict.fromkeys(("identity", "state", "data"), tmp_path)
    config = NodeConfig(coordinator="coordinator.example.org:8443", **where)
    assert configured_device(config) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device = 'cuda', but this torch .* finds no CUDA device: install torch .*or take"):
        configured_device(config.model_copy(update={"device": "cuda"}))


def rounds(where, **options):
    """One round with replayed chance."""
    one = plan(training=SGD, privacy={"noise_multiplier": 2.0, "clip_norm": 0.3})
    torch.manual_seed(3)
    base = network.vector_of(network.build(one.network))
    return train_round(one, URI, base, people(7), rand=replayed(b"first"), device=where, **options)


@pytest.mark.gpu
@ONE_DEVICE
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_round_on_a_device_is_that_of_the_processor(precision):
    one = plan(training={**SGD, "precision": precision}, privacy={"noise_multiplier": 2.0, "clip_norm": 0.3})
    torch.manual_seed(3)
    base = network.vector_of(network.build(one.network))
    there, here = (
        train_round(one, URI, base, people(7), rand=replayed(b"first"), device=where) for where in (CUDA, torch.device("cpu"))
    )
    assert there.history == here.history
    limit = 1e-3 if precision == "fp32" else 0.05
    assert np.linalg.norm(there.update - here.update) < limit * np.linalg.norm(here.update)


def _one_of_two(folder, index, name, pipe):
    os.environ.update(RANK=str(index), WORLD_SIZE="2", LOCAL_RANK=str(index), LOCAL_WORLD_SIZE="2")
    where = device.chosen(name)
    trained = rounds(where, ranks=ProcessGroup(f"file://{folder}/meeting", where))
    pipe.send((trained.update, trained.history, torch.distributed.get_backend_config()))
    pipe.close()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "name", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, TWO_DEVICES], id="two CUDA devices by NCCL")]
)
def test_two_processes_are_one_on_their_own_devices(tmp_path, name):
    """Spawned, because a forked process cannot use a device that its parent has used."""
    spawned = multiprocessing.get_context("spawn")
    pipes = [spawned.Pipe(duplex=False) for _ in range(2)]
    processes = [spawned.Process(target=_one_of_two, args=(tmp_path, index, name, pipes[index][1])) for index in range(2)]
    for process in processes:
        process.start()
    try:
        given = [pipe.recv() for pipe, _ in pipes if pipe.poll(WAIT_S)]
    finally:
        for process in processes:
            process.join(WAIT_S)
            process.kill()
    alone = rounds(device.chosen("cpu"))
    assert len(given) == 2
    for update, history, backends in given:
        assert history == alone.history
        assert update == pytest.approx(alone.update, abs=2e-6 if name == "cpu" else 1e-3)
        assert ("nccl" in str(backends)) == (name == "cuda")
