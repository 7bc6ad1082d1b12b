"""Short names for settings: what tells them apart, and nothing else.

A study often varies several fields together (a plan, its start, its rounds). One of them then tells settings apart as well as
all of them do, and a name that lists every one cannot be read. Epsilon is never left out where it differs: it is what is paid.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence

from study.bench.cells import Cell, Setting

EPSILON = "epsilon"

Settings = Mapping[str, Setting]


def with_epsilon_in(source: str) -> frozenset[str]:
    """Settings that a stored study file says were chosen for each epsilon; it was checked when it was read."""
    try:
        return frozenset(tomllib.loads(source).get("with_epsilon", ()))
    except tomllib.TOMLDecodeError:  # results that were written without a study file
        return frozenset()


def without(settings: Settings, names: Collection[str]) -> dict[str, Setting]:
    """The other settings."""
    return {name: value for name, value in settings.items() if name not in names}


def telling(several: Sequence[Settings], kinds: Sequence[Hashable] | None = None) -> tuple[str, ...]:
    """Names of the settings that tell `several` apart, in their order; dropped are those without which they stay apart.

    Later names go first, and none goes because another epsilon tells settings apart too. `kinds`: what tells them apart anyway,
    such as their methods; equal for all where left out.
    """
    known = kinds or [0] * len(several)
    varied = differing(several)
    kept = [name for name in varied if name != EPSILON]
    distinct = len(_keys(several, known, kept))
    for name in reversed(kept):
        fewer = [one for one in kept if one != name]
        if len(_keys(several, known, fewer)) == distinct:
            kept = fewer
    return tuple(name for name in varied if name == EPSILON or name in kept)


def differing(several: Sequence[Settings]) -> tuple[str, ...]:
    """Names of all settings that are not the same in all of `several`, in the order in which they come up."""
    names = dict.fromkeys(name for one in several for name in one)
    return tuple(name for name in names if len({shown(one.get(name)) for one in several}) > 1)


def shown(value: object) -> str:
    """A setting's value for people."""
    if isinstance(value, float):
        return "infinity" if math.isinf(value) else f"{value:g}"
    if isinstance(value, list):
        return "x".join(shown(one) for one in value)
    return str(value)


def said(settings: Settings, names: Collection[str]) -> list[str]:
    """`name value` of each of these settings that there is."""
    return [f"{name} {shown(value)}" for name, value in settings.items() if name in names]


def in_words(settings: Settings, names: Collection[str]) -> list[str]:
    """As `said`, for pictures: `local steps 4` for `training.local_steps 4` where no other setting ends in that word."""
    ends = Counter(name.rsplit(".", 1)[-1] for name in {*names, *settings})
    return [f"{_word(name, ends)} {shown(value)}" for name, value in settings.items() if name in names]


def cell_name(cell: Cell, names: Collection[str]) -> str:
    """Method and these settings, for people."""
    return " · ".join([cell.method_words, *said(cell.settings, names)])


def labels_of(cells: Sequence[Cell]) -> dict[str, str]:
    """Cell id -> one short line: method, seed, and what tells the settings of these cells apart."""
    names = telling([cell.settings for cell in cells], [cell.method for cell in cells])
    return {cell.id: " · ".join([cell.method_words, f"seed {cell.seed}", *said(cell.settings, names)]) for cell in cells}


def _word(name: str, ends: Mapping[str, int]) -> str:
    end = name.rsplit(".", 1)[-1]
    return end.replace("_", " ") if ends[end] == 1 else name


def _keys(several: Sequence[Settings], kinds: Sequence[Hashable], names: Sequence[str]) -> set[Hashable]:
    pairs = zip(several, kinds, strict=True)
    return {(kind, *(shown(one.get(name)) for name in names)) for one, kind in pairs}
