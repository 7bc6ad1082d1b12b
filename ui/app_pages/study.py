"""Study: what accuracy costs in privacy and bits, over seeds, and every run behind it."""

from __future__ import annotations

import streamlit as st

from study.bench.groups import Group, grouped
from study.results import CellRow, ResultsError
from ui import findings, screen, sources, study_charts
from ui.roles import Page
from ui.sources import StudyReading
from ui.study_state import study_state

EVERY_SETTING = "Every setting: means over seeds and what they cost"


def page() -> None:
    """Arrange the page."""
    screen.admit(Page.STUDY)
    screen.title("Study")
    found = chosen()
    if found is None:
        screen.waiting("Nothing yet: no run of this study was begun.")
        return
    screen.text(f"**{found.study.name}** · {found.study.task}")
    screen.banner(study_state(found.rows))
    groups = grouped(found.rows, found.study.source)
    screen.figures(findings.figures(found, groups))
    screen.note(found.study.honesty)
    if groups:
        drawn = charts(found, groups)
        settings = findings.setting_rows(groups, found.study.metric)
        if drawn:
            screen.table(settings, EVERY_SETTING, key="settings")
        else:  # a study of something else is read here
            screen.text(f"#### {EVERY_SETTING}")
            screen.grid(settings, EVERY_SETTING)
    one_run(found)


def chosen() -> StudyReading | None:
    """The study of the address; None before anything of it exists."""
    folders = {folder.name: folder for folder in screen.settings().studies}
    name = next(iter(folders)) if len(folders) == 1 else screen.choose("Study", list(folders), "study")
    try:
        return sources.study(folders[name])
    except ResultsError as error:
        screen.refused(str(error))
        st.stop()


def charts(found: StudyReading, groups: list[Group]) -> bool:
    """One chart for each axis that this study varied; whether there was any."""
    panels = findings.panels(groups)
    same: tuple[Group, ...] = ()
    if len(panels) > 1:
        same = panels[screen.choose("On which patients, network and start", list(panels), "panel")]
    elif panels:
        same = next(iter(panels.values()))
    shown = findings.views(same, groups, found.study.metric)
    for view in shown:
        drawn = study_charts.against(view, screen.paper())
        screen.chart(drawn, findings.sentence(view), view.rows(), view.axis, findings.TITLES[view.axis])
        screen.note(findings.explained(view, groups))
    if shown:
        screen.note(findings.METHOD_WORDS)
    else:
        screen.text("No chart yet: nothing that differs in epsilon, bits or hospitals is done.")
    return bool(shown)


def one_run(found: StudyReading) -> None:
    """All runs as a table, and the one of the address in full."""
    named = findings.runs(found.rows)
    screen.text("#### Every run")
    link = st.column_config.LinkColumn(display_text=screen.say("open"), width="small")
    columns = {"run": st.column_config.TextColumn(width="large"), "link": link}
    rows = findings.run_rows(named, found.folder.name)
    screen.grid(rows, "Every run of the study", columns)
    row: CellRow = named[screen.choose("Run", list(named), "run")]
    sentence, points = findings.run_sentence(row, found.study.metric), findings.by_round(row)
    if len(points) > 2:
        measured = [{"round": number, found.study.metric: f"{score:.3f}"} for number, score in points]
        screen.chart(study_charts.run(points, found.study.metric), sentence, measured, "one-run", "One run by round")
    else:
        screen.text("#### One run")
        screen.text(sentence)
    screen.reading(findings.run_fields(row), "Everything that decided this run")


page()
