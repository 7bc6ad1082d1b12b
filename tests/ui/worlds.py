"""Whole worlds for the app's tests: real stores and real ledgers, written by their own write sides.

Nothing here fakes a screen: the app reads these folders exactly as it reads those of a running study.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from coordinator.store_write import StoreWriter
from hospital_node.ledger import Cap, Ledger
from hospital_node.progress import (
    LEAVES_FILE,
    PROGRESS_FILE,
    Leaves,
    LocalProgress,
    write_leaves,
    write_progress,
)
from proto.evaluation import label_means
from proto.layout import Layout
from proto.plan import Evaluation, Hospital, Network, Plan, Preparation, Privacy, Training

STUDY = "chest"
NAMES = ("lakeside", "nordklinik", "riverside", "st-anna")
BEGIN = datetime.now(UTC).replace(hour=9, minute=0, second=0, microsecond=0) - timedelta(days=1)  # ledgers go on from it now
LAYOUT = Layout((("encoder", (400, 120)), ("decoder", (333, 120))))  # 87,960 values: 352 kB as float32
MASK_BYTES = LAYOUT.length * 2 + 4_000  # four lanes of 16 bits, and framing
SECONDS = {"train": 21.4, "advertise": 0.11, "share": 0.16, "mask": 0.62, "confirm": 0.09, "reveal": 0.12}
LABELS = ("anterior", "posterior")


def uri(name: str, role: str = "hospital") -> str:
    return f"secagg://{STUDY}/{role}/{name}"


def make_plan(
    rounds: int = 8, *, noise: float = 1.25, names: Sequence[str] = NAMES, evaluation: Evaluation | None = None
) -> Plan:
    return Plan(
        study=STUDY,
        rounds=rounds,
        network=Network(labels=LABELS),
        preparation=Preparation(modality="CT", spacing_xyz_mm=(4.0, 4.0, 4.0), window_hu=(-1000, 400), patch_zyx=(32, 32, 32)),
        training=Training(local_steps=5),
        privacy=Privacy(noise_multiplier=noise, no_guarantee=noise == 0, inverse_sampling_rate=4),
        hospitals=tuple(Hospital(uri=uri(name), declared_patients=40) for name in names),
        evaluators=(uri("reference", "evaluator"),),
        evaluation=evaluation,
    )


@dataclass
class World:
    """A study on disk. Every method appends what the real processes would write."""

    folder: Path
    plan: Plan = field(default_factory=make_plan)
    caps: dict[str, float] = field(default_factory=dict)
    clock: datetime = BEGIN

    def __post_init__(self) -> None:
        self.names = [hospital.uri.rsplit("/", 1)[-1] for hospital in self.plan.hospitals]

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator" / "state"

    def state(self, name: str) -> Path:
        return self.folder / name / "state"

    def arguments(self, *, coordinator: bool = True, hospitals: Sequence[str] | None = None) -> list[str]:
        chosen = self.names if hospitals is None else hospitals
        first = ["--coordinator", str(self.coordinator)] if coordinator else []
        return first + [part for name in chosen for part in ("--hospital", str(self.state(name)))]

    def store(self) -> StoreWriter:
        return StoreWriter.create(f"sqlite:///{self.coordinator / 'store.db'}", self.plan, LAYOUT)

    def tick(self, seconds: float = 1.0) -> float:
        self.clock += timedelta(seconds=seconds)
        return self.clock.timestamp()

    def start(self) -> None:
        """The coordinator runs, everybody has joined, the start was evaluated."""
        self.coordinator.mkdir(parents=True, exist_ok=True)
        with self.store() as store, store.batch() as batch:
            for name in self.names:
                batch.event(self.tick(), 1, "joined", f"Round 1 · {name} joined", party=uri(name))
                batch.member(uri(name), "training", datetime.now(UTC).timestamp(), "train")
            batch.member(uri("reference", "evaluator"), "joined", datetime.now(UTC).timestamp())
        self.scores(0)

    def approve(self, name: str, cap: float | None = None) -> Ledger:
        """An officer approves the plan at one hospital."""
        self.state(name).mkdir(parents=True, exist_ok=True)
        (self.state(name) / "plan.json").write_bytes(self.plan.canonical())
        ledger = Ledger.create(self.state(name) / "ledger.db", uri(name), at=self.clock)
        ledger.approve(
            self.plan,
            by="Dr K. Weber",
            reason="chest study, board decision 12",
            cap=Cap(epsilon=cap or self.caps.get(name, 8.0), delta=1e-5),
            at=self.clock,
            accept_no_guarantee=self.plan.privacy.no_guarantee,
            data_is_public=self.plan.privacy.no_guarantee,
        )
        return ledger

    def approve_all(self) -> None:
        for name in self.names:
            self.approve(name)

    def ledger(self, name: str) -> Ledger:
        return Ledger.open(self.state(name) / "ledger.db")

    def charge(self, name: str, number: int) -> None:
        """One release: charged, verified, and measured on the connection."""
        ledger = self.ledger(name)
        leave = ledger.authorize(self.plan, number)
        ledger.commit(leave, self.plan.digest() + number.to_bytes(2, "big"), number.to_bytes(16, "big"), self.clock)
        ledger.record_verified(self.plan, number, self.clock)
        sent = {"join": 900, "poll": 2_400, "train": 310, "advertise": 620, "share": 2_150, "mask": MASK_BYTES}
        sent |= {"confirm": 210, "reveal": 480}
        leaves = Leaves(study=STUDY, updated_at=self.clock).sent(number, sent, self.clock)
        write_leaves(self.state(name) / LEAVES_FILE, leaves)

    def scores(self, number: int) -> None:
        """The evaluator's measurement: Dice that grows with the rounds, different from case to case."""
        rng = np.random.default_rng(number + 1)
        levels = {"anterior": 0.38 + 0.44 * (1 - 0.72**number), "posterior": 0.33 + 0.43 * (1 - 0.75**number)}
        per_case = [(label, [float(x) for x in np.clip(rng.normal(mean, 0.08, 24), 0, 1)]) for label, mean in levels.items()]
        with self.store() as store, store.batch() as batch:
            batch.scores(number, uri("reference", "evaluator"), per_case)

    def validation(self, number: int) -> None:
        """What rode along in round `number`: noised means of the model before it; the noise hides one of them."""
        noise = self.plan.evaluation.deviation(2) * 2  # type: ignore[union-attr]
        means = label_means(LABELS, (12.0, 20.0, 1.0, 0.5), noise)
        with self.store() as store, store.batch() as batch:
            batch.validation(number, number - 1, 4, means)

    def round(
        self,
        number: int,
        *,
        lost: dict[str, str] | None = None,
        declined: Sequence[str] = (),
        away: Sequence[str] = (),
        charge: bool = True,
    ) -> None:
        """One whole opened round. `away`: declined for good before."""
        lost = lost or {}
        cohort = [name for name in self.names if name not in {*declined, *away}]
        survivors = [name for name in cohort if name not in lost]
        if charge:
            for name in survivors:
                self.charge(name, number)
        self.begin(number)
        with self.store() as store, store.batch() as batch:
            for name in declined:
                batch.member(uri(name), "declined", datetime.now(UTC).timestamp(), "", "budget-exhausted")
                text = f"Round {number} · {name} declined: the next round would cross the privacy cap of this node"
                batch.event(self.tick(), number, "declined", text, party=uri(name), phase="train")
            for phase, seconds in SECONDS.items():
                batch.phase_seconds(number, phase, seconds)
                self.tick(seconds)
                for name in (name for name, where in lost.items() if where == phase):
                    text = f"Round {number} · {name} dropped out at {phase}; the round goes on without it"
                    batch.event(self.tick(), number, "dropped", text, party=uri(name), phase=phase)
            self.traffic(batch, number, cohort, lost)
            text = f"Round {number} · {len(survivors)} of {len(cohort)} in the sum · sum opened"
            batch.event(self.tick(), number, "opened", text, phase="reveal")
            batch.round_state(
                number,
                "opened",
                self.tick(),
                cohort=[uri(name) for name in cohort],
                survivors=[uri(name) for name in survivors],
                dropped={uri(name): phase for name, phase in lost.items()},
                model_digest=f"{number:064x}",
            )
            batch.status(f"Round {number} · reveal · waiting for nobody", "")
        self.scores(number)

    def begin(self, number: int) -> None:
        """A round is offered; hospitals train."""
        with self.store() as store, store.batch() as batch:
            batch.round_state(number, "training", self.tick())
            batch.event(self.tick(), number, "round", f"Round {number} · offered to {', '.join(self.names)}", phase="train")
            batch.status(f"Round {number} · 2 ready, 3 needed · waiting for {self.names[0]} (training)", "")

    def abort(self, number: int) -> None:
        """A round that ended without a sum."""
        self.begin(number)
        reason = "2 of 4 returned, 3 are needed"
        with self.store() as store, store.batch() as batch:
            members = [uri(name) for name in self.names]
            for phase in ("train", "advertise", "share", "mask"):
                batch.phase_seconds(number, phase, SECONDS[phase])
            lost = dict.fromkeys(members[:2], "mask")
            batch.round_state(
                number, "aborted", self.tick(40), cohort=members, survivors=members[2:], dropped=lost, reason=reason
            )
            batch.event(self.tick(), number, "round-aborted", f"Round {number} · ended without a sum ({reason})", phase="mask")

    def finish(self) -> None:
        with self.store() as store, store.batch() as batch:
            batch.status("", f"all {self.plan.rounds} rounds are done")
            batch.event(self.tick(), self.plan.rounds, "finished", f"Round {self.plan.rounds} · the run is over")

    def traffic(self, batch: object, number: int, cohort: Sequence[str], lost: dict[str, str]) -> None:
        control = {"join": 900, "train": 310, "advertise": 620, "share": 2_150, "confirm": 210, "reveal": 480}
        for place, name in enumerate(cohort):
            for phase, amount in control.items():
                batch.traffic(number, uri(name), "up", phase, amount + 7 * place)  # type: ignore[attr-defined]
                batch.traffic(number, uri(name), "down", phase, 3 * amount)  # type: ignore[attr-defined]
            if lost.get(name) not in ("advertise", "share", "mask"):
                batch.traffic(number, uri(name), "up", "mask", MASK_BYTES)  # type: ignore[attr-defined]
            batch.traffic(number, uri(name), "down", "broadcast", 4 * LAYOUT.length + 2_000)  # type: ignore[attr-defined]

    def progress(self, name: str, number: int, step: int) -> None:
        """What the node's own progress file says."""
        now = datetime.now(UTC)
        found = LocalProgress(
            study=STUDY,
            round=number,
            rounds=self.plan.rounds,
            phase="training",
            step=step,
            steps=5,
            since=now,
            sentence="training on this hospital's patients",
            updated_at=now,
        )
        write_progress(self.state(name) / PROGRESS_FILE, found)
