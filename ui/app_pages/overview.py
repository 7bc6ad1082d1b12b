"""Overview: where the study stands, four figures, budgets at a glance, who is here, and what happened."""

from __future__ import annotations

from datetime import UTC, datetime

import streamlit as st

from ui import budget, charts, overview, screen, sources
from ui.palette import styles
from ui.roles import Page, Part
from ui.sources import Hospital
from ui.store_reading import Federation
from ui.study_state import study_state
from ui.words import moment, party, percent


def page() -> None:
    """Arrange the page."""
    screen.admit(Page.OVERVIEW)
    seen = screen.federation()
    hospitals = sources.hospitals(screen.settings()) if screen.may(Part.BUDGETS) else ()
    screen.title("Overview" if seen is None else f"Study {seen.plan.study}")
    if screen.settings().coordinator is not None:
        now_card()
        screen.figures(overview.figures(seen, hospitals))
    if seen is None and len(hospitals) == 1:
        own_state(hospitals[0])
    if screen.settings().hospitals and screen.may(Part.PROGRESS):
        local_card()
    if hospitals:
        budgets(seen, hospitals)
    if seen is not None:
        parties()
        happened(seen)
    studies()


def studies() -> None:
    """Where each study of this deployment stands."""
    begun = [found for found in map(sources.study, screen.settings().studies) if found is not None]
    if not screen.settings().studies or not screen.may(Page.STUDY):
        return
    screen.text("#### Studies")
    if not begun:
        screen.waiting("Nothing yet: no run of a study was begun.")
        return
    rows = [{"study": found.study.name, "task": found.study.task, "state": study_state(found.rows).title} for found in begun]
    screen.reading(rows, "Studies")


def now_card() -> None:
    """State and whom the round waits for; redrawn by itself."""

    @st.fragment(run_every=screen.run_every())
    @screen.only_signed_in
    def draw() -> None:
        screen.banner(overview.headline(screen.federation(screen.FRESH_S), datetime.now(UTC)))

    draw()


def own_state(found: Hospital) -> None:
    """At a hospital: whether it is within its budget, when that ends, and what left."""
    if found.budget is None and not found.problem:
        return
    screen.banner(budget.headline(found))
    if found.budget is not None:
        screen.figures(budget.figures(found.budget))
        screen.note(budget.left_by_day(found.events, screen.zone(), datetime.now(UTC)))


def local_card() -> None:
    """What each node of this deployment does at this moment."""

    @st.fragment(run_every=screen.run_every())
    @screen.only_signed_in
    def draw() -> None:
        running = [(folder, sources.progress(folder)) for folder in screen.settings().hospitals]
        known = [(folder, found) for folder, found in running if found is not None]
        if not known:
            return
        screen.text("#### At this moment")
        for column, (folder, found) in zip(_columns(len(known)), known, strict=False):
            with column:
                screen.doing(sources.name_of(folder), found)

    draw()


def _columns(count: int) -> list[st.delta_generator.DeltaGenerator]:
    """Two to a row, in reading order."""
    return [column for _ in range(-(-count // 2)) for column in st.columns(2)]


def budgets(seen: Federation | None, hospitals: tuple[Hospital, ...]) -> None:
    """The bar of all hospitals."""
    rows = budget.shares(hospitals)
    if not rows:
        screen.waiting("No hospital has a ledger yet: it is made when an officer approves the plan.")
        return
    names = [party(uri) for uri in seen.hospitals] if seen else [found.name for found in hospitals]
    order = list(dict.fromkeys([*names, *(row.name for row in rows)]))
    paper = screen.paper()
    figures = [
        {"hospital": row.name, "spent of its cap": percent(row.share) if row.share else "–", "reading": row.text}
        for row in rows
    ]
    title = "Privacy budget of every hospital" if len(rows) > 1 else "Privacy budget of this hospital"
    sentence = budget.shares_sentence(rows)
    if budget.drawable(rows):
        screen.chart(charts.shares(rows, styles(order, paper), paper), sentence, figures, "shares", title)
    else:
        screen.text(f"#### {title}")
        screen.reading(figures, title)
        screen.text(sentence)


def parties() -> None:
    """Who is here; ages advance by themselves."""
    screen.text("#### Who is here")

    @st.fragment(run_every=screen.run_every())
    @screen.only_signed_in
    def draw() -> None:
        seen = screen.federation(screen.FRESH_S)
        if seen is not None:
            screen.reading(overview.member_rows(seen, datetime.now(UTC)), "Who is here")

    draw()


def happened(seen: Federation) -> None:
    """The last events in words, newest first."""
    screen.text("#### What happened last")
    latest = seen.events[: -overview.EVENTS_SHOWN - 1 : -1]
    if not latest:
        screen.text("Nothing yet.")
        return
    zone = screen.zone()
    screen.reading([{"when": moment(row.at, zone), "what": row.text} for row in latest], "What happened last")


page()
