"""Every page in every state of a study: it says where things stand in words, and shows no number that means nothing."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from readings import as_lines
from streamlit import config
from test_ui_pages import as_read
from test_ui_scans import written as draw_scans
from worlds import NAMES, World, make_plan, uri

from hospital_node.ledger import BudgetExhausted

PAGES = ("overview", "privacy", "scans", "decisions", "accuracy", "bandwidth", "rounds", "study")
MEANINGLESS = re.compile(r"\b(nan|inf|None)\b|ε 0(?![.\d])")


def nothing(folder: Path) -> World:
    return World(folder)


def waiting(folder: Path) -> World:
    world = World(folder, make_plan(6))
    world.start()
    world.approve_all()
    world.begin(1)
    return world


def running(folder: Path) -> World:
    world = waiting(folder)
    world.round(1, lost={"riverside": "mask"}, declined=["nordklinik"])
    world.begin(2)
    world.progress("lakeside", 2, 3)
    draw_scans(world.state("lakeside"))
    return world


def stale(folder: Path) -> World:
    world = running(folder)
    long_ago = world.clock - timedelta(hours=2)
    with world.store() as store, store.batch() as batch:
        for name in world.names:
            batch.member(uri(name), "training", long_ago.timestamp(), "train")
        batch.member(uri("reference", "evaluator"), "joined", long_ago.timestamp())
    return world


def aborted(folder: Path) -> World:
    world = waiting(folder)
    world.abort(1)
    return world


def near_the_cap(folder: Path) -> World:
    world = World(folder, make_plan(6), caps=dict.fromkeys(NAMES, 5.2))
    world.start()
    world.approve_all()
    world.round(1)
    world.round(2)
    return world


def spent(folder: Path) -> World:
    world = World(folder, make_plan(6), caps=dict.fromkeys(NAMES, 3.5))
    world.start()
    world.approve_all()
    world.round(1)
    with pytest.raises(BudgetExhausted):
        world.ledger("lakeside").authorize(world.plan, 2)
    return world


def damaged(folder: Path) -> World:
    world = near_the_cap(folder)
    for name in world.names:
        (world.state(name) / "ledger.counter").unlink()
    return world


def one_hospital(folder: Path) -> World:
    """The app of one hospital: its own ledger, no coordinator."""
    world = near_the_cap(folder)
    world.names = ["lakeside"]
    return world


STATES: dict[str, tuple[Callable[[Path], World], str, str]] = {  # world, words of the overview, words of the budget
    "nothing yet": (nothing, "the coordinator has not started round 1", "has no ledger"),
    "waiting": (waiting, "No hospital has spent anything of its cap yet", "Within budget"),
    "running": (running, "Round 2 of 6: hospitals train", "Within budget"),
    "stale": (stale, "Nothing was heard for", "Within budget"),
    "aborted": (aborted, "Round 1 of 6: aborted", "Within budget"),
    "near the cap": (near_the_cap, "hospitals", "Near the cap"),
    "spent": (spent, "stopped by themselves", "Stopped itself"),
    "damaged": (damaged, "No share can be told", "Ledger damaged"),
    "one hospital": (one_hospital, "of its own cap", "Near the cap"),
}


@pytest.fixture(scope="module", params=STATES)
def state(request, tmp_path_factory):
    """A world, what its two first pages say, and the pages that it has."""
    make, overview, budget = STATES[request.param]
    world = make(tmp_path_factory.mktemp("state"))
    alone = request.param == "one hospital"
    arguments = [*world.arguments(coordinator=not alone), *([] if alone else ["--study", str(world.folder / "study")])]
    pages = PAGES[:4] if alone else PAGES
    before = config.get_option("server.address")
    config.set_option("server.address", "127.0.0.1")
    yield arguments, {"overview": overview, "privacy": budget}, pages
    config.set_option("server.address", before)


def test_every_page_says_where_things_stand(open_page, state):
    arguments, words, pages = state
    for page in pages:
        app = open_page(arguments, page)
        said = [part.value for part in (*app.markdown, *app.caption, *app.info, *app.success, *app.warning, *app.error)]
        said += [f"{metric.label} {metric.value}" for metric in app.metric]
        said += as_lines(app)
        text = as_read("\n".join(said))
        assert words.get(page, "") in text, page
        assert not MEANINGLESS.findall(text), page
        assert app.title[0].value
        boxes = [*app.info, *app.success, *app.warning, *app.error]
        assert boxes or app.metric or app.dataframe, page  # no page is empty
