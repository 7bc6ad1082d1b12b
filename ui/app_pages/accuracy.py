"""Accuracy: Dice per label and round on the evaluator's public cases."""

from __future__ import annotations

import streamlit as st

from ui import accuracy, charts, screen
from ui.sources import Federation


def page() -> None:
    """Arrange the page."""
    st.title("Accuracy")
    seen = screen.federation()
    points = accuracy.curve(seen.scores) if seen else ()
    if seen is None or not points:
        screen.waiting("Nothing yet: no model was evaluated so far.")
        return
    screen.figures(accuracy.figures(points))
    rows = [
        {"round": p.round, "label": p.label, "mean Dice": f"{p.mean:.3f}", "95 % interval": p.spread, "public cases": p.cases}
        for p in points
    ]
    screen.chart(charts.accuracy(points, screen.paper()), accuracy.sentence(points), rows, "dice", "Mean Dice by round")
    st.caption(explained(seen))


def explained(seen: Federation) -> str:
    """What the interval covers."""
    return (
        f"Labels: {', '.join(seen.plan.network.labels)}. The band is a 95 % bootstrap interval over the evaluator's public "
        "cases: it says how much the choice of cases matters, not the choice of seeds. No hospital's own patients are in it."
    )


page()
