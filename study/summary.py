"""What a run came to: `summary.json` and the table of the demonstration, computed from the store and the ledgers.

Epsilon is read from each hospital's own ledger, never from the coordinator; "no guarantee" is null, never 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table

from coordinator.store import RoundRow, StoreReader, open_store
from hospital_node.ledger import BudgetView, read_budget
from proto.plan import Plan, short_name

Scores = dict[int, dict[str, float]]  # round -> label -> mean Dice


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One round as `summary.json` shows it. Names are short; bytes are those on the connection, all phases."""

    round: int
    state: str
    survivors: tuple[str, ...]
    dropped: Mapping[str, str]
    dice: Mapping[str, float]
    epsilon: Mapping[str, float | None]
    upload_bytes: Mapping[str, int]
    download_bytes: Mapping[str, int]
    float32_bytes: int
    seconds: Mapping[str, float]

    @property
    def worst_epsilon(self) -> float | None:
        """Largest epsilon of any hospital; None without a guarantee."""
        known = [value for value in self.epsilon.values() if value is not None]
        return max(known) if len(known) == len(self.epsilon) and known else None

    @property
    def upload_mean_bytes(self) -> float | None:
        """Mean upload of the survivors."""
        sent = [self.upload_bytes[name] for name in self.survivors if name in self.upload_bytes]
        return fmean(sent) if sent else None

    @property
    def times_smaller(self) -> float | None:
        """Float32 update over mean upload."""
        mean = self.upload_mean_bytes
        return self.float32_bytes / mean if mean else None


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run. `start_dice` is that of the public start."""

    plan: Plan
    start_dice: Mapping[str, float]
    rounds: tuple[RoundSummary, ...]

    @property
    def dice_by_round(self) -> dict[int, Mapping[str, float]]:
        """Measured rounds; 0 is the start."""
        start = {0: self.start_dice} if self.start_dice else {}
        return {**start, **{one.round: one.dice for one in self.rounds if one.dice}}

    def as_json(self) -> dict[str, object]:
        """The content of summary.json."""
        return {
            "plan": self.plan.model_dump(mode="json"),
            "start_dice": dict(self.start_dice),
            "rounds": [
                {
                    "round": one.round,
                    "state": one.state,
                    "survivors": list(one.survivors),
                    "dropped": dict(one.dropped),
                    "dice": dict(one.dice),
                    "epsilon": dict(one.epsilon),
                    "upload_bytes": dict(one.upload_bytes),
                    "download_bytes": dict(one.download_bytes),
                    "float32_bytes": one.float32_bytes,
                    "seconds": dict(one.seconds),
                }
                for one in self.rounds
            ],
        }


def summarise(store: Path, ledgers: Mapping[str, Path]) -> Summary:
    """Read one run. `ledgers`: hospital URI -> its ledger file. Raises StoreError."""
    with open_store(store) as reader:
        plan = reader.plan()
        scores = mean_dice(reader)
        budgets = {uri: read_budget(path, plan) for uri, path in ledgers.items() if path.is_file()}
        ended = [row for row in reader.rounds() if row.state in {"opened", "aborted"}]
        traffic = _traffic(reader)
        rounds = tuple(_round(row, scores, budgets, traffic, reader.float32_bytes()) for row in ended)
    return Summary(plan, scores.get(0, {}), rounds)


def mean_dice(reader: StoreReader) -> Scores:
    """Mean over cases by round and label; round 0 is the start."""
    scores: Scores = {}
    for row in reader.scores():
        if row.per_case:
            scores.setdefault(row.round, {})[row.label] = fmean(row.per_case)
    return scores


def write(summary: Summary, path: Path) -> None:
    """Write summary.json in one step."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(summary.as_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def table(summary: Summary) -> Table:
    """The demonstration's table: one line for each round."""
    out = Table(title=f"{summary.plan.study}: {len(summary.plan.hospitals)} hospitals")
    for name in ("round", "survivors", "Dice", "worst epsilon", "upload per hospital", "times smaller than float32"):
        out.add_column(name, justify="left" if name == "survivors" else "right")
    if summary.start_dice:
        out.add_row("start", "", dice_words(summary.start_dice), "", "", "")
    for one in summary.rounds:
        out.add_row(*cells(one))
    return out


def cells(one: RoundSummary) -> tuple[str, str, str, str, str, str]:
    """One line of the table."""
    lost = "".join(f"  ({name} lost in {phase})" for name, phase in one.dropped.items())
    worst = "no guarantee" if one.worst_epsilon is None else f"{one.worst_epsilon:.2f}"
    mean, smaller = one.upload_mean_bytes, one.times_smaller
    upload = "" if mean is None else f"{mean / 1000:.1f} kB"
    times = "" if smaller is None else f"{smaller:.2f}"
    survivors = ", ".join(one.survivors) if one.state == "opened" else "aborted: nothing was opened"
    return str(one.round), survivors + lost, dice_words(one.dice), worst, upload, times


def dice_words(dice: Mapping[str, float]) -> str:
    """Mean Dice of each label, in the plan's order."""
    return " / ".join(f"{value:.3f}" for value in dice.values())


def _traffic(reader: StoreReader) -> dict[tuple[int, str, str], int]:
    """(round, party, direction) -> bytes over all phases."""
    sums: dict[tuple[int, str, str], int] = {}
    for row in reader.traffic():
        key = (row.round, row.party, row.direction)
        sums[key] = sums.get(key, 0) + row.bytes
    return sums


def _round(
    row: RoundRow,
    scores: Scores,
    budgets: Mapping[str, BudgetView],
    traffic: Mapping[tuple[int, str, str], int],
    float32_bytes: int,
) -> RoundSummary:
    def sums(direction: str) -> dict[str, int]:
        found = {uri: traffic.get((row.number, uri, direction), 0) for uri in budgets}
        return {short_name(uri): amount for uri, amount in found.items() if amount}

    return RoundSummary(
        round=row.number,
        state=row.state,
        survivors=tuple(short_name(uri) for uri in row.survivors),
        dropped={short_name(uri): phase for uri, phase in row.dropped.items()},
        dice=scores.get(row.number, {}),
        epsilon={short_name(uri): _epsilon_after(view, row.number) for uri, view in budgets.items()},
        upload_bytes=sums("up"),
        download_bytes=sums("down"),
        float32_bytes=float32_bytes,
        seconds={phase: round(seconds, 3) for phase, seconds in row.phase_seconds.items()},
    )


def _epsilon_after(view: BudgetView, number: int) -> float | None:
    """Epsilon of the hospital's life after round `number`; None where there is no guarantee."""
    if view.state in {"no guarantee", "ledger damaged"}:
        return None
    reached = [value for charged, value in view.by_round if charged <= number]
    last = reached[-1] if reached else 0.0
    return None if math.isinf(last) else round(last, 4)
