"""Bandwidth: bytes of a round by phase, hospital and direction, against one float32 vector."""

from __future__ import annotations

import streamlit as st

from ui import bandwidth, charts, overview, screen
from ui.bandwidth import Direction
from ui.sources import Federation
from ui.words import party

EVERYONE = "mean of all"
DIRECTIONS: dict[str, Direction] = {"sent by a hospital": "up", "received by a hospital": "down"}


def page() -> None:
    """Arrange the page."""
    st.title("Bandwidth")
    seen = screen.federation()
    if seen is None or not overview.uploads(seen):
        screen.waiting("Nothing yet: no round was completed so far.")
        return
    screen.figures(bandwidth.figures(overview.uploads(seen), seen.traffic, seen.float32_bytes))
    left, right = st.columns(2)
    with left:
        direction = DIRECTIONS[screen.choose("Direction", list(DIRECTIONS), "direction")]
    names = {party(uri): uri for uri in seen.hospitals}
    with right:
        only = names.get(screen.choose("Hospital", [EVERYONE, *names], "of"))
    draw(seen, direction, only)


def draw(seen: Federation, direction: Direction, only: str | None) -> None:
    """The stacked bars and the table of single phases."""
    shown = bandwidth.bars(seen.traffic, direction, overview.survivors(seen), only)
    if not shown:
        st.markdown("This hospital was in no opened round.")
        return
    sentence = bandwidth.sentence(shown, seen.float32_bytes, direction)
    rows = bandwidth.rows(seen.traffic, direction, only)
    drawn = charts.bandwidth(shown, seen.float32_bytes, screen.paper())
    screen.chart(drawn, sentence, rows, "bytes", "Bytes of one hospital by round")
    st.caption(
        "Counted on the connection with all framing. The bars are hospitals in the sum of a round; the dashed line is one "
        "float32 vector, what plain federated averaging would move in this direction. "
        f"{bandwidth.by_hospital(seen.traffic, direction)}"
    )


page()
