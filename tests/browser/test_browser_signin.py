"""Signing in in a real browser: each role sees what it may and no address opens the rest; signing out empties every window."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deciding_world import running_node
from signin_world import Deployment, deployment
from test_browser_app import PATIENCE_MS, browser  # noqa: F401  (fixture)
from test_ui_scans import written as draw_scans
from worlds import World, make_plan

from hospital_node.ledger import Ledger

pytest.importorskip("playwright", reason="playwright is absent: install the extra 'test'")
pytest.importorskip("authlib", reason="Authlib is absent: install the extra 'test'")
from playwright.sync_api import Browser, BrowserContext, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.sockets]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(tmp_path_factory.mktemp("signin-browser"), make_plan(6, names=("lakeside", "nordklinik", "st-anna")))
    found.start()
    found.approve("lakeside", cap=5.0)
    found.charge("lakeside", 1)
    draw_scans(found.state("lakeside"))
    found.round(1, charge=False)
    return found


@pytest.fixture(scope="module")
def there(world: World) -> Iterator[Deployment]:
    folders = {"coordinator": str(world.coordinator), "hospitals": [str(world.state("lakeside"))]}
    with deployment(world.folder, folders) as found:
        yield found


@pytest.fixture
def person(browser: Browser) -> Iterator[BrowserContext]:  # noqa: F811
    """A person's own browser, without anything of anybody else."""
    expect.set_options(timeout=PATIENCE_MS)
    context = browser.new_context(viewport={"width": 1360, "height": 900}, timezone_id="Europe/Berlin", locale="en-GB")
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


def sign_in(there: Deployment, person: BrowserContext, user: str, path: str = "/") -> Page:
    page = person.new_page()
    page.goto(there.app + path)
    page.get_by_role("link", name="Sign in").click()
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(f"{user} password")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(there.app + "/**")
    return page


def menu(page: Page) -> list[str]:
    expect(page.get_by_test_id("stSidebarNavLink").first).to_be_visible()
    return [one.inner_text() for one in page.get_by_test_id("stSidebarNavLink").all()]


MENUS = {
    "keller": ["Overview", "Privacy budget", "Scans", "Accuracy", "Bandwidth", "Rounds", "Decisions"],
    "sato": ["Overview", "Accuracy", "Bandwidth", "Rounds"],
    "okoro": ["Overview", "Bandwidth", "Rounds", "Decisions"],
}
CLOSED = {
    "sato": {"privacy": "Privacy budget", "scans": "Scans", "decisions": "Decisions"},
    "okoro": {"privacy": "Privacy budget", "scans": "Scans", "accuracy": "Accuracy"},
}


@pytest.mark.parametrize("user", MENUS)
def test_each_role_finds_its_pages_and_no_address_opens_another(there: Deployment, person: BrowserContext, user: str) -> None:
    page = sign_in(there, person, user)
    expect(page.get_by_role("heading", name="Study chest", exact=True)).to_be_visible()
    assert menu(page) == MENUS[user]
    for path, title in CLOSED.get(user, {}).items():
        page.goto(f"{there.app}/{path}")
        expect(page.get_by_text("This page is not for your role")).to_be_visible()
        assert page.get_by_role("heading", name=title, exact=True).count() == 0
        assert page.get_by_test_id("stMetric").count() == 0
        assert page.get_by_test_id("stImage").count() == 0


def test_a_link_is_opened_after_signing_in(there: Deployment, person: BrowserContext) -> None:
    page = sign_in(there, person, "keller", "/privacy?hospital=lakeside")
    expect(page.get_by_role("heading", name="Privacy budget", exact=True)).to_be_visible()
    assert "/privacy" in page.url
    expect(page.get_by_text("everything lakeside has sent satisfies")).to_be_visible()


def test_somebody_without_a_role_sees_a_sentence(there: Deployment, person: BrowserContext) -> None:
    page = sign_in(there, person, "guest")
    expect(page.get_by_text("have no role here: ask the study office")).to_be_visible()
    assert page.get_by_test_id("stMetric").count() == 0
    assert page.get_by_text("chest").count() == 0


def test_only_the_app_and_the_provider_are_asked_for_anything(there: Deployment, person: BrowserContext) -> None:
    outside: set[str] = set()
    wrong: list[str] = []
    own = (there.app, there.issuer, "data:", "blob:")
    person.on("request", lambda r: None if r.url.startswith(own) else outside.add(r.url))
    person.on("console", lambda m: wrong.append(m.text) if "Content Security Policy" in m.text else None)
    page = sign_in(there, person, "keller")
    expect(page.get_by_role("heading", name="Study chest", exact=True)).to_be_visible()
    page.goto(there.app + "/rounds")
    expect(page.get_by_role("heading", name="Rounds", exact=True)).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart").first).to_be_visible()
    assert outside == set()
    assert wrong == []
    assert all(cookie["httpOnly"] and cookie["sameSite"] == "Lax" for cookie in person.cookies() if "secagg" in cookie["name"])
    assert page.evaluate("() => document.cookie").count("secagg") == 0


def test_signing_out_empties_every_window(there: Deployment, person: BrowserContext) -> None:
    page = sign_in(there, person, "keller", "/privacy?hospital=lakeside")
    other = person.new_page()
    other.goto(there.app + "/rounds")
    expect(other.get_by_role("heading", name="Rounds", exact=True)).to_be_visible()
    expect(page.get_by_text("everything lakeside has sent satisfies")).to_be_visible()
    other.get_by_role("link", name="Sign out").click()
    other.wait_for_url(there.app + "/signin")
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_text("You are not signed in")).to_be_visible()
    expect(page.get_by_text("everything lakeside has sent satisfies")).to_have_count(0)
    page.goto(there.app + "/privacy")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_two_officers_raise_a_cap_from_two_browsers(
    there: Deployment,
    world: World,
    browser: Browser,  # noqa: F811
    person: BrowserContext,
) -> None:
    with running_node(world, "lakeside"):
        page = sign_in(there, person, "keller", "/decisions?hospital=lakeside")
        form = page.get_by_test_id("stForm").filter(has=page.get_by_role("button", name="Approve this plan"))
        expect(form.get_by_text("Recorded as decided by Dr K. Weber")).to_be_visible()
        cap = page.get_by_label("Cap on epsilon, over this hospital's whole life")
        cap.fill("7")
        cap.press("Enter")
        expect(form.get_by_text("until a second person confirms it")).to_be_visible()
        form.get_by_label("Reason").fill("more rounds")
        form.get_by_role("button", name="Approve this plan").click()
        expect(page.get_by_text("waits for a second person, who confirms it").first).to_be_visible()
        expect(page.get_by_text("You proposed it: somebody else has to confirm it")).to_be_visible()
        with browser.new_context() as theirs:
            second = sign_in(there, theirs, "lind", "/decisions?hospital=lakeside")
            asked = second.get_by_test_id("stForm").filter(has=second.get_by_role("button", name="Confirm the higher cap"))
            asked.get_by_label("Reason").fill("I have read it")
            asked.get_by_role("button", name="Confirm the higher cap").click()
            expect(second.get_by_text("Approved by Dr K. Weber and Dr L. Lind").first).to_be_visible()
    approved = Ledger.open(world.state("lakeside") / "ledger.db").approval(world.plan)
    assert approved is not None
    assert approved.proved is not None
    assert approved.confirmed_proved is not None
    assert (approved.cap.epsilon, approved.proved.subject, approved.confirmed_proved.subject) == (7.0, "keller-1", "lind-2")
