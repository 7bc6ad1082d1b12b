"""Roles on every page, in the real script: what each may see, what is refused by address, and what a button sends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deciding_world import node_of, running_node
from streamlit import config
from streamlit.testing.v1 import AppTest
from study_world import cells_of, write
from test_ui_decisions import press
from test_ui_pages import banner, metrics, tables, text
from worlds import World, make_plan

from certs.audit_file import AuditLog
from hospital_node.ledger import Ledger
from proto.control import Answer, Approve, Proved, coordinator_request, decision
from proto.control_socket import ask, listening
from ui import cli, sessions
from ui.roles import ALLOWED, HOLDS, Act, Page, Role, acting_as, may
from ui.sessions import OPEN, USER_KEY, Person
from ui.signin_settings import SignIn

ISSUER = "https://login.hospital.example"
SIGNIN = SignIn(
    issuer=ISSUER,
    client_id="secagg-ui",
    public_url="http://localhost:8501",
    roles={Role.OFFICER: ("officers",), Role.RESEARCHER: ("researchers",), Role.OPERATOR: ("operators",)},
    contact="the study office",
)
TITLES = {
    Page.PRIVACY: "Privacy budget",
    Page.SCANS: "Scans",
    Page.ACCURACY: "Accuracy",
    Page.BANDWIDTH: "Bandwidth",
    Page.ROUNDS: "Rounds",
    Page.DECISIONS: "Decisions",
    Page.STUDY: "Study",
}
HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def _local() -> Iterator[None]:
    before = config.get_option("server.address")
    config.set_option("server.address", "127.0.0.1")
    yield
    config.set_option("server.address", before)


def made(folder: Path) -> World:
    """One round of three hospitals; lakeside has spent something, and a plan is on offer at it."""
    world = World(folder, make_plan(6, names=("lakeside", "nordklinik", "st-anna")))
    world.start()
    node_of(world, "lakeside")
    world.approve("lakeside", cap=5.0)
    world.charge("lakeside", 1)
    world.round(1, charge=False)
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return made(tmp_path)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An app with every page, whose files nobody changes."""
    world = made(tmp_path_factory.mktemp("roles"))
    study = write(world.folder, cells_of(world.folder, 1))
    return [*world.arguments(hospitals=["lakeside"]), "--study", str(study)]


def session(*roles: Role, name: str = "Dr K. Weber", subject: str = "keller-1", proved_s_ago: float = 0.0) -> str:
    """A session as the gate opens one; its key."""
    now = time.time()
    shown = OPEN.open(Person(ISSUER, subject, name, frozenset(roles)), now - proved_s_ago, now + HOUR_S, now)
    return sessions.key_of(shown)


@pytest.fixture
def open_as(monkeypatch: pytest.MonkeyPatch):
    """A page as somebody with this session sees it; by address, which no navigation stands before."""

    def run(arguments: list[str], key: str | None, page: str = "overview", **settings: object) -> AppTest:
        signin = SIGNIN.model_copy(update=settings)
        monkeypatch.setattr("sys.argv", ["app.py", *arguments, "--signin", signin.model_dump_json()])
        app = AppTest.from_file(str(cli.APP), default_timeout=180)
        app.user = {} if key is None else {USER_KEY: key}
        app.run()
        if page != "overview":
            app.switch_page(f"app_pages/{page}.py").run()
        assert not app.exception, [found.value for found in app.exception]
        return app

    return run


@pytest.mark.parametrize("role", Role)
def test_each_role_opens_its_pages_and_is_refused_the_others_by_address(open_as, everything, role: Role) -> None:
    app = open_as(everything, session(role))
    for page, title in TITLES.items():
        app.switch_page(f"app_pages/{page}.py").run()
        if may({role}, page):
            assert app.title[0].value == title
            assert "not for your role" not in banner(app)
        else:
            assert not app.title
            assert f"This page is not for your role ({role}): ask the study office" in banner(app)
            assert not app.metric
            assert not app.button
            assert "lakeside" not in text(app) + tables(app)


def test_the_overview_shows_budgets_to_officers_alone(open_as, everything) -> None:
    for role in Role:
        app = open_as(everything, session(role))
        assert app.title[0].value == "Study chest"
        shown = text(app) + tables(app) + str(metrics(app))
        assert ("#### Privacy budget of" in shown) == (role is Role.OFFICER)


@pytest.mark.parametrize("key", [None, "", "f" * 64, "made up"])
def test_without_a_session_there_is_nothing(open_as, everything, key: str | None) -> None:
    app = open_as(everything, key)
    assert "You are not signed in" in banner(app)
    assert not app.title
    assert not app.metric
    assert "chest" not in text(app)


def test_who_has_no_role_is_told_whom_to_ask(open_as, everything) -> None:
    app = open_as(everything, session(name="A Guest"))
    for page in ("overview", *TITLES):
        app.switch_page(f"app_pages/{page}.py").run()
        assert "You are signed in as A Guest, and have no role here: ask the study office" in banner(app)
        assert not app.title
        assert not app.metric


def test_a_session_that_ends_takes_the_page_away(open_as, everything) -> None:
    key = session(Role.OFFICER)
    app = open_as(everything, key, "privacy")
    assert app.title[0].value == "Privacy budget"
    OPEN.end(key, time.time())
    app.run()
    assert "You are not signed in" in banner(app)
    assert not app.metric


def test_what_one_role_has_opened_is_not_kept_for_another(open_as, everything) -> None:
    """Readings are kept for all sessions; what of them is shown is decided anew for each."""
    assert open_as(everything, session(Role.OFFICER), "privacy").metric
    app = open_as(everything, session(Role.RESEARCHER), "privacy")
    assert not app.metric
    assert "satisfies" not in "".join(code.value for code in app.code)


def reason(app: AppTest, key: str, said: str) -> AppTest:
    next(one for one in app.text_input if str(one.key).startswith(f"reason-{key}")).input(said)
    return app


def test_a_decision_is_recorded_in_the_proved_name(open_as, world) -> None:
    with running_node(world, "lakeside"):
        app = open_as(world.arguments(hospitals=["lakeside"]), session(Role.OFFICER), "decisions")
        assert not [one for one in app.text_input if "by-" in str(one.key)]
        app.number_input(key="cap-lakeside").set_value(4.5).run()
        press(reason(app, "approve-lakeside", "board decision 12"), "Approve this plan")
        assert "Approved by Dr K. Weber" in banner(app)
        assert "Dr K. Weber (keller-1)" in tables(app)
    approved = Ledger.open(world.state("lakeside") / "ledger.db").approval(world.plan)
    assert approved is not None
    assert approved.proved is not None
    assert (approved.by, approved.proved.subject, approved.proved.issuer) == ("Dr K. Weber", "keller-1", ISSUER)


def test_a_higher_cap_takes_two_sessions_of_two_people(open_as, world) -> None:
    arguments = world.arguments(hospitals=["lakeside"])
    with running_node(world, "lakeside"):
        app = open_as(arguments, session(Role.OFFICER), "decisions")
        app.number_input(key="cap-lakeside").set_value(7.0).run()
        assert "until a second person confirms it in a sign-in of their own" in text(app)
        assert not [one for one in app.text_input if "second" in str(one.key)]
        press(reason(app, "approve-lakeside", "more rounds"), "Approve this plan")
        assert "waits for a second person" in banner(app)
        own = open_as(arguments, session(Role.OFFICER), "decisions")  # another session of the same person
        assert "You proposed it" in text(own)
        assert "Confirm the higher cap" not in [button.label for button in own.button]
        second = open_as(arguments, session(Role.OFFICER, name="Dr L. Lind", subject="lind-2"), "decisions")
        press(reason(second, "confirm-lakeside", "I have read it"), "Confirm the higher cap")
        assert "Approved by Dr K. Weber and Dr L. Lind" in banner(second)
    approved = Ledger.open(world.state("lakeside") / "ledger.db").approval(world.plan)
    assert approved is not None
    assert approved.cap.epsilon == 7.0
    assert (approved.proved.subject, approved.confirmed_proved.subject) == ("keller-1", "lind-2")


def test_an_operator_may_hold_the_node_and_nothing_more_there(open_as, world) -> None:
    with running_node(world, "lakeside"):
        app = open_as(world.arguments(hospitals=["lakeside"]), session(Role.OPERATOR, name="B. Okoro"), "decisions")
        labels = {button.label for button in app.button}
        assert "Pause this hospital" in labels
        assert not labels & {"Approve this plan", "Decline this plan", "Confirm the higher cap"}
        assert "ε" not in text(app) + banner(app) + tables(app)
        press(reason(app, "pause-lakeside", "maintenance"), "Pause this hospital")
        assert "Paused by B. Okoro" in banner(app)
        assert "Let it go on" not in {button.label for button in app.button}
    last = AuditLog.within(world.state("lakeside")).read()[-1].action
    assert (last.by, last.kind, last.fields["role"]) == ("B. Okoro", "pause", "operator")


def test_an_officer_does_not_decide_about_rounds(open_as, world) -> None:
    world.begin(2)
    asked: list[dict[str, str]] = []

    def coordinator(data: bytes) -> Answer:
        request = coordinator_request(data)
        assert request.proved is not None
        asked.append({"by": request.by, "subject": request.proved.subject, "action": request.action})
        return Answer(done=True, sentence=f"Paused by {request.by}: no further round is opened; round 2 goes on to its end.")

    with listening(world.coordinator, coordinator):
        officer = open_as(world.arguments(hospitals=["lakeside"]), session(Role.OFFICER), "decisions")
        assert not {button.label for button in officer.button} & {"Open no further round", "End round 2"}
        app = open_as(world.arguments(hospitals=[]), session(Role.OPERATOR, name="B. Okoro", subject="okoro-4"), "decisions")
        press(reason(app, "rounds", "maintenance"), "Open no further round")
        assert "Paused by B. Okoro" in banner(app)
    assert asked == [{"by": "B. Okoro", "subject": "okoro-4", "action": "pause"}]


def test_a_right_that_was_lost_since_the_page_was_drawn_is_lost(open_as, world) -> None:
    """The button is there, the session has ended or is another role's: nothing is sent."""
    key = session(Role.OFFICER)
    with running_node(world, "lakeside"):
        for change in (
            {"ends_s": time.time()},
            {"person": Person(ISSUER, "keller-1", "Dr K. Weber", frozenset({Role.OPERATOR}))},
        ):
            app = open_as(world.arguments(hospitals=["lakeside"]), key, "decisions")
            before = OPEN._open[key]
            button = next(one for one in app.button if one.label == "Approve this plan")
            reason(app, "approve-lakeside", "too late")
            OPEN._open[key] = replace(before, **change)
            button.click().run()
            OPEN._open[key] = before
    approved = Ledger.open(world.state("lakeside") / "ledger.db").approval(world.plan)
    assert approved is not None
    assert approved.reason == "chest study, board decision 12"
    assert not AuditLog.within(world.state("lakeside")).read()


def test_a_decision_needs_a_recent_proof(open_as, world) -> None:
    with running_node(world, "lakeside"):
        app = open_as(world.arguments(hospitals=["lakeside"]), session(Role.OFFICER, proved_s_ago=1200), "decisions")
        assert "prove anew who you are" in banner(app)
        able = {button.label: not button.disabled for button in app.button}
        assert able == {"Approve this plan": False, "Decline this plan": True, "Pause this hospital": True}
        again = open_as(
            world.arguments(hospitals=["lakeside"]), session(Role.OFFICER, proved_s_ago=1200), "decisions", decision_minutes=30
        )
        assert any(not button.disabled for button in again.button)


def test_whoever_sees_something_wrong_holds_it_without_a_recent_proof(open_as, world) -> None:
    with running_node(world, "lakeside"):
        operator = session(Role.OPERATOR, name="B. Okoro", proved_s_ago=4 * HOUR_S)
        app = open_as(world.arguments(hospitals=["lakeside"]), operator, "decisions")
        press(reason(app, "pause-lakeside", "a wrong scanner"), "Pause this hospital")
        assert "Paused by B. Okoro" in banner(app)
        officer = session(Role.OFFICER, proved_s_ago=4 * HOUR_S)
        app = open_as(world.arguments(hospitals=["lakeside"]), officer, "decisions")
        assert all(button.disabled for button in app.button if button.label == "Let it go on")
        press(reason(app, "approve-lakeside", "a wrong scanner"), "Decline this plan")
        assert "Taken back by Dr K. Weber" in banner(app)
    assert {Act.PAUSE, Act.HOLD_ROUNDS, Act.DECLINE} == HOLDS


def test_scans_stay_on_this_machine_whoever_signs_in(open_as, everything) -> None:
    app = open_as(everything, session(Role.OFFICER), "scans", public_url="https://secagg.hospital.example")
    assert "on this machine's own address only" in banner(app)


def test_the_table_names_every_right_and_no_act_is_a_researchers() -> None:
    assert set(ALLOWED) >= {*Page, *Act}
    for act in Act:
        assert not may({Role.RESEARCHER}, act)
        assert acting_as({Role.RESEARCHER}, act) is None
    assert acting_as({Role.OPERATOR, Role.OFFICER}, Act.PAUSE) is Role.OFFICER
    assert not may(set(), Page.OVERVIEW)


def test_what_is_handed_to_the_server_names_a_file_and_no_secret(tmp_path) -> None:
    signin = SIGNIN.model_copy(update={"client_secret_file": tmp_path / "client-secret"})
    given = json.loads(signin.model_dump_json())
    assert given["client_secret_file"] == str(tmp_path / "client-secret")
    assert SignIn.model_validate_json(signin.model_dump_json()) == signin


def test_a_click_confirms_the_proposal_that_was_read_and_no_later_one(open_as, world) -> None:
    keller = Proved(issuer=ISSUER, subject="keller-1", role="officer")

    def propose(epsilon: float) -> None:
        plan = world.plan.digest().hex()
        wish = decision(Approve, by="Dr K. Weber", reason="more rounds", plan=plan, epsilon=epsilon, proved=keller)
        assert "waits for a second person" in ask(world.state("lakeside"), wish, "the node").sentence

    with running_node(world, "lakeside"):
        propose(6.0)
        lind = session(Role.OFFICER, name="Dr L. Lind", subject="lind-2")
        app = reason(open_as(world.arguments(hospitals=["lakeside"]), lind, "decisions"), "confirm-lakeside", "6 is enough")
        propose(500.0)
        press(app, "Confirm the higher cap")
        assert Ledger.open_readonly(world.state("lakeside") / "ledger.db").cap.epsilon == 5.0
        assert "500" in tables(app)  # read now, and confirmed by another click
        press(reason(app, "confirm-lakeside", "I have read it"), "Confirm the higher cap")
        assert Ledger.open_readonly(world.state("lakeside") / "ledger.db").cap.epsilon == 500.0


def test_a_click_approves_the_plan_that_was_read_and_no_later_one(open_as, world) -> None:
    with running_node(world, "lakeside"):
        app = open_as(world.arguments(hospitals=["lakeside"]), session(Role.OFFICER), "decisions")
        reason(app, "approve-lakeside", "I have read six rounds")
        other = make_plan(60, names=("lakeside", "nordklinik", "st-anna"))
        (world.state("lakeside") / "plan.json").write_bytes(other.canonical())
        press(app, "Approve this plan")
    assert not AuditLog.within(world.state("lakeside")).read()
    assert Ledger.open_readonly(world.state("lakeside") / "ledger.db").approval(other) is None


def test_what_people_wrote_is_shown_as_they_wrote_it(open_as, world) -> None:
    """A name of the provider's and a reason are text: no link, no picture, no heading."""
    name = "[Dr K. Weber](https://elsewhere.example)"
    why = '![seen](https://elsewhere.example/a.png) **agreed** <b>today</b> & "so"'
    with running_node(world, "lakeside"):
        app = open_as(world.arguments(hospitals=["lakeside"]), session(Role.OFFICER, name=name), "decisions")
        press(reason(app, "pause-lakeside", why), "Pause this hospital")
        assert f"Paused by {name}" in banner(app)
        assert why in tables(app)
        boxes = [box.value for box in (*app.success, *app.warning)]
        shown = boxes  # a table shows everything as it is written
    guest = open_as(world.arguments(hospitals=["lakeside"]), session(name=name))
    assert f"You are signed in as {name}" in banner(guest)
    for markdown in (*shown, *(box.value for box in guest.warning)):
        assert "](http" not in markdown
        assert "**agreed" not in markdown
