"""Decisions: the plan on offer and what agreeing would cost, pausing, rounds held back or ended, and who did what.

Nothing is decided here: a button asks the running node or coordinator over its control socket, which decides and records.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import streamlit as st

from proto.control import Abort, Answer, Approve, Confirm, ControlError, Decline, Pause, Request, Resume, decision
from proto.control_socket import ask, runs
from proto.plan import Plan
from ui import deciding, person, screen, sources
from ui.figures import Headline
from ui.roles import Act, Page, Part
from ui.signin_links import start_link
from ui.sources import Hospital
from ui.words import counted

SAID = "said"
SHEET = "sheet"
NODE, COORDINATOR = "this hospital's node", "the coordinator"


def page() -> None:
    """Arrange the page."""
    screen.admit(Page.DECISIONS)
    screen.title("Decisions")
    settings = screen.settings()
    if settings.signin is None and not screen.is_loopback():
        screen.refused("decisions are taken only where the app listens on this machine's own address (loopback)")
        return
    told()
    if not person.is_fresh(settings):
        screen.banner(Headline("watch", "To decide something, prove anew who you are", "It was too long ago."))
        screen.link("Sign in again", start_link("/decisions", fresh=True))
    if settings.hospitals:
        hospitals = {found.name: found for found in sources.hospitals(settings)}
        at_hospital(hospitals[screen.choose("Hospital", list(hospitals), "hospital")])
    if settings.coordinator is not None:
        at_coordinator(settings.coordinator)


def told() -> None:
    """What the last request came to."""
    answer: Answer | None = st.session_state.pop(SAID, None)
    if answer is not None:
        screen.banner(Headline("good" if answer.done else "stop", "Done" if answer.done else "Not done", answer.sentence))


def at_hospital(found: Hospital) -> None:
    """One hospital: its plan, its pause, its log."""
    if screen.may(Part.OFFER):
        screen.banner(deciding.standing(found))
    running = runs(found.folder)
    if not running:
        screen.refused(
            f"the node of {found.name} does not run, so nothing can be decided here: start it, or use the command `secagg-node`"
        )
    if found.plan is not None and not found.problem and screen.may(Part.OFFER):
        second(found, running=running)
        offer(found, found.plan, running=running)
    paused = found.budget is not None and found.budget.state == "paused"
    screen.text("#### Taking part")
    screen.text(
        "Paused: this hospital trains and sends nothing."
        if paused
        else "A pause holds at once what has not left yet; what has left cannot be called back."
    )
    act, kind, label = (Act.RESUME, Resume, "Let it go on") if paused else (Act.PAUSE, Pause, "Pause this hospital")
    if screen.may(act):
        with st.form(f"pause-{found.name}"):
            who = people(f"pause-{found.name}")
            if st.form_submit_button(screen.say(label), disabled=not ready(act, running=running)):
                send(found.folder, NODE, act, kind, who)
    log(found.folder, "No record yet. Decisions that the ledger keeps stand on the page Privacy budget.")


def offer(found: Hospital, plan: Plan, *, running: bool) -> None:
    """The plan, and what approving it would come to before there is a button."""
    screen.text("#### The plan on offer")
    screen.reading(deciding.offered_terms(plan, found.name), "The plan on offer")
    agreed = deciding.is_approved(found, plan)
    screen.text("#### What approving again would cost" if agreed else "#### What approving would cost")
    if agreed:
        screen.note("It is approved: another approval sets another cap, and declining takes the approval back.")
    digest = plan.digest().hex()
    present = deciding.present_cap(found)
    chosen = st.number_input(
        screen.say("Cap on epsilon, over this hospital's whole life"),
        min_value=0.01,
        value=present or deciding.PROPOSED_EPSILON,
        step=0.5,
        key=f"cap-{found.name}",
        disabled=plan.privacy.no_guarantee,
    )
    after = deciding.consequence(found, plan, chosen)
    screen.banner(after.headline)
    if after.figures:
        screen.figures(after.figures)
    with st.form(f"approve-{found.name}-{digest}"):  # a click on another plan's button, as read before, is no click on this one
        who, fields = people(f"approve-{found.name}"), dict[str, object]()
        if after.second_person and screen.settings().signin is not None:
            screen.note("This raises the cap: it waits until a second person confirms it in a sign-in of their own.")
        elif after.second_person:
            screen.note("This raises the cap: two different people have to agree.")
            fields["confirmed_by"] = st.text_input(screen.say("Second person"), key=f"second-{found.name}")
        if plan.privacy.no_guarantee:
            fields["accept_no_guarantee"] = st.checkbox(screen.say("No patient is protected by this plan, and I accept that"))
            fields["data_is_public"] = st.checkbox(screen.say("All data of this node is public or synthetic"))
        else:
            fields["epsilon"] = chosen
        agree, refuse, _ = st.columns((1, 1, 3))
        if agree.form_submit_button(
            screen.say("Approve this plan"),
            disabled=not (ready(Act.APPROVE, running=running) and after.possible),
            type="primary",
            width="stretch",
        ):
            send(found.folder, NODE, Act.APPROVE, Approve, who, plan=digest, **fields)
        if refuse.form_submit_button(
            screen.say("Decline this plan"), disabled=not ready(Act.DECLINE, running=running), width="stretch"
        ):
            send(found.folder, NODE, Act.DECLINE, Decline, who, plan=digest)


def second(found: Hospital, *, running: bool) -> None:
    """A higher cap that a first person proposed: for another one to confirm, in a sign-in of their own."""
    proposal = deciding.waiting_for_a_second(found, datetime.now(UTC))
    here = person.session()
    if proposal is None or here is None:
        return
    screen.text("#### A higher cap waits for a second person")
    figures = {"cap": str(proposal.cap), "proposed by": f"{proposal.by} ({proposal.proved.subject})", "why": proposal.reason}
    screen.reading(
        [{"what": name, "proposed": text} for name, text in figures.items()], "A higher cap waits for a second person"
    )
    if (here.person.issuer, here.person.subject) == (proposal.proved.issuer, proposal.proved.subject):
        screen.note("You proposed it: somebody else has to confirm it.")
        return
    with st.form(f"confirm-{found.name}-{proposal.digest}"):  # nor is one on an earlier proposal's
        who = people(f"confirm-{found.name}")
        able = ready(Act.CONFIRM, running=running)
        if st.form_submit_button(screen.say("Confirm the higher cap"), disabled=not able, type="primary"):
            send(found.folder, NODE, Act.CONFIRM, Confirm, who, proposal=proposal.digest)


def at_coordinator(folder: Path) -> None:
    """Rounds: hold back, let on, end."""
    screen.text("### Rounds")
    seen = screen.federation()
    state = deciding.of_rounds(seen)
    screen.banner(state)
    if seen is None or seen.finished:
        log(folder)
        return
    running = runs(folder)
    if not running:
        screen.refused("the coordinator does not run, so nothing can be decided here: start it")
    held = state.tone == "watch"
    act, kind, label = (
        (Act.LET_ROUNDS_ON, Resume, "Open rounds again") if held else (Act.HOLD_ROUNDS, Pause, "Open no further round")
    )
    if screen.may(act):
        with st.form("rounds"):
            who = people("rounds")
            if st.form_submit_button(screen.say(label), disabled=not ready(act, running=running)):
                send(folder, COORDINATOR, act, kind, who)
    number = deciding.under_way(seen)
    if number is not None and screen.may(Act.END_ROUND):
        screen.text(f"Round {number} is under way. Ending it keeps the model; what hospitals have released is spent.")
        with st.form("abort"):
            who = people("abort")
            if st.form_submit_button(screen.say(f"End round {number}"), disabled=not ready(Act.END_ROUND, running=running)):
                send(folder, COORDINATOR, Act.END_ROUND, Abort, who, round=number)
    log(folder)


def ready(act: Act, *, running: bool) -> bool:
    """Whether a button may be pressed: somebody is there to be asked, and the proof is recent where one is needed."""
    return running and person.is_ready(screen.settings(), act)


def people(key: str) -> dict[str, str]:
    """Who decides, and why; both are recorded. A name is typed only where nobody signs in."""
    sheet = st.session_state.get(SHEET, 0)  # a decision that was taken leaves an empty form behind
    here = person.session()
    if here is not None:
        screen.note(f"Recorded as decided by {screen.as_is(here.person.name)}")
        return {"by": "", "reason": st.text_input(screen.say("Reason"), key=f"reason-{key}{sheet}")}
    left, right = st.columns((1, 2))
    return {
        "by": left.text_input(screen.say("Your name"), key=f"by-{key}{sheet}"),
        "reason": right.text_input(screen.say("Reason"), key=f"reason-{key}{sheet}"),
    }


def send(folder: Path, whom: str, act: Act, kind: type[Request], who: Mapping[str, str], **fields: object) -> None:
    """Ask in the name of whoever is signed in at this moment, and show the answer on a page that is read again."""
    try:
        name, proved = person.in_whose_name(screen.settings(), act, who["by"])
        answer = ask(folder, decision(kind, by=name, reason=who["reason"], proved=proved, **fields), whom)
    except ControlError as error:
        answer = Answer(done=False, sentence=str(error))
    st.session_state[SAID] = answer
    st.session_state[SHEET] = st.session_state.get(SHEET, 0) + answer.done
    st.rerun()


def log(folder: Path, otherwise: str = "Nobody has done anything here yet.") -> None:
    """Who did what here, verified."""
    screen.text("#### What people did here")
    try:
        records = deciding.actions(folder)
    except deciding.AuditError as error:
        screen.banner(Headline("stop", "The audit log is damaged", str(error)))
        return
    if not records:
        screen.text(otherwise)
        return
    many, head = counted(len(records), "record"), records[-1].digest.hex()[:12]
    screen.note(f"Verified on loading: {many} in an unbroken chain, the last one {head}.")
    screen.reading(deciding.action_rows(records, screen.zone()), "What people did here")


page()
