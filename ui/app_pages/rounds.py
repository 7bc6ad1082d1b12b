"""Rounds: the table of all rounds, and one round in time and words."""

from __future__ import annotations

import streamlit as st

from coordinator.store import RoundRow
from ui import charts, rounds, screen
from ui.roles import Page
from ui.words import clock

SAT_OUT_PX = 235  # of a column that says why


def page() -> None:
    """Arrange the page."""
    screen.admit(Page.ROUNDS)
    screen.title("Rounds")
    seen = screen.federation()
    if seen is None or not seen.rounds:
        screen.waiting("Nothing yet: the coordinator has not started round 1.")
        return
    zone = screen.zone()
    stopped = rounds.stops(seen.rounds, seen.out)
    lost = any(row.dropped for row in seen.rounds)
    columns = {
        "lost": st.column_config.TextColumn(width="medium" if lost else "small"),
        "sat out": st.column_config.TextColumn(width=SAT_OUT_PX if stopped else "small"),
    }
    cells = [line.cells(zone) for line in rounds.lines(seen.rounds, seen.out)]
    screen.grid(cells, "All rounds, the newest first", columns)
    numbers = [str(row.number) for row in seen.rounds]
    number = int(screen.choose("Round", numbers[::-1], "round", fallback=rounds.worth_showing(seen.rounds)))
    row = next(row for row in seen.rounds if row.number == number)
    screen.text(f"#### Round {number}")
    screen.text(rounds.sentence(row, seen.out, stopped))
    if row.phase_seconds:
        timelines(row)
    happened(number)


def timelines(row: RoundRow) -> None:
    """The round on its own scale, and the masking session on another."""
    whole = rounds.timeline(row)
    if whole.segments:
        screen.chart(
            charts.timeline(whole, screen.paper()), rounds.phases_sentence(row), whole.rows(), "whole", "The whole round"
        )
    session = rounds.timeline(row, masking_only=True)
    if session.segments and session.end_s < whole.end_s:
        sentence = rounds.phases_sentence(row, masking_only=True)
        screen.chart(charts.timeline(session, screen.paper()), sentence, session.rows(), "session", "Its masking session")
    screen.note("Phases as the coordinator timed them, on its clock.")


def happened(number: int) -> None:
    """Events of this round in words."""
    screen.text("#### What happened")
    zone = screen.zone()
    rows = [{"when": clock(event.at, zone), "what": event.text} for event in screen.events_of(number)]
    if rows:
        screen.reading(rows, f"Events of round {number}")


page()
