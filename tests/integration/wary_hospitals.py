"""Real hospital nodes that face a lying coordinator, and what each of them keeps: its log, its ledger, its sessions.

Four hospitals with certificates of one authority. Nodes are processes; `west` never is: its key is in the liar's hands,
as the collusion bound of a threshold of 3 of 4 allows. `south` demands more of a cohort than the plan does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np
from formula_node import update_of
from lying_coordinator import LyingCoordinator

from certs.identity import Identity, load_identity
from hospital_node.ledger import Cap, Charge, Ledger
from hospital_node.ledger_rules import open_releases
from hospital_node.progress import read_progress
from hospital_node.state import StateFolder
from proto import federation_pb2 as pb
from proto.layout import Layout, Vector, model_digest
from proto.modelfile import Model, encode_model, read_model
from proto.plan import Plan
from study import presets, sites
from study.cast import Cast, Role
from study.processes import Child, Family

HOSPITALS = ("north", "east", "south", "west")
NODES = HOSPITALS[:3]
STRICT = "south"
STUDY = "wary"
LAYOUT = Layout((("conv.weight", (7, 3)), ("conv.bias", (7,))))
FORMULA_NODE = Path(__file__).parent / "formula_node.py"
SCRIPTS = Path(sys.executable).parent

FIELDS = {
    "rounds": 1000,
    "network": {"architecture": "UNet", "channels": [4, 8], "labels": ["nodule"], "norm": "instance"},
    "preparation": {"modality": "CT", "spacing_xyz_mm": [8.0, 8.0, 8.0], "patch_zyx": [16, 16, 16]},
    "training": {"local_steps": 1},
    "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 2, "delta": 1e-3},
    "masking": {"lanes": 3, "update_clip": 0.5},
}


@dataclass
class WaryHospitals:
    """Folders, processes and the coordinator of one file of tests; use inside `with Family(1) as family`."""

    folder: Path
    family: Family
    fields: dict[str, object] = field(default_factory=lambda: dict(FIELDS))
    names: tuple[str, ...] = HOSPITALS
    installed: bool = False  # nodes are the installed command, with the network and the training of the plan
    round: int = 0
    layout: Layout = LAYOUT
    base: Vector = field(default_factory=lambda: np.linspace(-1, 1, LAYOUT.length, dtype=np.float32))
    nodes: dict[str, Child] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        roles = tuple(Role(name, self.folder / name / "data", 4) for name in self.names)
        public = Role("public", self.folder / "public" / "data", 2)
        self.world = sites.Sites(self.folder, Cast(STUDY, "none", roles, public, ""))
        for role in self.world.roles:
            role.data.mkdir(parents=True)
        sites.certify(self.world)
        self.plan = self.make_plan()
        self._make_start()
        models = {model_digest(base): base.astype("<f4").tobytes() for base in (self.base, self.base[::-1].copy())}
        self.coordinator = LyingCoordinator(self.world.coordinator / "identity", self.plan, models)
        self.coordinator.more_on_silence = self.log_ends
        self.address = self.coordinator.start()

    def make_plan(self, weights: Sequence[int] = (), **masking: object) -> Plan:
        admitted = [
            entry.model_copy(update={"weight": weight})
            for entry, weight in zip_longest(presets.admitted(self.world.cast, self.world.uri), weights, fillvalue=1)
        ]
        fields = {**self.fields, "masking": {**self.fields["masking"], **masking}}
        return presets.complete(fields, study=STUDY, hospitals=admitted, evaluators=[], start_digest=None, rounds=None)

    def _make_start(self) -> None:
        start = self.folder / "start.safetensors"
        if self.installed:
            presets.write_toml(self.plan, self.folder / "plan.toml")
            self.run_command("init-model", "--plan", self.folder / "plan.toml", "--out", start)
            self.layout, self.base = read_model(start).layout, read_model(start).vector
        else:
            start.write_bytes(encode_model(Model(self.layout, self.base)))

    def run_command(self, *arguments: object) -> str:
        """`secagg-node` with these words; what it prints."""
        command = [str(SCRIPTS / "secagg-node"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # ---- people at the hospitals ----

    def approve(self, *plans: Plan) -> None:
        for name in NODES:
            state = StateFolder(self.world.state(self.role(name)))
            state.create()
            ledger = state.open_ledger(self.uri(name), datetime.now(UTC))
            for plan in plans:
                accepted = {} if plan.privacy.noise_multiplier else {"accept_no_guarantee": True, "data_is_public": True}
                cap = Cap(epsilon=1000.0, delta=plan.privacy.delta)
                ledger.approve(plan, "Dr Test", "integration test", cap, datetime.now(UTC), **accepted)

    def resume(self, name: str) -> None:
        """What the lies before this one cost is no matter here."""
        Ledger.open(self.state(name).ledger).resume("Dr Test", "integration test", datetime.now(UTC))

    # ---- processes ----

    def start_node(self, name: str) -> Child:
        role = self.role(name)
        sites.write_node(self.world, role, self.address)
        if name == STRICT:
            with self.world.config(role).open("a") as config:
                config.write("[policy]\nminimum_cohort = 4\n")
        self.nodes[name] = self._spawn(name, self.command(name))
        return self.nodes[name]

    def command(self, name: str) -> list[str]:
        """What a node is started with."""
        config = self.world.config(self.role(name))
        if self.installed:
            return [str(SCRIPTS / "secagg-node"), "run", "--config", str(config)]
        return [sys.executable, str(FORMULA_NODE), str(config), str(self.folder / "start.safetensors")]

    def _spawn(self, name: str, command: list[str]) -> Child:
        """Family.start without a function between fork and exec: this process serves gRPC, which does not survive a fork."""
        with self.log(name).open("ab") as output:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
            )
        self.family.children.append(Child(name, command, self.log(name), process))
        return self.family.children[-1]

    def power_cut(self, name: str) -> None:
        """The node is gone without a word, and comes back."""
        self.family.kill(self.nodes[name])
        self.coordinator.forget(self.uri(name))
        self.start_node(name)

    def start_all(self) -> None:
        for name in NODES:
            self.start_node(name)
        self.coordinator.wait(lambda: self.coordinator.joined(*map(self.uri, NODES)), "every node joins")

    # ---- what each has ----

    def role(self, name: str) -> Role:
        return next(role for role in self.world.cast.hospitals if role.name == name)

    def uri(self, name: str) -> str:
        return f"secagg://{STUDY}/hospital/{name}"

    def state(self, name: str) -> StateFolder:
        return StateFolder(self.world.state(self.role(name)))

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @cached_property
    def identities(self) -> dict[str, Identity]:
        return {name: load_identity(self.folder / name / "identity") for name in self.names}

    @cached_property
    def pinned(self) -> dict[str, bytes]:
        """Everybody's key as people confirmed it."""
        return {self.uri(name): identity.fingerprint for name, identity in self.identities.items()}

    def charges(self, name: str) -> list[Charge]:
        """What the node's ledger says was released, in order."""
        events = Ledger.open_readonly(self.state(name).ledger).events()
        return [event.entry for event in events if isinstance(event.entry, Charge)]

    def kinds(self, name: str) -> list[str]:
        """The ledger's entries, in order."""
        return [event.kind for event in Ledger.open_readonly(self.state(name).ledger).events()]

    def sentence(self, name: str) -> str:
        """What the hospital's own screen says of the node."""
        shown = read_progress(self.state(name).progress)
        return "" if shown is None else shown.sentence

    def charged(self, name: str, session: bytes) -> bool:
        return any(charge.session == session.hex() for charge in self.charges(name))

    def update(self, name: str) -> Vector:
        return update_of(self.uri(name), self.round, self.layout.length)

    # ---- rounds ----

    def train(self, *names: str, base: Vector | None = None, number: int | None = None) -> dict[str, pb.NodeReport]:
        """Order a round; the last report of each, which is ready, declined or failed."""
        return dict(zip(names, self._trained(names, base, number), strict=True))

    def ready(self, *names: str) -> None:
        """Every one of these holds an unreleased update of the present round; a new one where a lie used it up."""
        assert all(self.nodes[name].running for name in names), self.log_ends()
        if self.round == 0 or any(charge.round == self.round for name in names for charge in self.charges(name)):
            self.round += 1
        for name in names:
            if open_releases(Ledger.open_readonly(self.state(name).ledger).events()):
                self.resume(name)
        states = {name: report.state for name, report in self.train(*names).items()}
        assert states == dict.fromkeys(names, pb.NodeReport.READY)

    def _trained(self, names: Sequence[str], base: Vector | None, number: int | None) -> list[pb.NodeReport]:
        coordinator, count = self.coordinator, len(self.coordinator.received)
        digest = model_digest(self.base if base is None else base)
        order = pb.Train(round=number or self.round, base_digest=digest, base_bytes=4 * self.layout.length)
        for name in names:
            coordinator.give(self.uri(name), train=order)

        def last(name: str) -> pb.NodeReport | None:
            told = [one.message for one in coordinator.after(count, self.uri(name), {"report"})]
            return next((one for one in told if one.state != pb.NodeReport.TRAINING), None)

        coordinator.wait(lambda: all(last(name) for name in names), f"{names} train round {order.round}")
        return [last(name) for name in names]

    # ---- logs ----

    def refusals_logged(self, name: str, since: int = 0) -> list[dict[str, str]]:
        """Phase, code and culprit of every refusal in the node's log after the first `since` bytes."""
        lines = self.log(name).read_text()[since:].splitlines()
        found = [dict(re.findall(r"\b(phase|code|culprit)='?([^\s']+)", line)) for line in lines if " refused " in line]
        return [{"phase": one["phase"], "code": one["code"], "culprit": one["culprit"]} for one in found]

    def log_ends(self) -> str:
        return "\n".join(f"--- {child.name}\n{child.last_lines(12)}" for child in self.family.children)
