"""Bandwidth: bytes of a round by phase, hospital and direction, against one float32 vector."""

from __future__ import annotations

import streamlit as st

from ui import bandwidth, charts, overview, screen
from ui.bandwidth import Direction
from ui.roles import Page
from ui.store_reading import Federation, RoundBytes, Totals
from ui.words import party

EVERYONE = "mean of all"
DIRECTIONS: dict[str, Direction] = {"sent by a hospital": "up", "received by a hospital": "down"}


def page() -> None:
    """Arrange the page."""
    screen.admit(Page.BANDWIDTH)
    screen.title("Bandwidth")
    seen = screen.federation()
    uploads = () if seen is None else overview.uploads(seen)
    if seen is None or not uploads:
        screen.waiting("Nothing yet: no round was completed so far.")
        return
    totals = screen.totals()
    screen.figures(bandwidth.figures(uploads, totals, seen.float32_bytes))
    left, middle, right = st.columns(3)
    with left:
        direction = DIRECTIONS[screen.choose("Direction", list(DIRECTIONS), "direction")]
    names = {party(uri): uri for uri in seen.hospitals}
    with middle:
        only = names.get(screen.choose("Hospital", [EVERYONE, *names], "of"))
    blocks = bandwidth.blocks([row.number for row in seen.rounds])
    with right:
        block = screen.choose("Rounds", list(blocks), "rounds")
    draw(seen, totals, direction, only, () if block == bandwidth.NEWEST else screen.traffic_of(*blocks[block]))


def draw(seen: Federation, totals: Totals, direction: Direction, only: str | None, older: tuple[RoundBytes, ...]) -> None:
    """The stacked bars and the table of single phases."""
    traffic = older or seen.by_round
    shown = bandwidth.bars(traffic, direction, overview.survivors(seen.rounds if older else seen.recent), only)
    if not shown:
        screen.text("This hospital was in no opened round.")
        return
    sentence = bandwidth.sentence(shown, seen.float32_bytes, direction)
    rows = bandwidth.rows(traffic, direction, only)
    drawn = charts.bandwidth(shown, seen.float32_bytes, screen.paper())
    screen.chart(drawn, sentence, rows, "bytes", "Bytes of one hospital by round")
    screen.note(
        "Counted on the connection with all framing. The bars are hospitals in the sum of a round; the dashed line is one "
        "float32 vector, what plain federated averaging would move in this direction. "
        f"{bandwidth.by_hospital(totals, direction)}"
    )


page()
