"""What predict makes beside labels: findings with LUNA16's columns, FROC and CPM, and pictures with outlines."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn
from training_world import plan

from hospital_node import cli, network, predict_scans
from hospital_node.cohort import Nodule
from hospital_node.finding_files import annotated, compared, findings_table, froc_table, series_of
from hospital_node.froc import Finding
from hospital_node.label_files import LabelFileError
from hospital_node.outlines import COLOURS, SIDE, WHITE, picture
from hospital_node.predict import Segmenter
from hospital_node.sliding import Windows
from proto.modelfile import Model, encode_model

CENTRES_MM = ((-20.0, 10.0, 40.0), (14.0, -12.0, 70.0))  # of the nodules in `chest`
RADIUS_MM = 6.0


class Bright(nn.Module):
    """What is brighter than usual is label 1, surer in its middle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), 4 * (x - 3)], 1)


def chest() -> sitk.Image:
    """Two bright balls in world coordinates, in a scan of 2 mm."""
    values = np.zeros((36, 36, 36), np.float32)
    origin = np.array([-36.0, -36.0, 20.0])
    z, y, x = np.indices(values.shape)
    world = np.stack([x, y, z]) * 2.0 + origin[:, None, None, None]
    for centre in CENTRES_MM:
        away = np.sqrt(((world - np.array(centre)[:, None, None, None]) ** 2).sum(0))
        values = np.maximum(values, np.where(away <= RADIUS_MM, 100 - away, 0)).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2.0, 2.0, 2.0))
    image.SetOrigin(tuple(origin))
    return image


@pytest.fixture
def files(tmp_path, monkeypatch):
    chosen = plan(
        network={"channels": (4, 4, 8), "labels": ("nodule",)},
        preparation={"modality": "MR", "spacing_xyz_mm": (2, 2, 2), "patch_zyx": (16, 16, 16)},
    )
    module = network.build(chosen.network)
    made = {
        name: tmp_path / place for name, place in (("plan", "plan.json"), ("model", "m.safetensors"), ("scan", "1.2.3.mhd"))
    }
    made["plan"].write_bytes(chosen.canonical())
    made["model"].write_bytes(encode_model(Model(network.layout_of(module), network.vector_of(module))))
    sitk.WriteImage(chest(), str(made["scan"]))
    knowing = Segmenter(chosen, Bright(), Windows(chosen.preparation.patch_zyx))
    monkeypatch.setattr(predict_scans, "_segmenter", lambda *_: knowing)
    made["out"] = tmp_path / "out"
    return made


def call(files, *words) -> int:
    fixed = ("--plan", files["plan"], "--model", files["model"], "--out", files["out"])
    return cli.main(["predict", str(files["scan"]), *map(str, (*fixed, *words))])


def annotations(files, rows):
    path = files["plan"].parent / "annotations.csv"
    path.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_findings_lie_where_the_nodules_are(files, capsys):
    assert call(files, "--findings", "nodule") == 0
    assert "2 findings of nodule in 1 scans" in " ".join(capsys.readouterr().out.split())
    rows = list(csv.DictReader((files["out"] / "findings.csv").read_text().splitlines()))
    assert {row["seriesuid"] for row in rows} == {"1.2.3"}
    places = sorted(tuple(float(row[axis]) for axis in ("coordX", "coordY", "coordZ")) for row in rows)
    assert places == [pytest.approx(centre, abs=0.5) for centre in sorted(CENTRES_MM)]
    assert all(float(row["probability"]) > 0.9 for row in rows)
    assert float(rows[0]["volume_mm3"]) == pytest.approx(4 / 3 * np.pi * RADIUS_MM**3, rel=0.2)


def test_annotations_give_froc_and_cpm(files, capsys):
    (x, y, z), _ = CENTRES_MM
    listed = annotations(files, [f"1.2.3,{x},{y},{z},12", "1.2.3,0,0,100,12", "another,1,1,1,5"])
    assert call(files, "--findings", "nodule", "--annotations", listed) == 0
    assert "over 2 nodules" in " ".join(capsys.readouterr().out.split())
    rows = list(csv.reader((files["out"] / "froc.csv").read_text().splitlines()))
    assert rows[0] == ["threshold", "false_positives_per_scan", "sensitivity"]
    assert [row[1] for row in rows[-8:-1]] == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert rows[-1][0] == "CPM"
    assert 0 < float(rows[-1][2]) <= 0.5  # one of two found, the other finding is false


def test_mistakes_are_refused_before_anything_is_read(files, capsys):
    broken = annotations(files, ["1.2.3,0,0,0,not a number"])
    for words, said in (
        (("--findings", "liver"), "the plan has no label 'liver': use one of nodule"),
        (("--annotations", broken), "name the label that they are of with --findings"),
        (("--findings", "nodule", "--annotations", broken), "1 rows without a usable place"),
        (("--findings", "nodule", "--annotations", files["plan"]), "lacks the column seriesuid"),
    ):
        assert call(files, *words) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not files["out"].exists()


def test_a_scan_without_any_annotated_nodule_has_no_sensitivity(files, capsys):
    assert call(files, "--findings", "nodule", "--annotations", annotations(files, ["another,1,1,1,5"])) == 2
    assert "at least one nodule to find" in " ".join(capsys.readouterr().err.split())
    assert (files["out"] / "findings.csv").exists()


def test_tables_by_hand(tmp_path):
    found = {"a": [Finding(1, 2, 3, 0.5, 20)], "b": []}
    assert findings_table(found).splitlines()[1] == "a,1.000,2.000,3.000,0.5000,20.0"
    curve = compared(found, {"a": [Nodule(1, 2, 3, 4)]})
    assert froc_table(curve).splitlines()[1:3] == ["0.5000,0.0000,1.0000", ",0.125,1.0000"]
    with pytest.raises(LabelFileError, match="no sensitivity"):
        compared(found, {})
    path = tmp_path / "annotations.csv"
    path.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\na,1,2,3,4\n")
    assert annotated(path) == {"a": [Nodule(1, 2, 3, 4)]}


@pytest.mark.parametrize(("name", "series"), [("1.3.6.1.mhd", "1.3.6.1"), ("a.nii.gz", "a"), ("a.b.mha", "a.b")])
def test_the_name_of_a_file_is_its_series(tmp_path, name, series):
    assert series_of(tmp_path / name) == series
    (tmp_path / "1.2.840").mkdir()
    assert series_of(tmp_path / "1.2.840") == "1.2.840"


# ---- pictures ----


def labelled(low, high, value=1, spacing=(1.0, 2.0, 3.0)) -> sitk.Image:
    values = np.zeros((6, 10, 20), np.uint8)
    values[2, low:high, 5:15] = value
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    return image


def scan() -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(1).normal(size=(6, 10, 20)).astype(np.float32))
    image.SetSpacing((1.0, 2.0, 3.0))
    return image


def places(pixels, colour):
    return np.argwhere((pixels == colour).all(2))


def test_outlines_follow_the_labels_and_a_millimetre_is_a_millimetre():
    pixels = picture(scan(), labelled(4, 8))
    assert pixels.shape == (SIDE, SIDE, 3)  # 20 mm by 20 mm
    drawn = places(pixels, COLOURS[0])
    assert drawn.min(axis=0) == pytest.approx(np.array([0.4, 0.25]) * SIDE, abs=1)
    assert drawn.max(axis=0) == pytest.approx(np.array([0.8, 0.75]) * SIDE - 1, abs=1)
    assert (pixels[300, 256] == pixels[300, 256, 0]).all()  # inside it is the scan that is seen
    assert not len(places(pixels, WHITE)) or (pixels.max() == 255)


def test_the_truth_is_white_and_lies_below_the_prediction():
    both = picture(scan(), labelled(4, 8), labelled(4, 8))
    assert len(places(both, COLOURS[0])) == len(places(picture(scan(), labelled(4, 8)), COLOURS[0]))
    shifted = picture(scan(), labelled(4, 8), labelled(2, 6, 2))
    white = places(shifted, WHITE)
    assert white.min(axis=0)[0] == pytest.approx(0.2 * SIDE, abs=1)
    assert len(places(shifted, COLOURS[0]))


def test_a_scan_in_which_nothing_was_found_is_drawn_without_lines():
    pixels = picture(scan(), labelled(4, 4), labelled(4, 4))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert pixels.std() > 10


def test_the_command_writes_one_picture_a_scan(files):
    truth = files["plan"].parent / "truth"
    truth.mkdir()
    sitk.WriteImage(sitk.Cast(chest() > 50, sitk.sitkUInt8), str(truth / "1.2.3.mhd"))
    assert call(files, "--pictures", "--truth", truth) == 0
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(files["out"] / "1.2.3-outlines.png")))
    assert pixels.shape == (SIDE, SIDE, 3)
    assert len(places(pixels, COLOURS[0])) > 20
    assert (files["out"] / "scores.csv").exists()
