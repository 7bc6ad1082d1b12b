"""A study file and the cells that it stands for.

Every `[[grid]]` table is the full product of its lists, and a study is the union of its tables. A value that a method cannot
read is brought to one normal form, so that no two cells of a study do the same work: `unread` is the rule.
Everything is checked against the plan's own schema here, before anything runs; every mistake is one StudyError.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from proto.frozen import Frozen, explain, parsed, read_toml
from proto.plan import MIN_COHORT, Plan
from study.bench.calibrate import refuse_unreachable
from study.bench.cells import HOSPITAL_UNITS, Cell, Data, Method, Ordinary, Partition, Setting
from study.bench.task import StudyError
from study.presets import PLANS, Preset

BASELINES = frozenset({Method.POOLED, Method.LOCAL})
SHIFTING = frozenset({"quality", "domain"})  # partitions that change the images themselves, also of pooled patients
OF_THE_STUDY = ("study", "hospitals", "evaluators", "start_digest")  # plan fields that every cell fills in itself
OF_THE_START = ("anatomy", "start")  # of a template: how its public start is made; kept where the cell begins from it
OF_THE_CELL = ("data", "partition", "ordinary")  # tables of the study file whose fields a grid may vary
ALIASES = {"seeds": "seed", "hospitals": "partition.hospitals"}
OWN_STEPS = "partition.local_steps"  # of each hospital: ordinary training takes no rounds
PACES = "partition.paces"  # of each hospital: read where a plan has [buffer]
EPSILON = "epsilon"
READING = "epsilon_reading"  # of a wanted epsilon: with shared noise there are two
CLIP = "hospital_clip"  # of methods that noise whole updates
SHORT = {"partition.hospitals": "hospitals"}
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
STAND_IN = "secagg://check/hospital/h{}"  # only for checking a template: who takes part is known when a cell runs

# plan fields that ordinary training does not read, in the one form that every baseline carries
ORDINARY_FORM: dict[str, Any] = {
    "rounds": 1,
    "participants": None,
    "buffer": None,
    "evaluate_every": 1,
    "evaluation": None,
    "training.local_steps": 1,
    "training.learning_rate": 1e-2,
    "training.learning_rate_decay": 1.0,
    "training.optimizer": "adam",
    "training.momentum": 0.0,
    "training.weight_decay": 0.0,
    "training.nesterov": False,
    "training.schedule": "exponential",
    "training.warmup_rounds": 0,
    "training.proximal": 0.0,
    "training.parts": "all",
    "training.adapter_rank": None,
    "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 1},
    "masking": {},
    "timing": {},
    "aggregation": {},
}


# and what methods that noise whole updates do not read: what hides one patient in a plan
UNITS_FORM: dict[str, Any] = {
    "privacy.noise_mode": "local",
    "privacy.noise_multiplier": 0.0,
    "privacy.no_guarantee": True,
    "privacy.norm_steps": None,
    "privacy.may_drop": None,
    "privacy.may_collude": None,
}


class StudyFile(Frozen):
    """A study file as written; study/STUDIES.md explains it to those who write one."""

    study: str
    task: str = "segmentation"
    plan: str
    seeds: tuple[int, ...]
    start: str = "random"
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()  # scores whose first round the report names
    with_epsilon: tuple[str, ...] = ()  # settings that were chosen for each epsilon: names and lines leave them out
    data: Data = Data()
    partition: Partition = Partition()
    ordinary: Ordinary = Ordinary()
    set: dict[str, Any] = Field(default_factory=dict)
    grid: tuple[dict[str, Any], ...]

    @field_validator("study")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no name: write small letters, digits and dashes, 63 at most")
        return name

    @field_validator("seeds", "grid", mode="before")
    @classmethod
    def _is_list(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, list | tuple) or not value:
            form = (
                "a list, such as seeds = [1, 2, 3]" if info.field_name == "seeds" else "a table under [[grid]], in two brackets"
            )
            raise ValueError(f"write {form}")
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """A plan without its participants, and the recipe of its public start where it has one."""

    name: str
    fields: dict[str, Any] = field(repr=False)
    recipe: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Study:
    """A study file that was read and checked. `source`: its text, kept with the results."""

    file: StudyFile
    source: str = field(repr=False)
    planned: tuple[Cell, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Of the study."""
        return self.file.study

    def cells(self) -> tuple[Cell, ...]:
        """Every cell once, in the order of the file."""
        return self.planned


def load_study(path: Path) -> Study:
    """Read and expand a study file. Raises StudyError with one sentence that names the file and the key or the cell."""
    file = parsed(StudyFile, read_toml(path, "the study file", StudyError), str(path), StudyError)
    cells = {cell.id: cell for cell in _Expansion(file, path).cells()}
    return Study(file, path.read_text(encoding="utf-8"), tuple(cells.values()))


def unread(name: str, method: Method, *, shifts: bool = False, selects: bool = False, buffers: bool = False) -> bool:
    """Whether a setting cannot change what `method` gives: it is left out of such a cell instead of multiplying it.

    Ordinary training reads neither rounds, privacy, masks nor the coordinator; federated training reads no recipe of ordinary
    training; pooled patients are dealt to nobody unless the deal changes the images (`shifts`). Without masks nothing of
    masking is read, unless the plan asks only some hospitals in a round (`selects`): who they are follows from the digest of
    the whole plan, and a plain cell has to ask those that its masked partner asks.
    """
    table = _head(name)
    if (name == PACES and not buffers) or (name == CLIP and method not in HOSPITAL_UNITS):
        return True
    if method in HOSPITAL_UNITS and (name in UNITS_FORM or table == "masking" or name == READING):
        return True
    if method in BASELINES:
        if name == OWN_STEPS:
            return True
        dealt = table in {"partition", "hospitals"} and method is Method.POOLED and not shifts
        return dealt or name in {"epsilon", READING} or name in ORDINARY_FORM or table in ORDINARY_FORM
    return table == "ordinary" or (table == "masking" and method is Method.PLAIN and not selects and not buffers)


class _Expansion:
    """From one study file to its cells."""

    def __init__(self, file: StudyFile, path: Path) -> None:
        self.file = file
        self.path = path
        self.templates: dict[str, Template] = {}
        self.changes = dict(_flat(file.set))
        for name in self.changes:
            _check_plan_name(f"{path}: [set], which changes plan fields", name)
        self.tables = [self._table(number, table) for number, table in enumerate(file.grid, 1)]
        self.varied: list[str] = list(
            dict.fromkeys(name for table in self.tables for name in table if name not in {"method", "seed"})
        )
        for name in file.with_epsilon:
            if ALIASES.get(name, name) not in self.varied or name == EPSILON:
                raise StudyError(f"{path}: with_epsilon: no [[grid]] varies '{name}': remove it or correct its spelling")

    def cells(self) -> Iterator[Cell]:
        for number, table in enumerate(self.tables, 1):
            for values in itertools.product(*table.values()):
                chosen = dict(zip(table, values, strict=True))
                shown = ", ".join(f"{name} {value}" for name, value in chosen.items())
                yield self._cell(f"{self.path}: [[grid]] {number}, cell {shown}", chosen)

    def _table(self, number: int, written: Mapping[str, Any]) -> dict[str, list[Any]]:
        """One table: setting -> its values; the study's seeds where it has none of its own."""
        where = f"{self.path}: [[grid]] {number}"
        table = {ALIASES.get(name, name): value for name, value in _flat(written)}
        if "method" not in table:
            raise StudyError(f"{where}: key 'method' is missing: choose from {', '.join(Method)}")
        found = {name: _values(where, name, value) for name, value in table.items()}
        for name in found:
            _check_name(where, name)
        if "epsilon" in found and {"privacy.noise_multiplier", "privacy.no_guarantee"} & found.keys():
            raise StudyError(f"{where}: epsilon already decides privacy.noise_multiplier: leave one of them out")
        return found if "seed" in found else {**found, "seed": list(self.file.seeds)}

    def _cell(self, where: str, chosen: Mapping[str, Any]) -> Cell:
        method = _method(where, chosen["method"])
        template = self._template(where, chosen.get("plan", self.file.plan))
        parts = self._parts(chosen)
        hospitals = parts["partition"]["hospitals"]
        plan = self._plan(where, template, chosen, hospitals)
        plan = _checked(where, _normal_plan(where, method, plan, chosen.get("epsilon")), hospitals)
        if method is Method.PLAIN and plan["privacy"]["noise_mode"] == "shared":
            raise StudyError(f"{where}: method plain has no masks in which noise could be shared: use masked")
        if method in HOSPITAL_UNITS:
            _check_hospital_units(where, method, plan, chosen)
        start = chosen.get("start", self.file.start)
        fields = {
            "study": self.file.study,
            "task": self.file.task,
            "method": method,
            "seed": chosen["seed"],
            **self._normal_parts(method, parts, buffers=plan["buffer"] is not None),
            "start": start,
            "epsilon": _normal_epsilon(method, plan, chosen.get("epsilon")),
            READING: _normal_reading(plan, chosen),
            CLIP: chosen.get(CLIP) if method in HOSPITAL_UNITS else None,
            "plan": plan | (_recipe(where, template, plan) if start == "public" else {}),
            "settings": {},
        }
        cell = parsed(Cell, fields, where, StudyError)
        cell = cell.model_copy(update={"settings": self._settings(cell, template.name)})
        refuse_unreachable(cell)
        return cell

    def _plan(self, where: str, template: Template, chosen: Mapping[str, Any], hospitals: object) -> dict[str, Any]:
        """The template with the changes of `[set]` and of the cell, checked and with every default written out."""
        own = {name: value for name, value in chosen.items() if _is_plan_field(name)}
        changes = {**self.changes, **own}
        if "privacy.noise_multiplier" in changes and "privacy.no_guarantee" not in changes:
            changes["privacy.no_guarantee"] = changes["privacy.noise_multiplier"] == 0
        return _checked(where, with_changes(where, template.fields, changes), hospitals)

    def _parts(self, chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The tables of the study file, with the cell's own values."""
        parts = {table: getattr(self.file, table).model_dump() for table in OF_THE_CELL}
        for name, value in chosen.items():
            table, _, key = name.partition(".")
            if key and table in parts:
                parts[table][key] = value
        return parts

    def _normal_parts(self, method: Method, parts: dict[str, dict[str, Any]], *, buffers: bool) -> dict[str, dict[str, Any]]:
        """`parts` with what the method does not read in its normal form."""
        if method in BASELINES or not buffers:
            parts = {**parts, "partition": {**parts["partition"], "paces": None}}
        if method not in BASELINES:
            return {**parts, "ordinary": {}}
        parts = {**parts, "partition": {**parts["partition"], "local_steps": None}}
        dealt = {parts["partition"]["kind"], self.file.partition.kind}
        if method is Method.POOLED and not dealt & SHIFTING:
            return {**parts, "partition": {**self.file.partition.model_dump(), "local_steps": None, "paces": None}}
        return parts

    def _settings(self, cell: Cell, template: str) -> dict[str, Setting]:
        shifts, selects = cell.partition.kind in SHIFTING, cell.plan["participants"] is not None
        known = {**cell.model_dump(mode="json"), **cell.plan, "plan": template, "start": cell.start}
        buffers = cell.plan["buffer"] is not None and cell.method not in BASELINES
        read = [name for name in self.varied if not unread(name, cell.method, shifts=shifts, selects=selects, buffers=buffers)]
        if cell.plan["privacy"]["noise_mode"] != "shared":
            read = [name for name in read if name != READING]
        shown = {SHORT.get(name, name): _at(known, name) for name in read}
        return {name: value for name, value in shown.items() if value is not None}

    def _template(self, where: str, name: object) -> Template:
        if not isinstance(name, str):
            raise StudyError(f"{where}: 'plan' names a template, {name!r} does not")
        if name not in self.templates:
            self.templates[name] = load_template(name, self.path.parent, where)
        return self.templates[name]


def load_template(name: str, folder: Path, where: str) -> Template:
    """A template by its name under study/plans, or by a TOML path relative to `folder`. Raises StudyError."""
    path = folder / name if name.endswith(".toml") else PLANS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in PLANS.glob("*.toml")))
        asked = path if name.endswith(".toml") else f"'{name}'"
        raise StudyError(f"{where}: 'plan': there is no template {asked}: name one of {known}, or a TOML file")
    fields = read_toml(path, "the template", StudyError)
    recipe = {key: fields.pop(key) for key in OF_THE_START if key in fields}
    return Template(name, fields, recipe)


def _normal_plan(where: str, method: Method, plan: dict[str, Any], epsilon: object) -> dict[str, Any]:
    """`plan` with what the method does not read in its normal form."""
    if method in BASELINES:
        return with_changes(where, plan, ORDINARY_FORM)
    if method in HOSPITAL_UNITS:
        return with_changes(where, plan, {**UNITS_FORM, "masking": {}})
    silent = {"privacy.noise_multiplier": 0.0, "privacy.no_guarantee": True} if epsilon == math.inf else {}
    in_step = plan["participants"] is None and plan["buffer"] is None  # else who takes part follows from masking too: `unread`
    unmasked = method is Method.PLAIN and in_step
    return with_changes(where, plan, {**silent, "masking": {}} if unmasked else silent)


def _normal_epsilon(method: Method, plan: Mapping[str, Any], epsilon: object) -> object:
    """Infinity is the one form of "no noise" for federated methods; ordinary training has no epsilon."""
    if method in BASELINES:
        return None
    return math.inf if epsilon is None and plan["privacy"]["no_guarantee"] else epsilon


def _check_hospital_units(where: str, method: Method, plan: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Raise StudyError for what a method that noises whole updates needs or cannot do."""
    parts = [part for part in ("participants", "buffer", "evaluation") if plan[part] is not None]
    if parts:
        raise StudyError(f"{where}: method {method.value} asks every hospital in every round: leave out {', '.join(parts)}")
    for key, value in (("rule", "scaffold"), ("weights", "precision")):
        if plan["aggregation"][key] == value:
            raise StudyError(f"{where}: method {method.value} noises plain updates: leave out aggregation.{key} '{value}'")
    if chosen.get(CLIP) is None:
        raise StudyError(f"{where}: method {method.value} clips whole updates: say {CLIP}, the largest norm of one")
    epsilon = chosen.get("epsilon")
    if not isinstance(epsilon, int | float) or math.isinf(epsilon):
        raise StudyError(f"{where}: method {method.value} needs a finite epsilon, a hospital's; without noise use plain")


def _normal_reading(plan: Mapping[str, Any], chosen: Mapping[str, Any]) -> object:
    """A hospital's own noise is read in one way, and so is what has no wanted epsilon."""
    two = plan["privacy"]["noise_mode"] == "shared" and chosen.get("epsilon") is not None
    return chosen.get(READING, "charged") if two else "charged"


def _recipe(where: str, template: Template, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What a public start follows from; in the cell, so that another recipe is another cell."""
    missing = [key for key in OF_THE_START if key not in template.recipe]
    if missing:
        raise StudyError(
            f"{where}: template {template.name} has no {' and no '.join(missing)}, so there is no public start of it"
        )
    try:
        preset = Preset.of(template.name, {**plan, **template.recipe})
    except ValidationError as error:
        raise StudyError(explain(error, f"template {template.name}")) from error
    return {"anatomy": preset.anatomy, "start": preset.start.model_dump()}


def _checked(where: str, fields: Mapping[str, Any], hospitals: object = None) -> dict[str, Any]:
    """`fields` as the plan's schema reads them, every default written out; hospitals are stand-ins as many as there will be."""
    masking = fields.get("masking")
    buffer = fields.get("buffer")
    wanted = [fields.get("participants"), masking.get("minimum_cohort") if isinstance(masking, dict) else None]
    wanted += [buffer.get("updates") if isinstance(buffer, dict) else None]
    sizes = [hospitals] if hospitals is not None else wanted  # sites of a folder are counted when a cell runs
    count = max(MIN_COHORT, *(size for size in sizes if isinstance(size, int)), MIN_COHORT)
    admitted = [{"uri": STAND_IN.format(number), "declared_patients": 1} for number in range(count)]
    plan = parsed(Plan, {**fields, "study": "check", "hospitals": admitted}, where, StudyError)
    return plan.model_dump(mode="json", exclude=set(OF_THE_STUDY))


def with_changes(where: str, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `fields` with dotted names set."""
    whole = copy.deepcopy(dict(fields))
    for name, value in changes.items():
        *tables, key = name.split(".")
        place = whole
        for table in tables:
            if place.get(table) is None:  # a part that the plan may leave out
                place[table] = {}
            place = place[table]
            if not isinstance(place, dict):
                raise StudyError(f"{where}: '{name}' goes into '{table}', which is a value: remove it or correct its spelling")
        place[key] = copy.deepcopy(value)
    return whole


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value): a name may be written in quotes, with bare dots, or as a table of its own."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _at(known: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name; None where another cell sets it and this one does not."""
    value: Any = known
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _values(where: str, name: str, value: Any) -> list[Any]:
    """The values of one setting: a list's items, or a single value."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise StudyError(f"{where}: '{name}' is an empty list, which makes no cell: give it values or remove it")
    if _is_list(name) and not all(isinstance(one, list) for one in values):
        raise StudyError(f"{where}: one value of '{name}' is a list itself: write a list of lists, such as [[8, 16, 32]]")
    return values


def _is_list(name: str) -> bool:
    """Whether a field of a plan, or of the study file's own tables, can hold nothing but a list."""
    table, _, key = name.partition(".")
    owner = Plan if _is_plan_field(name) else StudyFile
    part = owner.model_fields[table].annotation if table in owner.model_fields else None
    field = part.model_fields.get(key) if isinstance(part, type) and issubclass(part, Frozen) else None
    if field is None:
        return False
    kinds = [field.annotation] if get_origin(field.annotation) is tuple else get_args(field.annotation)
    return bool(kinds) and all(get_origin(kind) is tuple for kind in kinds if kind is not NoneType)


def _check_name(where: str, name: str) -> None:
    if name in {"method", "seed", "epsilon", READING, CLIP, "start", "plan"} or (_head(name) in OF_THE_CELL and "." in name):
        return
    _check_plan_name(where, name)


def _check_plan_name(where: str, name: str) -> None:
    if _head(name) in OF_THE_STUDY:
        raise StudyError(f"{where}: '{name}' follows from the study itself and cannot be set: remove it")
    if not _is_plan_field(name):
        raise StudyError(f"{where}: '{name}' is no field of a plan, nor else known here: remove it or correct its spelling")


def _is_plan_field(name: str) -> bool:
    return _head(name) in Plan.model_fields and _head(name) not in OF_THE_STUDY


def _head(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def _method(where: str, name: object) -> Method:
    try:
        return Method(str(name))
    except ValueError as error:
        raise StudyError(f"{where}: there is no method '{name}': choose from {', '.join(Method)}") from error
