"""Plans of the demonstration: readable TOML files under `plans/`, completed with who takes part.

A template is a whole plan without `study`, `hospitals`, `evaluators` and `start_digest`, and with two more keys: `anatomy` of
the public shapes and [start], how the public start is pretrained. `complete` makes a plan of it, validated as any plan is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import tomli_w
from pydantic import Field, ValidationError

from proto.plan import Frozen, Hospital, Network, Plan, PlanError, Preparation, Training, explain
from study.cast import Cast, Role

PLANS = Path(__file__).parent / "plans"


Anatomy = Literal["chest", "hippocampus", "temporal-lobe"]


class StartRecipe(Frozen):
    """Pretraining on drawn volumes: one-cycle AdamW over `steps` batches of patches."""

    volumes: int = Field(ge=1)
    steps: int = Field(ge=1)
    batch: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)


class Preset(Frozen):
    """One template: the plan's fields and how its start is made."""

    name: str
    anatomy: Anatomy
    fields: dict[str, object]
    start: StartRecipe
    network: Network
    preparation: Preparation
    training: Training

    @classmethod
    def of(cls, name: str, fields: dict[str, object]) -> Self:
        """From a template's content."""
        recipe, anatomy = fields.pop("start"), fields.pop("anatomy")
        parts = {key: fields[key] for key in ("network", "preparation", "training")}
        return cls.model_validate({"name": name, "anatomy": anatomy, "fields": fields, "start": recipe, **parts})


def load(name: str) -> Preset:
    """`plans/<name>.toml`. Raises PlanError where the file is wrong."""
    try:
        return Preset.of(name, tomllib.loads((PLANS / f"{name}.toml").read_text(encoding="utf-8")))
    except ValidationError as error:
        raise PlanError(explain(error, f"template {name}")) from error


def admitted(cast: Cast, uri_of: Callable[[Role], str]) -> list[Hospital]:
    """The hospitals of a cast with their declared sizes and equal weights."""
    return [Hospital(uri=uri_of(role), declared_patients=role.patients) for role in cast.hospitals]


def complete(
    fields: dict[str, object],
    *,
    study: str,
    hospitals: Sequence[Hospital],
    evaluators: Sequence[str],
    start_digest: bytes | None,
    rounds: int | None,
) -> Plan:
    """A valid plan from a template's fields. Raises PlanError in one sentence."""
    whole: dict[str, object] = {
        **fields,
        "study": study,
        "hospitals": [hospital.model_dump() for hospital in hospitals],
        "evaluators": list(evaluators),
        "start_digest": None if start_digest is None else start_digest.hex(),
    }
    if rounds is not None:
        whole["rounds"] = rounds
    try:
        return Plan.model_validate(whole)
    except ValidationError as error:
        raise PlanError(explain(error, f"the plan of {study}")) from error


def write_toml(plan: Plan, path: Path) -> None:
    """Write `plan` so that `proto.plan.load_toml` gives it back."""
    path.write_text(tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
