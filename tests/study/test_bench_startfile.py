"""A public start as a file: the same from the same recipe, its provenance inside, and nothing of others overwritten."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from proto.modelfile import Model, encode_model, read_model
from study import presets, pretrain, start
from study.bench.startfile import NO_COHORT, preset_of, pretrain_to_file, recipe_of
from study.bench.task import StudyError

SEED = 11
TEMPLATE: dict[str, Any] = {
    "anatomy": "chest",
    "rounds": 2,
    "network": {"channels": [4, 4, 8], "labels": ["nodule"]},
    "preparation": {
        "modality": "CT",
        "spacing_xyz_mm": [4.0, 4.0, 4.0],
        "window_hu": [-1000.0, 400.0],
        "patch_zyx": [16, 16, 16],
    },
    "training": {"local_steps": 2},
    "start": {"volumes": 2, "steps": 10, "batch": 2},
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials and the measurement of a start take most of the time of a tiny one."""
    monkeypatch.setattr(pretrain, "TRIAL_STEPS", 2)
    monkeypatch.setattr(start, "HELD_OUT", 2)


@pytest.fixture
def template(tmp_path: Path) -> str:
    return write(tmp_path / "tiny.toml", TEMPLATE)


def write(path: Path, fields: dict[str, Any]) -> str:
    path.write_text(tomli_w.dumps(fields))
    return str(path)


def make(plan: str, out: Path, *, seed: int = SEED, steps: int | None = None, volumes: int | None = None) -> list[str]:
    said: list[str] = []
    assert pretrain_to_file(plan, out, seed, steps, volumes, said.append) == out
    return said


def test_the_same_recipe_gives_the_same_start_and_another_seed_another(template: str, tmp_path: Path) -> None:
    said = make(template, tmp_path / "new" / "a.safetensors")
    make(template, tmp_path / "b.safetensors")
    make(template, tmp_path / "c.safetensors", seed=SEED + 1)
    a, b, c = (
        read_model(path).digest.hex()
        for path in (tmp_path / "new" / "a.safetensors", *(tmp_path / f"{n}.safetensors" for n in "bc"))
    )
    assert a == b != c
    assert "no scan of any cohort" in said[0]
    assert said[-1] == f'start_digest = "{a}"'
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"], "nothing half-written is left"


def test_a_start_says_where_it_comes_from(template: str, tmp_path: Path) -> None:
    make(template, tmp_path / "a.safetensors", steps=12, volumes=3)
    model = read_model(tmp_path / "a.safetensors")
    made = dict(model.provenance)
    assert (made["made-by"], made["seed"], made["steps"], made["volumes"]) == (start.GENERATOR, str(SEED), "12", "3")
    assert json.loads(made["network"])["channels"] == [4, 4, 8]
    assert json.loads(made["preparation"])["patch_zyx"] == [16, 16, 16]
    assert made["statement"] == NO_COHORT
    assert "no scan of any cohort" in NO_COHORT
    assert 0 < float(made[start.LOSS_KEY]) < 10
    assert str(tmp_path) not in json.dumps(made), "no path of this machine"


def test_a_start_fits_the_network_of_its_plan(template: str, tmp_path: Path) -> None:
    from hospital_node import network

    make(template, tmp_path / "a.safetensors")
    model = read_model(tmp_path / "a.safetensors")
    assert model.layout == network.layout_of(network.build(preset_of(template).network))
    assert np.isfinite(model.vector).all()
    assert model.vector.std() > 0


def test_what_was_made_before_is_kept_and_not_made_again(template: str, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    make(template, out)
    before = out.stat().st_mtime_ns
    said = make(template, out)
    assert "is kept" in said[0]
    assert len(said) == 1
    assert out.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"seed": SEED + 1}, {"steps": 11}, {"volumes": 3}])
def test_a_start_of_another_recipe_is_not_overwritten(template: str, tmp_path: Path, change: dict[str, int]) -> None:
    out = tmp_path / "a.safetensors"
    make(template, out)
    content = out.read_bytes()
    with pytest.raises(StudyError, match="another recipe: name another file"):
        make(template, out, **change)
    assert out.read_bytes() == content


def test_files_of_others_are_not_overwritten(template: str, tmp_path: Path) -> None:
    model = tmp_path / "released.safetensors"
    make(template, model)
    trained = read_model(model)
    model.write_bytes(encode_model(Model(trained.layout, trained.vector, {})))
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for path, says in ((model, "another recipe"), (notes, "no model file"), (tmp_path, "no model file")):
        with pytest.raises(StudyError, match=says):
            make(template, path)
    assert notes.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_said(template: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write the start"):
        make(template, tmp_path / "file" / "a.safetensors")


def test_templates_are_found_by_name() -> None:
    for path in presets.PLANS.glob("*.toml"):
        assert preset_of(path.stem) == presets.load(path.stem)


def test_templates_for_hospitals_own_scans_bind_every_session_to_one_history() -> None:
    """Those for the public hippocampi stay as they were: the cells of studies are named after them."""
    found = {
        path.stem: tomllib.loads(path.read_text())["masking"].get("bind_log", False) for path in presets.PLANS.glob("*.toml")
    }
    assert found == {name: not name.startswith("hippocampus") for name in found}
    demonstration = Path(__file__).parents[2] / "deploy" / "container" / "demo" / "plan.toml"
    assert tomllib.loads(demonstration.read_text())["masking"]["bind_log"] is True


def test_a_plan_needs_neither_anatomy_nor_recipe(tmp_path: Path) -> None:
    fields = tomllib.loads((presets.PLANS / "hippocampus.toml").read_text())
    del fields["anatomy"], fields["start"]
    hospitals = [{"uri": f"secagg://s/hospital/{name}", "declared_patients": 30} for name in "abc"]
    preset = preset_of(write(tmp_path / "plan.toml", {**fields, "study": "s", "hospitals": hospitals}))
    assert preset.anatomy == "hippocampus"
    assert preset.start.steps >= 100


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in TEMPLATE.items() if key not in keys}


WRONG: list[tuple[str, dict[str, Any]]] = [
    (r"\[network\] is missing", without("network")),
    (r"\[training\] is missing", without("training")),
    ("'network.labels' is missing", {**TEMPLATE, "network": {"channels": [4, 4, 8]}}),
    ("3 labels", {**TEMPLATE, "network": {"channels": [4, 4, 8], "labels": ["a", "b", "c"]}}),
    ("chest shapes for 1 label, hippocampus or temporal-lobe shapes for 2 labels", {**TEMPLATE, "anatomy": "hippocampus"}),
    ("unknown key 'network.layers'", {**TEMPLATE, "network": {**TEMPLATE["network"], "layers": 3}}),
    ("'start.steps'", {**TEMPLATE, "start": {"volumes": 2, "steps": 0}}),
    ("9 steps are too few", {**TEMPLATE, "start": {"volumes": 2, "steps": 9}}),
    ("channels", {**TEMPLATE, "network": {**TEMPLATE["network"], "channels": [3, 3, 3]}}),
    ("'network': Input", {**TEMPLATE, "network": 3}),
]


@pytest.mark.parametrize(("says", "fields"), WRONG, ids=[says for says, _ in WRONG])
def test_a_wrong_plan_is_one_sentence(tmp_path: Path, says: str, fields: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=says) as caught:
        make(write(tmp_path / "plan.toml", fields), tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.safetensors").exists()


def test_an_unknown_template_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="hippocampus"):
        make("hipocampus", tmp_path / "a.safetensors")
    with pytest.raises(StudyError, match="cannot read"):
        make(str(tmp_path / "missing.toml"), tmp_path / "a.safetensors")


@pytest.mark.parametrize("seed", [-1, start.HELD_OUT_SEED])
def test_a_seed_that_would_measure_on_what_it_trained_on_is_refused(template: str, tmp_path: Path, seed: int) -> None:
    with pytest.raises(StudyError, match="cannot be used"):
        make(template, tmp_path / "a.safetensors", seed=seed)


@pytest.mark.parametrize("change", [{"steps": 0}, {"volumes": 0}, {"steps": 3}])
def test_a_recipe_too_small_is_refused(template: str, tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(StudyError, match="the start's recipe"):
        make(template, tmp_path / "a.safetensors", **change)


def test_every_part_of_the_recipe_is_in_the_provenance(template: str) -> None:
    preset = preset_of(template)
    base = recipe_of(preset, SEED)
    changed = [
        recipe_of(preset, SEED + 1),
        recipe_of(preset.model_copy(update={"start": preset.start.model_copy(update={"learning_rate": 0.5})}), SEED),
        recipe_of(preset.model_copy(update={"training": preset.training.model_copy(update={"foreground_share": 0.1})}), SEED),
    ]
    assert all(recipe != base for recipe in changed)
