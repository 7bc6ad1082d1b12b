"""What a study found, one entry for each setting: a setting is everything of a cell but its seed.

Only finished cells count. Which settings are compared is decided here, from what the cells are, not from their names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from study.bench.cells import Cell, CellResult, Method, Readings
from study.bench.grid import BASELINES, SHIFTING
from study.bench.intervals import Interval, interval, paired
from study.bench.naming import Settings, shown, with_epsilon_in, without
from study.bench.readings import known
from study.results import CellRow

FLOAT32_BYTES = 4
MEGABYTE = 1e6
NO_DEAL = {"weights", "local_steps", "paces"}  # of a partition: how hospitals train and count, not who has which patients
NOISE = ("noise_multiplier", "no_guarantee", "delta")


@dataclass(frozen=True, slots=True)
class Group:
    """One setting: its finished cells by seed, of `listed` in the study file."""

    cell: Cell  # any of them; its settings are those that names are made of
    results: dict[int, CellResult] = field(repr=False)
    listed: int
    settings: Settings = field(repr=False)  # everything that was varied

    @property
    def is_federated(self) -> bool:
        """Whether anything travels."""
        return self.cell.method not in BASELINES

    @property
    def scores(self) -> dict[int, float]:
        """Final mean over the labels, by seed; seeds without a measurement are left out."""
        return {seed: one.score for seed, one in self.results.items() if not math.isnan(one.score)}

    @property
    def score(self) -> Interval | None:
        """Over the seeds."""
        return interval(list(self.scores.values())) if self.scores else None

    @property
    def mean(self) -> float:
        """Of `scores`; NaN where nothing was measured."""
        return fmean(self.scores.values()) if self.scores else math.nan

    @property
    def labels(self) -> dict[str, Interval]:
        """Final score of each label over the seeds."""
        names = dict.fromkeys(label for one in self.results.values() for label in one.final)
        return {name: interval([one.final[name] for one in self.results.values() if name in one.final]) for name in names}

    @property
    def epsilon(self) -> float | None:
        """Of the worst hospital over all seeds; None: no guarantee."""
        return _largest([one.epsilon for one in self.results.values()])

    @property
    def readings(self) -> Readings:
        """The same as others read it; unknown where it is for any seed."""
        read = [known(self.cell, one) for one in self.results.values()]
        return Readings(**{name: _largest([getattr(one, name) for one in read]) for name in Readings.model_fields})

    @property
    def delta(self) -> float:
        """At which epsilon is read."""
        return max(one.delta for one in self.results.values())

    @property
    def wall_s(self) -> float:
        """Mean of a cell."""
        return fmean(one.wall_s for one in self.results.values())

    @property
    def cpu_s(self) -> float:
        """Mean of a cell."""
        return fmean(one.cpu_s for one in self.results.values())

    def megabytes(self, direction: str) -> float | None:
        """Mean over seeds of what one hospital sends ("up") or receives ("down") over all rounds; None for baselines."""
        if not self.is_federated:
            return None
        name = f"{direction}load_bytes"
        return (
            fmean(sum(getattr(row, name) for row in one.rounds) / len(one.hospitals) for one in self.results.values())
            / MEGABYTE
        )

    @property
    def times_smaller(self) -> float | None:
        """What the survivors' updates are as float32, over what they sent; None for baselines."""
        sent = sum(row.upload_bytes for one in self.results.values() for row in one.rounds)
        plain = sum(
            FLOAT32_BYTES * one.vector_length * row.survivors
            for one in self.results.values()
            for row in one.rounds
            if row.upload_bytes
        )
        return plain / sent if sent else None

    @property
    def length(self) -> str:
        """Rounds, or steps of ordinary training."""
        if not self.is_federated:
            return f"{self.cell.ordinary.steps} steps"
        return str(max(row.round for one in self.results.values() for row in one.rounds))

    def by_round(self) -> dict[int, list[float]]:
        """Mean over the labels after each measured round, one value a seed."""
        found: dict[int, list[float]] = {}
        for seed in sorted(self.results):
            for row in self.results[seed].rounds:
                means = [fmean(values) for values in row.scores.values() if values]
                if means:
                    found.setdefault(row.round, []).append(fmean(means))
        return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting's score minus that of what it is compared with, over the seeds that both have."""

    group: Group
    other: Group
    score: Interval


def _largest(spent: Sequence[float | None]) -> float | None:
    """None where one of them is not known, or no guarantee."""
    finite = [value for value in spent if value is not None and math.isfinite(value)]
    return max(finite) if finite and len(finite) == len(spent) else None


def grouped(rows: Iterable[CellRow], source: str = "") -> list[Group]:
    """Settings with at least one finished cell, in the order of the study file, whose text is `source`."""
    hidden = with_epsilon_in(source)
    cells: dict[str, list[CellRow]] = {}
    for row in rows:
        cells.setdefault(_identity(row.cell), []).append(row)
    found = []
    for same in cells.values():
        results = {row.cell.seed: row.result for row in same if row.result is not None}
        if results:
            settings = same[0].cell.settings
            named = same[0].cell.model_copy(update={"settings": without(settings, hidden)}) if hidden else same[0].cell
            found.append(Group(named, dict(sorted(results.items())), len(same), settings))
    return found


def differences(groups: Sequence[Group]) -> list[Difference]:
    """Every setting against pooled training of the same patients, and every masked one against the same without masks."""
    found = []
    for group in groups:
        others = [_only(groups, Method.POOLED, _as_pooled, group)] if group.cell.method is not Method.POOLED else []
        if group.cell.method is Method.MASKED:
            same = _only(groups, Method.PLAIN, _without_masks, group)
            others.append(same or _only(groups, Method.PLAIN, _without_masks_and_noise, group))
        for other in others:
            score = paired(group.scores, other.scores) if other else None
            if other is not None and score is not None:
                found.append(Difference(group, other, score))
    return found


def levels_of(group: Group, groups: Sequence[Group]) -> list[Group]:
    """Baselines and plain training without noise that `group` is seen against in a figure.

    Pooled: the same images, network and start. Local: the same deal too. Plain: the same plan but for privacy and masks. What
    another plan or another start gave is no level of this one.
    """
    found = []
    for method, likeness in ((Method.POOLED, _as_pooled), (Method.LOCAL, _as_local), (Method.PLAIN, _without_privacy)):
        found += [
            one
            for one in groups
            if one.cell.method is method
            and one.epsilon is None
            and one is not group
            and likeness(one.cell) == likeness(group.cell)
        ]
    return found


def place_of(cell: Cell) -> str:
    """Equal for cells that a figure may show in one panel: the same images, deal, network and start, by the same template."""
    return json.dumps((_as_local(cell), shown(cell.settings.get("plan"))))


def _identity(cell: Cell) -> str:
    return json.dumps(_content(cell, "seed"), sort_keys=True)


def _content(cell: Cell, *without: str) -> dict[str, Any]:
    return cell.model_dump(mode="json", exclude={"study", "settings", *without})


def _only(groups: Sequence[Group], method: Method, likeness: Callable[[Cell], str], group: Group) -> Group | None:
    """The one setting of `method` that is like `group`; None where there is none or more than one."""
    like = [one for one in groups if one.cell.method is method and likeness(one.cell) == likeness(group.cell)]
    return like[0] if len(like) == 1 else None


def _patients(cell: Cell, dealt: bool) -> str:
    """Whose images, and with `dealt` in which hospitals; a deal that changes images counts always."""
    deal = cell.partition.model_dump(mode="json", exclude=NO_DEAL) if dealt or cell.partition.kind in SHIFTING else None
    return json.dumps((cell.task, cell.data.model_dump(mode="json"), deal), sort_keys=True)


def _as_pooled(cell: Cell) -> str:
    """What pooled training of the same patients would share: images, network, preparation and start."""
    parts = (_patients(cell, dealt=False), cell.start, cell.plan["network"], cell.plan["preparation"])
    return json.dumps(parts, sort_keys=True)


def _as_local(cell: Cell) -> str:
    return json.dumps((_as_pooled(cell), _patients(cell, dealt=True)))


def _without_masks(cell: Cell) -> str:
    """Masking counts where the plan asks only some hospitals in a round: another plan asks others."""
    fields = _content(cell, "seed", "method")
    if cell.plan["participants"] is None:
        fields["plan"].pop("masking")
    return json.dumps(fields, sort_keys=True)


def _without_masks_and_noise(cell: Cell) -> str:
    fields = json.loads(_without_masks(cell))
    fields.pop("epsilon")
    fields["plan"]["privacy"] = {key: value for key, value in fields["plan"]["privacy"].items() if key not in NOISE}
    return json.dumps(fields, sort_keys=True)


def _without_privacy(cell: Cell) -> str:
    fields = json.loads(_without_masks(cell))
    fields.pop("epsilon")
    fields["plan"].pop("privacy")
    return json.dumps(fields, sort_keys=True)
