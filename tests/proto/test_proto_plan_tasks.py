"""Plans of a study's own task: the network that it names, and arrays that nobody prepares."""

import pytest
from pydantic import ValidationError

from proto.plan import Plan, Preparation

HOSPITALS = [{"uri": f"secagg://trial/hospital/{name}", "declared_patients": 40} for name in ("a", "b", "c")]


def fields(architecture, modality, patch_zyx):
    return {
        "study": "trial",
        "rounds": 3,
        "network": {"labels": ["accuracy"], "architecture": architecture},
        "preparation": {"modality": modality, "spacing_xyz_mm": [1, 1, 1], "patch_zyx": patch_zyx},
        "training": {"local_steps": 2},
        "privacy": {"noise_multiplier": 1.0, "inverse_sampling_rate": 4},
        "hospitals": HOSPITALS,
    }


@pytest.mark.parametrize("architecture", ["task:digits", "task:chest-2d", "task:7"])
def test_a_task_names_its_network_and_brings_arrays_of_any_shape(architecture):
    plan = Plan.model_validate(fields(architecture, "none", [1, 8, 8]))
    assert plan.network.architecture == architecture
    assert plan.preparation.patch_zyx == (1, 8, 8)


@pytest.mark.parametrize(
    "architecture", ["task:", "task:Digits", "task:a b", "task:-a", "tasks:digits", "ResNet", "task:a\n", ""]
)
def test_any_other_name_of_a_network_is_refused_with_the_choices(architecture):
    with pytest.raises(ValidationError, match=r"none of AttentionUnet, .*, VNet and not of the form task:<name>"):
        Plan.model_validate(fields(architecture, "none", [1, 8, 8]))


@pytest.mark.parametrize("architecture", ["DynUNet", "UNet"])
def test_a_segmentation_network_needs_prepared_scans(architecture):
    with pytest.raises(ValidationError, match=f"'none' leaves {architecture} without scans: say CT or MR"):
        Plan.model_validate(fields(architecture, "none", [8, 8, 8]))
    Plan.model_validate(fields("task:digits", "MR", [8, 8, 8]))


@pytest.mark.parametrize(
    ("modality", "patch_zyx", "least"), [("MR", (8, 7, 8), 8), ("CT", (1, 8, 8), 8), ("none", (0, 8, 8), 1)]
)
def test_sides_of_a_patch_have_a_lower_bound(modality, patch_zyx, least):
    with pytest.raises(ValidationError, match=f"at least {least} voxels on every axis"):
        Preparation(modality=modality, spacing_xyz_mm=(1, 1, 1), patch_zyx=patch_zyx)
