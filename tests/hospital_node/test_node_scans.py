"""A hospital's own scans with a model's drawing: written whole, for the owner only, read without torch, and without a name."""

import stat
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from hospital_node import drawing, scans
from hospital_node.prepared import PreparedCase, PreparedCohort, PreparedPatient
from hospital_node.scans import Drawn, Scan, ScansError, forget_scans, hounsfield, read_index, read_scan, write_scans
from hospital_node.work import Scored
from proto.layout import Layout
from proto.modelfile import Model, ModelFileError
from proto.plan import Hospital, Network, Plan, Preparation, Privacy, Training

AT = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
MODEL = "ab" * 32
PATIENT = "very-secret-key-of-a-patient"


def plan(window=(-1000.0, 400.0)) -> Plan:
    return Plan(
        study="chest",
        rounds=3,
        network=Network(labels=("nodule",)),
        preparation=Preparation(modality="CT", spacing_xyz_mm=(1.0, 2.0, 4.0), window_hu=window, patch_zyx=(8, 8, 8)),
        training=Training(local_steps=1),
        privacy=Privacy(noise_multiplier=1.0, inverse_sampling_rate=2),
        hospitals=tuple(Hospital(uri=f"secagg://chest/hospital/h{i}", declared_patients=4) for i in range(3)),
    )


def scan(seed=0) -> Scan:
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (3, 4, 5)).astype(np.float32)
    return Scan(image, (image > 0.5).astype(np.uint8), (image > 0.4).astype(np.uint8))


def write(folder, count=2, at=AT, window=(-1000.0, 400.0)):
    drawn = [Drawn(scan(seed), {"nodule": 0.5 if seed else None}) for seed in range(count)]
    return write_scans(folder, plan(window), MODEL, 4, at, drawn)


def test_what_was_written_is_read_back(tmp_path):
    index = write(tmp_path)
    assert read_index(tmp_path) == index
    assert (index.round, index.model, index.spacing_xyz_mm) == (4, MODEL, (1.0, 2.0, 4.0))
    assert [one.mean_dice for one in index.scans] == [None, 0.5]
    found = read_scan(tmp_path, index.folder, 2)
    assert np.array_equal(found.truth, scan(1).truth)
    assert np.array_equal(found.prediction, scan(1).prediction)
    assert np.allclose(found.image, scan(1).image * 700 - 300, atol=0.6)  # half precision keeps HU to half a unit here


def test_relative_values_stay_as_they_are(tmp_path):
    index = write(tmp_path, window=None)
    assert index.window_hu is None
    assert np.allclose(read_scan(tmp_path, index.folder, 1).image, scan(0).image, atol=1e-3)


def test_hounsfield_undoes_the_window():
    assert hounsfield(np.array([-1, 0, 1], np.float32), (-1000, 400)).tolist() == [-1000, -300, 400]


def test_nobody_else_can_read_them_and_nothing_names_a_patient(tmp_path):
    index = write(tmp_path)
    folder = tmp_path / "scans"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / index.folder / "1.npz").stat().st_mode) == 0o600
    assert {path.name for path in folder.rglob("*.npz")} == {"1.npz", "2.npz"}


def test_a_new_set_replaces_the_old_one(tmp_path):
    write(tmp_path, 3)
    index = write(tmp_path, 1, AT + timedelta(hours=1))
    assert len(read_index(tmp_path).scans) == 1
    assert [path.name for path in (tmp_path / "scans").iterdir() if path.is_dir()] == [index.folder]


def test_an_interrupted_run_leaves_the_old_set(tmp_path):
    before = write(tmp_path)

    def interrupted():
        yield Drawn(scan(7), {"nodule": 0.1})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scans(tmp_path, plan(), "cd" * 32, 5, AT + timedelta(hours=1), interrupted())
    assert read_index(tmp_path) == before
    assert read_scan(tmp_path, before.folder, 1).truth.shape == (3, 4, 5)


def test_forgetting_takes_every_picture_and_says_where_one_stays(tmp_path, monkeypatch):
    forget_scans(tmp_path)
    write(tmp_path)
    top = tmp_path / scans.SCANS_FOLDER

    def rmtree_beside_another(path):
        """What rmtree raises where somebody else takes a file away while it lists them."""
        raise FileNotFoundError(2, "No such file or directory", f"{path}/1.npz")

    with monkeypatch.context() as patch:
        patch.setattr("hospital_node.scans.shutil.rmtree", rmtree_beside_another)
        with pytest.raises(ScansError, match="cannot delete the pictures"):
            forget_scans(tmp_path)
    assert top.exists()
    forget_scans(tmp_path)
    assert not top.exists()


def test_no_set_is_not_an_error(tmp_path):
    assert read_index(tmp_path) is None


@pytest.mark.parametrize("damage", [b"", b"not an archive", b"PK\x03\x04 torn"])
def test_damage_is_one_sentence_with_a_remedy(tmp_path, damage):
    index = write(tmp_path)
    (tmp_path / "scans" / index.folder / "1.npz").write_bytes(damage)
    with pytest.raises(ScansError, match="make the scans again"):
        read_scan(tmp_path, index.folder, 1)
    (tmp_path / "scans" / "scans.json").write_bytes(damage)
    with pytest.raises(ScansError, match="make the scans again"):
        read_index(tmp_path)


def test_arrays_of_different_shapes_are_damage(tmp_path):
    index = write(tmp_path)
    path = tmp_path / "scans" / index.folder / "1.npz"
    np.savez(path, image=np.zeros((2, 2, 2), np.float16), truth=np.zeros((2, 2, 3), np.uint8), prediction=np.zeros((2, 2, 2)))
    with pytest.raises(ScansError, match="damaged"):
        read_scan(tmp_path, index.folder, 1)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "scans").write_text("a file is in the way")
    with pytest.raises(ScansError, match="cannot write scans"):
        write(tmp_path)


LAYOUT = Layout((("weight", (4,)),))


@pytest.fixture
def predicting(monkeypatch, tmp_path):
    """`draw_on_scans` with everything heavy replaced; returns it with what it counted."""
    cases = [PreparedCase(scan(seed).image, scan(seed).truth) for seed in range(3)]
    cohort = PreparedCohort((PreparedPatient(PATIENT, tuple(cases[:2])), PreparedPatient("other", (cases[2],))))
    monkeypatch.setattr(drawing, "layout_of_plan", lambda _: LAYOUT)
    monkeypatch.setattr(drawing, "prepare_studies", lambda *_: cohort)
    monkeypatch.setattr(drawing, "real_scorer", lambda *_: lambda case: Scored({"nodule": 0.25}, np.asarray(case.label)))
    counted = []

    def run(model, most):
        node = SimpleNamespace(state=tmp_path, threads=1, device="cpu")
        return drawing.draw_on_scans(node, plan(), model, most, lambda done, total: counted.append((done, total)), AT)

    return run, counted


def test_a_model_draws_on_the_first_scans(predicting, tmp_path):
    run, counted = predicting
    index = run(Model(LAYOUT, np.ones(4, np.float32), {"round": "7"}), 2)
    assert (index.round, len(index.scans), counted) == (7, 2, [(1, 2), (2, 2)])
    assert np.array_equal(read_scan(tmp_path, index.folder, 2).prediction, scan(1).truth)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and PATIENT.encode() in path.read_bytes()]


def test_a_model_of_another_network_is_refused(predicting, tmp_path):
    run, _ = predicting
    with pytest.raises(ModelFileError, match="does not fit the network of study 'chest'"):
        run(Model(Layout((("weight", (5,)),)), np.ones(5, np.float32)), 2)
    assert read_index(tmp_path) is None
