"""What the ledger's tests share: a small plan, a fixed clock, and a ledger with a cap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from hospital_node.ledger import Cap, Ledger, Receipt
from proto.plan import Hospital, Network, Plan, Preparation, Privacy, Training

START = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
HOSPITAL = "secagg://lidc/hospital/st-anna"
DELTA = 1e-5
CAP = Cap(epsilon=3.0, delta=DELTA)  # admits five rounds of `make_plan()`


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def make_plan(
    *,
    study: str = "lidc",
    sigma: float = 1.1,
    k: int = 20,
    steps: int = 20,
    rounds: int = 30,
    attends: int = 1,
    patients: int = 100,
) -> Plan:
    names = ("st-anna", "nordklinik", "lakeside")
    return Plan(
        study=study,
        rounds=rounds,
        network=Network(labels=("nodule",)),
        preparation=Preparation(modality="CT", spacing_xyz_mm=(1.0, 1.0, 1.0), patch_zyx=(16, 16, 16)),
        training=Training(local_steps=steps),
        privacy=Privacy(
            noise_multiplier=sigma, inverse_sampling_rate=k, no_guarantee=sigma == 0, hospitals_per_patient=attends
        ),
        hospitals=tuple(Hospital(uri=f"secagg://{study}/hospital/{name}", declared_patients=patients) for name in names),
    )


def new_ledger(folder: Path, plan: Plan | None = None, cap: Cap = CAP) -> Ledger:
    """A ledger; with one approved plan, where one is given."""
    ledger = Ledger.create(folder / "ledger.db", HOSPITAL, at(0))
    if plan is not None:
        ledger.approve(plan, "Dr Keller", "first study", cap, at(1))
    return ledger


def release(ledger: Ledger, plan: Plan, round_number: int, *, verified: bool = True, minutes: float = 10) -> Receipt:
    """One round, authorized, committed and (unless told otherwise) verified."""
    authorization = ledger.authorize(plan, round_number)
    receipt = ledger.commit(authorization, update_id(plan, round_number), session_id(round_number), at(minutes))
    if verified:
        ledger.record_verified(plan, round_number, at(minutes))
    return receipt


def update_id(plan: Plan, round_number: int) -> bytes:
    return plan.digest()[:16] + round_number.to_bytes(16, "big")


def session_id(round_number: int) -> bytes:
    return round_number.to_bytes(16, "big")
