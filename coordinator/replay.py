"""An exported run computed again: every model from the one before it and the mean that its round opened, bit for bit.

What it shows: the coordinator applied the plan's server step to what was opened, and to nothing else. What it cannot show: that
the opened mean is that of the hospitals' uploads, which masking hides. Reads the folder alone: no store, no key, no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.export import FORMAT, LOG_FILE, ExportError
from coordinator.optimizer import next_model
from proto import scaffold
from proto.layout import Layout, LayoutError, Vector, model_digest
from proto.parts import sent_layout
from proto.plan import Plan, PlanError, from_canonical
from proto.roundlog import Entry, RoundLogError, check_log, read_exported

SHOWN = 12  # hexadecimal digits of a digest in a sentence


@dataclass(frozen=True, slots=True)
class Replayed:
    """One round that was computed again and is as recorded; `model` in hexadecimal."""

    round: int
    model: str


@dataclass(frozen=True, slots=True)
class Record:
    """What an export says of a run."""

    plan: Plan
    layout: Layout
    start: str
    rounds: tuple[dict[str, Any], ...]


def replay(folder: Path) -> Iterator[Replayed]:
    """Every opened round in order. Raises ExportError naming the first that differs, or what cannot be read."""
    record = _record(folder)
    length = scaffold.published_length(record.plan, record.layout)
    model, memory = _vector(folder / "models", record.start, length, "the start"), None
    update = sent_layout(record.plan, record.layout).length
    for row in record.rounds:
        if row["state"] != "opened":
            continue
        number, claimed = int(row["number"]), str(row["model_digest"])
        if row["mean_digest"] is None:
            raise ExportError(f"round {number} kept no mean, an older release opened it: nobody can compute it again")
        mean = _vector(folder / "means", row["mean_digest"], update, f"the mean of round {number}")
        try:
            model, memory = next_model(record.plan, record.layout, model, mean, memory, number, row["survivors"])
        except ValueError as error:
            raise ExportError(f"round {number} cannot be computed again: {error}") from error
        digest = model_digest(model).hex()
        if digest != claimed:
            raise ExportError(
                f"round {number} differs: its mean gives model {digest[:SHOWN]}, {claimed[:SHOWN]} was published; rounds "
                "before it are as recorded"
            )
        _vector(folder / "models", claimed, length, f"the model of round {number}")
        yield Replayed(number, digest)


def log_of(folder: Path) -> tuple[Entry, ...] | None:
    """The log of rounds, held against the plan and what the export says of each round; None of an older release's export.

    Raises ExportError naming the first entry that does not hold.
    """
    record = _record(folder)
    try:
        entries = read_exported((folder / LOG_FILE).read_bytes())
        check_log(entries, record.plan.digest(), bytes.fromhex(record.start))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExportError(f"{folder / LOG_FILE} cannot be read: {error.strerror}") from error
    except RoundLogError as error:
        raise ExportError(str(error)) from error
    except ValueError as error:
        raise ExportError(f"{folder / LOG_FILE} is no log of rounds: take the export again") from error
    if len(entries) != len(record.rounds):
        raise ExportError(f"the log has {len(entries)} entries and {len(record.rounds)} rounds ended: entries were cut off")
    for entry, row in zip(entries, record.rounds, strict=True):
        model, total = (entry.model.hex(), entry.sum_digest.hex()) if entry.state == "opened" else (None, None)
        logged = (entry.round, entry.state, list(entry.survivors), model, total)
        said = tuple(row[name] for name in ("number", "state", "survivors", "model_digest", "sum_digest"))
        if logged != (*said[:2], sorted(row["survivors"]), *said[3:]):
            raise ExportError(f"entry {entry.index} of the log does not say of round {row['number']} what rounds.json says")
    return entries


def _record(folder: Path) -> Record:
    """Plan, layout and rounds. Raises ExportError."""
    try:
        run = json.loads((folder / "run.json").read_bytes())
        if run["format"] != FORMAT:
            raise ExportError(f"{folder} has format {run['format']}, this release reads {FORMAT}: use the one that wrote it")
        plan = from_canonical((folder / "plan.json").read_bytes())
        layout = Layout.from_json((folder / "layout.json").read_text(encoding="utf-8"))
        rounds = tuple(json.loads((folder / "rounds.json").read_bytes()))
        plan_digest, start = str(run["plan_digest"]), str(run["start_digest"])
    except OSError as error:
        raise ExportError(f"{folder} is no exported run: {error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, PlanError, LayoutError) as error:
        raise ExportError(f"{folder} is no exported run: a file of it is damaged ({type(error).__name__})") from error
    if plan.digest().hex() != plan_digest:
        raise ExportError(f"{folder}: plan.json is not the plan that run.json names: take the export again")
    return Record(plan, layout, start, rounds)


def _vector(folder: Path, digest: str, length: int, what: str) -> Vector:
    """Values by digest, checked. Raises ExportError."""
    path = folder / f"{digest}.f32"
    try:
        values = np.fromfile(path, dtype="<f4").astype(np.float32, copy=False)
    except OSError as error:
        raise ExportError(f"{what} cannot be read: {path}: {error.strerror}") from error
    if len(values) != length or model_digest(values).hex() != digest:
        raise ExportError(f"{what} is damaged: {path} does not hold what its name says")
    return values
