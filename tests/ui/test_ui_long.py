"""Long and large runs: one hospital and forty, one round and two thousand; what is read once is not read again."""

import pytest
from readings import readings

from benchmarks.app_world import add_round, plan_of, touch, write_run
from coordinator.store import ScoreRow, open_store
from coordinator.store_write import StoreWriter
from ui import accuracy, bandwidth, sources
from ui.store_reading import RECENT_ROUNDS, UNSETTLED_ROUNDS, Keeper

PAGES = ("overview", "accuracy", "bandwidth", "rounds")


def metrics(app) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def fresh(folder):
    return Keeper(open_store(folder / "store.db"))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Two thousand rounds of three hospitals: the length is what matters here."""
    folder = tmp_path_factory.mktemp("long")
    write_run(folder, 2_000, 3)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    write_run(folder, 12, 40)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_two_thousand_rounds(open_page, long, page):
    app = open_page(["--coordinator", str(long)], page)
    if page == "overview":
        assert metrics(app)["Rounds"] == "2000 of 2001"
    if page == "rounds":
        assert len(app.dataframe[0].value) == 2_000
        assert app.selectbox(key="round").value == "2000"
    for chart in app.get("vega_lite_chart"):
        assert len(chart.proto.SerializeToString()) < 400_000  # what a browser gets on each redraw


@pytest.mark.parametrize("page", PAGES)
def test_forty_hospitals(open_page, wide, page):
    app = open_page(["--coordinator", str(wide)], page)
    text = "\n".join(part.value for part in (*app.markdown, *app.caption))
    if page == "overview":
        assert metrics(app)["Hospitals joined"] == "40 of 40"
        assert len(readings(app)[0]) == 41
    if page == "bandwidth":
        assert "Totals of 40 parties lie between" in text
    if page == "rounds":
        app = open_page(["--coordinator", str(wide)], page, round="7")
        assert "hospital-00 was lost in the phase 'masked update'" in "\n".join(part.value for part in app.markdown)


def test_a_plan_of_three_is_the_smallest():
    assert len(plan_of(1, 3).hospitals) == 3


def test_older_rounds_of_bytes_are_read_when_they_are_asked_for(open_page, long):
    app = open_page(["--coordinator", str(long)], "bandwidth")
    options = app.selectbox(key="rounds").options
    assert options[:2] == ["the newest", "1921 to 1960"]
    assert options[-1] == "1 to 40"
    app.selectbox(key="rounds").select("1 to 40").run()
    assert not app.exception
    table = next(frame.value for frame in app.dataframe)
    assert (table["round"].min(), table["round"].max()) == (1, 40)


def test_blocks_cover_every_round_once():
    for count in (1, 39, 40, 41, 2_000):
        found = bandwidth.blocks(range(1, count + 1))
        covered = [number for first, last in found.values() for number in range(max(first, 1), last + 1)]
        assert sorted(covered) == list(range(1, count + 1))


def test_what_was_kept_and_read_on_is_what_a_new_reader_sees(tmp_path):
    plan = write_run(tmp_path, 60, 3)
    keeper = fresh(tmp_path)
    keeper.read()
    before = keeper.totals()
    for number in range(61, 61 + RECENT_ROUNDS + 3):
        add_round(tmp_path, plan, number)
        if number % 4 == 0:
            keeper.read()
    kept, new = keeper.read(), fresh(tmp_path).read()
    for name in ("rounds", "traffic", "scores", "events", "out", "members", "first_recent"):
        assert getattr(kept, name) == getattr(new, name), name
    assert keeper.totals() == fresh(tmp_path).totals()
    assert keeper.totals() != before


def test_bytes_that_come_late_are_counted(tmp_path):
    plan = write_run(tmp_path, 30, 3)
    keeper = fresh(tmp_path)
    keeper.read()
    keeper.totals()
    party = plan.hospitals[0].uri
    with StoreWriter.create(f"sqlite:///{tmp_path / 'store.db'}", plan, fresh(tmp_path).reader.layout()) as store:
        with store.batch() as batch:
            batch.traffic(30 - UNSETTLED_ROUNDS + 1, party, "up", "result", 12_345)
            batch.event(1e9, 30, "declined", "Round 30 · declined", party=party)
        assert keeper.totals() == fresh(tmp_path).totals()
    assert keeper.read().traffic == fresh(tmp_path).read().traffic
    assert [event.text for event in keeper.read().out] == ["Round 30 · declined"]


def test_only_rounds_with_new_bytes_are_read_again(tmp_path, monkeypatch):
    plan = write_run(tmp_path, 50, 3)
    keeper = fresh(tmp_path)
    before = {one.number: one for one in keeper.read().by_round}
    asked = []
    between = keeper.reader.traffic_between
    monkeypatch.setattr(keeper.reader, "traffic_between", lambda *ends: asked.append(ends) or between(*ends))
    add_round(tmp_path, plan, 51)
    after = {one.number: one for one in keeper.read().by_round}
    assert asked == [(51, 51)]
    assert all(after[number] is before[number] for number in after if number != 51)
    assert keeper.read().traffic == fresh(tmp_path).read().traffic


def test_a_reading_is_shared_for_a_moment_and_no_longer(tmp_path):
    plan = write_run(tmp_path, 2, 3)
    first = sources.federation(tmp_path)
    touch(tmp_path, plan, 2)
    assert sources.federation(tmp_path, age_s=60) is first
    assert sources.federation(tmp_path).revision > first.revision


def test_a_chart_of_many_rounds_is_thinned_and_keeps_its_points():
    def scores(count):
        return [ScoreRow(number, "nodule", (0.5, 0.6)) for number in range(count)]

    for count in (1, 150, 151, 2_001):
        shown = [row.round for row in accuracy.shown(scores(count))]
        assert shown[0] == 0
        assert shown[-1] == count - 1
        assert len(shown) <= accuracy.MOST_ROUNDS + 2
    assert len(accuracy.shown(scores(150))) == 150
    later, now = ({row.round for row in accuracy.shown(scores(count))} for count in (2_010, 2_001))
    assert now - later <= {2_000}  # the newest of then


def test_means_agree_with_the_curve():
    rows = [ScoreRow(1, "a", (0.2, 0.4)), ScoreRow(1, "b", (0.8,)), ScoreRow(2, "a", ())]
    points = accuracy.curve(rows)
    assert accuracy.overall_of(rows, 1) == pytest.approx(accuracy.overall(points, 1))
    first, last = accuracy.end_means(rows)
    assert first == last == (1, pytest.approx(0.55))
    assert accuracy.end_means([]) is None
