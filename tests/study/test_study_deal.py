"""Dealing a LUNA16 folder: every series once, no patient split, nothing copied."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.cast import CastError, choose
from study.deal import DealError, Series, deal, find_series, link

HOSPITALS = ("a", "b", "c", "d")


def _folder(path, series, patients=None):
    """A LUNA16 folder of empty volumes; `series`: uid -> subfolder."""
    for uid, sub in series.items():
        home = path / sub
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{uid}.mhd").write_text("ElementDataFile = x")
        (home / f"{uid}.raw").write_bytes(b"\0")
    with (path / "annotations.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\r\n")
        writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"])
        writer.writerows([uid, 1, 2, 3, 8] for uid in series)
    if patients:
        with (path / "patients.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([["seriesuid", "patient"], *patients.items()])
    return path


def test_subsets_are_found_and_dealt_by_patient(tmp_path):
    uids = [f"1.2.{i}" for i in range(40)]
    source = _folder(
        tmp_path / "luna",
        {uid: f"subset{i % 10}" for i, uid in enumerate(uids)},
        {uid: f"p{i // 2}" for i, uid in enumerate(uids)},
    )
    dealt = deal(find_series(source), HOSPITALS, "public")
    everything = [item.uid for items in dealt.values() for item in items]
    assert sorted(everything) == sorted(uids)
    homes = {}
    for name, items in dealt.items():
        for item in items:
            assert homes.setdefault(item.patient, name) == name, "a patient is in two hospitals"
    assert dealt["public"]
    assert all(dealt[name] for name in HOSPITALS)


@given(st.integers(9, 200))
def test_hospitals_differ_by_at_most_one_patient(count):
    series = [Series(f"s{i}", f"p{i}", None) for i in range(count)]
    sizes = [len(items) for name, items in deal(series, HOSPITALS, "public").items() if name != "public"]
    assert max(sizes) - min(sizes) <= 1


def test_links_are_a_luna_folder_and_stale_ones_go(tmp_path):
    source = _folder(tmp_path / "luna", {f"1.{i}": "subset0" for i in range(12)})
    series = find_series(source)
    home = tmp_path / "home"
    link(home, source, series[:6])
    link(home, source, series[6:8])
    assert sorted(path.name for path in home.glob("*.mhd")) == sorted(item.header.name for item in series[6:8])
    assert all(path.is_symlink() and path.exists() for path in home.glob("1.*"))
    with (home / "annotations.csv").open(newline="") as handle:
        assert {row["seriesuid"] for row in csv.DictReader(handle)} == {item.uid for item in series[6:8]}


def test_wrong_folders_are_named_with_what_is_expected(tmp_path):
    with pytest.raises(CastError, match="does not exist"):
        choose(tmp_path / "none", tmp_path, lambda *_: None)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DealError, match=r"no \.mhd file"):
        choose(empty, tmp_path, lambda *_: None)
    few = _folder(tmp_path / "few", {"1.1": ".", "1.2": "."})
    with pytest.raises(DealError, match="too few"):
        choose(few, tmp_path, lambda *_: None)
    (few / "annotations.csv").unlink()
    with pytest.raises(DealError, match=r"annotations\.csv"):
        choose(few, tmp_path, lambda *_: None)


@pytest.mark.data
def test_hippocampus_is_cast_by_its_split(shared_data, tmp_path):
    cast = choose(shared_data / "msd-hippocampus", tmp_path, lambda *_: None)
    assert {role.name: role.patients for role in cast.hospitals} == {"site-a": 53, "site-b": 35, "site-c": 27, "site-d": 16}
    assert cast.evaluator.fold == "test"
    assert cast.evaluator.patients == 18
