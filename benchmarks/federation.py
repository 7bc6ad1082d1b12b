"""Folders of a federation whose parties are real processes over mutual TLS on this machine: shared by soak and rounds.

Everything is made through the functions that the installed commands call; nothing of a round is simulated.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coordinator.store import StoreReader, open_store
from hospital_node.cap import Cap
from proto.layout import Layout
from proto.modelfile import Model, encode_model
from proto.plan import Plan
from study import approvals, presets, sites
from study.cast import Cast, Role
from study.processes import Child, Family, ProcessFailed

SCRIPTS = Path(sys.executable).parent
ADDRESS_WITHIN_S = 120.0  # patience on a loaded machine
PATIENTS = 6
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Federation:
    """One study with `hospitals` hospitals; `fields` are the plan's without study, hospitals and evaluators."""

    folder: Path
    hospitals: int
    fields: dict[str, object]
    cap: Cap
    study: str = "bench"
    world: sites.Sites = field(init=False)
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        roles = tuple(Role(f"h{place:03}", self.folder / f"h{place:03}" / "data", PATIENTS) for place in range(self.hospitals))
        public = Role("public", self.folder / "public" / "data", 1)
        self.world = sites.Sites(self.folder, Cast(self.study, "none", roles, public, ""))
        for role in self.world.roles:
            role.data.mkdir(parents=True)
        sites.certify(self.world)
        admitted = presets.admitted(self.world.cast, self.world.uri)
        self.plan = presets.complete(
            self.fields, study=self.study, hospitals=admitted, evaluators=[], start_digest=None, rounds=None
        )

    def begin_from(self, model: Model, *, approved: bool = True) -> None:
        """Write the public start and the coordinator's files, and record every hospital's approval where it has a ledger."""
        start = self.folder / "start.safetensors"
        start.write_bytes(encode_model(model))
        sites.write_coordinator(self.world, self.plan, start, 0.0)
        unguarded = self.plan.privacy.no_guarantee
        for role in self.world.cast.hospitals if approved else ():
            state, uri = self.world.state(role), self.world.uri(role)
            approvals.approve(state, uri, self.plan, self.cap, "Dr Bench", "a benchmark", data_is_public=unguarded)

    @property
    def start(self) -> Path:
        """The public start."""
        return self.folder / "start.safetensors"

    def coordinator(self, family: Family) -> tuple[Child, str]:
        """Start the coordinator; the process and the address that it listens on."""
        command = [str(SCRIPTS / "secagg-coordinator"), "run", "--until-finished", "--config"]
        child = family.start("coordinator", [*command, str(self.world.coordinator_config)], self.folder / "coordinator.log")
        address = self.world.coordinator / "state" / "address"
        until_s = time.monotonic() + ADDRESS_WITHIN_S
        while not address.is_file():
            family.raise_if_any_failed()
            if time.monotonic() > until_s:
                raise ProcessFailed(f"the coordinator named no address: {child.last_lines()}")
            time.sleep(0.05)
        return child, address.read_text(encoding="utf-8").strip()

    def node(self, family: Family, role: Role, address: str, command: list[str] | None = None) -> Child:
        """Start one hospital's node, or `command` with its configuration after it."""
        sites.write_node(self.world, role, address)
        whole = [*(command or [str(SCRIPTS / "secagg-node"), "run", "--config"]), str(self.world.config(role))]
        return family.start(role.name, whole, self.world.home(role) / "node.log")

    def store(self) -> StoreReader:
        """The coordinator's store, for reading."""
        return open_store(self.world.store)


def zeros(length: int) -> Model:
    """A model of one tensor."""
    return Model(Layout((("w", (length,)),)), np.zeros(length, np.float32))


def resident_mib(process: int) -> float:
    """Resident memory of a process now; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * PAGE_MIB
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def peak_mib(process: int) -> float:
    """Largest resident memory of a process so far; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = [line for line in lines if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) / 1024 if found else 0.0


def cpu_s(process: int) -> float:
    """CPU seconds of a process and its threads so far; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def load_average() -> float:
    """Of the last minute: figures measured beside other work say so."""
    return os.getloadavg()[0]


def write_json(path: Path, content: object) -> None:
    """Keep raw figures beside a table."""
    path.write_text(json.dumps(content), encoding="utf-8")
