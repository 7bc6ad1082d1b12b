"""The app as a person meets it: the real command, the real server, a real browser.

One server serves all tests of this file; each test opens its own page.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from zoneinfo import ZoneInfo

import pytest
from study_world import cells_of, write
from test_ui_scans import written as draw_scans
from worlds import BEGIN, World, make_plan

pytest.importorskip("playwright", reason="playwright is absent: install the extra 'test'")
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = [pytest.mark.browser, pytest.mark.sockets]

START_S = 180.0
PATIENCE_MS = 120_000
# Streamlit looks for its server beside a linked page first and hears 404; the second place is right.
PROBES = ("/_stcore/health", "/_stcore/host-config")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(
        tmp_path_factory.mktemp("browser"), make_plan(6, names=("lakeside", "nordklinik", "st-anna")), caps={"st-anna": 3.5}
    )
    found.start()
    for name in ("lakeside", "st-anna"):
        found.approve(name)
        found.charge(name, 1)
    draw_scans(found.state("lakeside"))
    found.round(1, charge=False)
    write(found.folder, cells_of(found.folder, 2))
    return found


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    """Where the app listens. It is started as a user starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-c",
        "from ui.cli import main; main()",
        *world.arguments(),
        "--study",
        str(world.folder / "study"),
    ]
    command += ["--port", str(port)]
    root = Path(__file__).resolve().parent.parent.parent
    process = subprocess.Popen(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"The app is at {base}")
        wait_for(base + "/_stcore/health", process)
        yield base
    finally:
        process.terminate()
        process.wait(timeout=120)
        if process.stdout is not None:
            process.stdout.close()


def wait_for(url: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url):
                return
        except URLError:
            assert process.poll() is None, "the app ended by itself"
            assert time.monotonic() < deadline, "the app did not answer in time"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Browser]:
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1360, "height": 900}, timezone_id="Europe/Berlin")
    opened.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield opened
    opened.screenshot(path=str(tmp_path / f"{request.node.name}.png"))  # kept by pytest for the last runs
    opened.close()


def test_nothing_outside_the_origin_is_asked_for_and_nothing_goes_wrong(address, page):
    outside: set[str] = set()
    missing: set[str] = set()
    messages: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.add(r.url))
    page.on("response", lambda r: missing.add(r.url) if r.status >= 400 else None)
    page.on("console", lambda m: messages.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    for path, title in (
        ("", "Study chest"),
        ("/privacy", "Privacy budget"),
        ("/accuracy", "Accuracy"),
        ("/bandwidth", "Bandwidth"),
        ("/rounds", "Rounds"),
        ("/scans?hospital=lakeside", "Scans"),
        ("/study", "Study"),
    ):
        page.goto(address + path)
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        expect(page.get_by_test_id("stVegaLiteChart").first).to_be_visible()
    assert outside == set()
    assert [url for url in missing if not url.endswith(PROBES)] == []
    assert len(messages) == len(missing), messages  # each of those answers is one line of the console; there is no other


def test_a_page_can_neither_run_nor_ask_for_anything_of_somebody_else(address, page):
    answer = page.goto(address)
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'self'"
    assert "unsafe" not in rules["script-src"]
    assert rules["frame-ancestors"] == "'none'"
    assert answer.headers["cache-control"] == "no-store"
    expect(page.get_by_role("heading", name="Study chest", exact=True)).to_be_visible()
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s) }"
    )
    assert page.evaluate("() => window.ran") is None
    # the policy refuses before the network is asked: no address outside this machine is contacted by this test
    refused = (
        "url => new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective),"
    )
    refused += " { once: true }); fetch(url).catch(() => 0); setTimeout(() => done('allowed'), 2000) })"
    assert page.evaluate(refused, "http://127.0.0.1:9/elsewhere") == "connect-src"


def test_scans_are_kept_by_no_browser_and_move_by_keyboard(address, page):
    kept: dict[str, str] = {}
    page.on(
        "response",
        lambda r: (
            kept.update({r.url: r.headers.get("cache-control", "")}) if "/media/" in r.url.removeprefix(address)[:8] else None
        ),
    )
    page.goto(address + "/scans?hospital=lakeside&z=2")
    expect(page.get_by_text("axial slice 2 of 6")).to_be_visible()
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    expect(page.get_by_text("axial slice 3 of 6")).to_be_visible()
    page.wait_for_url("**/*z=3*")
    assert kept
    assert set(kept.values()) == {"no-store"}


def test_a_link_to_a_run_opens_it(address, page):
    page.goto(address + "/study")
    runs = page.get_by_role("combobox", name="Run", exact=True)
    first = runs.input_value()
    runs.focus()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        runs.press(key)
    page.wait_for_url("**/study?*run=*")
    chosen = runs.input_value()
    assert chosen != first
    page.goto(page.url)
    expect(page.get_by_role("combobox", name="Run")).to_have_value(chosen)


def test_a_link_opens_the_right_hospital(address, page):
    page.goto(address + "/privacy?hospital=st-anna")
    expect(page.get_by_text("Stopped itself: the budget is spent")).to_be_visible()
    expect(page.get_by_role("combobox", name="Hospital")).to_have_value("st-anna")
    expect(page.get_by_test_id("stMetricValue").first).to_contain_text("of 3.5")
    expect(page.get_by_text("everything st-anna has sent satisfies")).to_be_visible()


def test_a_figure_changes_by_itself_when_a_round_is_done(address, page, world):
    page.goto(address)
    rounds = page.get_by_test_id("stMetric").filter(has_text="Rounds").get_by_test_id("stMetricValue")
    expect(rounds).to_have_text("1 of 6")
    world.round(2, charge=False)
    expect(rounds).to_have_text("2 of 6")


def test_a_paused_page_stays_as_it_is(address, page, world):
    page.goto(address)
    rounds = page.get_by_test_id("stMetric").filter(has_text="Rounds").get_by_test_id("stMetricValue")
    expect(rounds).to_contain_text("of 6")
    page.get_by_text("Pause", exact=True).click()
    expect(page.get_by_test_id("stSidebar").get_by_text("Paused")).to_be_visible()
    before = rounds.inner_text()
    world.round(3, charge=False)
    page.wait_for_timeout(5_000)  # two looks of a live page
    assert rounds.inner_text() == before
    page.get_by_text("Pause", exact=True).click()
    expect(rounds).to_have_text("3 of 6")


def test_times_are_on_the_readers_clock(address, page):
    page.goto(address + "/rounds?round=1")
    expect(page.get_by_text("Times: Europe/Berlin")).to_be_visible()
    begun = BEGIN.astimezone(ZoneInfo("Europe/Berlin"))
    expect(page.get_by_text(f"{begun:%H:%M}:0").first).to_be_visible()


def test_a_chart_can_be_read_aloud(address, page):
    page.goto(address + "/privacy?hospital=lakeside")
    expect(page.get_by_test_id("stVegaLiteChart")).to_be_visible()
    described = page.locator("[aria-label^='Epsilon by round. After 1 charged round epsilon is'], [alt^='Epsilon by round.']")
    expect(described.first).to_be_attached()
