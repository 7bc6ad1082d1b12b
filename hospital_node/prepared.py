"""Prepared volumes as training reads them: memory-mapped arrays grouped by patient under opaque keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """One scan on the plan's grid. Both arrays are (z, y, x), equal in shape and may be smaller than the patch."""

    image: NDArray[np.float32] = field(repr=False)
    label: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PreparedPatient:
    """All scans of one patient: one record. `key` is a keyed hash that means nothing outside this cache."""

    key: str = field(repr=False)
    cases: tuple[PreparedCase, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PreparedCohort:
    """Patients sorted by key. `skipped` counts studies left out, by code; `rebuilt` counts damaged cache entries made anew."""

    patients: tuple[PreparedPatient, ...] = field(repr=False)
    skipped: Mapping[str, int] = field(default_factory=dict)
    rebuilt: int = 0

    @property
    def cases(self) -> int:
        """Number of prepared scans."""
        return sum(len(patient.cases) for patient in self.patients)
