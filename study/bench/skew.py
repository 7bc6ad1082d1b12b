"""How uneven a deal is: label shares and kinds by hospital, and their distance from the whole.

Rule: rows are for people and hold counts and shares only, never a patient's name. They are exact and covered by no privacy
mechanism, so on private patients they belong on the hospital's own screen and in nothing that leaves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from study.bench.task import StudyError, Unit

VOLUME_BINS: Final = 5  # classes of patients by labelled volume


@dataclass(frozen=True, slots=True)
class HospitalRow:
    """One hospital of a deal. Label shares are of all its labelled voxels (or cases), empty where nothing is labelled."""

    hospital: str
    patients: int
    label_shares: tuple[float, ...]
    kinds: tuple[tuple[str, int], ...]  # (kind, patients), by name
    distance: float  # total variation between its patients' classes and those of all patients, in [0, 1)


def describe(dealt: Mapping[str, Sequence[Unit]]) -> tuple[HospitalRow, ...]:
    """One row for each hospital, in the order of the deal."""
    everybody = [unit for hand in dealt.values() for unit in hand]
    found: Sequence[Hashable] = classes_of(everybody) if _has_labels(everybody) else [unit.kind for unit in everybody]
    classes = dict(zip((unit.name for unit in everybody), found, strict=True))
    whole = _shares([classes[unit.name] for unit in everybody])
    return tuple(
        HospitalRow(
            hospital=name,
            patients=len(hand),
            label_shares=_label_shares(hand),
            kinds=tuple(sorted(Counter(unit.kind for unit in hand).items())),
            distance=total_variation(_shares([classes[unit.name] for unit in hand]), whole),
        )
        for name, hand in dealt.items()
    )


def skew(rows: Sequence[HospitalRow]) -> float:
    """Mean over the hospitals of `distance`: 0 where each has the whole's mixture, near 1 where each has its own class."""
    return math.fsum(row.distance for row in rows) / len(rows) if rows else 0.0


def classes_of(units: Sequence[Unit]) -> list[int]:
    """A class for each patient, by label statistics alone.

    Classification: where all patients have the same total over two or more labels (one-hot, or equally many cases each), the
    label of which they have most. Segmentation: the fifth of the labelled volume, bounded by order statistics, so that patients
    of equal volume share a class. Raises StudyError where a patient has no label statistics.
    """
    if not _has_labels(units):
        raise StudyError("these patients come without label statistics: choose a partition that needs none, as iid or quantity")
    totals = [math.fsum(unit.label_counts) for unit in units]
    if len(set(totals)) == 1 and len(units[0].label_counts) > 1:
        return [max(range(len(unit.label_counts)), key=unit.label_counts.__getitem__) for unit in units]
    ranked = sorted(totals)
    bounds = sorted({ranked[len(ranked) * part // VOLUME_BINS] for part in range(1, VOLUME_BINS)})
    return [sum(bound <= total for bound in bounds) for total in totals]


def total_variation(one: Mapping[Hashable, float], other: Mapping[Hashable, float]) -> float:
    """Half the sum of the absolute differences of two distributions."""
    return math.fsum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other}) / 2


def _has_labels(units: Sequence[Unit]) -> bool:
    return bool(units) and all(unit.label_counts for unit in units)


def _shares(classes: Sequence[Hashable]) -> dict[Hashable, float]:
    return {one: count / len(classes) for one, count in Counter(classes).items()}


def _label_shares(units: Sequence[Unit]) -> tuple[float, ...]:
    if not _has_labels(units):
        return ()
    sums = [math.fsum(column) for column in zip(*(unit.label_counts for unit in units), strict=True)]
    whole = math.fsum(chain(sums))
    return tuple(value / whole for value in sums) if whole else ()
