"""A hospital's own scans with what a model drew on them, for the hospital's own app: the read side, and the file format.

Rules: nothing here is sent anywhere, and nothing names a patient or a file; scans are numbered in the order of keys that mean
nothing outside this node. Files are readable by their owner only. `scans.json` is written last, so an interrupted run leaves
the old set or the new one. No torch here: the app reads this file's formats.
"""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, ValidationError

from hospital_node.durable import write_whole
from proto.plan import Frozen, Plan

SCANS_FOLDER: Final = "scans"  # in the node's state folder
INDEX_FILE: Final = "scans.json"
OWNER_ONLY = 0o700


class ScansError(RuntimeError):
    """Scans that cannot be read or written; one sentence that names the file and the remedy."""


class ScanEntry(Frozen):
    """One scan of the set. Dice is None for a label that the truth does not hold."""

    number: int
    shape_zyx: tuple[int, int, int]
    dice: dict[str, float | None]

    @property
    def mean_dice(self) -> float | None:
        """Mean over the labels that the truth holds."""
        known = [value for value in self.dice.values() if value is not None]
        return sum(known) / len(known) if known else None


class ScanIndex(Frozen):
    """What the set is of. `window_hu`: images are Hounsfield units, clipped to it; None: relative values of one scan."""

    study: str
    folder: str  # of this set, below the scans folder
    model: str  # digest
    round: int | None  # of the model, where its file says so
    made_at: AwareDatetime
    labels: tuple[str, ...]
    spacing_xyz_mm: tuple[float, float, float]
    window_hu: tuple[float, float] | None
    scans: tuple[ScanEntry, ...]


@dataclass(frozen=True, slots=True)
class Scan:
    """Arrays (z, y, x) of one shape; x to the patient's left, y to the back, z to the head."""

    image: NDArray[np.float32] = field(repr=False)
    truth: NDArray[np.uint8] = field(repr=False)
    prediction: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prepared scan (`image` as the network sees it) and what was drawn on it."""

    scan: Scan
    dice: Mapping[str, float | None]


def write_scans(
    state: Path, plan: Plan, model: str, number: int | None, made_at: datetime, drawn: Iterable[Drawn]
) -> ScanIndex:
    """Replace the set of a state folder. `model`: digest; `number`: its round. Raises ScansError."""
    top = state / SCANS_FOLDER
    name = f"{made_at:%Y%m%dT%H%M%S}-{model[:12]}"
    try:
        (top / name).mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
        top.chmod(OWNER_ONLY)
        entries = [_write_scan(top / name, place, one, plan) for place, one in enumerate(drawn, start=1)]
        index = ScanIndex(
            study=plan.study,
            folder=name,
            model=model,
            round=number,
            made_at=made_at,
            labels=plan.network.labels,
            spacing_xyz_mm=plan.preparation.spacing_xyz_mm,
            window_hu=plan.preparation.window_hu,
            scans=tuple(entries),
        )
        write_whole(top / INDEX_FILE, index.model_dump_json().encode())
        for old in top.iterdir():
            if old.is_dir() and old.name != name:
                shutil.rmtree(old)
    except OSError as error:
        raise ScansError(f"cannot write scans in {top} ({error.strerror}): free space or correct its permissions") from error
    return index


def forget_scans(state: Path) -> None:
    """Delete the set of a state folder with all its pictures, if there is one. Raises ScansError where anything stays."""
    top = state / SCANS_FOLDER
    try:
        shutil.rmtree(top)
    except OSError as error:
        if not os.path.lexists(top):
            return
        raise ScansError(  # also of a picture that vanished meanwhile: the others are still there
            f"cannot delete the pictures in {top} ({error.strerror}): correct the permissions, or let a drawing end "
            "that is under way, then give the command again"
        ) from error


def _write_scan(folder: Path, number: int, drawn: Drawn, plan: Plan) -> ScanEntry:
    content = io.BytesIO()
    image = hounsfield(drawn.scan.image, plan.preparation.window_hu).astype(np.float16)
    np.savez_compressed(content, image=image, truth=drawn.scan.truth, prediction=drawn.scan.prediction)
    descriptor = os.open(folder / f"{number}.npz", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content.getvalue())
    z, y, x = drawn.scan.truth.shape
    return ScanEntry(number=number, shape_zyx=(z, y, x), dice=dict(drawn.dice))


def hounsfield(image: NDArray[np.float32], window_hu: tuple[float, float] | None) -> NDArray[np.float32]:
    """Prepared values back in Hounsfield units, as far as the window kept them; as they are where there was none."""
    if window_hu is None:
        return np.asarray(image, dtype=np.float32)
    low, high = window_hu
    return np.asarray(image, dtype=np.float32) * np.float32((high - low) / 2) + np.float32((high + low) / 2)


def read_index(state: Path) -> ScanIndex | None:
    """The set of a state folder; None where there is none. Raises ScansError."""
    path = state / SCANS_FOLDER / INDEX_FILE
    try:
        return ScanIndex.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ScansError(f"{path} cannot be read: make the scans again with `secagg-node data draw`") from error


def read_scan(state: Path, name: str, number: int) -> Scan:
    """One scan of the set in folder `name`. Raises ScansError where it is missing or damaged."""
    path = state / SCANS_FOLDER / name / f"{number}.npz"
    try:
        with np.load(path) as arrays:
            image, truth, prediction = arrays["image"], arrays["truth"], arrays["prediction"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ScansError(f"{path} cannot be read: make the scans again with `secagg-node data draw`") from error
    if not image.shape == truth.shape == prediction.shape or image.ndim != 3:
        raise ScansError(f"{path} is damaged: make the scans again with `secagg-node data draw`")
    return Scan(image.astype(np.float32), truth.astype(np.uint8), prediction.astype(np.uint8))
