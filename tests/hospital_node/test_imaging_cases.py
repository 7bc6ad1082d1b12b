"""Finding cases: the patient is the record, whatever the folder looks like, and nothing is guessed."""

import contextlib
import csv
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from dicom_world import series
from hypothesis import given
from hypothesis import strategies as st

from hospital_node.cases import CohortError, LabelImage, Nodule, Nodules, discover
from hospital_node.luna import CANDIDATE_DIAMETER_MM, discover_luna

COLUMNS = "seriesuid,coordX,coordY,coordZ,diameter_mm"


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def luna(folder, rows=(), series=("a", "b", "c"), **files):
    put(folder / "annotations.csv", "\r\n".join([COLUMNS, *rows, ""]))
    for name in series:
        put(folder / f"{name}.mhd", "")
    for name, text in files.items():
        put(folder / f"{name}.csv", text)
    return folder


# --- LUNA16


def test_luna16_flat_with_crlf_and_series_without_nodules(tmp_path):
    found = discover(luna(tmp_path, ["a,-1.5,2,3,8.25", "a,4,5,6,10", "elsewhere,1,2,3,4"]))
    assert found.layout == "luna16"
    by_series = {case.image.stem: case for case in found.cases}
    assert by_series["a"].label == Nodules((Nodule(-1.5, 2, 3, 8.25), Nodule(4, 5, 6, 10)))
    assert by_series["b"].label == Nodules(())
    assert found.patients == 3
    assert not found.skipped


def test_luna16_subsets_and_a_series_found_twice(tmp_path):
    luna(tmp_path, series=("subset0/a", "subset9/b", "subset3/a", "subset3/._a", "seg-lungs-LUNA16/c"))
    found = discover(tmp_path)
    assert sorted(case.image.stem for case in found.cases) == ["a", "b"]
    assert found.skipped == {"duplicate": 1}


def test_two_series_of_one_patient_are_one_record(tmp_path):
    found = discover(luna(tmp_path, patients="seriesuid,patient\na,p1\nb,p1\nc,p2\n"))
    assert found.patients == 2
    assert {patient: len(cases) for patient, cases in found.by_patient().items()} == {"p1": 2, "p2": 1}


def test_a_series_without_a_known_patient_is_left_out_not_made_a_person(tmp_path):
    found = discover(luna(tmp_path, patients="seriesuid,patient\na,p1\nb,\n"))
    assert found.patients == 1
    assert found.skipped == {"no-patient": 2}
    contradicting = "seriesuid,patient\na,p1\nb,p1\nc,p2\na,p2\n"
    assert discover(luna(tmp_path, patients=contradicting)).skipped == {"no-patient": 1}


@pytest.mark.parametrize("row", ["a,1,2,3,-1", "a,1,2,3,0", "a,1,2,nan,5", "a,1,2,inf,5", "a,1,2,3", "a,1,2,3,x"])
def test_a_bad_annotation_skips_its_series_only(tmp_path, row):
    found = discover(luna(tmp_path, [row, "a,1,2,3,4", "b,1,2,3,4"]))
    assert sorted(case.image.stem for case in found.cases) == ["b", "c"]
    assert found.skipped == {"bad-annotation": 1}


def test_an_empty_luna16_folder_is_an_error_that_says_what_is_missing(tmp_path):
    with pytest.raises(CohortError, match=r"no \.mhd volume"):
        discover(luna(tmp_path, series=()))


@given(st.binary(max_size=400))
def test_any_annotations_file_gives_a_cohort_or_one_sentence(tmp_path_factory, noise):
    folder = luna(tmp_path_factory.getbasetemp() / "noise")
    for data in (noise, COLUMNS.encode() + b"\n" + noise):
        (folder / "annotations.csv").write_bytes(data)
        with contextlib.suppress(CohortError):
            assert len(discover_luna(folder).cases) <= 3


@pytest.mark.data
def test_the_complete_luna16_list_reads(shared_data):
    with (shared_data / "ct-lung/luna16/annotations.csv").open(newline="") as stream:
        assert sum(1 for _ in csv.DictReader(stream)) == 1186
    (case,) = discover(shared_data / "ct-lung/luna16").cases
    assert case.label == Nodules(())


# --- image and label folders


@pytest.mark.data
@pytest.mark.parametrize(
    ("site", "fold", "cases", "subjects"),
    [
        ("site-a", None, 80, 53),
        ("site-b", None, 55, 35),
        ("site-c", None, 40, 27),
        ("site-d", None, 25, 16),
        (None, "test", 30, 18),
        (None, "train", 200, 131),
        (None, None, 230, 149),
    ],
)
def test_hippocampus_sites_hold_subjects_not_files(shared_data, site, fold, cases, subjects):
    found = discover(shared_data / "msd-hippocampus", site=site, fold=fold)
    assert (len(found.cases), found.patients, found.skipped) == (cases, subjects, {})


@pytest.mark.data
def test_no_subject_is_at_two_sites_or_in_the_test_fold(shared_data):
    folder = shared_data / "msd-hippocampus"
    groups = [set(discover(folder, site=f"site-{letter}").by_patient()) for letter in "abcd"]
    groups.append(set(discover(folder, fold="test").by_patient()))
    assert sum(len(group) for group in groups) == len(set().union(*groups))


def test_a_site_that_is_not_listed_names_those_that_are(tmp_path):
    pairs(tmp_path)
    with pytest.raises(CohortError, match="has the sites north, south"):
        discover(tmp_path, site="east")


def pairs(folder):
    put(folder / "cases.csv", "case,subject_guess\none,1\ntwo,1\nthree,\nfour,4\nfive,5\n")
    put(
        folder / "split.csv",
        "case,site,fold\none,north,train\ntwo,south,train\nthree,north,train\nfour,north,train\nfive,north,train\n",
    )
    for name in ("one", "two", "three", "four", "orphan"):
        put(folder / f"images/{name}.nii.gz", "")
    for name in ("one", "two", "three", "five"):
        put(folder / f"labels/{name}.nii.gz", "")


def test_pairs_with_holes_are_skipped_by_code(tmp_path):
    pairs(tmp_path)
    found = discover(tmp_path, site="north")
    assert [case.patient for case in found.cases] == ["1"]
    assert found.skipped == {"no-patient": 1, "no-label": 1, "missing-image": 1}


def test_pairs_without_a_patient_list_are_refused(tmp_path):
    put(tmp_path / "images/a.nii.gz", "")
    put(tmp_path / "labels/a.nii.gz", "")
    with pytest.raises(CohortError, match=r"cases\.csv"):
        discover(tmp_path)


# --- DICOM folders and candidates


def test_dicom_folders_are_series_and_the_files_name_their_patients(tmp_path):
    put(tmp_path / "annotations.csv", f"{COLUMNS}\r\n1.2.1,1,2,3,4\r\n")
    for uid, patient in (("1.2.1", "jones"), ("1.2.2", "jones"), ("1.2.3", ""), ("1.2.1", "jones")):
        (tmp_path / "a").mkdir(exist_ok=True)
        series(tmp_path / "a" / f"{uid}-{len(list((tmp_path / 'a').iterdir()))}", series=uid, patient=patient)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.dcm").write_bytes(b"nothing")
    (tmp_path / "annotation/x").mkdir(parents=True)
    found = discover(tmp_path)
    assert found.skipped == {"duplicate": 1, "no-patient": 1, "unsupported-format": 1}
    assert {patient: len(cases) for patient, cases in found.by_patient().items()} == {"jones": 2}
    assert sorted(len(case.label.spheres) for case in found.cases) == [0, 1]
    (tmp_path / "patients.csv").write_text("seriesuid,patient\n1.2.1,p\n1.2.2,q\n1.2.3,r\n")
    assert discover(tmp_path).patients == 3


def test_candidates_without_annotations_are_nodules_of_one_size(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.mhd", "")
    put(tmp_path / "candidates.csv", "seriesuid,coordX,coordY,coordZ,class\na,1,2,3,1\na,4,5,6,0\nb,1,2,3,0\nc,1,2,3,maybe\n")
    found = discover(tmp_path)
    assert found.skipped == {"bad-annotation": 1}
    by_series = {case.image.stem: case.label.spheres for case in found.cases}
    assert by_series == {"a": (Nodule(1, 2, 3, CANDIDATE_DIAMETER_MM),), "b": ()}
    put(tmp_path / "annotations.csv", f"{COLUMNS}\nb,1,2,3,9\n")
    assert {case.image.stem: len(case.label.spheres) for case in discover(tmp_path).cases} == {"a": 0, "b": 1, "c": 0}


def test_the_size_of_a_candidate_is_the_median_of_luna16s_annotations(shared_data):
    with (shared_data / "ct-lung/luna16/annotations.csv").open(newline="") as stream:
        diameters = [float(row["diameter_mm"]) for row in csv.DictReader(stream)]
    assert statistics.median(diameters) == pytest.approx(CANDIDATE_DIAMETER_MM, abs=0.05)


def test_images_of_pairs_may_be_folders_of_slices(tmp_path):
    put(tmp_path / "cases.csv", "case,subject_guess\na,p\n")
    put(tmp_path / "labels/a.nrrd", "")
    (tmp_path / "images").mkdir()
    series(tmp_path / "images/a")
    (case,) = discover(tmp_path).cases
    assert (case.image, case.label) == (tmp_path / "images/a", LabelImage(tmp_path / "labels/a.nrrd"))


# --- manifest


def test_manifest_lists_anything(tmp_path):
    put(
        tmp_path / "manifest.csv",
        "\ufeffimage,label,patient\nx/i.mha,x/l.mha,p\nx/i.mha,x/l.mha,q\nx/i2.mha,,p\nx/i2.mha,x/l.mha,\nx/gone.mha,x/l.mha,p\n,,\n",
    )
    for name in ("i", "i2", "l"):
        put(tmp_path / f"x/{name}.mha", "")
    found = discover(tmp_path)
    (case,) = found.cases
    assert (case.patient, case.label) == ("p", LabelImage(tmp_path / "x/l.mha"))
    assert found.skipped == {"duplicate": 1, "no-label": 1, "no-patient": 1, "missing-image": 2}


@pytest.mark.parametrize(("name", "text"), [("manifest.csv", "image,mask,patient\n"), ("annotations.csv", "seriesuid,x\n")])
def test_a_missing_column_is_named(tmp_path, name, text):
    put(tmp_path / name, text)
    with pytest.raises(CohortError, match="lacks the column"):
        discover(tmp_path)


def test_unknown_layouts_and_senseless_selections_say_what_to_do(tmp_path):
    with pytest.raises(CohortError, match="does not exist"):
        discover(tmp_path / "gone")
    with pytest.raises(CohortError, match="no known layout"):
        discover(tmp_path)
    with pytest.raises(CohortError, match="remove site and fold"):
        discover(luna(tmp_path), site="north")


def test_no_id_and_no_path_shows_in_a_repr(tmp_path):
    found = discover(luna(tmp_path, patients="seriesuid,patient\na,jones\nb,jones\nc,smith\n"))
    shown = repr(found) + repr(found.cases)
    assert "jones" not in shown
    assert str(tmp_path) not in shown


def test_listing_a_folder_needs_no_simpleitk(tmp_path):
    put(tmp_path / "annotations.csv", f"{COLUMNS}\n")
    series(tmp_path / "a")
    code = (
        "import sys; sys.modules['SimpleITK'] = None; from pathlib import Path; from hospital_node.cases import discover;"
        f"print(len(discover(Path({str(tmp_path)!r})).cases), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == ["0", "False"]  # without a PatientID the series is left out, not made a person
