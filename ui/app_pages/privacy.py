"""Privacy budget of one hospital: state first, four figures, one chart, the guarantee in words, what leaves, the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import streamlit as st

from hospital_node.evidence_shown import evidence_lines
from hospital_node.ledger import BudgetView
from proto.control import Answer, ControlError, WriteReport, decision
from proto.control_socket import ask, runs
from ui import budget, charts, person, reports, screen, sources
from ui.figures import Headline
from ui.roles import Act, Page
from ui.sources import Hospital
from ui.words import epsilon, plain

SAID = "said of the report"


def page() -> None:
    """Arrange the page."""
    screen.admit(Page.PRIVACY)
    screen.title("Privacy budget")
    hospitals = {found.name: found for found in sources.hospitals(screen.settings())}
    name = screen.choose("Hospital", list(hospitals), "hospital")
    found = hospitals[name]
    local_card(found)
    if found.problem:
        screen.banner(budget.headline(found))
        leaves(found)
        return
    if found.budget is None:
        screen.waiting(f"Nothing yet: {found.name} has no ledger. It is made when an officer approves the plan.")
        leaves(found)
        return
    view = found.budget
    screen.banner(budget.headline(found))
    screen.figures(budget.figures(view))
    screen.note(budget.as_of(found, screen.zone()))
    spending(found, view)
    guarantee(found)
    leaves(found)
    ledger(found)
    decisions(found)
    report(found)


def local_card(found: Hospital) -> None:
    """What this node does at this moment."""

    @st.fragment(run_every=screen.run_every())
    @screen.only_signed_in
    def draw() -> None:
        now = sources.progress(found.folder)
        if now is not None:
            screen.doing("At this moment", now)

    draw()


def spending(found: Hospital, view: BudgetView) -> None:
    """Epsilon by round against the cap, with the accountant's forecast."""
    shown = budget.curve(view, found.events)
    if shown is None:
        return
    rows = [{"after round": number, "epsilon": epsilon(reached), "kind": "spent"} for number, reached in shown.spent]
    rows += [{"after round": number, "epsilon": epsilon(reached), "kind": "forecast"} for number, reached in view.forecast]
    lines = "Solid is spent, dashed is the accountant's forecast at the plan's settings." if view.forecast else ""
    sentence = f"{budget.sentence(view)} {lines}".strip()
    screen.chart(charts.budget(shown, screen.paper()), sentence, rows, "spending", "Epsilon by round")


def guarantee(found: Hospital) -> None:
    """The generated paragraph, its fields and its assumptions."""
    made = sources.statement_of(found.folder, found.head)
    screen.text("#### The guarantee in one paragraph")
    st.code(screen.say(made.paragraph), language=None, wrap_lines=True)
    if screen.language() != "English":
        with st.expander(screen.say("The paragraph in English, as reports and exports have it"), key="paragraph"):
            st.code(made.paragraph, language=None, wrap_lines=True)
    fields = [{"field": f.label, "value": f.value, "what it means": f.explanation, "group": f.group} for f in made.fields]
    screen.table(fields, "Every field of the statement", key="fields")
    kept = [{"assumption": a.text, "state": a.state, "evidence": a.evidence} for a in made.assumptions]
    screen.table(kept, f"Assumptions: {budget.assumptions_summary(made)}", key="assumptions")
    profile = [{"delta": plain(delta), "epsilon": epsilon(reached)} for delta, reached in made.profile]
    screen.table(profile, "The same releases read at other deltas", key="profile")


def leaves(found: Hospital) -> None:
    """What leaves this hospital, with measured sizes."""
    screen.text("#### What leaves this hospital")
    if found.plan is None:
        screen.text("Nothing has left: no plan was offered to this hospital yet.")
        return
    screen.text(budget.left_by_day(found.events, screen.zone(), datetime.now(UTC)))
    screen.note(budget.measured_when(found))
    screen.reading(budget.leaving(found.plan, found.leaves), "What leaves this hospital")


def ledger(found: Hospital) -> None:
    """One row for each charged release."""
    screen.text("#### Ledger")
    rows = budget.ledger_rows(found.events, screen.zone())
    screen.note(f"Verified on loading: {len(found.events)} entries in an unbroken chain, the last one {found.head[:12]}.")
    for line in evidence_lines(found.folder, found.plan, found.events):
        screen.note(line)
    if rows:
        screen.grid(rows, "Ledger of charged releases")
    else:
        screen.text("Nothing was charged yet.")


def decisions(found: Hospital) -> None:
    """Who agreed to what, when."""
    screen.text("#### Decisions")
    rows = budget.decisions(found.events, screen.zone())
    if rows:
        screen.reading(rows, "Decisions")
    else:
        screen.text("Nobody has decided anything yet.")


def report(found: Hospital) -> None:
    """The newest signed report to take away, and a new one from the node, which holds the key."""
    screen.text("#### Report")
    told: Answer | None = st.session_state.pop(SAID, None)
    if told is not None:
        screen.banner(Headline("good" if told.done else "stop", "Done" if told.done else "Not done", told.sentence))
    one = reports.offered(found, screen.zone())
    if one is None:
        screen.text("No report was written yet.")
    elif one.problem:
        screen.banner(Headline("stop", "The newest report does not verify, so it is not offered", one.problem))
    else:
        screen.note(reports.said(one))
        with st.container(horizontal=True):
            for name in one.files:
                download(one, name)
            st.download_button(
                screen.say("All as zip"),
                data=partial(reports.zipped, one),
                file_name=f"{one.report_id}.zip",
                mime="application/zip",
                on_click="ignore",
                key="zip",
            )
    new_report(found)


def download(one: reports.Offered, name: str) -> None:
    """One file, read when it is asked for."""
    st.download_button(
        screen.say(reports.LABELS[name]),
        data=partial(reports.content, one, name),
        file_name=name,
        mime=reports.kind(name),
        on_click="ignore",
        key=f"download-{name}",
    )


def new_report(found: Hospital) -> None:
    """Ask the node for the next one, in the name of whoever is signed in."""
    settings = screen.settings()
    if (settings.signin is None and not screen.is_loopback()) or not screen.may(Act.WRITE_REPORT):
        return
    running = runs(found.folder)
    if not running:
        screen.note("Reports are written and signed by the hospital's node: start it, or use `secagg-node report write`.")
    with st.form("report"):
        left, right = st.columns((1, 2))
        here = person.session()
        who = left.text_input(screen.say("Your name"), key="report-by") if here is None else ""
        why = right.text_input(screen.say("Reason"), key="report-reason")
        if st.form_submit_button(screen.say("Write a new report"), disabled=not (running and person.is_fresh(settings))):
            st.session_state[SAID] = asked_for(found, who, why)
            st.rerun()


def asked_for(found: Hospital, who: str, why: str) -> Answer:
    """What the node says to it, or why it was not asked."""
    try:
        name, proved = person.in_whose_name(screen.settings(), Act.WRITE_REPORT, who)
        return ask(found.folder, decision(WriteReport, by=name, reason=why, proved=proved), "this hospital's node")
    except ControlError as error:
        return Answer(done=False, sentence=str(error))


page()
