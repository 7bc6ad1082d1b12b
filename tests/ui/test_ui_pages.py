"""Every page in every state: it says the state first, in words, and never raises."""

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from readings import as_lines, readings
from streamlit.testing.v1 import AppTest
from worlds import NAMES, STUDY, World, make_plan, uri

from hospital_node.ledger import BudgetExhausted, Ledger
from proto.plan import Evaluation
from ui import budget, overview

PAGES = ("overview", "privacy", "accuracy", "bandwidth", "rounds")


def as_read(markdown: str) -> str:
    """What a reader sees where punctuation is escaped."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


def banner(app: AppTest) -> str:
    """The state: the first coloured box of the page."""
    boxes = [*app.error, *app.warning, *app.success, *app.info]
    return as_read(" ".join(box.value for box in boxes))


def text(app: AppTest) -> str:
    """Everything that can be read outside tables."""
    parts = (*app.markdown, *app.caption, *app.info, *app.success, *app.warning, *app.error)
    return as_read("\n".join(part.value for part in parts))


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def charts(app: AppTest) -> list[str]:
    """Alternative texts of all charts."""
    return [chart.proto.alt for chart in app.get("vega_lite_chart")]


def tables(app: AppTest) -> str:
    return as_read("\n".join((*(frame.value.to_csv() for frame in app.dataframe), *as_lines(app))))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two rounds done, one hospital lost in the first, the third under way; one cap is near, one is spent."""
    world = World(tmp_path_factory.mktemp("running"), make_plan(6), caps={"riverside": 5.2, "st-anna": 4.4})
    world.start()
    world.approve_all()
    world.round(1, lost={"riverside": "mask"})
    world.round(2)
    world.begin(3)
    world.progress("lakeside", 3, 2)
    return world


@pytest.fixture(scope="module")
def one_round(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("one-round"), make_plan(4, names=NAMES[:3]))
    world.start()
    world.approve("lakeside")
    world.charge("lakeside", 1)
    world.round(1, charge=False)
    return world


@pytest.fixture(scope="module")
def unprotected(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("unprotected"), make_plan(3, noise=0.0))
    world.start()
    world.approve_all()
    world.round(1)
    return world


@pytest.mark.parametrize("page", PAGES)
def test_before_anything_exists_a_page_waits(open_page, tmp_path, page):
    app = open_page(World(tmp_path).arguments(), page)
    assert "Nothing yet" in text(app)
    assert not app.get("vega_lite_chart")


def test_the_first_screen_says_that_the_coordinator_has_not_started(open_page, tmp_path):
    app = open_page(World(tmp_path).arguments())
    assert "the coordinator has not started round 1" in banner(app)
    assert set(metrics(app).values()) == {"none yet"}


@pytest.mark.parametrize("page", PAGES)
def test_joined_but_no_round(open_page, tmp_path, page):
    world = World(tmp_path)
    world.start()
    app = open_page(world.arguments(), page)
    assert ("The start: mean Dice" if page == "accuracy" else "Nothing yet") in text(app)


@pytest.mark.parametrize("page", PAGES)
def test_one_round(open_page, one_round, page):
    app = open_page(one_round.arguments(), page)
    assert "Nothing yet" not in text(app)
    assert charts(app)


def test_overview_of_a_running_study(open_page, running):
    app = open_page(running.arguments())
    assert app.title[0].value == f"Study {STUDY}"
    assert "Round 3 of 6: hospitals train" in banner(app)
    assert "waiting for lakeside (training)" in banner(app)
    shown = metrics(app)
    assert shown["Rounds"] == "2 of 6"
    with running.store() as store:
        latest = [sum(row.per_case) / len(row.per_case) for row in store.scores() if row.round == 2]
    assert shown["Mean Dice"] == f"{sum(latest) / 2:.2f}"
    assert shown["Upload per round"] == "185 kB"
    assert "step 2 of 5" in str([bar.proto.text for bar in app.get("progress")])
    assert charts(app)[0].startswith("Privacy budget of every hospital. st-anna has spent the largest share")
    assert "riverside dropped out at mask" in tables(app)


def test_overview_of_hospitals_alone_shows_their_budgets(open_page, running):
    app = open_page(running.arguments(coordinator=False))
    assert "Privacy budget of every hospital" in charts(app)[0]
    assert "Rounds" not in metrics(app)


def test_overview_of_the_coordinator_alone_leaves_budgets_to_the_hospitals(open_page, running):
    app = open_page(running.arguments(hospitals=[]))
    assert metrics(app)["Hospitals joined"] == "4 of 4"
    assert "ε" not in text(app)


def test_privacy_within_budget(open_page, running):
    app = open_page(running.arguments(), "privacy", hospital="lakeside")
    view = running.ledger("lakeside").budget(running.plan)
    assert view.state == "within budget"
    assert "Within budget" in as_read(app.success[0].value)
    shown = metrics(app)
    spent = float(shown["Spent"].removeprefix("ε ").removesuffix(" of 8"))
    assert view.spent <= spent < view.spent + 0.01  # rounded up
    assert shown["Rounds left"] == "4"
    assert shown["Attacker recognises"].startswith("≤ ")
    assert charts(app)[0].startswith(f"Epsilon by round. After 2 charged rounds epsilon is {spent:.2f} of 8 at δ 1e-5.")
    assert "everything lakeside has sent satisfies" in app.code[0].value
    assert "masked update" in tables(app)
    assert "180 kB" in tables(app)
    assert "Dr K. Weber" in tables(app)


def test_privacy_near_the_cap(open_page, running):
    app = open_page(running.arguments(), "privacy", hospital="riverside")
    assert "Near the cap" in as_read(app.warning[0].value)
    assert "stops by itself after round" in as_read(app.warning[0].value)
    assert metrics(app)["Rounds left"].isdigit()


def test_privacy_spent_says_that_the_hospital_stopped_itself(open_page, running):
    with pytest.raises(BudgetExhausted):
        running.ledger("st-anna").authorize(running.plan, 3)
    app = open_page(running.arguments(), "privacy", hospital="st-anna")
    assert "Stopped itself" in as_read(app.error[0].value)
    assert metrics(app)["Rounds left"] == "none"
    assert b"stopped itself here" in app.get("vega_lite_chart")[0].proto.SerializeToString()


def test_no_guarantee_is_words_and_never_a_number(open_page, unprotected):
    app = open_page(unprotected.arguments(), "privacy", hospital="lakeside")
    assert "No guarantee" in banner(app)
    shown = metrics(app)
    assert shown["Spent"] == "no guarantee"
    assert shown["Attacker recognises"] == "anyone"
    everything = text(app) + " ".join(shown.values()) + tables(app) + " ".join(code.value for code in app.code)
    for wrong in ("inf", "nan", "ε 0", "ε = 0"):
        assert wrong not in everything.replace("information", "")
    assert not charts(app)


def test_no_guarantee_on_the_first_screen(open_page, unprotected):
    app = open_page(unprotected.arguments())
    assert metrics(app)["Nearest to its cap"] == "no guarantee"
    assert "updates leave without noise" in text(app)
    assert charts(app) == []  # an axis without a bar says nothing


def test_a_damaged_ledger_is_named_and_nothing_is_claimed(open_page, running, tmp_path):
    shutil.copytree(running.folder, tmp_path / "copy")
    world = World(tmp_path / "copy", running.plan)
    (world.state("lakeside") / "ledger.counter").unlink()
    app = open_page(world.arguments(), "privacy", hospital="lakeside")
    assert "Ledger damaged" in as_read(app.error[0].value)
    assert "restore it" in as_read(app.error[0].value)
    assert not app.metric
    assert "ledger damaged" in tables(open_page(world.arguments()))


def test_a_ledger_that_is_in_use_is_not_called_damaged(open_page, tmp_path, monkeypatch):
    world = World(tmp_path, make_plan(3))
    world.approve("lakeside")
    monkeypatch.setattr("hospital_node.ledger_store.BUSY_TIMEOUT_S", 0.05)
    with closing(sqlite3.connect(world.state("lakeside") / "ledger.db", isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        app = open_page(world.arguments(hospitals=["lakeside"]), "privacy")
        assert "cannot be read at this moment" in as_read(app.warning[0].value)
        assert not app.error
    app.run()
    assert "Within budget" in as_read(app.success[0].value)


def test_a_paused_hospital_says_who_paused_it(open_page, tmp_path):
    world = World(tmp_path, make_plan(4))
    world.approve("lakeside").pause(by="Dr K. Weber", reason="audit", at=world.clock)
    app = open_page(world.arguments(), "privacy", hospital="lakeside")
    assert "Paused" in as_read(app.warning[0].value)
    assert "Dr K. Weber" in as_read(app.warning[0].value)


def test_a_ledger_without_an_approval_waits_for_one(open_page, tmp_path):
    world = World(tmp_path)
    folder = world.state("lakeside")
    folder.mkdir(parents=True)
    Ledger.create(folder / "ledger.db", uri("lakeside"), at=world.clock)
    app = open_page(world.arguments(hospitals=["lakeside"]), "privacy")
    assert "Not approved yet" in as_read(app.warning[0].value)
    assert metrics(app)["Left"] == "no cap yet"


def test_an_aborted_round_is_said_on_both_pages(open_page, tmp_path):
    world = World(tmp_path, make_plan(4))
    world.start()
    world.abort(1)
    overview = open_page(world.arguments())
    assert "Round 1 of 4: aborted" in as_read(overview.warning[0].value)
    assert "2 of 4 returned, 3 are needed" in as_read(overview.warning[0].value)
    rounds = open_page(world.arguments(), "rounds")
    assert "Round 1 was aborted" in text(rounds)
    assert "lakeside (masked update) and nordklinik (masked update)" in tables(rounds)


def test_the_time_that_is_left_is_said_at_the_pace_of_the_rounds(open_page, running):
    """Two rounds of 22.5 s are done, and four of six are to come."""
    assert "none aborted · about 1 min 30 s left" in text(open_page(running.arguments()))


def test_a_finished_study_says_so(open_page, tmp_path):
    world = World(tmp_path, make_plan(1))
    world.start()
    world.round(1, charge=False)
    world.finish()
    with world.store() as store, store.batch() as batch:
        batch.member(uri("lakeside"), "ready", world.clock.timestamp())
        batch.member(uri("st-anna"), "declined", world.clock.timestamp(), code="budget-exhausted")
    app = open_page(world.arguments(hospitals=[]))
    assert "Finished with 1 opened round" in as_read(app.success[0].value)
    here = {row["party"]: row["state"] for row in readings(app)[0]}
    assert here["lakeside"] == here["nordklinik"] == "done: the study is over"
    assert here["st-anna"] == "stopped itself: its privacy cap would be exceeded"


def test_a_hospital_that_stopped_itself_says_so_at_both_ends_in_every_later_round(open_page, tmp_path):
    world = World(tmp_path, make_plan(6), caps={"riverside": 3.5})
    world.start()
    world.approve_all()
    world.round(1)
    with pytest.raises(BudgetExhausted):
        world.ledger("riverside").authorize(world.plan, 2)
    world.round(2, declined=["riverside"])
    world.round(3, away=["riverside"])
    app = open_page(world.arguments(hospitals=[]), "rounds", round="3")
    stopped = "riverside (stopped itself: its privacy cap would be exceeded)"
    short = "riverside (stopped itself at its cap)"
    assert list(app.dataframe[0].value["sat out"]) == [short, short, "nobody"]
    assert f"Sat out: {stopped}." in text(app)
    own = open_page(world.arguments(hospitals=["riverside"], coordinator=False))
    assert "Stopped itself" in as_read(own.error[0].value)
    assert "Nothing leaves in rounds 2 to 6 of this plan." in as_read(own.error[0].value)
    assert "riverside has spent" in text(own)
    assert "Updates that left by day" in text(own)


def test_rounds_held_back_are_the_first_thing_said(open_page, tmp_path):
    world = World(tmp_path, make_plan(4))
    world.start()
    world.round(1, charge=False)
    with world.store() as store, store.batch() as batch:
        batch.status("Round 2 · paused by Dr B. Okoro: maintenance", "")
    app = open_page(world.arguments(hospitals=[]))
    assert "Paused: no further round is opened" in as_read(app.warning[0].value)
    assert "Paused by Dr B. Okoro: maintenance." in as_read(app.warning[0].value)
    assert " left" not in " ".join(caption.value for caption in app.caption)


def test_a_silent_coordinator_is_a_state(open_page, tmp_path):
    world = World(tmp_path, make_plan(4))
    world.start()
    world.begin(1)
    with world.store() as store, store.batch() as batch:
        for name in world.names:
            batch.member(uri(name), "training", world.clock.timestamp() - 7200, "train")
        batch.member(uri("reference", "evaluator"), "joined", world.clock.timestamp() - 7200)
    app = open_page(world.arguments())
    assert "Nothing was heard for" in as_read(app.warning[0].value)
    assert "not heard of for" in tables(app)


def test_accuracy_per_label_with_interval_and_start(open_page, running):
    app = open_page(running.arguments(), "accuracy")
    assert metrics(app)["Start"] == "0.35"
    assert "After round 2 the mean Dice is anterior" in text(app)
    assert "24 public cases" in text(app)
    assert "start" in app.get("vega_lite_chart")[0].proto.spec


def test_accuracy_on_the_hospitals_own_patients_is_marked_as_noised(open_page, tmp_path):
    world = World(tmp_path, make_plan(4, evaluation=Evaluation(every=2, share=0.25, noise_multiplier=1.5)))
    world.start()
    world.approve_all()
    for number in (1, 2):
        world.round(number)
    before = text(open_page(world.arguments(), "accuracy"))
    assert "own patients, noised" not in before
    world.validation(2)
    app = open_page(world.arguments(), "accuracy")
    shown = text(app)
    assert "On the hospitals' own patients, noised" in shown
    assert "The model of round 1 has a mean Dice of anterior 0.80 ± 0.17 and posterior: cannot be told from the noise" in shown
    assert "From patients of the hospitals, noised. About 25 % of each hospital's patients" in shown
    assert "Diamonds are noised means" in shown
    assert "After round 2 the mean Dice is anterior" in shown, "beside the evaluator's figures"
    assert "sums of scores over validation patients, with noise" in tables(open_page(world.arguments(), "privacy"))


def test_bandwidth_by_direction_and_hospital(open_page, running):
    app = open_page(running.arguments(), "bandwidth")
    assert metrics(app)["Times smaller"] == "1.9 ×"
    assert "A hospital sends 185 kB a round on average over 2 rounds: 1.9 times smaller than float32 (352 kB)." in text(app)
    app.selectbox(key="direction").select("received by a hospital").run()
    assert "A hospital receives" in text(app)
    assert "larger than float32" in text(app) or "about as large as float32" in text(app)
    app.selectbox(key="of").select("riverside").run()
    assert not app.exception


def test_a_round_can_be_linked_to(open_page, running):
    app = open_page(running.arguments(), "rounds", round="1")
    assert "riverside was lost in the phase 'masked update', and the round went on without" in text(app)
    assert len(charts(app)) == 2


def test_a_link_to_something_that_no_longer_exists_opens_anyway(open_page, running):
    app = open_page(running.arguments(), "privacy", hospital="nobody")
    assert app.selectbox(key="hospital").value == "lakeside"


def test_the_newest_finished_round_is_shown_first(open_page, running):
    assert open_page(running.arguments(), "rounds").selectbox(key="round").value == "2"


def test_pages_without_a_source_are_not_offered(open_page, running):
    app = open_page(running.arguments(hospitals=[]))
    with pytest.raises(ValueError, match="navigation page"):
        app.switch_page("app_pages/privacy.py")


def test_a_store_that_is_no_store_is_one_sentence(open_page, tmp_path):
    world = World(tmp_path)
    world.coordinator.mkdir(parents=True)
    (world.coordinator / "store.db").write_bytes(b"this is not a database, only text of some length\n" * 40)
    app = open_page(world.arguments(hospitals=[]))
    assert "store" in as_read(app.warning[0].value)


def test_a_page_rerun_shows_a_new_round(open_page, tmp_path):
    world = World(tmp_path, make_plan(4))
    world.start()
    world.round(1, charge=False)
    app = open_page(world.arguments(hospitals=[]))
    assert metrics(app)["Rounds"] == "1 of 4"
    world.round(2, charge=False)
    app.run()
    assert metrics(app)["Rounds"] == "2 of 4"


def test_the_folder_of_the_app_is_never_written(open_page, running):
    def listing(folder: Path) -> set[tuple[str, int]]:
        return {
            (str(path), path.stat().st_mtime_ns)
            for path in folder.rglob("*")
            if path.is_file() and "store.db-" not in path.name
        }

    before = listing(running.folder)
    for page in PAGES:
        open_page(running.arguments(), page)
    assert listing(running.folder) == before


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (budget.Share("st-anna", 0.0, "ε 0.00 of 8 · δ 1e-5 · 6 rounds left"), "0 %"),
        (budget.Share("st-anna", 0.92, "ε 5.30 of 5.752 · δ 1e-5 · stopped itself"), "92 %"),
        (budget.Share("st-anna", 0.0, budget.NO_GUARANTEE), "no guarantee"),
        (budget.Share("st-anna", 0.0, budget.DAMAGED), budget.DAMAGED),
    ],
)
def test_the_figure_of_the_cap_fits_its_card_also_before_anything_is_spent(monkeypatch, row, shown):
    monkeypatch.setattr(budget, "shares", lambda _: (row,))
    assert overview._budget(None, [row]).value == shown
