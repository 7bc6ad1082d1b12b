"""From a hospital's file to a tensor: the part of a plan that says which voxels training sees.

Every rule looks at one scan at a time. None may use a number of the cohort: removing a patient must leave every other patient's
tensor as it is. What each field does is in hospital_node/IMAGING.md.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from proto.frozen import Frozen, Positive

WINDOWS_HU = {  # customary display windows: level -600 and width 1500, 40 and 400, 400 and 1800
    "lung": (-1350.0, 150.0),
    "soft-tissue": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
}
LEAST_PATCH = 8  # voxels on every axis

Spacing = tuple[Positive, Positive, Positive]


def _window(window: object) -> object:
    if isinstance(window, str):
        if window not in WINDOWS_HU:
            raise ValueError(f"'{window}' is none of {', '.join(WINDOWS_HU)}: name one of them, or write [low, high]")
        return WINDOWS_HU[window]
    return window


WindowHu = Annotated[tuple[float, float] | None, BeforeValidator(_window)]


class Preparation(Frozen):
    """From a hospital's file to a tensor; looks at one patient at a time.

    Modality "none" prepares nothing: the task of the network brings arrays of its own, of any shape. `window_hu` may be written
    as the name of a window; the plan then holds its numbers.
    """

    modality: Literal["CT", "MR", "none"]
    spacing_xyz_mm: Spacing
    window_hu: WindowHu = None  # CT: clipped to [low, high] and scaled to [-1, 1]; None: z-score per image
    patch_zyx: tuple[int, int, int]
    max_skipped_share: float = Field(default=0.1, ge=0, le=1)  # more unreadable studies than this: the node declines
    hounsfield_check: bool = False  # CT: skip scans that hold no air or no tissue where Hounsfield units have them
    equalise_below: float | None = Field(default=None, gt=0, le=1)  # contrast of one scan under which it is equalised
    fine_below_mm: Positive | None = None  # a scan whose smallest structure is smaller gets the finer grid
    fine_spacing_xyz_mm: Spacing | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.window_hu is not None and self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu needs low < high")
        if min(self.patch_zyx) < (1 if self.modality == "none" else LEAST_PATCH):
            least = 1 if self.modality == "none" else LEAST_PATCH
            raise ValueError(f"patch_zyx must be at least {least} voxels on every axis")
        if self.hounsfield_check and self.modality != "CT":
            raise ValueError(f"hounsfield_check is for CT, the modality is {self.modality}: leave it out")
        self._check_fine()
        return self

    def _check_fine(self) -> None:
        fine = self.fine_spacing_xyz_mm
        if (fine is None) != (self.fine_below_mm is None):
            raise ValueError("fine_below_mm and fine_spacing_xyz_mm go together: give both or none")
        if fine is not None and (
            fine == self.spacing_xyz_mm or any(a > b for a, b in zip(fine, self.spacing_xyz_mm, strict=True))
        ):
            raise ValueError("fine_spacing_xyz_mm must be finer than spacing_xyz_mm and on no axis coarser")
