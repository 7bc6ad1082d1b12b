"""`data check` and `data prepare`: what the studies are like in counts and ranges; never an id, never a file name."""

import csv
import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from hospital_node import cli
from hospital_node.cases import discover
from hospital_node.survey import NAMED, Fingerprint, Range, survey


def put(path, values, spacing=(1.0, 1.0, 2.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


def scan(seed):
    values = np.random.default_rng(seed).normal(0, 60, (8, 9, 10))
    values[:2] = -1000
    return values.astype(np.int16)


@pytest.fixture
def folder(tmp_path):
    """Five rows: two studies of jones, one of them again under smith; a missing label; a cut file."""
    rows = [("a", "jones"), ("b", "jones"), ("c", "smith"), ("d", "miller"), ("e", "miller")]
    for index, (name, _) in enumerate(rows):
        mirrored = (-1, 0, 0, 0, -1, 0, 0, 0, 1) if name == "b" else (1, 0, 0, 0, 1, 0, 0, 0, 1)
        put(tmp_path / f"{name}.mha", scan(0 if name == "c" else index), direction=mirrored)
        label = np.zeros((8, 9, 10), np.uint8)
        if name != "b":
            label[3:5, 3:5, 3:5] = 1 + (name == "c")
        put(tmp_path / f"{name}-label.mha", label, direction=mirrored)
    (tmp_path / "d-label.mha").unlink()
    (tmp_path / "e.mha").write_bytes((tmp_path / "e.mha").read_bytes()[:-9])
    lines = [f"{name}.mha,{name}-label.mha,{patient}" for name, patient in rows]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,label,patient", *lines]))
    return tmp_path


def test_a_fingerprint_counts_what_a_person_would_want_to_know(folder):
    seen = []
    found = survey(discover(folder), 255, 2, lambda *at: seen.append(at))
    assert seen == [(index, 4) for index in range(1, 5)]
    assert (found.studies, found.readable, found.patients, found.patients_with_several_studies) == (5, 3, 2, 1)
    assert found.left_out == {"no-label": 1, "truncated": 1}
    assert (found.missing_labels, found.empty_labels) == (1, 1)
    assert (found.same_voxels_twice, found.same_voxels_two_patients) == (1, 1)
    assert found.orientations == {"LPS": 2, "RAS": 1}
    assert found.spacings_xyz_mm == {"1 x 1 x 2": 3}
    assert found.sizes_xyz == {"10 x 9 x 8": 3}
    assert found.hounsfield == 3
    assert found.labels["1"].studies == found.labels["2"].studies == 1
    assert found.labels["2"].volume_ml == Range(lowest=0.016, median=0.016, highest=0.016)
    assert found.intensities["0.5"].lowest == -1000


def test_an_empty_cohort_has_a_fingerprint_too(tmp_path):
    (tmp_path / "manifest.csv").write_text("image,label,patient\nx.mha,y.mha,p\n")
    found = survey(discover(tmp_path), 255, 1, lambda *_: None)
    assert (found.studies, found.readable, found.spacing_mm, found.labels) == (1, 0, None, {})
    assert found.lines()


def test_rare_sizes_are_counted_together(tmp_path):
    lines = ["image,label,patient"]
    for index in range(NAMED + 3):
        put(tmp_path / f"{index}.mha", scan(index)[:, :, : 2 + index % 9], spacing=(1 + index, 1, 1))
        put(tmp_path / f"{index}-l.mha", np.zeros((8, 9, min(10, 2 + index % 9)), np.uint8), spacing=(1 + index, 1, 1))
        lines.append(f"{index}.mha,{index}-l.mha,p{index}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    found = survey(discover(tmp_path), 255, 1, lambda *_: None)
    assert found.spacings_xyz_mm["other"] == 3
    assert sum(found.spacings_xyz_mm.values()) == found.readable == NAMED + 3


@pytest.mark.parametrize("as_json", [False, True])
def test_data_check_of_a_folder_names_nobody(folder, capsys, as_json):
    assert cli.main(["data", "check", "--data", str(folder), *(["--json"] if as_json else [])]) == 0
    printed = capsys.readouterr()
    for word in ("jones", "smith", "miller", ".mha", str(folder)):
        assert word not in printed.out + printed.err
    if as_json:
        assert Fingerprint.model_validate_json(printed.out).patients == 2
    else:
        assert "2, 1 of them with several studies" in printed.out
        assert "1 left out (truncated)" in printed.out


def test_data_check_needs_one_of_folder_and_configuration(folder, capsys):
    assert cli.main(["data", "check"]) == 2
    assert cli.main(["data", "check", "--data", str(folder), "--config", str(folder / "node.toml")]) == 2
    assert "say which studies" in capsys.readouterr().err


def test_data_check_of_nothing_usable_ends_with_one(tmp_path, capsys):
    (tmp_path / "manifest.csv").write_text("image,label,patient\nx.mha,y.mha,p\n")
    assert cli.main(["data", "check", "--data", str(tmp_path)]) == 1
    assert "1 left out (missing-image)" in capsys.readouterr().out


# --- real volumes


@pytest.mark.data
def test_the_real_ct_of_every_format_in_one_manifest(shared_data, tmp_path):
    ct = shared_data / "ct-lung"
    os.symlink(ct, tmp_path / "ct")
    rows = [
        ("ct/elastix-lung/3DCT_lung.mha", "ct/elastix-lung/3DCT_lung_baseline_mask.mha", "p1"),
        ("ct/elastix-lung/3DCT_lung_baseline_small.mha", "ct/elastix-lung/3DCT_lung_followup_mask.mha", "p1"),
        ("ct/totalsegmentator/example_ct.nii.gz", "ct/totalsegmentator/example_seg_fast_force_split.nii.gz", "p2"),
        ("ct/totalsegmentator/example_ct_sm.nii.gz", "ct/totalsegmentator/example_seg.nii.gz", "p2"),
        ("ct/dcmqi-ct-3slice/dicom", "ct/dcmqi-ct-3slice/liver_seg.nrrd", "p3"),
        ("ct/lung-pet-ct-dx/A0001/dicom", "", "p4"),
    ]
    with (tmp_path / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "label", "patient"), *rows])
    found = survey(discover(tmp_path), 255, 2, lambda *_: None)
    assert found.readable == found.hounsfield == 4
    assert found.left_out == {"label-mismatch": 1, "no-label": 1}
    assert found.orientations == {"LPS": 2, "RAS": 2}


@pytest.mark.data
def test_dicom_of_two_patients_with_their_tumours(shared_data, tmp_path):
    source = shared_data / "ct-lung/lung-pet-ct-dx"
    (tmp_path / "annotations.csv").write_bytes((source / "annotations_world.csv").read_bytes())
    for subject in ("A0001", "A0002"):
        os.symlink(source / subject, tmp_path / subject)
    found = survey(discover(tmp_path), 1, 2, lambda *_: None)
    assert (found.readable, found.patients, found.hounsfield, found.empty_labels) == (2, 2, 2, 0)
    assert found.spacings_xyz_mm == {"0.842 x 0.842 x 5": 1, "0.646 x 0.646 x 8": 1}
    assert json.loads(found.model_dump_json())["left_out"] == {}
