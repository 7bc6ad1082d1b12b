"""Accuracy: Dice per label and round on the evaluator's public cases, and noised means over the hospitals' own patients."""

from __future__ import annotations

from study.bench.groups import grouped
from ui import accuracy, charts, findings, own_patients, screen, sources
from ui.accuracy import Point
from ui.own_patients import OwnMean
from ui.roles import Page
from ui.store_reading import Federation

TITLE = "On the hospitals' own patients, noised"


def page() -> None:
    """Arrange the page."""
    screen.admit(Page.ACCURACY)
    screen.title("Accuracy")
    seen = screen.federation()
    points = accuracy.curve(accuracy.shown(seen.scores)) if seen else ()
    if seen is None or not (points or seen.validations):
        screen.waiting("Nothing yet: no model was evaluated so far.")
        return
    own = own_patients.means(seen.validations)
    if points:
        public(seen, points, own)
    if seen.validations:
        of_the_hospitals(seen, () if points else own)
    references()


def public(seen: Federation, points: tuple[Point, ...], own: tuple[OwnMean, ...]) -> None:
    """Public cases as lines; the hospitals' own patients as diamonds beside them."""
    screen.figures(accuracy.figures(points))
    rows = [
        {"round": p.round, "label": p.label, "mean Dice": f"{p.mean:.3f}", "95 % interval": p.spread, "public cases": p.cases}
        for p in points
    ]
    drawn = charts.accuracy(points, screen.paper(), own)
    screen.chart(drawn, accuracy.sentence(points), rows, "dice", "Mean Dice by round")
    drawn_rounds, rounds = (len({row.round for row in one}) for one in (points, seen.scores))
    if drawn_rounds < rounds:
        screen.note(f"{drawn_rounds} of {rounds:,} measured rounds are drawn, evenly spread, the newest among them.")
    screen.note(explained(seen) + (" Diamonds are noised means over the hospitals' own patients." if own else ""))


def of_the_hospitals(seen: Federation, undrawn: tuple[OwnMean, ...]) -> None:
    """The noised means, marked as what they are; drawn here where no chart of public cases has them."""
    title, sentence, rows = TITLE, own_patients.sentence(seen.validations), own_patients.table(seen.validations)
    if undrawn:
        screen.chart(charts.accuracy((), screen.paper(), undrawn), sentence, rows, "own", title)
    else:
        screen.text(f"#### {title}")
        screen.text(sentence)
        screen.table(rows, f"{title}: the figures as a table", key="own-table")
    screen.note(own_patients.explained(seen.plan))


def references() -> None:
    """What studies of this deployment reached without privacy and without others, to compare with."""
    read = [found for found in map(sources.study, screen.settings().studies) if found is not None]
    rows = [row for found in read if (row := findings.reference(found, grouped(found.rows))) is not None]
    if rows:
        screen.text("#### For comparison")
        screen.reading(rows, "For comparison")
        screen.note(
            "On each study's own patients, test cases and settings, with a 95 % interval over seeds: no part of this run."
        )


def explained(seen: Federation) -> str:
    """What the interval covers."""
    return (
        f"Labels: {', '.join(seen.plan.network.labels)}. The band is a 95 % bootstrap interval over the evaluator's public "
        "cases: it says how much the choice of cases matters, not the choice of seeds. No hospital's own patients are in it."
    )


page()
