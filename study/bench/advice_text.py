"""Advice as people read it, as JSON, and as a template of a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console
from rich.table import Table

from hospital_node.cap import plain, rounded_up
from study.bench.advice import Advice, Score, scores_near
from study.bench.cells import Method
from study.bench.groups import Group, grouped
from study.bench.readings import DEFAULT_DELTA
from study.bench.task import StudyError
from study.results import open_results

SHOWN = (  # fields of the plan that are worth a line; those that it leaves out are left out
    "rounds",
    "privacy.noise_mode",
    "privacy.noise_multiplier",
    "privacy.clip_norm",
    "privacy.inverse_sampling_rate",
    "privacy.norm_steps",
    "privacy.may_drop",
    "privacy.may_collude",
    "training.optimizer",
    "training.local_steps",
    "training.learning_rate",
    "aggregation.learning_rate",
    "aggregation.learning_rate_decay",
    "aggregation.momentum",
    "masking.max_colluders",
    "masking.lanes",
    "masking.update_clip",
)
CAVEAT = (
    "These figures are of that one public data set, network and start, with settings chosen on its training patients: they say "
    "what to begin with and promise nothing elsewhere. An epsilon leaves out whatever is tried on private patients beside it."
)
NOTHING_STORED = "No score of that study is stored yet."


def show(advice: Advice, console: Console) -> None:
    """Settings, what they cost, and what the public study reached with such noise."""
    asked = advice.question
    console.print(f"{asked.patients} declared patients at {asked.hospitals} hospitals, {_asked(advice)}", soft_wrap=True)
    settings = Table("setting", "value", title="Plan")
    for name, value in settings_of(advice):
        settings.add_row(name, str(value))
    console.print(settings)
    costs = Table("epsilon against", *(f"at delta {plain(delta)}" for delta in _deltas(advice)), title="Cost of one patient")
    for whom, values in costs_of(advice):
        costs.add_row(whom, *(_spent(value) for value in values))
    console.print(costs)
    console.print(f"Noise in the mean of a step: {advice.strength:.3g} clip norms; the server's rate follows from it.")
    console.print(_scores(advice) or NOTHING_STORED)
    console.print(f"Measured on {advice.source.cohort} (study '{advice.source.study}'). {CAVEAT}", soft_wrap=True)


def settings_of(advice: Advice) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field that is shown."""
    for name in SHOWN:
        value: Any = advice.template
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            yield name, value


def costs_of(advice: Advice) -> list[tuple[str, list[float | None]]]:
    """Against whom, and epsilon at each of `_deltas`."""
    read = advice.readings
    if advice.question.noise_mode == "local":
        return [("everybody", _at_deltas(advice, advice.charged, read.at_default))]
    colluders = f"{advice.question.may_collude} colluding with the coordinator (charged)"
    return [
        (colluders, _at_deltas(advice, advice.charged, read.at_default)),
        ("whoever knows no share (c = 0)", _at_deltas(advice, read.outsider, read.outsider_at_default)),
    ]


def as_json(advice: Advice) -> dict[str, Any]:
    """The same for programs; null: no guarantee."""
    asked = advice.question
    return {
        "question": {name: getattr(asked, name) for name in asked.__dataclass_fields__},
        "plan": dict(settings_of(advice)),
        "noise_in_the_mean": advice.strength,
        "epsilon": [
            {"against": whom, "delta": delta, "epsilon": value}
            for whom, values in costs_of(advice)
            for delta, value in zip(_deltas(advice), values, strict=True)
        ],
        "study": advice.source.study,
        "measured_on": advice.source.cohort,
        "scores": [{**score.model_dump(), "noise_in_the_mean": strength} for score, strength in scores_near(advice)],
        "caveat": CAVEAT,
    }


def write_template(advice: Advice, path: Path) -> None:
    """A template of a plan, as `plan` of a study file names it. Raises StudyError where it cannot be written."""
    asked = advice.question
    remark = (
        f"# Advised for {asked.patients} patients at {asked.hospitals} hospitals: {_asked(advice)} "
        f"(study '{advice.source.study}').\n"
    )
    try:
        path.write_text(remark + tomli_w.dumps(advice.template), encoding="utf-8")
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror}; name another file with --out") from error


def _asked(advice: Advice) -> str:
    """The wanted epsilon, and against whom where that is not what a ledger charges."""
    asked = advice.question
    wanted = f"epsilon {asked.epsilon:g} at delta {plain(advice.delta)}, {asked.noise_mode} noise"
    if asked.reading == "charged":
        return wanted
    return f"{wanted}, read against whoever knows no share (c = 0); a ledger is charged {rounded_up(advice.charged)}"


def scores_toml(folder: Path) -> str:
    """[[scores]] of study/recommendations.toml from a study's results: its masked settings with a guarantee.

    Raises ResultsError.
    """
    with open_results(folder) as results:
        groups = grouped(results.cells(), results.study().source)
    guarded = [group for group in groups if group.cell.method is Method.MASKED and group.epsilon is not None and group.scores]
    return tomli_w.dumps({"scores": [_score_fields(group) for group in guarded]})


def _score_fields(group: Group) -> dict[str, Any]:
    one, score = next(iter(group.results.values())), group.score
    assert score is not None, "a group with scores has a mean"
    half = {} if score.half is None else {"half": round(score.half, 4)}
    privacy = group.cell.plan["privacy"]
    colluders = {"may_collude": privacy["may_collude"]} if privacy["noise_mode"] == "shared" else {}
    return {
        "noise_mode": privacy["noise_mode"],
        "hospitals": len(one.hospitals),
        "epsilon": round(group.epsilon or 0.0, 3),
        "delta": group.delta,
        "noise_multiplier": one.noise_multiplier,
        **colluders,
        "dice": round(score.mean, 4),
        **half,
        "seeds": len(group.scores),
    }


def _deltas(advice: Advice) -> list[float]:
    return [advice.delta] if advice.delta == DEFAULT_DELTA else [advice.delta, DEFAULT_DELTA]


def _at_deltas(advice: Advice, own: float | None, at_default: float | None) -> list[float | None]:
    return [own, at_default][: len(_deltas(advice))]


def _spent(value: float | None) -> str:
    return rounded_up(math.inf if value is None else value)


def _scores(advice: Advice) -> Table | None:
    rows = list(scores_near(advice))
    if not rows:
        return None
    names = ("hospitals", "epsilon", "noise in the mean", "mean Dice", "seeds")
    table = Table(*names, title=f"What study '{advice.source.study}' reached with such noise")
    for score, strength in rows:
        epsilon = f"{score.epsilon:.2f} at delta {plain(score.delta)}"
        table.add_row(str(score.hospitals), epsilon, f"{strength:.3g}", _dice(score), str(score.seeds))
    return table


def _dice(score: Score) -> str:
    return f"{score.dice:.3f}" + ("" if score.half is None else f" ± {score.half:.3f} (95 %)")
