"""A released model leaves with its plan and its privacy: as a smaller file, and as a bundle that MONAI itself runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai import bundle as monai_bundle
from safetensors import safe_open
from torch import nn
from training_world import SILENT, plan

from hospital_node import bundle, cli, network
from hospital_node.accounting import Mechanism
from hospital_node.cap import stated
from hospital_node.checkpoint import read_checkpoint, start_from
from hospital_node.model_card import card_of
from hospital_node.predict import Segmenter, segment
from proto.modelfile import Model, ModelFileError, encode_model, read_model
from proto.plan import Plan, from_canonical

# What the MONAI Bundle Specification says that metadata.json must hold; its schema is a download.
IMAGE = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def")
TENSOR = {
    "type": "object",
    "required": list(IMAGE),
    "properties": {
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array"},
        "value_range": {"type": "array"},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
}
TEXTS = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "name", "task", "description", "authors")
SPECIFICATION = {
    "type": "object",
    "required": [*TEXTS, "copyright", "changelog", "required_packages_version", "network_data_format"],
    "properties": {
        **{key: {"type": "string"} for key in (*TEXTS, "copyright")},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                "inputs": {"required": ["image"], "properties": {"image": TENSOR}},
                "outputs": {"required": ["pred"], "properties": {"pred": TENSOR}},
            },
        },
    },
}


@pytest.fixture(autouse=True)
def gradients_as_before():
    """A bundle's run turns them off for its process."""
    yield
    torch.set_grad_enabled(True)


def study(**changes) -> Plan:
    tables = {
        "network": {"channels": (8, 8, 16), "labels": ("bright", "dark")},
        "preparation": {"modality": "MR", "spacing_xyz_mm": (2, 2, 2), "patch_zyx": (16, 16, 16)},
    }
    return plan(**{**tables, **changes})


def model_of(chosen: Plan, number: str | None = "3") -> Model:
    torch.manual_seed(1)
    module = network.build(chosen.network)
    return Model(network.layout_of(module), network.vector_of(module), {} if number is None else {"round": number})


@pytest.fixture
def files(tmp_path):
    chosen = study()
    made = {"plan": tmp_path / "plan.json", "model": tmp_path / "model.safetensors"}
    made["plan"].write_bytes(chosen.canonical())
    made["model"].write_bytes(encode_model(model_of(chosen)))
    return made


def export(files, *words) -> int:
    return cli.main(["export-model", "--plan", str(files["plan"]), "--model", str(files["model"]), *map(str, words)])


# ---- what goes with a model ----


def test_the_privacy_is_that_of_the_rounds_up_to_the_models():
    chosen = study()
    for number, rounds in (("3", 3), ("4", 4), (None, 4), ("9", 4)):
        card = card_of(chosen, model_of(chosen, number))
        assert card.epsilon == pytest.approx(stated([Mechanism(1.0, 1 / 2, 3 * rounds)], 1e-3))
    assert "After round 3 of 4 of study 'trial'" in card_of(chosen, model_of(chosen)).sentence
    assert "After all 4 rounds" in card_of(chosen, model_of(chosen, None)).sentence


def test_the_hospital_with_most_steps_and_every_hospital_of_a_patient_count():
    fields = study().model_dump(mode="json")
    fields["hospitals"][1]["local_steps"] = 12
    busy = Plan.model_validate(fields)
    assert card_of(busy, model_of(busy)).epsilon == pytest.approx(stated([Mechanism(1.0, 1 / 2, 36)], 1e-3))
    fields = study().model_dump(mode="json")
    fields["privacy"]["hospitals_per_patient"] = 2
    two = Plan.model_validate(fields)
    card = card_of(two, model_of(two))
    assert card.epsilon == pytest.approx(stated([Mechanism(1.0, 1 / 2, 18)], 1e-3))
    assert "of one patient of up to 2 hospitals" in card.sentence


def test_a_plan_without_noise_is_said_to_give_no_guarantee():
    bare = study(privacy={**SILENT, "inverse_sampling_rate": 2})
    card = card_of(bare, model_of(bare))
    assert "no differential privacy guarantee" in card.sentence
    assert card.metadata()["epsilon"] == "inf"


# ---- files ----


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
def test_a_file_says_its_plan_its_origin_and_its_privacy(files, values, capsys):
    out = files["plan"].parent / "out.safetensors"
    assert export(files, "--out", out, "--values", values) == 0
    said = " ".join(capsys.readouterr().out.split())
    released = read_model(files["model"])
    assert f"model {released.digest.hex()[:12]} of study trial" in said
    with safe_open(out, "numpy") as file:
        metadata = file.metadata()
    assert from_canonical(metadata["plan"].encode()) == study()
    assert metadata["plan_digest"] == study().digest().hex()
    assert (metadata["round"], metadata["delta"]) == ("3", "1e-3")
    assert metadata["digest"] == released.digest.hex()
    assert metadata["privacy"] in said
    assert f"ε = {metadata['epsilon']}" in metadata["privacy"]
    found = read_model(out)
    apart = np.linalg.norm(found.vector - released.vector) / np.linalg.norm(released.vector)
    assert apart <= {"fp32": 0, "bf16": 2**-8, "int8": 0.02}[values]


def test_sizes_keep_what_is_promised(files):
    sizes = {}
    for values in ("fp32", "bf16", "int8"):
        out = files["plan"].parent / f"{values}.safetensors"
        assert export(files, "--out", out, "--values", values) == 0
        sizes[values] = out.stat().st_size
    assert sizes["bf16"] <= 0.5 * sizes["fp32"]
    assert sizes["int8"] <= 0.3 * sizes["fp32"]


def test_what_was_exported_can_be_exported_again_and_keeps_its_origin(files):
    folder = files["plan"].parent
    assert export(files, "--out", folder / "a.safetensors", "--values", "int8") == 0
    again = {**files, "model": folder / "a.safetensors"}
    assert export(again, "--out", folder / "b.safetensors", "--values", "bf16") == 0
    assert read_model(folder / "b.safetensors").provenance["digest"] == read_model(files["model"]).digest.hex()


@pytest.mark.parametrize("architecture", ["DynUNet", "UNet", "SegResNet"])
def test_each_output_channel_has_its_own_steps_in_transposed_kernels_too(architecture):
    chosen = study(network={"architecture": architecture, "channels": (8, 16, 32), "norm": "instance", "labels": ("a",)})
    module = network.build(chosen.network)
    named = network.transposed_kernels(module)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            axis = int(f"{name}.weight" in named)
            assert layer.weight.shape[axis] == layer.out_channels
    assert bool(named) == (architecture != "SegResNet")


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_predict_reads_a_packed_model(files, values, tmp_path):
    scan = tmp_path / "scan.nii.gz"
    sitk.WriteImage(scan_image((2.0, 2.0, 2.0), "LPS"), str(scan))
    small = tmp_path / "small.safetensors"
    assert export(files, "--out", small, "--values", values) == 0
    labels = []
    for number, model in enumerate((files["model"], small)):
        fixed = ("--plan", files["plan"], "--model", model, "--out", tmp_path / str(number))
        assert cli.main(["predict", str(scan), *map(str, fixed)]) == 0
        labels.append(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / str(number) / "scan-labels.nii.gz"))))
    assert (labels[0] == labels[1]).mean() > 0.97


def test_mistakes_are_one_sentence(files, capsys):
    folder = files["plan"].parent
    other = folder / "other.safetensors"
    other.write_bytes(encode_model(model_of(plan())))
    (folder / "full").mkdir()
    (folder / "full" / "a").write_text("a")
    for words, said in (
        (("--out", files["model"]), "is the released model itself"),
        (("--out", folder / "b", "--bundle", "--values", "int8"), "a bundle holds float32"),
        (("--out", folder / "full", "--bundle"), "is not empty"),
        (("--out", folder / "c", "--model", other), "cannot be exported with the plan"),
    ):
        assert export(files, *words) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in folder.iterdir()) == ["full", "model.safetensors", "other.safetensors", "plan.json"]


# ---- bundles ----


def scan_image(spacing, turned) -> sitk.Image:
    """Soft blobs, so that labels have shapes and not only grains."""
    noise = sitk.GetImageFromArray(np.random.default_rng(5).normal(size=(24, 30, 20)).astype(np.float32))
    smooth = sitk.SmoothingRecursiveGaussian(noise, 2.0) * 1000
    smooth.SetSpacing(spacing)
    smooth.SetOrigin((5.0, -3.0, 10.0))
    return sitk.DICOMOrient(smooth, turned)


@pytest.fixture
def bundled(files):
    folder = files["plan"].parent / "bundle"
    assert export(files, "--out", folder, "--bundle") == 0
    return folder


def test_monai_verifies_the_metadata_and_the_network(bundled, tmp_path, caplog):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SPECIFICATION))
    meta, config = str(bundled / "configs/metadata.json"), str(bundled / "configs/inference.json")
    caplog.set_level("INFO")
    monai_bundle.verify_metadata(meta_file=meta, filepath=str(schema))
    monai_bundle.verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config, device="cpu")
    assert "metadata is verified with no error" in caplog.text
    assert "data shape of network is verified with no error" in caplog.text
    broken = json.loads((bundled / "configs/metadata.json").read_text())
    del broken["network_data_format"]["outputs"]
    Path(meta).write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="'outputs' is a required property"):
        monai_bundle.verify_metadata(meta_file=meta, filepath=str(schema))


def test_the_bundle_labels_scans_as_predict_does(files, bundled):
    """Of any order of axes; resampled scans to the rounding of two libraries."""
    (bundled / "images").mkdir()
    scans = {
        "same": (((2.0, 2.0, 2.0), "LPS"), 0.999),
        "turned": (((2.0, 2.0, 2.0), "PIR"), 0.999),
        "resampled": (((1.5, 1.5, 3.0), "RAS"), 0.9),
    }
    for name, (given, _) in scans.items():
        sitk.WriteImage(scan_image(*given), str(bundled / "images" / f"{name}.nii.gz"))
    config, meta = (str(bundled / "configs" / name) for name in ("inference.json", "metadata.json"))
    monai_bundle.run(config_file=config, meta_file=meta, bundle_root=str(bundled))
    segmenter = Segmenter.of(study(), read_model(files["model"]))
    for name, (_, least) in scans.items():
        found = sitk.ReadImage(str(bundled / "labels" / f"{name}_labels.nii.gz"))
        wanted = segment(segmenter, bundled / "images" / f"{name}.nii.gz")
        assert found.GetPixelID() == sitk.sitkUInt8
        assert found.GetSize() == wanted.GetSize()
        assert found.GetOrigin() == pytest.approx(wanted.GetOrigin(), abs=1e-4)
        assert found.GetDirection() == pytest.approx(wanted.GetDirection(), abs=1e-6)
        one, other = sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(wanted)
        assert len(np.unique(other)) > 1
        assert (one == other).mean() > least, name


def test_monais_own_command_runs_it(bundled):
    pytest.importorskip("fire", reason="MONAI's command line needs the package fire: pip install '.[test]'")
    (bundled / "images").mkdir()
    sitk.WriteImage(scan_image((2.0, 2.0, 2.0), "LPS"), str(bundled / "images" / "one.nii.gz"))
    command = "-m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json"
    assert command in (bundled / "docs" / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=bundled, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (bundled / "labels").iterdir()] == ["one_labels.nii.gz"]


def test_a_ct_bundle_scales_with_the_plans_window():
    chosen = study(
        preparation={"modality": "CT", "window_hu": (-1000.0, 400.0), "spacing_xyz_mm": (2, 2, 2), "patch_zyx": (16,) * 3}
    )
    transforms = bundle.inference_config(chosen)["preprocessing"]["transforms"]
    (scaled,) = [one for one in transforms if one["_target_"] == "ScaleIntensityRanged"]
    assert (scaled["a_min"], scaled["a_max"], scaled["b_min"], scaled["b_max"], scaled["clip"]) == (-1000, 400, -1, 1, True)


def test_a_study_starts_from_the_bundle_of_another(files, bundled):
    wanted = read_model(files["model"])
    fresh = Model(wanted.layout, np.zeros_like(wanted.vector))
    start, match = start_from(read_checkpoint(bundled), fresh, partial=False)
    assert match.complete
    assert np.array_equal(start.vector, wanted.vector)
    assert start.provenance["made-by"] == "MONAI bundle trial 1.0.0"


def test_the_bundle_says_what_the_file_says(bundled):
    said = json.loads((bundled / "configs/metadata.json").read_text())
    assert Plan.model_validate(said["plan"]).digest().hex() == said["plan_digest"]
    assert said["privacy"] in said["description"]
    assert said["privacy"] in (bundled / "docs/README.md").read_text()
    assert said["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "bright", "2": "dark"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"architecture": "AttentionUnet", "channels": (8, 16)}}, "batch normalisation replaced"),
        (
            {"preparation": {"modality": "MR", "spacing_xyz_mm": (2, 2, 2), "patch_zyx": (16,) * 3, "equalise_below": 0.1}},
            "equalise_below",
        ),
    ],
)
def test_what_a_bundle_cannot_say_is_refused(changes, said):
    with pytest.raises(network.NetworkError, match=said):
        bundle.inference_config(study(**changes))


def test_nothing_is_written_where_the_model_does_not_fit(tmp_path):
    chosen = study()
    with pytest.raises(network.NetworkError, match="another network"):
        bundle.write_bundle(tmp_path / "b", card_of(chosen, model_of(chosen)), model_of(plan()))
    assert not (tmp_path / "b").exists()
    assert issubclass(ModelFileError, ValueError)
