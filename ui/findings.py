"""What a study found, as the page shows it: accuracy against epsilon, against bits and against hospitals, and every run.

The rule: only settings that differ in nothing but the axis share a line, and only what belongs to them is drawn beside them
(study/bench/groups.py decides both). Dots are seeds; an interval is drawn from five seeds on and stands in the tables from two.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal
from urllib.parse import urlencode

from study.bench.cells import HOSPITAL_UNITS, Cell, Method, Setting
from study.bench.groups import Group, levels_of, place_of
from study.bench.naming import EPSILON, cell_name, differing, in_words, labels_of, said, shown, telling
from study.results import CellRow
from ui.figures import Figure
from ui.sources import StudyReading
from ui.words import NO_GUARANTEE, counted, duration, epsilon, listing, plain, size

Axis = Literal["epsilon", "bits", "hospitals"]
AXES: tuple[Axis, ...] = ("epsilon", "bits", "hospitals")
FLOAT_BITS = 32
SEEDS_FOR_BARS = 5  # with fewer, a 95 % interval tells more of Student's t than of the score
NO_NOISE_GAP = 2.0  # the place of "no guarantee" on the epsilon axis, over the largest epsilon
TITLES: dict[Axis, str] = {
    "epsilon": "Accuracy against epsilon",
    "bits": "Accuracy against bits",
    "hospitals": "Accuracy against the number of hospitals",
}
REFERENCES = {"all patients pooled, without privacy": Method.POOLED, "each hospital alone": Method.LOCAL}
AXIS_LABELS: dict[Axis, str] = {
    "epsilon": "epsilon of the worst hospital over the whole training (logarithmic; smaller protects more)",
    "bits": "bits sent for each value of an update, as measured, framing included",
    "hospitals": "hospitals",
}
METHODS: dict[Method, str] = {
    Method.POOLED: "pooled",
    Method.LOCAL: "each hospital alone",
    Method.PLAIN: "federated, no masks",
    Method.LAPLACE: "Laplace noise, privacy of hospitals",
    Method.HOSPITAL_LEVEL: "Gaussian noise, privacy of hospitals",
    Method.MASKED: "federated, masked",
}
METHOD_WORDS = (
    "Pooled: ordinary training on all patients in one place, what could be reached if scans travelled. Each hospital alone: "
    "the mean of what every hospital reaches by itself. Federated: hospitals train together and send updates, masked or, for "
    "comparison, not."
)
RUN_STATES = {"planned": "not run yet", "running": "runs now", "done": "done", "failed": "failed"}


@dataclass(frozen=True, slots=True)
class Spot:
    """One setting: its place on the axis, the mean over its seeds, and each seed."""

    line: str
    x: float
    x_text: str
    mean: float
    half: float | None  # of the 95 % interval over seeds; None for one seed
    seeds: tuple[float, ...]
    finite: bool  # whether x is a number of the axis and not the place of "no guarantee"

    @property
    def bar(self) -> tuple[float, float] | None:
        """The interval where it is drawn."""
        return (self.mean - self.half, self.mean + self.half) if self.half and len(self.seeds) >= SEEDS_FOR_BARS else None

    @property
    def interval(self) -> str:
        """The interval in words."""
        return "one seed" if self.half is None else f"{self.mean - self.half:.3f} to {self.mean + self.half:.3f}"


@dataclass(frozen=True, slots=True)
class Level:
    """A reference that does not depend on the axis."""

    name: str
    mean: float


@dataclass(frozen=True, slots=True)
class View:
    """One chart."""

    axis: Axis
    metric: str
    spots: tuple[Spot, ...]
    levels: tuple[Level, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """Names of the series in order."""
        return tuple(dict.fromkeys(spot.line for spot in self.spots))

    def rows(self) -> list[dict[str, object]]:
        """The same as a table."""
        rows: list[dict[str, object]] = [
            {
                "setting": spot.line,
                self.axis: spot.x_text,
                f"mean {self.metric}": f"{spot.mean:.3f}",
                "95 % interval over seeds": spot.interval,
                "seeds": ", ".join(f"{value:.3f}" for value in spot.seeds),
            }
            for spot in self.spots
        ]
        empty = {"95 % interval over seeds": "–", "seeds": "–", self.axis: "any"}
        return rows + [{"setting": level.name, f"mean {self.metric}": f"{level.mean:.3f}", **empty} for level in self.levels]


def panels(groups: Sequence[Group]) -> dict[str, tuple[Group, ...]]:
    """What may stand in one chart over epsilon or bits: masked settings on the same images, deal, network and start."""
    masked = [group for group in groups if group.cell.method is Method.MASKED and group.scores]
    places: dict[Hashable, list[Group]] = {}
    for group in masked:
        places.setdefault(place_of(group.cell), []).append(group)
    found = sorted(places.values(), key=lambda same: -len({group.epsilon for group in same}))  # the richest chart first
    varied = {name for same in found for name in differing([group.cell.settings for group in same])}
    common = [{name: value for name, value in same[0].cell.settings.items() if name not in varied} for same in found]
    names = telling(common)
    titles = [", ".join(in_words(settings, names)) or f"panel {number}" for number, settings in enumerate(common, 1)]
    apart = len(set(titles)) == len(titles)
    return {
        title if apart else f"{title} ({number})": tuple(same)
        for number, (title, same) in enumerate(zip(titles, found, strict=True), 1)
    }


def views(same: Sequence[Group], groups: Sequence[Group], metric: str) -> tuple[View, ...]:
    """The charts that a panel and the whole study can fill, epsilon first."""
    everywhere = [group for group in groups if group.is_federated and group.scores]
    wanted: tuple[tuple[Axis, Sequence[Group]], ...] = (("epsilon", same), ("bits", same), ("hospitals", everywhere))
    made = (_view(axis, chosen, groups, metric) for axis, chosen in wanted)
    return tuple(view for view in made if view is not None)


def _view(axis: Axis, chosen: Sequence[Group], groups: Sequence[Group], metric: str) -> View | None:
    lines = _lines(axis, chosen)
    if axis == "epsilon" and all(group.epsilon is None for group in chosen):
        return None
    if axis != "epsilon":
        lines = {name: members for name, members in lines.items() if len({_place(axis, one, 0) for one in members}) > 1}
    if not lines:
        return None
    beyond = NO_NOISE_GAP * max((group.epsilon or 0.0 for group in chosen), default=1.0)
    spots = tuple(_spot(axis, name, group, beyond) for name, members in lines.items() for group in members)
    members = [group for one in lines.values() for group in one]
    return View(axis, metric, tuple(sorted(spots, key=lambda spot: spot.x)), _levels(members, groups, axis))


def _lines(axis: Axis, chosen: Sequence[Group]) -> dict[str, list[Group]]:
    """Settings that differ in nothing but the axis, under what tells the lines apart."""
    names = {name for name in differing([group.cell.settings for group in chosen]) if not _of_axis(name, axis)}
    found: dict[Hashable, list[Group]] = {}
    for group in chosen:
        found.setdefault((group.cell.method, *said(group.cell.settings, names)), []).append(group)
    firsts = [members[0].cell for members in found.values()]
    apart = {name for name in telling([cell.settings for cell in firsts], [cell.method for cell in firsts]) if name in names}
    titles = [", ".join([METHODS[cell.method], *_words(cell.settings, apart)]) for cell in firsts]
    return dict(zip(titles, found.values(), strict=True)) if len(set(titles)) == len(titles) else {}


def _words(settings: Mapping[str, Setting], names: Collection[str]) -> list[str]:
    """Settings for people; an infinite epsilon is no epsilon."""
    return ["no noise" if one == "epsilon infinity" else one for one in in_words(settings, names)]


def _of_axis(name: str, axis: Axis) -> bool:
    if axis == "bits":
        return name.startswith("masking.")
    return name == EPSILON if axis == "epsilon" else name == "hospitals"


def bits(group: Group) -> float:
    """Bits that one value of an update takes on the wire, all phases counted."""
    times = group.times_smaller
    return math.nan if times is None else FLOAT_BITS / times


def hospitals(group: Group) -> int:
    """How many train together."""
    return max(len(one.hospitals) for one in group.results.values())


def _place(axis: Axis, group: Group, beyond: float) -> float:
    if axis == "epsilon":
        return beyond if group.epsilon is None else group.epsilon
    return round(bits(group), 2) if axis == "bits" else hospitals(group)


def _spot(axis: Axis, name: str, group: Group, beyond: float) -> Spot:
    x = _place(axis, group, beyond)
    text = {"epsilon": _spent(group.epsilon), "bits": f"{x:.1f}"}.get(axis, f"{x:g}")
    score = group.score
    half = None if score is None else score.half
    return Spot(name, x, text, group.mean, half, tuple(group.scores.values()), axis != "epsilon" or group.epsilon is not None)


def _levels(members: Sequence[Group], groups: Sequence[Group], axis: Axis) -> tuple[Level, ...]:
    """Pooled, local and plain training that belong to the members; local and plain depend on the deal."""
    found = {id(level): level for group in members for level in levels_of(group, groups) if level.scores}
    kept = [level for level in found.values() if axis != "hospitals" or level.cell.method is Method.POOLED]
    names = set(telling([level.cell.settings for level in kept], [level.cell.method for level in kept])) - {EPSILON}
    titles = [", ".join([METHODS[level.cell.method], *_words(level.cell.settings, names)]) for level in kept]
    return tuple(Level(title, level.mean) for title, level in zip(titles, kept, strict=True))


def sentence(view: View) -> str:
    """What a chart shows, one sentence a line."""
    words = []
    for line in view.lines:
        parts = [f"{spot.mean:.2f} {_at(spot, view.axis)}" for spot in view.spots if spot.line == line]
        words.append(f"{line[:1].upper()}{line[1:]}: mean {view.metric} {listing(parts)}.")
    beside = [f"{level.name} {level.mean:.2f}" for level in view.levels]
    return " ".join([*words, f"References: {listing(beside)}."] if beside else words)


def _at(spot: Spot, axis: Axis) -> str:
    if not spot.finite:
        return "without noise (no guarantee)"
    return f"at ε {spot.x_text}" if axis == "epsilon" else f"with {spot.x_text} {axis}"


def explained(view: View, groups: Sequence[Group]) -> str:
    """What dots and bars are, and at which delta epsilon stands."""
    deltas = sorted({group.delta for group in groups if group.epsilon is not None})
    most = max(len(spot.seeds) for spot in view.spots)
    parts = ["Small dots are seeds, the larger point is their mean." if most > 1 else "One seed: there is no interval."]
    parts += ["Bars are 95 % intervals over seeds."] if most >= SEEDS_FOR_BARS else []
    parts += ["Intervals of fewer than five seeds stand in the table only."] if 1 < most < SEEDS_FOR_BARS else []
    parts += [f"Epsilon is read at δ {listing([plain(delta) for delta in deltas])}."] if view.axis == "epsilon" else []
    return " ".join(parts)


# ---- the study as a whole ----


def figures(found: StudyReading, groups: Sequence[Group]) -> tuple[Figure, ...]:
    """Runs, the best that was reached with a guarantee, what its patients gave without privacy, and the upload."""
    done = sum(row.state == "done" for row in found.rows)
    seeds = {row.cell.seed for row in found.rows}
    metric = found.study.metric
    guarded = [one for one in groups if one.epsilon is not None and one.cell.method not in HOSPITAL_UNITS]
    best = max((one for one in guarded if one.scores), key=lambda one: one.mean, default=None)
    return (
        Figure(
            "Runs done", f"{done} of {len(found.rows)}", counted(len(seeds), "seed"), "One run is one setting with one seed."
        ),
        _best(metric, f"{metric} with a guarantee", guarded),
        _best(metric, f"{metric} without privacy", _without_privacy(best, groups)),
        _smaller(groups),
    )


def _without_privacy(best: Group | None, groups: Sequence[Group]) -> list[Group]:
    """Pooled training on the patients of `best`; where none is done, federations without noise that a figure shows with it."""
    pooled = [one for one in (groups if best is None else levels_of(best, groups)) if one.cell.method is Method.POOLED]
    if any(one.scores for one in pooled):
        return pooled
    silent = [one for one in groups if one.epsilon is None and one.cell.method in {Method.PLAIN, Method.MASKED}]
    return [one for one in silent if best is None or place_of(one.cell) == place_of(best.cell)]


def _best(metric: str, label: str, chosen: Sequence[Group]) -> Figure:
    explained = f"Best mean {metric} over seeds and test cases among these settings; the best of several is a little flattered."
    scored = [group for group in chosen if group.scores]
    if not scored:
        return Figure(label, "none yet", "no such run is done", explained)
    best = max(scored, key=lambda group: group.mean)
    without = "pooled training on all patients" if best.cell.method is Method.POOLED else "a federation without noise"
    at = without if best.epsilon is None else f"at ε {epsilon(best.epsilon)}, δ {plain(best.delta)}"
    return Figure(label, f"{best.mean:.2f}", at, explained)


def _smaller(groups: Sequence[Group]) -> Figure:
    explained = (
        "What the survivors' updates are as float32, over what they sent, all phases counted. Mean over masked settings."
    )
    times = [group.times_smaller for group in groups if group.cell.method is Method.MASKED and group.times_smaller]
    if not times:
        return Figure("Times smaller", "none yet", "no masked run is done", explained)
    low, high = min(times), max(times)
    value = f"{low:.1f} ×" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f} ×"
    return Figure("Times smaller", value, "than float32, measured", explained)


def reference(found: StudyReading, groups: Sequence[Group]) -> dict[str, object] | None:
    """What a study's patients gave without privacy, and each hospital alone; None where neither was run."""
    best = {name: _best_of(method, groups) for name, method in REFERENCES.items()}
    if not any(best.values()):
        return None
    first = {"study": found.study.name, "task": found.study.task, "measured as": found.study.metric}
    return {**first, **{name: _with_interval(group) for name, group in best.items()}}


def _best_of(method: Method, groups: Sequence[Group]) -> Group | None:
    scored = [group for group in groups if group.cell.method is method and group.scores]
    return max(scored, key=lambda group: group.mean, default=None)


def _with_interval(group: Group | None) -> str:
    if group is None:
        return "not run"
    half = group.score.half if group.score is not None else None
    spread = "" if half is None else f" ± {half:.2f}"
    return f"{group.mean:.2f}{spread} · {counted(len(group.scores), 'seed')}"


def setting_rows(groups: Sequence[Group], metric: str) -> list[dict[str, object]]:
    """One row a setting, in the order of the study file."""
    names = telling([group.cell.settings for group in groups], [group.cell.method for group in groups])
    return [
        {
            "setting": cell_name(group.cell, names),
            "seeds": f"{len(group.results)} of {group.listed}",
            metric: "–" if group.score is None else f"{group.mean:.3f}",
            "± (95 %)": "–" if group.score is None or group.score.half is None else f"{group.score.half:.3f}",
            "epsilon": _spent(group.epsilon) + _of_whom(group.cell),
            "hospitals": hospitals(group),
            "sent by one hospital": "–" if group.megabytes("up") is None else size((group.megabytes("up") or 0) * 1e6),
            "CPU a run": duration(group.cpu_s),
        }
        for group in groups
    ]


# ---- one run ----


def runs(rows: Sequence[CellRow]) -> dict[str, CellRow]:
    """Every run under a name that tells it from the others."""
    names = labels_of([row.cell for row in rows])
    return {f"{names[row.cell.id]} · {row.cell.id[:6]}": row for row in rows}


def run_rows(named: dict[str, CellRow], study: str) -> list[dict[str, object]]:
    """One row a run, each with the address at which it is shown."""
    return [
        {
            "run": name,
            "link": f"study?{urlencode({'study': study, 'run': name})}",
            "state": RUN_STATES.get(row.state, row.state),
            "score": "–" if row.result is None or math.isnan(row.result.score) else f"{row.result.score:.3f}",
            "epsilon": "–" if row.result is None else _spent(row.result.epsilon) + _of_whom(row.cell),
            "rounds": max((one.round for one in row.rounds), default=0),
        }
        for name, row in named.items()
    ]


def by_round(row: CellRow) -> tuple[tuple[int, float], ...]:
    """(round, mean over labels) of every measured round."""
    measured = ((one.round, [fmean(values) for values in one.scores.values() if values]) for one in row.rounds)
    return tuple((number, fmean(means)) for number, means in measured if means)


def run_sentence(row: CellRow, metric: str) -> str:
    """What became of one run."""
    points = by_round(row)
    if row.state == "failed":
        return f"This run failed: {row.reason.rstrip('.')}."
    if not points:
        return f"This run is {RUN_STATES.get(row.state, row.state)}; nothing was measured so far."
    (first, start), (last, end) = points[0], points[-1]
    state = "" if row.state == "done" else f" It {'runs now' if row.state == 'running' else 'has not ended'}."
    if first == last:
        return f"{metric} {end:.3f} after round {last}.{state}"
    return f"{metric} went from {start:.3f} ({_round(first)}) to {end:.3f} ({_round(last)}).{state}"


def run_fields(row: CellRow) -> list[dict[str, str]]:
    """Everything that decided a run, and what it cost."""
    fields = {"method": row.cell.method.value, "seed": str(row.cell.seed)}
    fields |= {name: shown(value) for name, value in row.cell.settings.items() if name not in fields}
    if row.result is not None:
        fields |= {
            "epsilon reached": _spent(row.result.epsilon) + _of_whom(row.cell),
            "noise multiplier": plain(row.result.noise_multiplier),
            "hospitals and their patients": listing([f"{name} {count}" for name, count in row.result.hospitals.items()]),
            "sent by all hospitals": size(row.upload_bytes),
            "took": f"{duration(row.result.wall_s)}, CPU {duration(row.result.cpu_s)}",
            "plan digest": row.result.plan_digest[:16],
        }
    fields |= {"run": row.cell.id, "software": row.software or "–"}
    return [{"field": name, "value": value} for name, value in fields.items()]


def _spent(value: float | None) -> str:
    return NO_GUARANTEE if value is None else epsilon(value)


def _of_whom(cell: Cell) -> str:
    """What an epsilon that is not about patients has to say."""
    return " (of a hospital)" if cell.method in HOSPITAL_UNITS else ""


def _round(number: int) -> str:
    return "the start" if number == 0 else f"round {number}"
