"""Tables and figures of a study, from its results file alone: run twice, every file is the same byte for byte.

Nothing here depends on the clock, the machine or the order in which cells finished. What would need a guess (an interval from
one seed, a difference without a partner) is left empty and the text says why.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hospital_node.cap import plain
from study.bench.cells import HOSPITAL_UNITS
from study.bench.figures import Picture, draw
from study.bench.groups import Difference, Group, differences, grouped
from study.bench.intervals import Interval
from study.bench.levels import levels_in, reached
from study.bench.naming import cell_name, shown, telling, with_epsilon_in, without
from study.bench.readings import DEFAULT_DELTA
from study.results import CellRow, StudyRow, open_results

REPORT, TABLES = "report.md", "tables.csv"
NONE = "–"
NO_GUARANTEE = "no guarantee"
SETTINGS_WORDS = (
    "Everything that the study varied. The names in the other tables and in the figures hold what tells settings apart and no "
    f"more. {NONE}: the method does not read it, or the plan leaves it out."
)
COST_WORDS = (
    "Means over seeds of one cell, on the machines that ran it. MB (10^6 bytes) are those of a mean hospital over all rounds: "
    "of masked cells as counted on the connection, of plain ones a float32 vector each way. Times smaller: the same updates "
    "as float32, over what was sent."
)
AT_DEFAULT = f"epsilon at {plain(DEFAULT_DELTA)}"
OUTSIDERS, OUTSIDERS_AT_DEFAULT = "epsilon, c = 0", f"{AT_DEFAULT}, c = 0"
DEFAULT_WORDS = f" {AT_DEFAULT.capitalize()} is of the same trainings, read at the product's default delta."
UNITS = "epsilon of"
UNITS_WORDS = (
    " Where epsilon is a hospital's, it says what the model tells of a hospital's taking part, and its neighbours differ by a "
    "whole hospital: no such figure can be compared with a patient's."
)
OUTSIDERS_WORDS = (
    " Where hospitals share one noise, epsilon is against the coordinator with the plan's colluders; c = 0 is against whoever "
    "knows no hospital's share. Both rely on masking."
)
LEVEL_WORDS = (
    "The first measured round after which the mean over the labels is at least the level (later ones may fall below it again), "
    "and what a mean hospital has sent and received by then: means over the seeds that reached it, lowest and highest."
)
DIFFERENCE_WORDS = (
    "Score minus the score of what is named beside it, by pairs of equal seeds. Pooled: ordinary training on the same images "
    "with the same network and start. Plain: the same federation without quantizer and masks; where that ran without noise "
    "only, this one. Where a study has no such setting, or more than one, there is no difference."
)


def write_report(folder: Path) -> list[Path]:
    """Write report.md, tables.csv and the figures into a study's folder and return them. Raises ResultsError."""
    with open_results(folder) as results:
        study, rows, unlisted = results.study(), results.cells(), results.unlisted()
    groups = grouped(rows, study.source)
    pairs = differences(groups)
    pictures = draw(groups, study.metric, folder)
    _replace(folder / REPORT, "\n".join(_report(study, rows, groups, pairs, pictures, unlisted)) + "\n")
    _write_tables(folder / TABLES, groups, pairs)
    return [folder / REPORT, folder / TABLES, *(file for picture in pictures for file in picture.files)]


def _report(
    study: StudyRow,
    rows: Sequence[CellRow],
    groups: Sequence[Group],
    pairs: Sequence[Difference],
    pictures: Sequence[Picture],
    unlisted: int,
) -> list[str]:
    hidden = with_epsilon_in(study.source)
    names = telling([without(row.cell.settings, hidden) for row in rows], [row.cell.method for row in rows])
    lines = [f"# Study {study.name}", "", _complete(rows, unlisted), "", study.honesty, ""]
    if groups:
        lines += ["## Scores", "", _score_words(study.metric, groups), "", *_score_table(study.metric, groups, names), ""]
        lines += _settings_section(groups, names)
        lines += _level_section(study, groups, names)
        lines += ["## Costs", "", COST_WORDS, "", *_cost_table(groups, names), ""]
    if pairs:
        lines += ["## Differences", "", DIFFERENCE_WORDS, "", *_difference_table(pairs, names), ""]
    for picture in pictures:
        lines += [f"![{picture.finding}]({picture.files[0].name})", ""]
    return lines[:-1] + _failures(rows)


def _complete(rows: Sequence[CellRow], unlisted: int) -> str:
    states = [row.state for row in rows]
    said = f"{states.count('done')} of {len(rows)} cells are done"
    waiting = states.count("planned") + states.count("running")
    said += f", {states.count('failed')} failed" if "failed" in states else ""
    said += f", {waiting} not run yet" if waiting else ""
    more = f" Left out: {unlisted} of an earlier version of the study file." if unlisted else ""
    return f"{said}. Tables hold finished cells only.{more}"


def _score_words(metric: str, groups: Sequence[Group]) -> str:
    deltas = sorted({group.delta for group in groups if group.epsilon is not None})
    at = f" at delta {', '.join(map(plain, deltas))}" if deltas else ""
    columns = _epsilon_columns(groups)
    more = DEFAULT_WORDS if AT_DEFAULT in columns else ""
    more += UNITS_WORDS if UNITS in columns else ""
    more += OUTSIDERS_WORDS if OUTSIDERS in columns else ""
    alone = " One seed has no interval." if any(group.score and group.score.half is None for group in groups) else ""
    return (
        f"Mean {metric} of the test cases after the last measured round, ± half of the 95 % interval over seeds (Student's t)."
        f"{alone} Epsilon is that of the worst hospital over the whole training{at}; no guarantee: nothing bounds what the "
        f"model tells of a patient.{more}"
    )


def _settings_section(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    """Everything that was varied, where the short names leave something out."""
    varied = list(dict.fromkeys(name for group in groups for name in group.settings))
    if set(varied) <= set(names):
        return []
    body = [
        [
            cell_name(group.cell, names),
            *(shown(group.settings[name]) if name in group.settings else NONE for name in varied),
        ]
        for group in groups
    ]
    return ["## Settings", "", SETTINGS_WORDS, "", *_markdown(["setting", *varied], body), ""]


def _score_table(metric: str, groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    labels = list(dict.fromkeys(label for group in groups for label in group.labels))
    several = labels if len(labels) > 1 else []
    columns = _epsilon_columns(groups)
    head = ["setting", "seeds", metric, *several, *columns, "rounds"]
    body = [
        [
            cell_name(group.cell, names),
            _seeds(group),
            _measured(group.score),
            *(_measured(group.labels.get(label)) for label in several),
            *(values[at] for values in columns.values()),
            group.length,
        ]
        for at, group in enumerate(groups)
    ]
    return _markdown(head, body)


def _epsilon_columns(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Name -> a value for each setting. Left out: a further reading that is nobody's, and one delta that all share."""
    read = [group.readings for group in groups]
    elsewhere = [group.epsilon is not None and group.delta != DEFAULT_DELTA for group in groups]
    pairs = list(zip(read, elsewhere, strict=True))
    columns = {
        AT_DEFAULT: [one.at_default for one in read] if any(one.at_default and other for one, other in pairs) else [],
        OUTSIDERS: [one.outsider for one in read],
        OUTSIDERS_AT_DEFAULT: [one.outsider_at_default if other else None for one, other in pairs],
    }
    shown_columns = {name: [_number(one, ".2f") for one in values] for name, values in columns.items() if any(values)}
    deltas = [NONE if group.epsilon is None else plain(group.delta) for group in groups]
    several = {"delta": deltas} if len({*deltas} - {NONE}) > 1 else {}
    units = {UNITS: [_unit(group) for group in groups]} if any(one.cell.method in HOSPITAL_UNITS for one in groups) else {}
    return {"epsilon": [_epsilon(group.epsilon) for group in groups], **units, **several, **shown_columns}


def _unit(group: Group) -> str:
    return NONE if group.epsilon is None else group.cell.epsilon_of


def _level_section(study: StudyRow, groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    """How soon each setting reaches the levels of the study file, where it has some."""
    found = reached(groups, levels_in(study.source))
    if not found:
        return []
    head = ["setting", study.metric, "seeds that reached it", "rounds", "MB by then"]
    body = [
        [
            cell_name(one.group.cell, names),
            f"{one.level:g}",
            f"{len(one.rounds)} of {len(one.group.results)}",
            _range(one.rounds.values(), ".1f", "g"),
            _range(one.megabytes.values(), ".3f", ".3f"),
        ]
        for one in found
    ]
    return ["## Rounds to a level", "", LEVEL_WORDS, "", *_markdown(head, body), ""]


def _range(values: Collection[float], form: str, ends: str) -> str:
    """Mean, and the ends where there are several."""
    if not values:
        return NONE
    mean = format(math.fsum(values) / len(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{ends}} to {max(values):{ends}})"


def _cost_table(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    head = ["setting", "MB up", "MB down", "times smaller", "wall s", "CPU s"]
    body = [
        [
            cell_name(group.cell, names),
            _number(group.megabytes("up"), ".3f"),
            _number(group.megabytes("down"), ".3f"),
            _number(group.times_smaller, ".2f"),
            f"{group.wall_s:.1f}",
            f"{group.cpu_s:.1f}",
        ]
        for group in groups
    ]
    return _markdown(head, body)


def _difference_table(pairs: Sequence[Difference], names: Sequence[str]) -> list[str]:
    head = ["setting", "compared with", "pairs", "difference"]
    body = [
        [cell_name(one.cell, names) for one in (pair.group, pair.other)]
        + [str(pair.score.count), _measured(pair.score, "+.4f")]
        for pair in pairs
    ]
    return _markdown(head, body, words=2)


def _failures(rows: Sequence[CellRow]) -> list[str]:
    failed = [f"- {row.cell.label} ({row.cell.id}): {row.reason}" for row in rows if row.state == "failed"]
    return ["", "## Failed cells", "", *failed] if failed else []


def _seeds(group: Group) -> str:
    count = len(group.results)
    return str(count) if count == group.listed else f"{count} of {group.listed}"


def _measured(value: Interval | None, form: str = ".4f") -> str:
    if value is None:
        return NONE
    return format(value.mean, form) + ("" if value.half is None else f" ± {value.half:.4f}")


def _epsilon(value: float | None) -> str:
    return NO_GUARANTEE if value is None else f"{value:.2f}"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """A table whose first `words` columns are words and whose others are numbers."""
    rule = ["---" if index < words else "---:" for index in range(len(head))]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in (head, rule, *body)]


def _write_tables(path: Path, groups: Sequence[Group], pairs: Sequence[Difference]) -> None:
    """One row a setting, in plain numbers; empty: not known, not applicable, or no guarantee."""
    names = list(dict.fromkeys(name for group in groups for name in group.settings))
    labels = list(dict.fromkeys(label for group in groups for label in group.labels))
    rows = [_values(group, names, labels, [pair for pair in pairs if pair.group is group]) for group in groups]
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as handle:
        if rows:
            writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    part.replace(path)


def _values(group: Group, names: Sequence[str], labels: Sequence[str], pairs: Sequence[Difference]) -> dict[str, object]:
    values: dict[str, object] = {"method": group.cell.method.value}
    values |= {name: shown(group.settings[name]) if name in group.settings else None for name in names}
    values |= {"seeds": len(group.results), "seeds_listed": group.listed}
    values |= _ends("score", group.score)
    for label in labels:
        values |= _ends(f"score {label}", group.labels.get(label))
    values |= {
        "spent_epsilon": group.epsilon,
        "epsilon_of": None if group.epsilon is None else group.cell.epsilon_of,
        "delta": group.delta,
        **{f"epsilon_{name}": value for name, value in group.readings.model_dump().items()},
        "rounds": group.length if group.is_federated else None,
    }
    values |= {"wall_s": group.wall_s, "cpu_s": group.cpu_s, "times_smaller": group.times_smaller}
    values |= {"upload_megabytes": group.megabytes("up"), "download_megabytes": group.megabytes("down")}
    against: Mapping[str, Difference] = {pair.other.cell.method.value: pair for pair in pairs}
    for method in ("pooled", "plain"):
        pair = against.get(method)
        values |= {f"minus_{method}_pairs": pair.score.count if pair else None}
        values |= _ends(f"minus_{method}", pair.score if pair else None)
    return values


def _ends(name: str, value: Interval | None) -> dict[str, object]:
    if value is None:
        return {name: None, f"{name} low": None, f"{name} high": None}
    return {name: value.mean, f"{name} low": value.low, f"{name} high": value.high}


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
