"""The imaging benchmark prepares what bare SimpleITK reads; status 1 where a target is missed. Nothing is timed."""

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks import imaging
from benchmarks.imaging import Spent, cohort_of, rules
from benchmarks.rows import Row, Verdict
from hospital_node.prepare import load_scan
from hospital_node.reading import read_oriented
from hospital_node.resample import target_grid

pytestmark = pytest.mark.data


def test_every_scan_is_prepared_and_every_target_has_a_row(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(imaging, "HASHED_BYTES", 1 << 20)
    cohort = cohort_of(shared_data / "ct-lung", tmp_path)
    assert len(cohort.cases) == 6
    rows = imaging.speed_rows(cohort, rules(8.0), tmp_path, 1)
    assert [(row.target, row.at_least) for row in rows] == [(1.3, False), (1.7, True)]
    assert rows[0].value > 0
    assert not (tmp_path / "cache").exists()


def test_bare_and_prepared_give_voxels_on_the_same_grid(shared_data, tmp_path, monkeypatch):
    cohort, given = cohort_of(shared_data / "ct-lung", tmp_path), []
    resample = imaging._resample
    monkeypatch.setattr(imaging, "_resample", lambda *told: given.append(resample(*told)) or given[-1])
    loaded = [load_scan(case, rules(6.0), imaging.LABELS) for case in cohort.cases]
    grids = [target_grid(read_oriented(case.image), (6.0, 6.0, 6.0)) for case in cohort.cases]
    imaging.bare(cohort, grids)
    images = [image for image in given if image.GetPixelID() == sitk.sitkFloat32]
    for one, bare in zip(loaded, images, strict=True):
        ours, theirs = (sitk.GetArrayViewFromImage(image) for image in (one.image, bare))
        np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_a_peak_is_a_share_of_the_largest_volume(shared_data):
    assert 0 < imaging._peak(shared_data / "ct-lung", rules(8.0), 1) < 20


@pytest.mark.parametrize(
    ("two_wall_s", "hash_wall_s", "verdict"),
    [(5.0, 1.0, Verdict.HOLDS), (8.0, 1.0, Verdict.FALLS_SHORT), (8.0, 1.7, Verdict.NOT_MEASURED)],
)
def test_the_gain_of_two_threads_counts_only_where_two_cores_were_free(two_wall_s, hash_wall_s, verdict):
    turn = {"one": Spent(10.0, 10.0), "two": Spent(10.0, two_wall_s), "hash": Spent(2.0, hash_wall_s)}
    gain = imaging._gain([turn, {name: Spent(1.0, 90.0) for name in turn}])
    assert Row("", gain, "times", imaging.THREADS_TARGET, at_least=True).verdict is verdict


def test_the_status_is_that_of_the_rows_and_a_missing_folder_is_one_line(shared_data, tmp_path, monkeypatch, capsys):
    assert imaging.main(["--data", str(tmp_path)]) == 2
    assert "ct-lung" in capsys.readouterr().err
    for value, wanted in ((1.2, 0), (1.4, 1)):
        monkeypatch.setattr(imaging, "run", lambda *_, value=value: [Row("x", value, "times", 1.3)])
        assert imaging.main(["--data", str(shared_data)]) == wanted


def test_an_image_read_bare_has_the_voxels_of_the_series(shared_data):
    image = imaging._read(shared_data / "ct-lung/dcmqi-ct-3slice/dicom")
    assert np.ptp(sitk.GetArrayViewFromImage(image)) > 3000
