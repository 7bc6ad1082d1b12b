"""The scans page: proportions, sides, windows, outlines and slices, and that it exists on this machine's own address only."""

from datetime import UTC, datetime
from pathlib import Path

import altair as alt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from streamlit import config
from worlds import World, make_plan

from hospital_node.scans import Drawn, Scan, ScanIndex, write_scans
from ui import scans, scans_chart
from ui.palette import LIGHT

AT = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
GREEN, VERMILLION = (0, 158, 115), (213, 94, 0)
SHAPE = (6, 8, 10)


def a_scan() -> Scan:
    """A block at the patient's left, front, head end; the prediction misses its last column."""
    image = np.zeros(SHAPE, np.float32)
    image[-1] = 1.0
    truth, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[4:6, 0:3, 6:10] = 1
    prediction[4:6, 0:3, 6:9] = 1
    return Scan(image, truth, prediction)


def count(picture: scans.Picture, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=2).sum())


def test_pictures_keep_the_proportions_of_the_body_and_one_scale():
    picture = {plane: scans.draw(scans.cut(a_scan(), plane, 0, (1.0, 2.0, 3.0)), 0, 1) for plane in scans.PLANES}
    assert {one.shape for one in picture.values()} == {(scans.SIDE_PX, scans.SIDE_PX, 3)}
    bright = scans.cut(Scan(np.ones(SHAPE, np.float32), *[np.zeros(SHAPE, np.uint8)] * 2), "coronal", 0, (1.0, 2.0, 3.0))
    drawn = scans.draw(bright, 0, 1)[:, :, 0] > 0
    high, wide = drawn.any(axis=1).sum(), drawn.any(axis=0).sum()
    assert high / wide == pytest.approx((6 * 3.0) / (10 * 1.0), rel=0.02)
    assert high == scans.SIDE_PX  # 18 mm is the longest way through this scan


def test_the_head_is_up_and_the_patients_left_is_at_the_right():
    shown = scans.cut(a_scan(), "coronal", 0, (1.0, 1.0, 1.0))
    assert shown.image[0].all()  # the top row is the head end
    assert shown.truth[0, -1] == 1  # x grows to the patient's left, drawn to the right
    assert scans.EDGES["coronal"] == ("right", "head")


def test_a_slice_outside_the_scan_is_refused():
    with pytest.raises(IndexError, match="6 axial slices, not 7"):
        scans.cut(a_scan(), "axial", 6, (1.0, 1.0, 1.0))


def test_truth_is_solid_and_prediction_dashed():
    picture = scans.draw(scans.cut(a_scan(), "axial", 4, (1.0, 1.0, 1.0)), 0, 1)
    alone = Scan(a_scan().image, np.zeros(SHAPE, np.uint8), a_scan().truth)
    dashed = scans.draw(scans.cut(alone, "axial", 4, (1.0, 1.0, 1.0)), 0, 1)
    whole = scans.draw(scans.cut(Scan(alone.image, alone.prediction, alone.truth), "axial", 4, (1.0, 1.0, 1.0)), 0, 1)
    assert count(picture, GREEN) > 0
    assert count(picture, VERMILLION) > 0
    assert count(dashed, VERMILLION) == pytest.approx(count(whole, GREEN) / 2, rel=0.15)


def test_errors_only_fills_what_was_missed_and_what_was_added():
    picture = scans.draw(scans.cut(a_scan(), "axial", 4, (1.0, 1.0, 1.0)), 0, 1, errors=True)
    assert count(picture, GREEN) == 3 * 48 * 48  # three voxels of 48 pixels: the missed column
    assert count(picture, VERMILLION) == 0


@given(arrays(np.uint8, (5, 7), elements=st.integers(0, 2)))
def test_an_outline_lies_inside_its_label_and_touches_every_border(labels):
    edge = scans.outline(labels)
    assert not edge[labels == 0].any()
    apart = labels[:, 1:] != labels[:, :-1]
    assert edge[:, 1:][apart & (labels[:, 1:] > 0)].all()
    assert edge[:, :-1][apart & (labels[:, :-1] > 0)].all()


@given(arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2)), arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2)))
def test_dice_by_slice_is_dice_of_each_slice(truth, prediction):
    scan = Scan(np.zeros(truth.shape, np.float32), truth, prediction)
    for plane, axis in scans.PLANES.items():
        for score in scans.by_slice(scan, plane):
            t, p = np.take(truth, score.index, axis), np.take(prediction, score.index, axis)
            values = []
            for label in (1, 2):
                both, sizes = ((t == label) & (p == label)).sum(), (t == label).sum() + (p == label).sum()
                values += [2 * both / sizes] if sizes else []
            assert score.dice == (pytest.approx(np.mean(values)) if values else None)
            assert score.wrong == (t != p).sum()


def test_the_worst_slice_is_where_most_voxels_are_wrong():
    assert scans.worst(scans.by_slice(a_scan(), "sagittal")) == 9
    perfect = Scan(a_scan().image, a_scan().truth, a_scan().truth)
    assert scans.worst(scans.by_slice(perfect, "axial")) == 3  # the middle
    assert "no voxel is wrong" in scans.strip_sentence(scans.by_slice(perfect, "axial"), "axial")
    empty = Scan(a_scan().image, *[np.zeros(SHAPE, np.uint8)] * 2)
    assert "Neither truth nor prediction" in scans.strip_sentence(scans.by_slice(empty, "axial"), "axial")


def test_windows_are_radiologists_in_hounsfield_units_and_percentiles_elsewhere(worlds_scans):
    index = worlds_scans
    assert scans.windows(index) == ("study's own", "lung", "soft tissue", "bone")
    assert scans.limits("lung", index, np.zeros(3, np.float32)) == (-1350, 150)
    assert scans.limits("study's own", index, np.zeros(3, np.float32)) == (-1000, 400)
    relative = index.model_copy(update={"window_hu": None})
    assert "lung" not in scans.windows(relative)
    assert scans.limits("whole range", relative, np.array([2, 5], np.float32)) == (2.0, 5.0)
    low, high = scans.limits("whole range", relative, np.full(4, 3.0, np.float32))
    assert low < high


def test_the_strip_marks_what_is_shown_what_is_worst_and_what_is_missed():
    scores = scans.by_slice(a_scan(), "sagittal")
    drawn = scans_chart.strip(scores, 2, LIGHT)
    alt.LayerChart.from_dict(drawn)  # raises where Vega-Lite's schema is not met
    spec = str(drawn)
    assert "shown: 3" in spec
    assert "worst: 10" in spec
    assert "shown, worst: 10" in str(scans_chart.strip(scores, 9, LIGHT))


# ---- the page ----


def written(folder: Path, count: int = 2) -> ScanIndex:
    drawn = [Drawn(a_scan(), {"anterior": 0.9 - 0.3 * place, "posterior": None}) for place in range(count)]
    return write_scans(folder, make_plan(), "ab" * 32, 4, AT, drawn)


@pytest.fixture(scope="module")
def worlds_scans(tmp_path_factory: pytest.TempPathFactory) -> ScanIndex:
    return written(tmp_path_factory.mktemp("scans"))


@pytest.fixture
def local():
    before = config.get_option("server.address")
    config.set_option("server.address", "127.0.0.1")
    yield
    config.set_option("server.address", before)


@pytest.fixture
def hospital(tmp_path, local):
    world = World(tmp_path)
    world.approve("lakeside")
    written(world.state("lakeside"))
    return world.arguments(coordinator=False, hospitals=["lakeside"])


def read(app) -> str:
    return "\n".join(part.value for part in (*app.markdown, *app.caption, *app.info, *app.warning))


def test_three_planes_begin_at_the_worst_scan_and_slices(open_page, hospital):
    app = open_page(hospital, "scans")
    assert not app.warning
    assert app.selectbox(key="scan").value == "2"
    assert [slider.value for slider in app.slider] == [5, 1, 10]
    assert len(app.get("image")) == 3
    assert {metric.label: metric.value for metric in app.metric}["Dice of this scan"] == "0.60"
    assert "no ledger counts that" in read(app)
    assert "Dice by axial slice" in app.get("vega_lite_chart")[0].proto.alt


def test_moving_a_slice_and_going_back_to_the_worst(open_page, hospital):
    app = open_page(hospital, "scans", z="2")
    assert app.slider(key="z").value == 2
    app.slider(key="z").set_value(3).run()
    assert "axial slice 3 of 6" in str(app.get("image")[0].proto)
    app.button[0].click().run()
    assert app.slider(key="z").value == 5
    assert not app.exception


def test_another_scan_begins_at_its_own_worst_slices(open_page, hospital):
    app = open_page(hospital, "scans")
    app.slider(key="z").set_value(3).run()
    app.selectbox(key="scan").set_value("1").run()
    assert [slider.value for slider in app.slider] == [5, 1, 10]


def test_a_link_to_a_slice_that_this_scan_does_not_have_opens_anyway(open_page, hospital):
    assert open_page(hospital, "scans", z="70", scan="9").slider(key="z").value == 5


def test_a_hospital_without_drawings_says_how_to_make_them(open_page, tmp_path, local):
    world = World(tmp_path)
    world.approve("lakeside")
    app = open_page(world.arguments(coordinator=False, hospitals=["lakeside"]), "scans")
    assert "Nothing yet" in read(app)
    assert "secagg-node data draw" in read(app)


def test_a_damaged_set_is_one_sentence(open_page, hospital):
    folder = Path(hospital[1])
    next((folder / "scans").rglob("2.npz")).write_bytes(b"torn")
    assert "make the scans again" in open_page(hospital, "scans").warning[0].value
    (folder / "scans" / "scans.json").write_bytes(b"{")
    assert "make the scans again" in open_page(hospital, "scans").warning[0].value


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "", "clinic.example"])
def test_scans_are_shown_on_this_machine_only(open_page, hospital, address):
    config.set_option("server.address", address)
    app = open_page(hospital, "scans")
    assert "this machine's own address only" in app.warning[0].value
    assert not app.get("image")
    assert not app.dataframe


def test_a_coordinator_has_no_scans(open_page, tmp_path, local):
    world = World(tmp_path)
    world.start()
    with pytest.raises(ValueError, match="navigation page"):
        open_page(world.arguments(hospitals=[]), "scans")
