"""Buffered rounds among real processes over mutual TLS: six hospitals of uneven speed, and a coordinator that is killed twice.

Who is how fast is no matter of the clock: a training ends when the test lets it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from formula_node import update_of
from killed_coordinator import __file__ as KILLED
from test_killed_coordinator import free_port
from test_many_hospitals import FIELDS, LENGTH, Crowd, wait_for_file

from coordinator.replay import replay
from coordinator.store import StoreError, open_store
from hospital_node.ledger import Charge, Ledger
from hospital_node.state import StateFolder
from proto.buffering import FACTOR_ONE
from study import sites
from study.processes import Child, Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

FORMULA_NODE = Path(__file__).parent / "formula_node.py"
FAST, SLOW = ("h000", "h001", "h002"), ("h003", "h004", "h005")
PLAN = FIELDS | {"rounds": 4, "buffer": {"updates": 3, "max_staleness": 4}}
WITHIN_S = 300


class Uneven:
    """The processes of one run."""

    def __init__(self, folder: Path, family: Family) -> None:
        self.folder, self.family = folder, family
        self.crowd = Crowd(folder / "study", 6, PLAN)
        self.config = self.crowd.world.coordinator_config
        address = f"127.0.0.1:{free_port()}"
        self.config.write_text(self.config.read_text().replace("127.0.0.1:0", address))
        self.starts = 0
        self.coordinator = self.start_coordinator()
        wait_for_file(self.crowd.world.coordinator / "state" / "address")
        self.nodes = [self.start_node(role.name, role, address) for role in self.crowd.world.cast.hospitals]

    def start_coordinator(self) -> Child:
        self.starts += 1
        command = [sys.executable, KILLED, str(self.config), str(self.folder), "confirm"]
        return self.family.start("coordinator", command, self.folder / "coordinator.log")

    def start_node(self, name: str, role, address: str) -> Child:
        sites.write_node(self.crowd.world, role, address)
        (self.folder / name).mkdir()
        start = str(self.crowd.folder / "start.safetensors")
        command = [sys.executable, str(FORMULA_NODE), str(self.crowd.world.config(role)), start, str(self.folder / name)]
        return self.family.start(name, command, self.folder / f"{name}.log")

    def let(self, names, *rounds: int) -> None:
        """Let the trainings that these hospitals begin in these rounds end."""
        for name in names:
            for number in rounds:
                (self.folder / name / str(number)).touch()

    def restart(self) -> None:
        self.family.children.remove(self.coordinator)
        self.coordinator = self.start_coordinator()

    def kill(self) -> None:
        self.coordinator.process.send_signal(signal.SIGKILL)
        self.coordinator.process.wait()
        self.restart()

    def until_opened(self, count: int) -> None:
        self.until(lambda: self.opened() >= count)

    def until(self, reached: Callable[[], bool]) -> None:
        """Start the coordinator again wherever it dies."""
        until_s = time.monotonic() + WITHIN_S
        while not reached():
            ends = "\n".join(child.last_lines(8) for child in (self.coordinator, *self.nodes))
            assert time.monotonic() < until_s, ends
            if self.coordinator.process.poll() == -signal.SIGKILL:
                self.restart()
            time.sleep(0.05)

    def opened(self) -> int:
        with suppress(StoreError), open_store(self.crowd.world.store) as store:
            return sum(row.state == "opened" for row in store.rounds())
        return 0

    def model(self, number: int) -> np.ndarray:
        with open_store(self.crowd.world.store) as store:
            digest = next(row.digest for row in store.models() if row.round == number)
        return np.fromfile(self.crowd.world.coordinator / "state" / "models" / f"{digest}.f32", dtype="<f4")

    def mean(self, names, number: int) -> np.ndarray:
        return np.mean([update_of(self.uri(name), number, LENGTH) for name in names], axis=0, dtype=np.float64)

    def uri(self, name: str) -> str:
        return f"secagg://crowd/hospital/{name}"

    def trained(self, name: str) -> list[int]:
        """Rounds in which the hospital began a training, as its own log says."""
        lines = [line for line in (self.folder / f"{name}.log").read_text().splitlines() if "training begins" in line]
        return [int(re.search(r"round=(\d+)", line)[1]) for line in lines]

    def charged(self, name: str) -> list[int]:
        role = next(role for role in self.crowd.world.cast.hospitals if role.name == name)
        events = Ledger.open_readonly(StateFolder(self.crowd.world.state(role)).ledger).events()
        return [event.entry.round for event in events if isinstance(event.entry, Charge)]


def test_nobody_waits_for_the_slow_and_what_they_bring_counts_by_its_age(tmp_path):
    with Family(1) as family:
        run = Uneven(tmp_path, family)
        run.until(lambda: all(run.trained(name) == [1] for name in FAST + SLOW))  # or the slow begin where the fast are already
        run.let(FAST, 1, 2)
        run.until_opened(2)  # the coordinator died in the first of them, and its session went on
        run.until(lambda: all(run.trained(name) == [1, 2, 3] for name in FAST))
        run.kill()
        run.let(SLOW, 1)
        run.until_opened(3)
        run.let(FAST, 3)
        run.until_opened(4)
        assert run.coordinator.process.wait(180) == 0
        for child in run.nodes:
            assert child.process.wait(180) == 0, child.last_lines(20)
        assert run.starts == 3
        with open_store(run.crowd.world.store) as store:
            rows = store.rounds()
            assert [tuple(uri.rsplit("/", 1)[-1] for uri in row.survivors) for row in rows] == [FAST, FAST, SLOW, FAST]
            assert not [event.text for event in store.events() if event.kind == "let-go"]
        command = [str(Path(sys.executable).parent / "secagg-coordinator"), "export", "--config", str(run.config)]
        subprocess.run([*command, str(tmp_path / "export")], check=True, timeout=180, capture_output=True)
        assert [one.round for one in replay(tmp_path / "export")] == [1, 2, 3, 4]
        factors = run.crowd.plan.buffer.factors
        for number, names, began in ((1, FAST, 1), (2, FAST, 2), (3, SLOW, 1), (4, FAST, 3)):
            step = run.model(number).astype(np.float64) - run.model(number - 1)
            expected = factors[number - began] / FACTOR_ONE * run.mean(names, began)
            assert np.abs(step - expected).max() < 1e-5, number
            assert np.abs(step - run.mean(names, began)).max() > 0.02 or began == number, "age counts"
        for name in FAST:
            assert run.trained(name) == [1, 2, 3], "a restart of the coordinator throws no training away"
            assert run.charged(name) == [1, 2, 4]
        for name in SLOW:
            assert (run.trained(name)[0], run.charged(name)) == (1, [3])
