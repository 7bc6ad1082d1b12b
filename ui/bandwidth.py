"""Bytes by round, hospital, direction and phase, and how many times smaller an upload is than float32.

Bytes are those counted on the connection by the coordinator, for all phases. The reference is one float32 vector per
hospital and round, in the same direction: what plain federated averaging would send, without its framing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from coordinator.store import TrafficRow
from ui.figures import Figure
from ui.store_reading import RECENT_ROUNDS
from ui.words import counted, listing, party, phase, size

Direction = Literal["up", "down"]
NEWEST = "the newest"
EVERYTHING_ELSE = "everything else"
BLOCK = RECENT_ROUNDS
MAX_NAMED = 8  # parties of one sentence
GROUPS: dict[str, tuple[str, ...]] = {  # what a reader can tell apart; the table keeps the single phases
    "masked update": ("mask",),
    "model": ("broadcast",),
    "keys and shares": ("advertise", "share", "confirm", "reveal"),
    EVERYTHING_ELSE: ("join", "train", "result", "evaluate"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """Bytes of one group in one round, as a mean over the hospitals that took part (or of one hospital)."""

    round: int
    group: str
    bytes: float


@dataclass(frozen=True, slots=True)
class Saving:
    """An upload against float32."""

    upload_bytes: float
    float32_bytes: int

    @property
    def times(self) -> float:
        """How many times smaller than float32."""
        return self.float32_bytes / self.upload_bytes


def group_of(phase: str) -> str:
    """The group a phase is drawn in."""
    return next((group for group, phases in GROUPS.items() if phase in phases), EVERYTHING_ELSE)


def bars(
    traffic: Iterable[TrafficRow], direction: Direction, parties: Mapping[int, Collection[str]], only: str | None = None
) -> tuple[Bar, ...]:
    """Bars by round and group. `parties` gives the hospitals to average over in each round; `only` picks one."""
    sums: dict[tuple[int, str], float] = defaultdict(float)
    groups = {phase: group for group, phases in GROUPS.items() for phase in phases}
    for row in traffic:
        if row.direction != direction or (only is not None and row.party != only):
            continue
        chosen = parties.get(row.round, ())
        if row.party in chosen:
            sums[row.round, groups.get(row.phase, EVERYTHING_ELSE)] += row.bytes / (1 if only else len(chosen))
    return tuple(
        Bar(number, group, sums[number, group])
        for number in sorted({number for number, _ in sums})
        for group in GROUPS
        if sums.get((number, group))
    )


def saving(shown: Sequence[Bar], float32_bytes: int) -> Saving | None:
    """Mean bar height against float32; None before anything was sent."""
    rounds = {bar.round for bar in shown}
    total = sum(bar.bytes for bar in shown)
    return Saving(total / len(rounds), float32_bytes) if total and float32_bytes else None


def totals(every: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """All bytes of the study by direction, from those by party and direction."""
    return {way: sum(count for (_, direction), count in every.items() if direction == way) for way in ("up", "down")}


def blocks(rounds: Sequence[int]) -> dict[str, tuple[int, int]]:
    """What one chart can show of many rounds: the newest, then older ones, by name as (first, last)."""
    if not rounds:
        return {}
    last = rounds[-1]
    found = {NEWEST: (max(last - BLOCK + 1, 0), last)}
    while (last := last - BLOCK) >= rounds[0]:
        found[f"{max(last - BLOCK + 1, rounds[0])} to {last}"] = (max(last - BLOCK + 1, 0), last)
    return found


def sentence(shown: Sequence[Bar], float32_bytes: int, direction: Direction) -> str:
    """What the chart shows, in one sentence."""
    found = saving(shown, float32_bytes)
    if found is None:
        return "No bytes were counted yet."
    rounds = counted(len({bar.round for bar in shown}), "round")
    verb = "sends" if direction == "up" else "receives"
    comparison = compared(found)
    return f"A hospital {verb} {size(found.upload_bytes)} a round on average over {rounds}: {comparison}."


def compared(found: Saving) -> str:
    """3.9 times smaller than float32 (1.4 MB)."""
    reference = f"float32 ({size(found.float32_bytes)})"
    if found.times >= 1.05:
        return f"{found.times:.1f} times smaller than {reference}"
    if found.times > 0.95:
        return f"about as large as {reference}"
    return f"{1 / found.times:.1f} times larger than {reference}"


def figures(uploads: Sequence[Bar], every: Mapping[tuple[str, str], int], float32_bytes: int) -> tuple[Figure, ...]:
    """Upload of one hospital, against float32, and the totals by direction."""
    found = saving(uploads, float32_bytes)
    assert found is not None  # the page shows figures only where a round was completed
    both = totals(every)
    whole = "All rounds, hospitals and phases, dropped hospitals and evaluators included."
    return (
        Figure(
            "Upload per round",
            size(found.upload_bytes),
            "one hospital, all phases",
            f"Mean over survivors, newest {BLOCK} rounds.",
        ),
        _times(found),
        Figure("Sent in all", size(both["up"]), "by all parties, all rounds", whole),
        Figure("Received in all", size(both["down"]), "by all parties, all rounds", whole),
    )


def _times(found: Saving) -> Figure:
    label, value = ("Times smaller", found.times) if found.times >= 1 else ("Times larger", 1 / found.times)
    explained = "Against one float32 vector of the model, 4 bytes for each parameter."
    return Figure(label, f"{value:.1f} ×", f"than float32, {size(found.float32_bytes)}", explained)


def rows(traffic: Iterable[TrafficRow], direction: Direction, only: str | None) -> tuple[dict[str, object], ...]:
    """Bytes by round and phase for the table: of one hospital, or summed over all parties, dropped ones included."""
    sums: dict[tuple[int, str], int] = defaultdict(int)
    parties: dict[tuple[int, str], int] = defaultdict(int)
    for row in traffic:
        if row.direction == direction and only in {None, row.party}:
            sums[row.round, row.phase] += row.bytes
            parties[row.round, row.phase] += 1
    return tuple(
        {"round": number, "phase": phase(name), "parties": parties[number, name], "bytes": count, "size": size(count)}
        for (number, name), count in sums.items()
    )


def by_hospital(every: Mapping[tuple[str, str], int], direction: Direction) -> str:
    """Totals of every party over all rounds in one sentence; of many parties the smallest and the largest."""
    sums = sorted((party(uri), count) for (uri, way), count in every.items() if way == direction)
    if len(sums) > MAX_NAMED:
        low, high = min(sums, key=lambda one: one[1]), max(sums, key=lambda one: one[1])
        return f"Totals of {len(sums)} parties lie between {size(low[1])} ({low[0]}) and {size(high[1])} ({high[0]})."
    return f"Totals: {listing([f'{name} {size(amount)}' for name, amount in sums])}."
