"""What an audit found, for people: audit.md with two pictures, and audit.json with the same figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from study.audit import inversion
from study.audit.audit import SHARED, Attacked, Audit, Checked
from study.audit.distributions import SMALLEST_P
from study.audit.faults import GROSS
from study.audit.inversion import Attempt
from study.audit.shared import MAY_COLLUDE, MAY_DROP, MEMBERS, SHARED_GROSS
from study.audit.victims import body

REPORT, FIGURES, SCORES, SCANS = "audit.md", "audit.json", "audit-scores.png", "audit-scans.png"
SIZES = {"font.size": 10.0, "axes.spines.top": False, "axes.spines.right": False}
IN, OUT = "#D55E00", "#0072B2"  # Okabe and Ito's; filled and outlined, so that colour is not needed
SLICE = 8  # of the drawn volume: through both lungs, the spine and the lesion
DPI = 100


def write(audit: Audit, folder: Path) -> list[Path]:
    """Write every file of the report and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / REPORT, folder / FIGURES, folder / SCORES]
    with mpl.rc_context(SIZES):
        scores_picture(audit.worlds[0]).savefig(folder / SCORES, dpi=DPI)
        if audit.attempts:
            scans_picture(audit.attempts).savefig(folder / SCANS, dpi=DPI)
            written.append(folder / SCANS)
    (folder / REPORT).write_text("\n".join(text(audit)) + "\n")
    (folder / FIGURES).write_text(json.dumps(figures(audit), indent=1, sort_keys=True) + "\n")
    return written


def text(audit: Audit) -> list[str]:
    """The report, line by line."""
    lines = ["# Audit of the node's private training", "", *_verdict(audit), ""]
    for world in audit.worlds:
        lines += [f"## Attack: {world.name}", "", _setting(world), "", *_table(world), ""]
        lines += [_power(world), ""]
    lines += [f"![Scores of the attack]({SCORES})", ""]
    if audit.distributions:
        lines += ["## Divisor, sampling and noise", "", *_distributions(audit.distributions), ""]
    if audit.shared_distributions:
        lines += ["## The same under shared noise", "", *_distributions(audit.shared_distributions), ""]
    if audit.attempts:
        lines += ["## Drawing a scan from an update", "", *_inversion(audit.attempts), ""]
    lines += ["## The faults", "", *[f"- **{fault.name}**: {fault.sentence}" for fault in GROSS]]
    if any(world.name == SHARED for world in audit.worlds):
        lines += ["", "Of shared noise:", "", *[f"- **{fault.name}**: {fault.sentence}" for fault in SHARED_GROSS]]
    return lines


def _verdict(audit: Audit) -> list[str]:
    if not audit.complaints:
        words = "Passed: the attack shows no more than the node reports, and the same attack, or a test of the distributions,"
        return [f"{words} notices every fault that was put in on purpose."]
    return ["**Failed.**", *[f"- {complaint}" for complaint in audit.complaints]]


def _setting(world: Attacked) -> str:
    setting, built = world.setting, world.verdicts[0]
    shared = (
        f"{MEMBERS} hospitals share one noise, of whom {MAY_COLLUDE} works with the coordinator and {MAY_DROP} may be lost; "
        "the attack sees the opened sum without what that one added, and epsilon is what a ledger charges. "
    )
    return (shared if world.name == SHARED else "") + (
        f"{setting.runs:,} rounds of the node's own training of {counted(setting.steps, 'step')} each; every patient is drawn "
        f"with chance 1/{setting.inverse_rate}. {setting.canaries} canary patients take part by coins of their own, "
        f"{built.fewest_runs_a_side} rounds or more with and without each. The attack sees updates only, and says of the "
        f"{built.guesses:,} highest scores of {built.coins:,} that they took part. Bounds hold with confidence "
        f"1 - {1 - setting.confidence:.0e}, for epsilon at delta {setting.delta:g}."
    )


def counted(count: int, word: str) -> str:
    """1 step, 2 steps."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _table(world: Attacked) -> list[str]:
    rows = ["| mechanism | guesses right | epsilon shown, at least | epsilon reported | |", "|---|--:|--:|--:|---|"]
    for place, one in enumerate(world.verdicts):
        said = ("refuted" if one.exceeds else "consistent") if place == 0 else ("noticed" if one.exceeds else "NOT NOTICED")
        share = f"{one.correct / one.guesses:.1%}"
        rows.append(f"| {one.fault} | {share} | {one.shown:.2f} | {one.reported:.2f} | {said} |")
    return rows


def _power(world: Attacked) -> str:
    power = world.power
    if power is None:
        return "Its power is that of the attack above at most: other patients' gradients are in the way."
    noticed = f"{power.smallest_noticed:.1f}" if math.isfinite(power.smallest_noticed) else "no number of"
    return (
        f"Power: an attack that is always right would show epsilon {power.strongest:.2f}. As built, the best attack there is "
        f"would be right in {power.accuracy:.1%} of its guesses, which shows {power.expected:.2f}. What is reported is refuted "
        f"in 95 of 100 repetitions once one draw weighs {noticed} clip norms, or the noise is weaker by that factor; "
        "smaller faults are for the distributions."
    )


def _distributions(checked: Sequence[Checked]) -> list[str]:
    names = [check.name for check in checked[0].checks]
    rows = [
        f"How often chance alone looks at least so wrong; below {SMALLEST_P:.0e} it is no chance (bold).",
        "",
        f"| mechanism | {' | '.join(names)} |",
        f"|---|{'--:|' * len(names)}",
    ]
    for one in checked:
        cells = [f"{check.p_value:.1g}" if check.holds else f"**{check.p_value:.0e}**" for check in one.checks]
        rows.append(f"| {one.fault} | {' | '.join(cells)} |")
    return [*rows, "", *[f"- {check.name}: {check.sentence}." for check in checked[0].checks]]


def _inversion(tried: Sequence[Attempt]) -> list[str]:
    words = (
        "One patient, one step, and an attacker who knows model, plan, label and that nobody else is in the update. "
        f"The noised one has epsilon {inversion.cost():.1f} at delta 1e-5 and is attacked as if there were no mask."
    )
    lines = [words, "", "| network | update | likeness to the scan |", "|---|---|--:|"]
    lines += [f"| {one.network} | {one.update} | {one.likeness:.2f} |" for one in tried]
    return [*lines, "", f"![What the attack drew]({SCANS})"]


def figures(audit: Audit) -> dict[str, object]:
    """The same figures for programs."""
    return {
        "complaints": list(audit.complaints),
        "worlds": [
            {
                "name": world.name,
                "conditions": [
                    {
                        "fault": one.fault,
                        "reported": one.reported,
                        "shown": one.shown,
                        "correct": one.correct,
                        "guesses": one.guesses,
                        "coins": one.coins,
                        "fewest_runs_a_side": one.fewest_runs_a_side,
                    }
                    for one in world.verdicts
                ],
            }
            for world in audit.worlds
        ],
        "distributions": {one.fault: {check.name: check.p_value for check in one.checks} for one in audit.distributions},
        "shared_distributions": {
            one.fault: {check.name: check.p_value for check in one.checks} for one in audit.shared_distributions
        },
        "inversion": [{"network": one.network, "update": one.update, "likeness": one.likeness} for one in audit.attempts],
    }


def scores_picture(world: Attacked) -> Figure:
    """Scores with and without the canary, one panel for each condition."""
    figure = Figure(figsize=(8, 1.9 * len(world.verdicts)), layout="constrained")
    for place, (verdict, seen) in enumerate(zip(world.verdicts, world.observed, strict=True), 1):
        axes = figure.add_subplot(len(world.verdicts), 1, place)
        inside, outside = seen.scores[seen.taking_part], seen.scores[~seen.taking_part]
        edges = np.linspace(seen.scores.min(), seen.scores.max() + 1e-9, 60)
        axes.hist(outside, list(edges), color=OUT, alpha=0.5, label="canary not in the round")
        axes.hist(inside, list(edges), histtype="step", color=IN, linewidth=1.5, label="canary in the round")
        axes.set_title(f"{verdict.fault}: shows epsilon {verdict.shown:.2f}, reported {verdict.reported:.2f}", loc="left")
        axes.set_yticks([])
        if place == 1:
            axes.legend(frameon=False, loc="upper right")
    axes.set_xlabel("score: the update along the canary's own direction, in clip norms")
    return figure


def scans_picture(tried: Sequence[Attempt]) -> Figure:
    """The scan, and what was drawn from each update, one row for each network."""
    networks = list(dict.fromkeys(one.network for one in tried))
    columns = 1 + max(sum(one.network == name for one in tried) for name in networks)
    figure = Figure(figsize=(2.1 * columns, 2.4 * len(networks)), layout="constrained")
    for row, name in enumerate(networks):
        panels = [("the scan", body().image)]
        panels += [(f"{one.update}: {one.likeness:.2f}", one.image) for one in tried if one.network == name]
        for column, (title, image) in enumerate(panels):
            axes = figure.add_subplot(len(networks), columns, row * columns + column + 1)
            low, high = np.quantile(image, (0.01, 0.99))
            axes.imshow(image[SLICE], cmap="gray", vmin=low, vmax=high)
            axes.set_title(title, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(name, fontsize=9)
    return figure
