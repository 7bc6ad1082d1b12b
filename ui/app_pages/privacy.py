"""Privacy budget of one hospital: state first, four figures, one chart, the guarantee in words, what leaves, the ledger."""

from __future__ import annotations

from datetime import UTC, datetime

import streamlit as st

from hospital_node.evidence_shown import evidence_lines
from hospital_node.ledger import BudgetView
from ui import budget, charts, screen, sources
from ui.sources import Hospital
from ui.words import epsilon, plain


def page() -> None:
    """Arrange the page."""
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


def local_card(found: Hospital) -> None:
    """What this node does at this moment."""

    @st.fragment(run_every=screen.run_every())
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
    sentence = f"{budget.sentence(view)} Solid is spent, dashed is the accountant's forecast at the plan's settings."
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


page()
