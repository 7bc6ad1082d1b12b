"""Bytes by round, hospital, direction and phase, and how many times smaller an upload is than float32.

Bytes are those counted on the connection by the coordinator, for all phases. The reference is one float32 vector per
hospital and round, in the same direction: what plain federated averaging would send, without its framing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Concatenate, Literal, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from ui.figures import Figure
from ui.store_reading import RECENT_ROUNDS, RoundBytes
from ui.words import counted, listing, party, phase, size

P = ParamSpec("P")
T = TypeVar("T")
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
OF_PHASE = {phase: group for group, phases in GROUPS.items() for phase in phases}


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


def kept(compute: Callable[Concatenate[RoundBytes, P], T]) -> Callable[Concatenate[RoundBytes, P], T]:
    """`compute` asks once for each round and choice. What it found goes with the bytes that it was made of."""
    found: WeakKeyDictionary[RoundBytes, dict[object, T]] = WeakKeyDictionary()

    def ask(one: RoundBytes, /, *choice: P.args, **named: P.kwargs) -> T:
        mine = found.setdefault(one, {})
        key = (choice, *named.items())
        if key not in mine:
            mine[key] = compute(one, *choice, **named)
        return mine[key]

    return ask


def group_of(phase: str) -> str:
    """The group a phase is drawn in."""
    return OF_PHASE.get(phase, EVERYTHING_ELSE)


def bars(
    traffic: Iterable[RoundBytes], direction: Direction, parties: Mapping[int, Collection[str]], only: str | None = None
) -> tuple[Bar, ...]:
    """Bars by round and group. `parties` gives the hospitals to average over in each round; `only` picks one."""
    return tuple(bar for one in traffic for bar in _bars(one, direction, frozenset(parties.get(one.number, ())), only))


@kept
def _bars(one: RoundBytes, direction: Direction, chosen: frozenset[str], only: str | None) -> tuple[Bar, ...]:
    sums: dict[str, int] = defaultdict(int)
    for row in one.rows:
        if row.direction == direction and row.party in chosen and only in {None, row.party}:
            sums[OF_PHASE.get(row.phase, EVERYTHING_ELSE)] += row.bytes
    over = 1 if only else len(chosen)
    return tuple(Bar(one.number, group, sums[group] / over) for group in GROUPS if sums[group])


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


def rows(traffic: Iterable[RoundBytes], direction: Direction, only: str | None) -> tuple[dict[str, object], ...]:
    """Bytes by round and phase for the table: of one hospital, or summed over all parties, dropped ones included."""
    return tuple(row for one in traffic for row in _rows(one, direction, only))


@kept
def _rows(one: RoundBytes, direction: Direction, only: str | None) -> tuple[dict[str, object], ...]:
    sums: dict[str, int] = defaultdict(int)
    parties: dict[str, int] = defaultdict(int)
    for row in one.rows:
        if row.direction == direction and only in {None, row.party}:
            sums[row.phase] += row.bytes
            parties[row.phase] += 1
    return tuple(
        {"round": one.number, "phase": phase(name), "parties": parties[name], "bytes": count, "size": size(count)}
        for name, count in sums.items()
    )


def by_hospital(every: Mapping[tuple[str, str], int], direction: Direction) -> str:
    """Totals of every party over all rounds in one sentence; of many parties the smallest and the largest."""
    sums = sorted((party(uri), count) for (uri, way), count in every.items() if way == direction)
    if len(sums) > MAX_NAMED:
        low, high = min(sums, key=lambda one: one[1]), max(sums, key=lambda one: one[1])
        return f"Totals of {len(sums)} parties lie between {size(low[1])} ({low[0]}) and {size(high[1])} ({high[0]})."
    return f"Totals: {listing([f'{name} {size(amount)}' for name, amount in sums])}."
