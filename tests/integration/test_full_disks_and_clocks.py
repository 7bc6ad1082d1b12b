"""Processes whose disk is full, and a node whose clock is wrong: a sentence for the people there, and nothing released.

A full disk is a small file system of its own (tmpfs), filled to the last byte; mounting it needs root.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from formula_node import signs_of
from test_many_hospitals import LENGTH, Crowd, coordinator_command, wait_for_file

from coordinator.store import StoreError, open_store
from hospital_node.ledger import Ledger
from hospital_node.ledger_schema import Charge
from hospital_node.progress import read_progress
from hospital_node.state import StateFolder
from study import sites
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

HERE = Path(__file__).parent
WITHIN_S = 300
HOURS = 3600


@contextmanager
def small_disk(folder, size):
    """A file system of so many bytes at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(folder):
    """Use up the disk of `folder`; returns the file that takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def start_nodes(family, crowd, roles, address, name, clock_s=0.0):
    for role in roles:
        sites.write_node(crowd.world, role, address)
    configs = [str(crowd.world.config(role)) for role in roles]
    command = [sys.executable, str(HERE / "hasty_nodes.py"), str(crowd.folder / "start.safetensors"), *configs]
    with _environment(SECAGG_TEST_CLOCK_S=str(clock_s)):
        return family.start(name, command, crowd.folder / f"{name}.log")


@contextmanager
def _environment(**values):
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def until(crowd, what, *children):
    until_s = time.monotonic() + WITHIN_S
    while True:
        said = "\n".join(child.last_lines(12) for child in children)
        assert time.monotonic() < until_s, said
        with suppress(StoreError), open_store(crowd.world.store) as store:
            if what(store):
                return
        time.sleep(0.05)


def charged(crowd, role):
    events = Ledger.open_readonly(StateFolder(crowd.world.state(role)).ledger).events()
    return [event.entry.round for event in events if isinstance(event.entry, Charge)]


def check_opened(crowd, survivors):
    """The one round opened with these, and its model is the mean of their updates."""
    with open_store(crowd.world.store) as store:
        (row,) = store.rounds()
        digest = store.models()[-1].digest
    assert (row.state, {uri.rsplit("/", 1)[-1] for uri in row.survivors}) == ("opened", set(survivors))
    model = np.fromfile(crowd.world.coordinator / "state" / "models" / f"{digest}.f32", dtype="<f4")
    assert np.abs(model - np.mean([signs_of(uri, 1, LENGTH) for uri in row.survivors], axis=0)).max() < 1e-5


def test_a_coordinator_with_a_full_disk_goes_on_once_there_is_space(tmp_path):
    crowd = Crowd(tmp_path / "study", 4)
    state = crowd.world.coordinator / "state"
    with small_disk(state, 12 << 20), Family(1) as family:
        coordinator = family.start("coordinator", coordinator_command(crowd), tmp_path / "coordinator.log")
        address = wait_for_file(state / "address")
        ballast = fill(state)
        nodes = start_nodes(family, crowd, crowd.world.cast.hospitals, address, "nodes")
        until_s = time.monotonic() + WITHIN_S
        while "could not be written" not in (said := coordinator.log.read_text()) and "could not be stored" not in said:
            assert time.monotonic() < until_s, said
            time.sleep(0.1)
        assert coordinator.running
        assert [charged(crowd, role) for role in crowd.world.cast.hospitals] == [[]] * 4
        ballast.unlink()
        assert coordinator.process.wait(WITHIN_S) == 0, nodes.last_lines(10)
        check_opened(crowd, ["h000", "h001", "h002", "h003"])
    assert [charged(crowd, role) for role in crowd.world.cast.hospitals] == [[1]] * 4


def test_a_node_with_a_full_disk_releases_nothing_says_why_and_comes_back(tmp_path):
    crowd = Crowd(tmp_path / "study", 5)
    first, *others = crowd.world.cast.hospitals
    state = crowd.world.state(first)
    kept = {path.name: path.read_bytes() for path in state.iterdir() if path.is_file()}
    with small_disk(state, 1 << 20), Family(1) as family:
        state.chmod(0o700)
        for name, content in kept.items():
            (state / name).write_bytes(content)
            (state / name).chmod(0o600)
        coordinator = family.start("coordinator", coordinator_command(crowd), tmp_path / "coordinator.log")
        address = wait_for_file(crowd.world.coordinator / "state" / "address")
        full = start_nodes(family, crowd, [first], address, "full")
        until(crowd, lambda store: any(row.state == "ready" for row in store.members()), coordinator, full)
        fill(state)
        nodes = start_nodes(family, crowd, others, address, "nodes")
        assert coordinator.process.wait(WITHIN_S) == 0, nodes.last_lines(10) + full.last_lines(10)
        check_opened(crowd, ["h001", "h002", "h003", "h004"])
        said = full.log.read_text()
        assert "Traceback" not in said
        assert "space" in said
        assert charged(crowd, first) == []


@pytest.mark.parametrize(("wrong_s", "survivors"), [(-2 * HOURS, 3), (2 * HOURS, 4)])
def test_a_node_whose_clock_is_behind_its_ledger_stops_itself_with_a_sentence(tmp_path, wrong_s, survivors):
    crowd = Crowd(tmp_path / "study", 4)
    first, *others = crowd.world.cast.hospitals
    with Family(1) as family:
        coordinator = family.start("coordinator", coordinator_command(crowd), tmp_path / "coordinator.log")
        address = wait_for_file(crowd.world.coordinator / "state" / "address")
        wrong = start_nodes(family, crowd, [first], address, "wrong", clock_s=wrong_s)
        nodes = start_nodes(family, crowd, others, address, "nodes")
        assert coordinator.process.wait(WITHIN_S) == 0, nodes.last_lines(10) + wrong.last_lines(10)
        said = wrong.log.read_text()
    everybody = [role.name for role in crowd.world.cast.hospitals]
    check_opened(crowd, everybody[4 - survivors :])
    assert charged(crowd, first) == ([] if wrong_s < 0 else [1])
    assert ("clock-behind" in said) == (wrong_s < 0)
    assert "Traceback" not in said
    shown = read_progress(StateFolder(crowd.world.state(first)).progress)
    assert shown is not None
