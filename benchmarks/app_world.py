"""A run of any length on disk for the app's benchmark: the coordinator's own tables, filled in bulk with what a run leaves.

Amounts are those of the demonstration: per hospital and round ten phases both ways, an event for its readiness and its upload;
one hospital in ten rounds drops out. Figures are made up, and the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Table, create_engine, insert

from coordinator import tables
from coordinator.store import PHASES
from coordinator.store_write import StoreWriter
from proto.layout import Layout
from proto.plan import Hospital, Network, Plan, Preparation, Privacy, Training

STUDY = "long"
LAYOUT = Layout((("encoder", (400, 120)), ("decoder", (333, 120))))
BEGIN_S = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
ROUND_S = 60.0
LABELS = ("anterior", "posterior")
CASES = 24
AT_ONCE = 20_000  # rows of one statement
Row = dict[str, Any]


def plan_of(rounds: int, hospitals: int) -> Plan:
    """A plan of this size."""
    return Plan(
        study=STUDY,
        rounds=rounds + 1,
        network=Network(labels=LABELS),
        preparation=Preparation(modality="CT", spacing_xyz_mm=(4.0, 4.0, 4.0), window_hu=(-1000, 400), patch_zyx=(32, 32, 32)),
        training=Training(local_steps=2),
        privacy=Privacy(noise_multiplier=8.0, inverse_sampling_rate=20),
        hospitals=tuple(Hospital(uri=uri(f"hospital-{number:02}"), declared_patients=40) for number in range(hospitals)),
        evaluators=(uri("reference", "evaluator"),),
    )


def uri(name: str, role: str = "hospital") -> str:
    """A party of the study."""
    return f"secagg://{STUDY}/{role}/{name}"


def write_run(folder: Path, rounds: int, hospitals: int) -> Plan:
    """A coordinator's state folder after `rounds` rounds."""
    plan = plan_of(rounds, hospitals)
    where = f"sqlite:///{folder / 'store.db'}"
    StoreWriter.create(where, plan, LAYOUT).close()
    parties = [hospital.uri for hospital in plan.hospitals]
    engine = create_engine(where)
    for table, rows in (
        (tables.rounds, (_round(number, parties) for number in range(1, rounds + 1))),
        (tables.phase_times, _times(rounds)),
        (tables.traffic, _traffic(rounds, parties)),
        (tables.events, _events(rounds, parties)),
        (tables.scores, _scores(rounds)),
    ):
        _insert(engine, table, rows)
    engine.dispose()
    touch(folder, plan, rounds)
    return plan


def touch(folder: Path, plan: Plan, number: int) -> None:
    """Every party was heard of a moment ago."""
    now_s = datetime.now(UTC).timestamp()
    with StoreWriter.create(f"sqlite:///{folder / 'store.db'}", plan, LAYOUT) as store, store.batch() as batch:
        for party in (*(hospital.uri for hospital in plan.hospitals), *plan.evaluators):
            batch.member(party, "training", now_s, "train")
        batch.status(f"Round {number + 1} · waiting for {len(plan.hospitals)} hospitals (training)", "")


def add_round(folder: Path, plan: Plan, number: int) -> None:
    """One more round, as the coordinator would write it: what a live page has to follow."""
    parties = [hospital.uri for hospital in plan.hospitals]
    engine = create_engine(f"sqlite:///{folder / 'store.db'}")
    _insert(engine, tables.rounds, iter([_round(number, parties)]))
    _insert(engine, tables.traffic, _traffic_of(number, parties))
    _insert(engine, tables.events, _events_of(number, parties))
    _insert(engine, tables.scores, _scores_of(number))
    engine.dispose()
    touch(folder, plan, number)


def _insert(engine: Any, table: Table, rows: Iterator[Row]) -> None:
    with engine.begin() as connection:
        block: list[Row] = []
        for row in rows:
            block.append(row)
            if len(block) == AT_ONCE:
                connection.execute(insert(table), block)
                block = []
        if block:
            connection.execute(insert(table), block)


def _lost(number: int, parties: list[str]) -> str | None:
    return parties[number // 10 % len(parties)] if number % 10 == 7 else None


def _round(number: int, parties: list[str]) -> Row:
    lost = _lost(number, parties)
    return {
        "number": number,
        "state": "opened",
        "started_at": BEGIN_S + number * ROUND_S,
        "ended_at": BEGIN_S + number * ROUND_S + 50,
        "cohort": parties,
        "survivors": [party for party in parties if party != lost],
        "dropped": {lost: "mask"} if lost else {},
        "model_digest": f"{number:064x}",
        "reason": "",
    }


def _times(rounds: int) -> Iterator[Row]:
    for number in range(1, rounds + 1):
        for place, phase in enumerate(PHASES[2:8]):
            yield {"round": number, "phase": phase, "seconds": 40.0 if phase == "train" else 0.1 * (place + 1)}


def _traffic(rounds: int, parties: list[str]) -> Iterator[Row]:
    for number in range(1, rounds + 1):
        yield from _traffic_of(number, parties)


def _traffic_of(number: int, parties: list[str]) -> Iterator[Row]:
    for party in parties:
        for phase in PHASES[1:]:
            for direction in ("up", "down"):
                large = (phase, direction) in {("mask", "up"), ("broadcast", "down")}
                size = 180_000 if large else 400
                yield {"round": number, "party": party, "direction": direction, "phase": phase, "bytes": size}


def _events(rounds: int, parties: list[str]) -> Iterator[Row]:
    for number in range(1, rounds + 1):
        yield from _events_of(number, parties)


def _events_of(number: int, parties: list[str]) -> Iterator[Row]:
    base = {"at": BEGIN_S + number * ROUND_S, "round": number, "phase": "train"}
    yield {**base, "party": "", "kind": "round", "text": f"Round {number} · offered to {len(parties)} hospitals"}
    for party in parties:
        name = party.rsplit("/", 1)[-1]
        yield {**base, "party": party, "kind": "ready", "text": f"Round {number} · {name} has an update"}
        yield {**base, "party": party, "kind": "upload", "text": f"Round {number} · {name} sent 180 kB"}
    lost = _lost(number, parties)
    if lost:
        yield {
            **base,
            "party": lost,
            "kind": "dropped",
            "text": f"Round {number} · {lost.rsplit('/', 1)[-1]} dropped out at mask",
        }
    yield {**base, "party": "", "kind": "opened", "text": f"Round {number} · sum opened"}


def _scores(rounds: int) -> Iterator[Row]:
    for number in range(rounds + 1):
        yield from _scores_of(number)


def _scores_of(number: int) -> Iterator[Row]:
    rng = np.random.default_rng(number)
    for position, label in enumerate(LABELS):
        mean = 0.35 + 0.4 * (1 - 0.999**number)
        per_case = [round(float(value), 4) for value in np.clip(rng.normal(mean, 0.1, CASES), 0, 1)]
        evaluator = uri("reference", "evaluator")
        yield {"round": number, "evaluator": evaluator, "label": label, "position": position, "per_case": per_case}
