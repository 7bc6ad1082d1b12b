"""One round of many hospitals on one machine: each with its own certificate, ledger and TLS connection, and one exact sum.

Sixteen by default; SECAGG_HOSPITALS=64 (or 16,64) chooses others. Run with -s to see seconds and memory.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from formula_node import signs_of

from coordinator.store import open_store
from hospital_node.ledger import Cap, Ledger
from hospital_node.state import StateFolder
from proto.layout import Layout, Vector
from proto.modelfile import Model, encode_model
from proto.plan import Plan
from secagg import Quantizer, RoundParams
from study import presets, sites
from study.cast import Cast, Role
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

SIZES = [int(size) for size in os.environ.get("SECAGG_HOSPITALS", "16").split(",")]
LENGTH = 100_000
MANY_NODES = Path(__file__).parent / "many_nodes.py"
FIELDS = {
    "rounds": 1,
    "network": {"architecture": "UNet", "channels": [4, 8], "labels": ["nodule"], "norm": "instance"},
    "preparation": {"modality": "CT", "spacing_xyz_mm": [8.0, 8.0, 8.0], "patch_zyx": [16, 16, 16]},
    "training": {"local_steps": 1},
    "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 2, "delta": 1e-3},
    "masking": {"lanes": 3, "update_clip": 1.0},
    "timing": {"training_deadline_s": 120.0, "phase_deadline_s": 120.0, "lost_after_s": 120.0},
}


@dataclass
class Crowd:
    """Folders of one study with `size` hospitals."""

    folder: Path
    size: int
    fields: dict[str, object] = field(default_factory=lambda: FIELDS)

    def __post_init__(self) -> None:
        roles = tuple(Role(f"h{place:03d}", self.folder / f"h{place:03d}" / "data", 4) for place in range(self.size))
        public = Role("public", self.folder / "public" / "data", 2)
        self.world = sites.Sites(self.folder, Cast("crowd", "none", roles, public, ""))
        for role in self.world.roles:
            role.data.mkdir(parents=True)
        sites.certify(self.world)
        admitted = presets.admitted(self.world.cast, self.world.uri)
        self.plan: Plan = presets.complete(
            self.fields, study="crowd", hospitals=admitted, evaluators=[], start_digest=None, rounds=None
        )
        layout = Layout((("w", (LENGTH,)),))
        (self.folder / "start.safetensors").write_bytes(encode_model(Model(layout, np.zeros(LENGTH, np.float32))))
        sites.write_coordinator(self.world, self.plan, self.folder / "start.safetensors", 0.0)
        now = datetime.now(UTC)
        for role in roles:
            state = StateFolder(self.world.state(role))
            state.create()
            public_data = {"accept_no_guarantee": True, "data_is_public": True}
            ledger = Ledger.create(state.ledger, self.world.uri(role), now)
            ledger.approve(self.plan, "Dr Test", "integration test", Cap(epsilon=1.0, delta=1e-3), now, **public_data)

    def expected(self) -> Vector:
        """The mean of signs: sums of whole half-steps, divided as README, step 6.4 says."""
        uris = [hospital.uri for hospital in self.plan.hospitals]
        params = RoundParams(bytes(16), tuple(uris), self.plan.threshold_of(self.size), LENGTH, Quantizer(1.0, 3))
        total = np.sum([signs_of(uri, 1, LENGTH).astype(np.float64) for uri in uris], axis=0)
        offset = params.offset(uris[0])  # the same for all: weights are equal
        return (total * offset * 1.0 * (self.size / (params.half_steps * self.size))).astype(np.float32)

    def opened(self) -> Vector:
        with open_store(self.world.store) as reader:
            digest = next(row.digest for row in reader.models() if row.round == 1)
        return np.fromfile(self.world.coordinator / "state" / "models" / f"{digest}.f32", dtype="<f4")


@pytest.mark.parametrize("size", SIZES)
def test_a_round_of_many_hospitals_opens_the_exact_sum(tmp_path: Path, size: int) -> None:
    crowd = Crowd(tmp_path / "study", size)
    with Family(1) as family:
        coordinator = family.start("coordinator", coordinator_command(crowd), tmp_path / "coordinator.log")
        address = wait_for_file(crowd.world.coordinator / "state" / "address")
        configs = []
        for role in crowd.world.cast.hospitals:
            sites.write_node(crowd.world, role, address)
            configs.append(str(crowd.world.config(role)))
        began_s = time.monotonic()
        start = str(tmp_path / "study" / "start.safetensors")
        nodes = family.start("nodes", [sys.executable, str(MANY_NODES), start, *configs], tmp_path / "nodes.log")
        peak = 0
        while nodes.running:
            peak = max(peak, peak_mib(coordinator.process.pid))
            assert time.monotonic() - began_s < 1200, nodes.last_lines(5) + coordinator.last_lines(20)
            time.sleep(0.1)
        took_s = time.monotonic() - began_s
        assert nodes.process.returncode == 0, nodes.last_lines(20)
        used = json.loads(nodes.last_lines(1))
        assert coordinator.process.wait(180) == 0
    print(f"\n{size} hospitals, {LENGTH} values: {took_s:.1f} s; nodes {used}; coordinator {peak} MiB")
    with open_store(crowd.world.store) as reader:
        (row,) = reader.rounds()
        assert (row.state, len(row.survivors), row.dropped) == ("opened", size, {})
    assert np.array_equal(crowd.opened(), crowd.expected())
    for role in crowd.world.cast.hospitals:
        events = Ledger.open_readonly(StateFolder(crowd.world.state(role)).ledger).events()
        assert [event.kind for event in events] == ["created", "approved", "charge", "verified"]


def coordinator_command(crowd: Crowd) -> list[str]:
    script = Path(sys.executable).parent / "secagg-coordinator"
    return [str(script), "run", "--until-finished", "--config", str(crowd.world.coordinator_config)]


def wait_for_file(path: Path) -> str:
    until = time.monotonic() + 180
    while not path.is_file():
        assert time.monotonic() < until, f"{path} was never written"
        time.sleep(0.05)
    return path.read_text().strip()


def peak_mib(pid: int) -> int:
    """Largest resident memory so far; 0 once the process is gone."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except FileNotFoundError:
        return 0
    return int(found[1]) // 1024 if found else 0
