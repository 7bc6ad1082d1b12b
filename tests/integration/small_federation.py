"""A small federation of real processes over real TLS: four hospitals with four tiny synthetic patients each."""

import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from coordinator.store import StoreReader, open_store
from hospital_node.accounting import Mechanism, epsilon
from hospital_node.cap import Cap
from hospital_node.ledger import Ledger
from hospital_node.state import StateFolder
from proto.modelfile import read_model
from proto.plan import Plan
from study import presets, sites, synthetic
from study.cast import Cast, Role
from study.processes import Child, Family

HOSPITALS = ("north", "east", "south", "west")
PATIENTS = 4
STUDY = "small"
SCRIPTS = Path(sys.executable).parent
RECORDER = Path(__file__).parent / "recording_node.py"

FIELDS = {
    "rounds": 2,
    "network": {"architecture": "UNet", "channels": [4, 8], "labels": ["nodule"], "norm": "instance"},
    "preparation": {
        "modality": "CT",
        "spacing_xyz_mm": [8.0, 8.0, 8.0],
        "window_hu": [-1000.0, 400.0],
        "patch_zyx": [16, 16, 16],
    },
    "training": {"local_steps": 2, "patches_per_patient": 2},
    "privacy": {"noise_multiplier": 2.0, "inverse_sampling_rate": 2, "delta": 1e-3},
    "masking": {"lanes": 3, "update_clip": 0.5},
    "timing": {"training_deadline_s": 300.0, "phase_deadline_s": 60.0, "lost_after_s": 15.0},
}


@dataclass
class SmallFederation:
    """Folders and processes of one run; use inside `with Family(1) as family`."""

    folder: Path
    family: Family
    rounds: int = 2
    drill_pause_s: float = 0.0
    evaluator: bool = False
    masking: dict[str, object] = field(default_factory=dict)  # changes to the plan's
    timing: dict[str, object] = field(default_factory=dict)
    parts: dict[str, object] = field(default_factory=dict)  # further parts of the plan
    patients: dict[str, int] = field(default_factory=dict)  # that a hospital really has; every one declares PATIENTS
    world: sites.Sites = field(init=False)
    plan: Plan = field(init=False)
    nodes: dict[str, Child] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        roles = tuple(Role(name, self.folder / name / "data", PATIENTS) for name in HOSPITALS)
        public = Role("public", self.folder / "public" / "data", 2)
        for index, role in enumerate(roles):
            synthetic.write_cohort(role.data, index, self.patients.get(role.name, PATIENTS), 5)
        synthetic.write_public_cohort(public.data, 2, 5)
        self.world = sites.Sites(self.folder, Cast(STUDY, "none", roles, public, ""))
        sites.certify(self.world)
        self.plan = presets.complete(
            {
                **FIELDS,
                **self.parts,
                "masking": {**FIELDS["masking"], **self.masking},
                "timing": {**FIELDS["timing"], **self.timing},
            },
            study=STUDY,
            hospitals=presets.admitted(self.world.cast, self.world.uri),
            evaluators=[self.world.uri(public)] if self.evaluator else [],
            start_digest=None,
            rounds=self.rounds,
        )
        sites.write_coordinator(self.world, self.plan, self.folder / "start.safetensors", self.drill_pause_s)
        self.command("secagg-node", "init-model", "--plan", self.world.coordinator / "plan.toml", "--out", self.start_model)

    @property
    def start_model(self) -> Path:
        return self.folder / "start.safetensors"

    def command(self, name: str, *arguments: object) -> None:
        """Run an installed command to its end."""
        child = self.family.start(name, [str(SCRIPTS / name), *map(str, arguments)], self.folder / "commands.log")
        assert child.process.wait(180) == 0, child.last_lines()
        self.family.children.remove(child)

    def approve(self, caps: dict[str, float] | None = None) -> None:
        """One recorded approval at each hospital; `caps` by name, 100 otherwise."""
        for role in self.world.cast.hospitals:
            state = StateFolder(self.world.state(role))
            state.create()
            cap = Cap(epsilon=(caps or {}).get(role.name, 100.0), delta=self.plan.privacy.delta)
            now = datetime.now(UTC)
            Ledger.create(state.ledger, self.world.uri(role), now).approve(self.plan, "Dr Test", "integration test", cap, now)

    def start_coordinator(self) -> str:
        """Start it and return host:port."""
        command = [
            str(SCRIPTS / "secagg-coordinator"),
            "run",
            "--until-finished",
            "--config",
            str(self.world.coordinator_config),
        ]
        self.family.start("coordinator", command, self.folder / "coordinator.log")
        address = self.world.coordinator / "state" / "address"
        self.wait(address.is_file, 180, "the coordinator names its address")
        return address.read_text().strip()

    def start_node(self, name: str, address: str, *, recording: bool = True) -> Child:
        """Start one hospital node: the recording one, or the installed command."""
        role = next(role for role in self.world.cast.hospitals if role.name == name)
        sites.write_node(self.world, role, address)
        command = [str(SCRIPTS / "secagg-node"), "run", "--config", str(self.world.config(role))]
        if recording:
            command = [sys.executable, str(RECORDER), str(self.world.config(role)), str(self.folder / "updates" / name)]
        self.nodes[name] = self.family.start(name, command, self.folder / f"{name}.log")
        return self.nodes[name]

    def start_all(self) -> None:
        """Coordinator and all hospitals."""
        address = self.start_coordinator()
        for name in HOSPITALS:
            self.start_node(name, address)

    def store(self) -> StoreReader:
        return open_store(self.world.store)

    def wait(self, reached, within_s: float, what: str) -> None:
        """Poll until `reached()`; fail with every log's end."""
        deadline = time.monotonic() + within_s
        while not reached():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {child.name}\n{child.last_lines(12)}" for child in self.family.children)
                raise AssertionError(f"not within {within_s} s: {what}\n{logs}")
            time.sleep(0.02)

    def update(self, name: str, number: int) -> np.ndarray:
        return np.load(self.folder / "updates" / name / f"round-{number}.npy")

    def model(self, number: int) -> np.ndarray:
        """The released model of a round; 0 is the start."""
        if number == 0:
            return read_model(self.start_model).vector
        with self.store() as reader:
            digest = next(row.digest for row in reader.models() if row.round == number)
        return np.fromfile(self.world.coordinator / "state" / "models" / f"{digest}.f32", dtype="<f4")

    def ledger(self, name: str) -> Ledger:
        role = next(role for role in self.world.cast.hospitals if role.name == name)
        return Ledger.open_readonly(StateFolder(self.world.state(role)).ledger)

    def epsilon_after(self, rounds: int) -> float:
        """What `rounds` rounds cost, computed from the plan alone."""
        privacy = self.plan.privacy
        steps = rounds * self.plan.training.local_steps
        return epsilon([Mechanism(privacy.noise_multiplier, 1 / privacy.inverse_sampling_rate, steps)], privacy.delta)

    def mean_error_bound(self) -> float:
        """Two steps of the quantizer's grid for the mean: rounding moves a sum of four by less."""
        lane = 2 ** (64 // self.plan.masking.lanes) - 1
        return 2 * 2 * self.plan.masking.update_clip * len(HOSPITALS) / lane
