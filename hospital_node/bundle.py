"""A released model as a MONAI bundle: anybody with MONAI runs it, without this software.

Rule: the bundle does what `secagg-node predict` does, in MONAI's own transforms: axes to LPS, the plan's intensities, its
spacing, overlapping windows, and labels back on the grid of each file. It differs in rounding where a scan is resampled. What
cannot be said in MONAI's words is refused, never left out.

The layout is that of the MONAI Bundle Specification: configs/metadata.json, configs/inference.json, models/model.pt, docs/.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from hospital_node import network
from hospital_node.architectures import arguments_of, says_its_norm
from hospital_node.durable import write_whole
from hospital_node.intensity import HIGH_PERCENTILE, LOW_PERCENTILE
from hospital_node.model_card import Card
from proto.modelfile import Model, ModelFileError
from proto.plan import Plan, Preparation

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
VERSION = "1.0.0"  # of the layout below, not of the model, which its digest names
OVERLAP = 0.25
READER = ("nibabel", "5.3.0")  # what the transforms need beside MONAI itself
TURNED = (0, 1, 4, 3, 2)  # MONAI's arrays are (x, y, z), the network was trained on (z, y, x)


def write_bundle(folder: Path, card: Card, model: Model) -> None:
    """Write the whole bundle into `folder`, which must be new or empty. Raises ModelFileError and NetworkError."""
    if folder.exists() and any(folder.iterdir()):
        raise ModelFileError(f"{folder} is not empty: name a new folder for the bundle")
    inference = inference_config(card.plan)
    module = network.build(card.plan.network)
    network.load_vector(module, model.layout, model.vector)
    weights = io.BytesIO()
    torch.save(module.state_dict(), weights)
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_whole(folder / "models" / "model.pt", weights.getvalue())
    write_whole(folder / "configs" / "inference.json", _json(inference))
    write_whole(folder / "docs" / "README.md", _readme(card).encode())
    write_whole(folder / "configs" / "metadata.json", _json(metadata(card)))  # last: a folder with it is whole


def metadata(card: Card) -> dict[str, Any]:
    """What the bundle says of itself; `privacy`, `plan` and `model_digest` are ours."""
    plan = card.plan
    shape = list(plan.preparation.patch_zyx)
    classes = {"0": "background", **{str(value): label for value, label in enumerate(plan.network.labels, start=1)}}
    image = {
        "type": "image",
        "format": "hounsfield" if plan.preparation.window_hu else "magnitude",
        "modality": plan.preparation.modality,
        "num_channels": 1,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [-1, 1] if plan.preparation.window_hu else [],
        "is_patch_data": True,
        "channel_def": {"0": "image"},
    }
    pred = {
        "type": "image",
        "format": "segmentation",
        "num_channels": plan.network.classes,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": classes,
    }
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"study {plan.study}, model {card.digest[:12]}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": dict([READER]),
        "name": plan.study,
        "task": f"segmentation of {', '.join(plan.network.labels)} in {plan.preparation.modality}",
        "description": f"Trained by {len(plan.hospitals)} hospitals together. {card.sentence}",
        "authors": f"the hospitals of study {plan.study}",
        "copyright": f"the hospitals of study {plan.study}",
        "intended_use": "Research. This is no medical device.",
        "privacy": card.sentence,
        "model_digest": card.digest,
        "plan_digest": plan.digest().hex(),
        "plan": json.loads(plan.canonical()),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def inference_config(plan: Plan) -> dict[str, Any]:
    """Loads every volume of `dataset_dir`, writes one label volume each into `output_dir`. Raises NetworkError."""
    patch = tuple(plan.preparation.patch_zyx)
    window = f"{patch}, 4, @network, overlap={OVERLAP}, mode='gaussian', cval=float(image.min())"
    return {
        "imports": ["$import glob", "$import torch", "$from monai.inferers import sliding_window_inference"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii*'))]",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": _network_def(plan),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(plan.preparation)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "infer": f"$lambda image: sliding_window_inference(image.permute{TURNED}, {window}).permute{TURNED}.softmax(1)",
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing()},
        "predict": "$lambda item: @postprocessing({**item, 'pred': @infer(item['image'][None].to(@device))[0]})",
        "weights": "$torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True)",
        "initialize": ["$@network.load_state_dict(@weights)", "$@network.eval()", "$torch.set_grad_enabled(False)"],
        "run": ["$len(list(map(@predict, @dataset)))"],
    }


def _network_def(plan: Plan) -> dict[str, Any]:
    given = arguments_of(plan.network)
    if not says_its_norm(given):
        raise network.NetworkError(
            f"{plan.network.architecture} has MONAI's batch normalisation replaced after it was built, which a bundle cannot "
            "say: export the model without --bundle"
        )
    return {"_target_": plan.network.architecture, **{name: _said(value) for name, value in given.items()}}


def _said(value: Any) -> Any:
    """Tuples as expressions: JSON has lists alone, and MONAI takes (name, options) pairs as tuples only."""
    return f"${value!r}" if isinstance(value, tuple) else value


def _preprocessing(preparation: Preparation) -> list[dict[str, Any]]:
    if preparation.equalise_below is not None:
        raise network.NetworkError(
            "the plan equalises scans of low contrast (preparation.equalise_below), which MONAI's transforms cannot say: "
            "export the model without --bundle"
        )
    edges = {"mode": "bilinear", "scale_extent": True}  # the outer edge of a scan stays, as on the node's own grid
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "LPS"},
        *_intensities(preparation),
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(preparation.spacing_xyz_mm), **edges},
    ]


def _intensities(preparation: Preparation) -> list[dict[str, Any]]:
    if preparation.window_hu:
        low, high = preparation.window_hu
        bounds = {"a_min": low, "a_max": high, "b_min": -1.0, "b_max": 1.0, "clip": True}
        return [{"_target_": "ScaleIntensityRanged", "keys": "image", **bounds}]
    tails = {"lower": LOW_PERCENTILE, "upper": HIGH_PERCENTILE}
    return [
        {"_target_": "ClipIntensityPercentilesd", "keys": "image", **tails},
        {"_target_": "NormalizeIntensityd", "keys": "image"},
    ]


def _postprocessing() -> list[dict[str, Any]]:
    back = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False, "to_tensor": True}
    place = {"output_dir": "@output_dir", "output_postfix": "labels", "separate_folder": False}
    return [
        {"_target_": "Invertd", "keys": "pred", **back},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dtype": "$torch.uint8", "resample": False, **place},
    ]


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=4, ensure_ascii=False).encode() + b"\n"


def _readme(card: Card) -> str:
    labels = "\n".join(f"- {value}: {label}" for value, label in enumerate(card.plan.network.labels, start=1))
    return f"""# {card.plan.study}

{card.sentence}

Labels:

{labels}

Put NIfTI volumes ({card.plan.preparation.modality}) into `images/` and run, in this folder:

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json

Label volumes come into `labels/`, in the geometry of each scan. The plan of the study and the digest of the model are in
`configs/metadata.json`. For research; this is no medical device.
"""
