"""Processes and mutual TLS: the coordinator is killed (SIGKILL) once in every phase, and the model is the undisturbed one."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_many_hospitals import Crowd, wait_for_file

from coordinator.store import open_store
from hospital_node.ledger import Cap, Ledger
from hospital_node.state import StateFolder
from study import sites
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

HERE = Path(__file__).parent
PHASES = ("train", "advertise", "share", "mask", "confirm", "reveal", "opening")
WITHIN_S = 300


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def forget(crowd):
    """Coordinator and hospitals as before the first round; certificates and plan stay."""
    shutil.rmtree(crowd.world.coordinator / "state", ignore_errors=True)
    now = datetime.now(UTC)
    for role in crowd.world.cast.hospitals:
        state = StateFolder(crowd.world.state(role))
        shutil.rmtree(state.path)
        state.create()
        ledger = Ledger.create(state.ledger, crowd.world.uri(role), now)
        public = {"accept_no_guarantee": True, "data_is_public": True}
        ledger.approve(crowd.plan, "Dr Test", "integration test", Cap(epsilon=1.0, delta=1e-3), now, **public)


def play(crowd, folder, phases):
    """One run; returns the digests of its models and how often the coordinator was started."""
    folder.mkdir()
    config, address = crowd.world.coordinator_config, crowd.world.coordinator / "state" / "address"
    command = [sys.executable, str(HERE / "killed_coordinator.py"), str(config), str(folder), *phases]
    starts = 1
    with Family(1) as family:
        coordinator = family.start("coordinator", command, folder / "coordinator.log")
        wait_for_file(address)  # it dies for the first time once a hospital is ready
        configs = []
        for role in crowd.world.cast.hospitals:
            sites.write_node(crowd.world, role, crowd.address)
            configs.append(str(crowd.world.config(role)))
        start = str(crowd.folder / "start.safetensors")
        nodes = family.start("nodes", [sys.executable, str(HERE / "seeded_nodes.py"), start, *configs], folder / "nodes.log")
        until_s = time.monotonic() + WITHIN_S
        while coordinator.running or coordinator.process.returncode == -signal.SIGKILL:
            assert time.monotonic() < until_s, coordinator.last_lines(30) + nodes.last_lines(10)
            if not coordinator.running:
                family.children.remove(coordinator)
                coordinator = family.start("coordinator", command, folder / "coordinator.log")
                starts += 1
            time.sleep(0.02)
        assert coordinator.process.returncode == 0, coordinator.last_lines(20)
        assert nodes.process.wait(120) == 0, nodes.last_lines(20)
    with open_store(crowd.world.store) as store:
        assert [(row.state, len(row.survivors), row.dropped) for row in store.rounds()] == [("opened", 4, {})]
        return [model.digest for model in store.models()], starts


def test_a_coordinator_killed_in_every_phase_opens_the_same_model(tmp_path):
    crowd = Crowd(tmp_path / "study", 4)
    crowd.address = f"127.0.0.1:{free_port()}"
    config = crowd.world.coordinator_config
    config.write_text(config.read_text().replace("127.0.0.1:0", crowd.address))
    undisturbed, starts = play(crowd, tmp_path / "undisturbed", ())
    assert starts == 1
    forget(crowd)
    killed, starts = play(crowd, tmp_path / "killed", PHASES)
    assert starts == 1 + len(PHASES)
    assert killed == undisturbed
    for role in crowd.world.cast.hospitals:
        events = Ledger.open_readonly(StateFolder(crowd.world.state(role)).ledger).events()
        assert [event.kind for event in events] == ["created", "approved", "charge", "verified"]
