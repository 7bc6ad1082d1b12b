"""From a scan's file to a label file: the same place in the world, read back by another library; bad input; scores."""

from __future__ import annotations

import csv
import itertools
import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn
from training_world import plan

from hospital_node import cli, network
from hospital_node.label_files import LabelFileError, output_path, write_labels
from hospital_node.predict import Segmenter, segment
from hospital_node.scoring import score, table
from hospital_node.sliding import Windows
from proto.modelfile import Model, encode_model
from proto.plan import Plan

CENTRE_MM, RADIUS_MM = np.array([12.0, -7.0, 30.0]), 9.0
HALF = 3.9  # half of a ball's value after scaling: the balls are 1.6 % of the scan
TILT = math.radians(20)
TILTED = (math.cos(TILT), -math.sin(TILT), 0.0, math.sin(TILT), math.cos(TILT), 0.0, 0.0, 0.0, 1.0)
UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class Bright(nn.Module):
    """Knows the answer: what is brighter than usual is label 1, what is far darker is label 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), 8 * (x - HALF), 8 * (-x - HALF)], 1)


def two_labels(spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> Plan:
    return plan(
        network={"channels": (4, 4, 8), "labels": ("bright", "dark")},
        preparation={"modality": "MR", "spacing_xyz_mm": spacing, "patch_zyx": (16, 16, 16)},
    )


def knowing(chosen: Plan) -> Segmenter:
    return Segmenter(chosen, Bright(), Windows(chosen.preparation.patch_zyx))


def ball_scan(spacing: tuple[float, float, float], direction: tuple[float, ...], turned: str = "LPS") -> sitk.Image:
    """A bright ball and a smaller dark one beside it, in world coordinates; the middle of the scan is the ball's."""
    size = [round(72 / step) for step in spacing]
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([(extent - 1) / 2 for extent in size]))
    image.SetOrigin(tuple(float(value) for value in CENTRE_MM - middle))
    axes, places = np.array(direction).reshape(3, 3), np.indices(size[::-1])[::-1]
    world = np.einsum("ij,j...->i...", axes, places * np.array(spacing)[:, None, None, None])
    world += np.array(image.GetOrigin())[:, None, None, None]
    values = np.zeros(size[::-1], np.float32)
    values[distance(world, CENTRE_MM) <= RADIUS_MM] = 100
    values[distance(world, CENTRE_MM + np.array([0, 0, 20])) <= RADIUS_MM] = -100
    filled = sitk.GetImageFromArray(values)
    filled.CopyInformation(image)
    return sitk.DICOMOrient(filled, turned)


def distance(world: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return np.sqrt(((world - np.asarray(centre)[:, None, None, None]) ** 2).sum(0))


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    return 2 * float((found & wanted).sum()) / float(found.sum() + wanted.sum())


@pytest.mark.parametrize("turned", ["LPS", "RAS", "PIR", "ASL"])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.9, 1.1, 3.0)])
def test_labels_lie_where_the_scan_lies_in_any_order_of_axes(tmp_path: Path, turned: str, spacing) -> None:
    scan = tmp_path / "scan.nii.gz"
    stored = ball_scan(spacing, UPRIGHT, turned)
    sitk.WriteImage(stored, str(scan))
    found = segment(knowing(two_labels()), scan)
    write_labels(found, tmp_path / "labels.nii.gz")
    one, other = nib.load(scan), nib.load(tmp_path / "labels.nii.gz")
    assert other.shape == one.shape
    np.testing.assert_allclose(other.affine, one.affine, atol=1e-4)
    voxels, labels = np.asarray(one.dataobj), np.asarray(other.dataobj)
    assert overlap(labels == 1, voxels == 100) > (0.999 if spacing == (2.0, 2.0, 2.0) else 0.9)
    assert overlap(labels == 2, voxels == -100) > (0.999 if spacing == (2.0, 2.0, 2.0) else 0.9)


def test_an_oblique_scan_gets_its_labels_on_its_own_tilted_grid(tmp_path: Path) -> None:
    scan = tmp_path / "tilted.mha"
    stored = ball_scan((1.5, 1.5, 1.5), TILTED)
    sitk.WriteImage(stored, str(scan))
    found = segment(knowing(two_labels()), scan)
    assert found.GetDirection() == pytest.approx(stored.GetDirection())
    assert found.GetOrigin() == pytest.approx(stored.GetOrigin())
    values, labels = sitk.GetArrayFromImage(stored), sitk.GetArrayFromImage(found)
    assert overlap(labels == 1, values == 100) > 0.95  # the dark ball is no darker than what lies outside a turned scan


def test_a_folder_of_dicom_slices_gets_labels_in_its_geometry(tmp_path: Path, shared_data: Path) -> None:
    series = next(
        path for path in sorted((shared_data / "ct-lung").rglob("*")) if path.is_dir() and len(list(path.glob("*.dcm"))) > 2
    )
    whole = two_labels().model_copy(update={"preparation": two_labels((3.0, 3.0, 3.0)).preparation})
    found = segment(knowing(whole), series)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    known = reader.Execute()
    assert found.GetSize() == known.GetSize()
    assert found.GetOrigin() == pytest.approx(known.GetOrigin(), abs=1e-3)
    assert found.GetSpacing() == pytest.approx(known.GetSpacing(), rel=1e-3)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"])
def test_every_format_reads_back_the_same(tmp_path: Path, ending: str) -> None:
    image = ball_scan((2.0, 2.0, 3.0), UPRIGHT)
    labels = sitk.Cast(image > 50, sitk.sitkUInt8)
    path = output_path(tmp_path / "a.scan.nii.gz", tmp_path, ending)
    assert path.name == f"a.scan-labels{ending}"
    write_labels(labels, path)
    again = sitk.ReadImage(str(path))
    assert again.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(labels))
    assert again.GetOrigin() == pytest.approx(labels.GetOrigin(), abs=1e-4)
    assert not list(tmp_path.glob(".labels-*"))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "labels.nii.gz"
    target.write_bytes(b"before")

    def full(*_args: object, **_options: object) -> None:
        raise RuntimeError(f"no space for {target}")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(LabelFileError, match="is the disk full") as refused:
        write_labels(sitk.Image(2, 2, 2, sitk.sitkUInt8), target)
    assert target.name not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.nii.gz"]
    assert target.read_bytes() == b"before"


# ---- scores ----


def box(low: int, high: int, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0), value: int = 1) -> sitk.Image:
    values = np.zeros((20, 20, 20), np.uint8)
    values[5:10, 5:10, low:high] = value
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    return image


def test_a_perfect_prediction_has_dice_one_and_no_distance() -> None:
    (one,) = score(box(5, 10), box(5, 10), ("organ", "lesion"))
    assert (one.label, one.dice, one.surface_mm, one.surface95_mm) == ("organ", 1.0, 0.0, 0.0)
    assert one.truth_ml == one.predicted_ml == pytest.approx(5 * 5 * 5 * 2 / 1000)


def test_a_shift_shows_in_millimetres() -> None:
    """Five voxels of two millimetres sideways: every face along that way lies 10 mm off."""
    spaced = (2.0, 1.0, 1.0)
    (one,) = score(box(10, 15, spaced), box(5, 10, spaced), ("organ",))
    assert one.dice == 0.0
    assert one.surface95_mm == pytest.approx(10.0)
    assert 2.0 < one.surface_mm < 10.0


def test_what_the_prediction_lacks_scores_zero_and_what_the_truth_lacks_is_not_scored() -> None:
    (one,) = score(box(5, 10, value=2), box(5, 10, value=1), ("organ", "lesion"))
    assert (one.label, one.dice, one.surface_mm, one.predicted_ml) == ("organ", 0.0, None, 0.0)


def test_the_table_begins_with_the_worst() -> None:
    rows = [
        (name, one)
        for name, low in (("good", 5), ("bad", 9), ("fair", 7))
        for one in score(box(low, low + 5), box(5, 10), ("organ",))
    ]
    read = list(csv.DictReader(table(rows).splitlines()))
    assert [row["scan"] for row in read] == ["bad", "fair", "good"]
    assert [float(row["dice"]) for row in read] == sorted(float(row["dice"]) for row in read)


# ---- the command ----


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A plan, a fresh model for it, and one small scan."""
    chosen = two_labels()
    module = network.build(chosen.network)
    made = {"plan": tmp_path / "plan.json", "model": tmp_path / "model.safetensors", "scan": tmp_path / "case.nii.gz"}
    made["plan"].write_bytes(chosen.canonical())
    made["model"].write_bytes(encode_model(Model(network.layout_of(module), network.vector_of(module))))
    sitk.WriteImage(ball_scan((3.0, 3.0, 3.0), UPRIGHT), str(made["scan"]))
    return made


def call(files: dict[str, Path], *words: object) -> int:
    out = files["scan"].parent / "out"
    fixed = ("--plan", files["plan"], "--model", files["model"], "--out", out)
    return cli.main(["predict", *(str(word) for word in (*words, *fixed))])


@pytest.mark.parametrize("extra", [(), ("--precision", "bf16"), ("--flips", "--overlap", "0"), ("--format", ".mhd")])
def test_the_command_writes_labels_and_says_where(files, extra, capsys) -> None:
    assert call(files, files["scan"], *extra) == 0
    assert "1 of 1 scans segmented" in capsys.readouterr().out
    ending = ".mhd" if ".mhd" in extra else ".nii.gz"
    labels = sitk.ReadImage(str(files["scan"].parent / "out" / f"case-labels{ending}"))
    assert labels.GetSize() == sitk.ReadImage(str(files["scan"])).GetSize()


def test_a_device_that_is_not_there_is_refused(files, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(files, files["scan"], "--device", "cuda") == 2
    assert "--device cuda: this torch" in (said := " ".join(capsys.readouterr().err.split()))
    assert "finds no CUDA device" in said
    assert not (files["scan"].parent / "out").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_labels_from_a_device_are_those_of_the_processor(files, precision) -> None:
    segmented = []
    for device in ("cpu", "cuda"):
        assert call(files, files["scan"], "--device", device, "--precision", precision, "--overwrite") == 0
        segmented.append(sitk.GetArrayFromImage(sitk.ReadImage(str(files["scan"].parent / "out" / "case-labels.nii.gz"))))
    assert (segmented[0] == segmented[1]).mean() > 0.99


def test_a_scan_that_cannot_be_read_is_left_out_and_the_others_are_done(files, capsys) -> None:
    broken = files["scan"].parent / "patient-4711.nii.gz"
    broken.write_bytes(b"no scan")
    assert call(files, broken, files["scan"]) == 1
    told = capsys.readouterr()
    assert "1 of 2 scans segmented" in told.out
    assert "scan 1 is left out" in told.err
    assert "4711" not in told.err
    assert [path.name for path in (files["scan"].parent / "out").iterdir()] == ["case-labels.nii.gz"]


def test_scores_beside_a_truth(files, capsys) -> None:
    truth = files["scan"].parent / "truth"
    truth.mkdir()
    image = sitk.ReadImage(str(files["scan"]))
    sitk.WriteImage(sitk.Cast(image > 50, sitk.sitkUInt8), str(truth / files["scan"].name))
    assert call(files, files["scan"], "--truth", truth) == 0
    assert "bright" in capsys.readouterr().out
    (row,) = csv.DictReader((files["scan"].parent / "out" / "scores.csv").read_text().splitlines())
    assert row["label"] == "bright"
    assert float(row["truth_ml"]) == pytest.approx(27 * int((sitk.GetArrayFromImage(image) == 100).sum()) / 1000)


def test_nothing_is_overwritten_unless_asked(files, capsys) -> None:
    assert call(files, files["scan"]) == 0
    assert call(files, files["scan"]) == 2
    assert "use --overwrite" in capsys.readouterr().err
    assert call(files, files["scan"], "--overwrite") == 0


def test_mistakes_are_one_sentence_and_touch_nothing(files, capsys) -> None:
    other = files["scan"].parent / "elsewhere" / "case.nii"
    other.parent.mkdir()
    sitk.WriteImage(sitk.ReadImage(str(files["scan"])), str(other))
    wrong = files["scan"].parent / "wrong.safetensors"
    module = network.build(plan().network)
    wrong.write_bytes(encode_model(Model(network.layout_of(module), network.vector_of(module))))
    for words, said in (
        ((files["scan"], other), "two scans would be written to case-labels.nii.gz"),
        ((files["scan"], "--format", ".png"), "labels cannot be written as '.png'"),
        ((files["scan"], "--format", ".dcm"), "DICOM SEG refers to the slices of a scan: name folders"),
        ((files["scan"], "--model", wrong), "does not fit the plan"),
    ):
        arguments = [str(word) for word in words]
        fixed = {"--plan": files["plan"], "--model": files["model"], "--out": files["scan"].parent / "out"}
        given = itertools.chain.from_iterable((key, str(value)) for key, value in fixed.items() if key not in arguments)
        assert cli.main(["predict", *arguments, *given]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (files["scan"].parent / "out").exists()
    assert os.listdir(other.parent) == ["case.nii"]
