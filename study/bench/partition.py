"""Who gets which patients: dealing whole patients to simulated hospitals, and the proof that none was lost, doubled or split.

Rules: a deal is a function of the patients' names (and their label statistics or kinds, where the partition uses them), the
partition and the seed, never of the order in which patients come; random numbers are numpy's PCG64 under a SHA-256 of seed and
names. Every hospital gets at least MIN_PATIENTS. What goes wrong is said in counts, never with a patient's name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np

from proto.plan import MIN_COHORT
from study.bench.cells import Partition
from study.bench.skew import HospitalRow, classes_of, describe, skew
from study.bench.task import StudyError, Unit

__all__ = ["MIN_PATIENTS", "Deal", "HospitalRow", "Shift", "check", "deal", "describe", "re_deal", "skew"]

Shift: TypeAlias = Callable[[Sequence[Unit], str, float, int], tuple[Unit, ...]]  # Task.shifted: units, by, strength, seed
Deal: TypeAlias = dict[str, tuple[Unit, ...]]
Hands: TypeAlias = list[list[Unit]]
Method: TypeAlias = Callable[[Sequence[Unit], int, Partition, np.random.Generator], Hands]

MIN_PATIENTS: Final = 2  # of a hospital: with one, its update would be that patient's
KINDS_PER_HOSPITAL: Final = 2  # of "label-kind", as in McMahan et al. 2017, arXiv 1602.05629
CONCENTRATION: Final = (1e-6, 1e6)  # beyond these a Dirichlet draw is as uneven, or as even, as it gets
SEED_LABEL: Final = b"hospital-secagg study deal v1\n"
SHIFTED_BY: Final = MappingProxyType({"quality": ("noise", "resolution"), "domain": ("intensity", "scanner")})


def deal(units: Sequence[Unit], partition: Partition, seed: int, shift: Shift, *, test: Iterable[Unit] = ()) -> Deal:
    """Patients of each hospital, by its short name; patients of one hospital are in the order of their names.

    Hospitals are the folder's sites (`sites`), otherwise `hospital-01` and so on: as many as `partition.hospitals` says, or as
    the folder has sites. `shift` is the task's own and is called for a hospital at a time. `test` patients must not be dealt.

    - `iid`: shuffled, sizes differ by one at most.
    - `dirichlet`: Hsu, Qi and Brown 2019 (arXiv 1909.06335). Patients have the classes of `skew.classes_of`: their label where
      all have the same total of labels (classification), otherwise the fifth of the labelled volume (segmentation).
      Each hospital draws its mixture of classes from Dirichlet(alpha p), p being the shares in the whole; then the hospitals
      take turns, each drawing a class from its mixture among the classes that still have patients. Sizes differ by one at most.
    - `quantity`: sizes are MIN_PATIENTS and a Dirichlet(alpha) share of the rest; who goes where is chance.
    - `label-kind`: each hospital holds patients of KINDS_PER_HOSPITAL kinds at most (one where there are two kinds; more where
      the kinds would not fit otherwise), never of all; common kinds go to more hospitals than rare ones.
    - `quality`: `iid`, then hospital i of n is shifted by `noise` or `resolution` of strength (i - 1) / (n - 1) * `strength`.
    - `domain` by `intensity`: the same with that shift. By `scanner`: patients sorted by kind and cut into equal parts, after a
      share 1 - `strength` of them was mixed, so that each hospital has mostly one kind and none is a pure copy of it.

    Raises StudyError where the patients do not allow it.
    """
    ordered = sorted(units, key=_name)
    hands = _sites(ordered, partition) if partition.kind == "sites" else _redealt(ordered, partition, seed)
    dealt = {name: tuple(sorted(hand, key=_name)) for name, hand in hands.items()}
    check(dealt, ordered, test=test)
    shifted = _shifted(dealt, partition, seed, shift)
    check(shifted, ordered, test=test)
    return shifted


def re_deal(
    dealt: Mapping[str, Sequence[Unit]],
    partition: Partition,
    seed: int,
    shift: Shift,
    *,
    units: Sequence[Unit],
    test: Iterable[Unit] = (),
) -> Deal:
    """Deal the patients of an existing deal anew, after it was checked against `units`, the patients as they were read.

    They are dealt from `units`, because a shift of the earlier deal cannot be undone on its patients. Raises StudyError.
    """
    held_out = tuple(test)
    check(dealt, units, test=held_out)
    return deal(units, partition, seed, shift, test=held_out)


def check(dealt: Mapping[str, Sequence[Unit]], units: Iterable[Unit], *, test: Iterable[Unit] = ()) -> None:
    """Raise StudyError unless each of `units` is with exactly one hospital, nobody else is, and no hospital is too small."""
    times = Counter(unit.name for unit in chain.from_iterable(dealt.values()))
    expected = Counter(unit.name for unit in units)
    wrong = {
        "listed twice in the data: correct the folder's list": sum(count > 1 for count in expected.values()),
        "both dealt and in the test set: correct the folds": len(times.keys() & {unit.name for unit in test}),
        "dealt more than once: deal again from the folder": sum(count > 1 for count in times.values()),
        "dealt but not in the data: deal again from the folder": len(times.keys() - expected.keys()),
        "in the data but with no hospital: deal again from the folder": len(expected.keys() - times.keys()),
        "under another patient's name: the task's shift mixed them up": _mistaken(dealt),
    }
    for what, count in wrong.items():
        if count:
            raise StudyError(f"{count} patient{'s are' if count > 1 else ' is'} {what}")
    small = sum(len(hand) < MIN_PATIENTS for hand in dealt.values())
    if small or not dealt:
        raise StudyError(
            f"{small} of {len(dealt)} hospitals would have fewer than {MIN_PATIENTS} patients: "
            "lower partition.hospitals, or choose another partition.kind or a larger partition.alpha"
        )


def _mistaken(dealt: Mapping[str, Sequence[Unit]]) -> int:
    everybody = chain.from_iterable(dealt.values())
    return sum(getattr(unit.patient, "key", unit.name) != unit.name for unit in everybody)


def _sites(units: Sequence[Unit], partition: Partition) -> dict[str, list[Unit]]:
    hands: dict[str, list[Unit]] = {}
    named: dict[str, str] = {}
    for unit in units:
        if unit.site is None:
            raise StudyError(
                'partition.kind = "sites" needs a site for every patient: choose another kind, or add sites to split.csv'
            )
        name = re.sub(r"[^a-z0-9]+", "-", unit.site.lower()).strip("-")
        if not name or named.setdefault(name, unit.site) != unit.site:
            raise StudyError(f"site '{unit.site}' has no short name of its own in small letters and digits: rename it")
        hands.setdefault(name, []).append(unit)
    if partition.hospitals not in {None, len(hands)}:
        raise StudyError(
            f"partition.hospitals = {partition.hospitals}, but the folder has {len(hands)} sites: leave the key out, "
            "or choose a kind that deals anew"
        )
    _enough_hospitals(len(hands))
    return dict(sorted(hands.items()))


def _redealt(units: Sequence[Unit], partition: Partition, seed: int) -> dict[str, list[Unit]]:
    count = partition.hospitals or len({unit.site for unit in units} - {None})
    _enough_hospitals(count)
    if len(units) < MIN_PATIENTS * count:
        raise StudyError(
            f"{len(units)} patients are too few for {count} hospitals of at least {MIN_PATIENTS}: lower partition.hospitals "
            f"to {len(units) // MIN_PATIENTS} or less"
        )
    chance = np.random.Generator(np.random.PCG64(_seed(units, partition.kind, seed)))
    hands = _method(partition)(units, count, partition, chance)
    digits = max(2, len(str(count)))
    return {f"hospital-{number:0{digits}d}": hand for number, hand in enumerate(hands, 1)}


def _enough_hospitals(count: int) -> None:
    if count < MIN_COHORT:
        raise StudyError(f"a federation needs at least {MIN_COHORT} hospitals, here are {count}: set partition.hospitals")


def _seed(units: Sequence[Unit], kind: str, seed: int) -> int:
    """The same for the same patients on every machine; `alpha` is left out, so that a sweep over it changes nothing else."""
    content = json.dumps([kind, seed, [unit.name for unit in units]], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(SEED_LABEL + content.encode()).digest(), "big")


def _method(partition: Partition) -> Method:
    by = partition.by
    if partition.kind in SHIFTED_BY and by not in SHIFTED_BY[partition.kind]:
        choices = " or ".join(f'"{choice}"' for choice in SHIFTED_BY[partition.kind])
        raise StudyError(f'partition.kind = "{partition.kind}" needs partition.by = {choices}, not {by!r}')
    methods: dict[str, Method] = {"dirichlet": _dirichlet, "quantity": _quantity, "label-kind": _label_kind}
    return _by_scanner if by == "scanner" and partition.kind == "domain" else methods.get(partition.kind, _iid)


def _iid(units: Sequence[Unit], count: int, _partition: Partition, chance: np.random.Generator) -> Hands:
    shuffled = _shuffled(units, chance)
    return [shuffled[first::count] for first in range(count)]


def _dirichlet(units: Sequence[Unit], count: int, partition: Partition, chance: np.random.Generator) -> Hands:
    classes = classes_of(units)
    present = sorted(set(classes))
    if len(present) < 2:
        raise StudyError(
            'partition.kind = "dirichlet" needs label statistics that differ between patients: choose another kind, as "iid"'
        )
    members = [[unit for unit, own in zip(units, classes, strict=True) if own == one] for one in present]
    lots = [_shuffled(group, chance) for group in members]
    prior = np.array([len(lot) for lot in lots]) / len(units)
    mixtures = chance.dirichlet(np.clip(partition.alpha * prior, *CONCENTRATION), size=count)
    hands: Hands = [[] for _ in range(count)]
    for turn in range(len(units)):
        left = np.array([len(lot) for lot in lots], np.float64)
        weights = mixtures[turn % count] * (left > 0)
        hands[turn % count].append(lots[_drawn(weights if weights.sum() > 0 else left, chance)].pop())
    return hands


def _drawn(weights: np.ndarray[tuple[int], np.dtype[np.float64]], chance: np.random.Generator) -> int:
    """An index with a chance in proportion to its weight; never one of weight 0."""
    possible = np.flatnonzero(weights)
    steps = np.cumsum(weights[possible])
    place = np.searchsorted(steps, chance.random() * steps[-1], side="right")
    return int(possible[min(int(place), len(possible) - 1)])


def _quantity(units: Sequence[Unit], count: int, partition: Partition, chance: np.random.Generator) -> Hands:
    shuffled = _shuffled(units, chance)
    shares = chance.dirichlet(np.full(count, float(np.clip(partition.alpha, *CONCENTRATION))))
    exact = shares * (len(units) - MIN_PATIENTS * count)
    sizes = np.floor(exact).astype(int) + MIN_PATIENTS
    largest_remainders = np.argsort(np.floor(exact) - exact, kind="stable")
    sizes[largest_remainders[: len(units) - int(sizes.sum())]] += 1
    ends = np.cumsum(sizes)
    return [shuffled[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _label_kind(units: Sequence[Unit], count: int, _partition: Partition, chance: np.random.Generator) -> Hands:
    groups = _groups(units, chance)
    holders = _holders({kind: len(group) for kind, group in groups.items()}, count)
    hands: Hands = [[] for _ in range(count)]
    for kind in sorted(groups, key=lambda one: (len(groups[one]), one)):  # rare ones first: common ones then fill up
        for unit in groups[kind]:
            hands[min(holders[kind], key=lambda place: (len(hands[place]), place))].append(unit)
    return hands


def _holders(sizes: Mapping[str, int], count: int) -> dict[str, list[int]]:
    """Places of the hospitals that hold each kind: in proportion to its patients, no hospital beyond its number of kinds."""
    kinds_each = max(min(KINDS_PER_HOSPITAL, len(sizes) - 1), math.ceil(len(sizes) / count))
    seats = dict.fromkeys(sizes, 1)
    while sum(seats.values()) < kinds_each * count:
        open_kinds = [kind for kind in sizes if seats[kind] < min(count, sizes[kind])]
        if not open_kinds:
            break
        seats[max(open_kinds, key=lambda kind: sizes[kind] / seats[kind])] += 1
    row = [kind for kind in sizes for _ in range(seats[kind])]  # a kind's run is no longer than `count`: places are distinct
    return {kind: [place % count for place, other in enumerate(row) if other == kind] for kind in sizes}


def _by_scanner(units: Sequence[Unit], count: int, partition: Partition, chance: np.random.Generator) -> Hands:
    row = list(chain.from_iterable(_groups(units, chance).values()))
    mixed = np.flatnonzero(chance.random(len(row)) >= partition.strength)
    for place, unit in zip(mixed, [row[place] for place in chance.permutation(mixed)], strict=True):
        row[place] = unit
    ends = [len(row) * number // count for number in range(count + 1)]
    return [row[first:last] for first, last in pairwise(ends)]


def _groups(units: Sequence[Unit], chance: np.random.Generator) -> dict[str, list[Unit]]:
    """Patients by kind, kinds and patients shuffled. Raises StudyError where all are of one kind."""
    kinds = sorted({unit.kind for unit in units})
    if len(kinds) < 2:
        raise StudyError("all patients are of one kind, so they cannot be dealt by kind or scanner: choose another partition")
    order = [kinds[place] for place in chance.permutation(len(kinds))]
    return {kind: _shuffled([unit for unit in units if unit.kind == kind], chance) for kind in order}


def _shuffled(units: Sequence[Unit], chance: np.random.Generator) -> list[Unit]:
    return [units[place] for place in chance.permutation(len(units))]


def _shifted(dealt: Deal, partition: Partition, seed: int, shift: Shift) -> Deal:
    by = partition.by
    if partition.kind not in SHIFTED_BY or by is None or by == "scanner":
        return dealt
    worst = len(dealt) - 1
    strengths = [partition.strength * place / worst for place in range(len(dealt))]
    return {
        name: tuple(sorted(shift(hand, by, strength, seed), key=_name)) if strength else hand
        for (name, hand), strength in zip(dealt.items(), strengths, strict=True)
    }


def _name(unit: Unit) -> str:
    return unit.name
