"""The synthetic cohort is what a hospital's folder looks like, and the public shapes are what pretraining needs."""

import hashlib
import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from hospital_node.cases import Nodules, discover
from hospital_node.prepare import load_case, prepare
from hospital_node.reading import read_image
from proto.plan import Preparation
from study.anatomy import NODULE_DIAMETERS_MM, Frame, lung_mask, make_body
from study.synthetic import SCANNERS, public_tubes, public_volumes, write_cohort, write_public_cohort
from study.textures import blur, smooth_noise

PATIENTS = 9  # the eighth has two series
CT = Preparation(modality="CT", spacing_xyz_mm=(3.0, 3.0, 3.0), window_hu=(-1000.0, 400.0), patch_zyx=(32, 32, 32))


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohorts")
    for index in range(len(SCANNERS)):
        assert write_cohort(root / str(index), index, PATIENTS, seed=5)
    return root


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


@pytest.mark.parametrize("index", range(len(SCANNERS)))
def test_each_hospital_reads_as_luna16_and_prepares_whole(hospitals, tmp_path, index):
    found = discover(hospitals / str(index))
    assert (found.layout, found.patients, len(found.cases)) == ("luna16", PATIENTS, PATIENTS + 1)
    assert all(1 <= len(case.label.spheres) <= 2 for case in found.cases)
    prepared = prepare(found, CT, 1, tmp_path)
    assert not prepared.skipped
    assert sorted(len(patient.cases) for patient in prepared.patients) == [1] * (PATIENTS - 1) + [2]


@pytest.mark.parametrize("index", range(len(SCANNERS)))
def test_the_annotated_centre_is_bright_and_lung_surrounds_it(hospitals, index):
    for case in discover(hospitals / str(index)).cases:
        scan = sitk.ReadImage(str(case.image))
        for sphere in case.label.spheres:
            assert NODULE_DIAMETERS_MM[0] <= sphere.diameter_mm <= NODULE_DIAMETERS_MM[1]
            at = scan.TransformPhysicalPointToIndex((sphere.x_mm, sphere.y_mm, sphere.z_mm))
            assert scan[at] > -250
            reach = sphere.diameter_mm / 2 + 6
            steps = (step * reach for step in np.vstack([np.eye(3), -np.eye(3)]))
            around = [
                scan[scan.TransformPhysicalPointToIndex(tuple(np.array([sphere.x_mm, sphere.y_mm, sphere.z_mm]) + s))]
                for s in steps
            ]
            assert min(around) < -600


@pytest.mark.parametrize("index", range(len(SCANNERS)))
def test_prepared_nodules_are_bright_where_their_label_is(hospitals, index):
    for case in discover(hospitals / str(index)).cases:
        image, label = load_case(case, CT, 1)
        assert image[label > 0].mean() > -0.35  # lung is -0.8; 5 mm slices show an 8 mm nodule by halves
        assert label.any()


def test_the_chest_has_air_lung_soft_tissue_and_bone(hospitals):
    volume = read_image(discover(hospitals / "0").cases[0].image).array
    shares = [
        float(((volume >= low) & (volume < high)).mean())
        for low, high in ((-1024, -950), (-950, -700), (-150, 150), (300, 900))
    ]
    assert shares[0] > 0.1
    assert 0.15 < shares[1] < 0.5
    assert 0.3 < shares[2] < 0.7
    assert 0.003 < shares[3] < 0.1


def test_hospitals_differ_in_grid_place_and_noise(hospitals):
    volumes = [read_image(discover(hospitals / str(index)).cases[0].image) for index in range(4)]
    for one, other in itertools.combinations(volumes, 2):
        assert one.spacing_xyz_mm != other.spacing_xyz_mm
        assert np.linalg.norm(np.subtract(one.origin_xyz_mm, other.origin_xyz_mm)) > 20
    noise = [float(volume.array[:, :3, :3].std()) for volume in volumes]  # air in a corner, clipped at -1024
    assert max(noise) > 1.5 * min(noise)
    assert all(np.prod(volume.array.shape) < 900_000 for volume in volumes)


def test_one_hospital_stores_its_slices_the_other_way_round(hospitals):
    turned = [sitk.ReadImage(str(discover(hospitals / str(index)).cases[0].image)).GetDirection()[0] for index in range(4)]
    assert sorted(turned) == [-1, 1, 1, 1]
    assert [len(list((hospitals / str(index)).glob("subset*"))) > 0 for index in range(4)] == [False, True, False, False]


def test_two_series_of_one_patient_show_the_same_body_with_other_noise(hospitals):
    grouped = discover(hospitals / "2").by_patient()
    (pair,) = [cases for cases in grouped.values() if len(cases) == 2]
    assert pair[0].label == pair[1].label
    one, other = (read_image(case.image).array for case in pair)
    assert not np.array_equal(one, other)
    assert abs(one - other).mean() < 30


def test_the_same_arguments_give_the_same_bytes_and_are_not_written_twice(tmp_path):
    for name in ("one", "other"):
        assert write_cohort(tmp_path / name, 1, 2, seed=9)
    assert digest(tmp_path / "one") == digest(tmp_path / "other")
    assert not write_cohort(tmp_path / "one", 1, 2, seed=9)
    assert write_cohort(tmp_path / "one", 1, 2, seed=10)


def test_a_cohort_written_over_another_leaves_none_of_its_series(tmp_path):
    (tmp_path / "d.part").mkdir()
    write_cohort(tmp_path / "d", 1, 3, seed=9)
    write_cohort(tmp_path / "d", 0, 2, seed=9)
    found = discover(tmp_path / "d")
    assert (found.patients, found.skipped) == (2, {})
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_folder_of_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.doc").write_text("the only copy")
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        write_cohort(tmp_path, 0, 2, seed=9)
    assert (tmp_path / "thesis.doc").read_text() == "the only copy"


def test_no_person_is_in_two_cohorts(tmp_path, hospitals):
    assert write_public_cohort(tmp_path / "public", 4, seed=5)
    folders = [hospitals / str(index) for index in range(4)] + [tmp_path / "public"]
    people = [{case.label for case in discover(folder).cases} for folder in folders]
    sizes = [{tuple(s.diameter_mm for s in label.spheres) for label in group if isinstance(label, Nodules)} for group in people]
    assert sum(len(group) for group in sizes) == len(set().union(*sizes))
    assert sum(len(group) for group in sizes) > 30
    spacings = {read_image(case.image).spacing_xyz_mm for case in discover(tmp_path / "public").cases}
    assert len(spacings) == 4


def test_progress_counts_series(tmp_path):
    seen = []
    write_cohort(tmp_path, 0, 2, 3, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_nodules_lie_in_the_lungs_of_their_body():
    for seed in range(20):
        body = make_body(np.random.Generator(np.random.PCG64(seed)))
        for lesion in body.lesions:
            x, y, z = (np.full(1, value, np.float32) for value in lesion.centre_xyz_mm)
            assert lung_mask(body, x, y, z).all()


def test_frame_and_voxel_are_inverse():
    frame = Frame((4, 5, 6), (1.0, 2.0, 3.0), (-10.0, 5.0, 7.0))
    x, y, z = frame.axes()
    np.testing.assert_allclose(frame.voxel((x[2], y[3, 0], z[1, 0, 0])), (1, 3, 2))


# --- public shapes


@pytest.mark.parametrize(("generator", "labels"), [(public_volumes, {0, 1}), (public_tubes, {0, 1, 2})], ids=["balls", "tubes"])
def test_public_shapes_are_scaled_labelled_and_reproducible(generator, labels):
    pairs, again, others = (list(generator(6, seed)) for seed in (3, 3, 4))
    for (image, label), (same, _), (other, _) in zip(pairs, again, others, strict=True):
        assert (image.dtype, label.dtype, image.shape) == (np.float32, np.uint8, label.shape)
        assert np.isfinite(image).all()
        np.testing.assert_array_equal(image, same)
        assert not np.array_equal(image, other)
    assert set(np.unique([value for _, label in pairs for value in np.unique(label)])) == labels


def test_public_balls_are_brighter_than_the_dark_around_them_and_in_range():
    for image, label in public_volumes(10, 1, shape_zyx=(32, 32, 32)):
        assert image.min() >= -1
        assert image.max() <= 1
        if label.any():
            assert image[label > 0].mean() > np.quantile(image, 0.1) + 0.3


def test_public_tubes_have_their_thick_half_in_front_and_mean_zero():
    for image, label in public_tubes(10, 1):
        assert abs(float(image.mean())) < 1e-3
        assert image.std() == pytest.approx(1, abs=1e-3)
        front, back = (np.argwhere(label == value) for value in (1, 2))
        assert front[:, 1].mean() < back[:, 1].mean()
        assert 300 < len(front) < 5000
        assert 300 < len(back) < 5000


def test_generators_are_lazy():
    assert len(list(itertools.islice(public_tubes(10**9, 1, shape_zyx=(16, 20, 16)), 2))) == 2


# --- textures


def test_blur_keeps_the_mean_and_spreads_a_point_as_a_gaussian():
    point = np.zeros((21, 21, 21), np.float32)
    point[10, 10, 10] = 1
    spread = blur(point, (1.5, 1.5, 1.5))
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert spread[10, 10, 11] / spread[10, 10, 10] == pytest.approx(np.exp(-0.5 / 1.5**2), rel=1e-3)


def test_smooth_noise_is_smooth():
    field = smooth_noise(np.random.default_rng(0), (40, 40, 40), (4, 4, 4))
    assert field.dtype == np.float32
    assert np.abs(np.diff(field, axis=0)).max() < 0.3 * np.ptp(field)
