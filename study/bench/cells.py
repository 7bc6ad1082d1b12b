"""One cell of a study: everything that decides its result, in one frozen value, and what came of it.

A cell's id is the digest of its content. Whoever changes any setting gets another id, so a finished cell is never run again
and never mistaken for another one.
"""

from __future__ import annotations

import hashlib
import json
import math
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from proto.frozen import Frozen
from proto.plan import drop_later_defaults

ID_CHARACTERS = 16
CELL_LABEL = b"hospital-secagg study cell v1\n"
MOST_ASKED = "of the hospital asked most often"  # study/bench/calibrate.py

Setting = str | int | float | bool | None | list[Any]


class Method(StrEnum):
    """How a cell trains. All methods of a study see the same patients, the same test cases and the same start."""

    POOLED = "pooled"  # ordinary training on all patients together
    LOCAL = "local"  # ordinary training at each hospital by itself; the mean of the hospitals' scores
    PLAIN = "plain"  # federated, updates averaged in float64 without masks
    LAPLACE = "laplace"  # federated without masks, Laplace noise on every hospital's update: epsilon is a hospital's
    HOSPITAL_LEVEL = "hospital-level"  # federated without masks, Gaussian noise on the sum: epsilon is a hospital's
    MASKED = "masked"  # federated, quantized and masked; with noise where the plan has some


HOSPITAL_UNITS = frozenset({Method.LAPLACE, Method.HOSPITAL_LEVEL})  # whose epsilon is about a hospital, not about a patient


class DataKind(StrEnum):
    """Whose the patients are: what a study may do with them follows from it."""

    PUBLIC = "public"
    SYNTHETIC = "synthetic"
    PRIVATE = "private"


class Data(Frozen):
    """Where a study's patients come from."""

    folder: str = ""  # as written in the study file; empty where the task brings its own
    kind: DataKind = DataKind.PUBLIC
    train_fold: str | None = None
    test_fold: str | None = None
    ledger: str = ""  # private data: state folder of the node whose ledger every cell is charged to


class Partition(Frozen):
    """Who gets which patients. `kind` "sites" keeps the folder's own sites; every other kind re-deals all training patients."""

    kind: Literal["sites", "iid", "dirichlet", "quantity", "label-kind", "quality", "domain"] = "sites"
    hospitals: Annotated[int, Field(ge=3)] | None = None  # None: as many as the folder has sites
    alpha: Annotated[float, Field(gt=0)] = 0.3  # concentration of the Dirichlet kinds: small is uneven
    strength: Annotated[float, Field(ge=0, le=1)] = 0.5  # of quality and domain shifts at the worst hospital
    by: Literal["noise", "resolution", "intensity", "scanner"] | None = None  # what quality and domain shift by
    weights: Literal["equal", "patients"] = "equal"  # of the hospitals in the mean; public, as the declared sizes are
    local_steps: tuple[Annotated[int, Field(ge=1)], ...] | None = None  # of each hospital in a round; None: the plan's number
    paces: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # of each hospital's training, with [buffer]; None: all 1


class Ordinary(Frozen):
    """Ordinary training of the baselines `pooled` and `local`."""

    steps: int = Field(default=600, ge=1)
    batch: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)


class Cell(Frozen):
    """One run of one method under one plan with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    study: str
    task: str
    method: Method
    seed: int
    data: Data
    partition: Partition
    start: str  # "random", "public", or the path of a safetensors file
    epsilon: Annotated[float, Field(gt=0)] | None = (
        None  # target that sets the noise multiplier; inf: no noise; None: the plan's own
    )
    epsilon_reading: Literal["charged", "outsider"] = "charged"  # whose reading `epsilon` is; outsider: of shared noise, c = 0
    hospital_clip: Annotated[float, Field(gt=0)] | None = None  # of HOSPITAL_UNITS: norm of a whole update, L1 or L2
    ordinary: Ordinary = Ordinary()
    plan: dict[str, Any]  # a plan's fields without study, hospitals, evaluators and start_digest
    settings: dict[str, Setting]  # what the study file varied, for tables; names as in the study file

    @property
    def id(self) -> str:
        """Digest of everything but the name of the study and the wording of the settings.

        Fields that came later and hold their default are left out, so that finished cells stay finished. With
        `participants`, a cell with a wanted epsilon counts its rounds by another rule than the first version did, which counted
        all of them: its results are others, so it has another id.
        """
        fields = self.model_dump(mode="json", exclude={"study", "settings"})
        drop_later_defaults(fields["plan"], kept=("participants",))  # cells have had it from the first
        if self.partition.local_steps is None:
            del fields["partition"]["local_steps"]
        if self.partition.paces is None:
            del fields["partition"]["paces"]
        if self.epsilon_reading == "charged":
            del fields["epsilon_reading"]
        if self.hospital_clip is None:
            del fields["hospital_clip"]
        if self.epsilon is not None and math.isfinite(self.epsilon) and self.plan.get("participants") is not None:
            fields["rounds_counted"] = MOST_ASKED
        content = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(CELL_LABEL + content.encode()).hexdigest()[:ID_CHARACTERS]

    @property
    def epsilon_of(self) -> str:
        """Whose epsilon is stated, and by which mechanism."""
        if self.method in HOSPITAL_UNITS:
            return "a hospital (Laplace)" if self.method is Method.LAPLACE else "a hospital (Gaussian)"
        shared = self.plan["privacy"].get("noise_mode") == "shared"
        return "a patient (discrete Gaussian)" if shared else "a patient (Gaussian)"

    @property
    def method_words(self) -> str:
        """The method, and whose epsilon it has where that is no patient's: for whatever names cells beside each other."""
        return f"{self.method.value} (epsilon of a hospital)" if self.method in HOSPITAL_UNITS else self.method.value

    @property
    def label(self) -> str:
        """One line for people."""
        varied = ", ".join(f"{name} {_shown(value)}" for name, value in self.settings.items() if name not in {"method", "seed"})
        return " · ".join(part for part in (self.method_words, varied, f"seed {self.seed}") if part)


class RoundRow(Frozen):
    """What one round gave. Bytes are sums over the hospitals, as counted on the connection; 0 where nothing travels."""

    round: int  # 0: the start
    survivors: int
    scores: dict[str, list[float]]  # label -> one value a test case; empty where this round was not measured
    epsilon: float | None  # worst hospital after this round; None: no guarantee
    upload_bytes: int
    download_bytes: int
    seconds: float  # of a round under a simulated clock: since the last one, in units of `paces`


class Readings(Frozen):
    """The epsilon of one training as others read it, of the worst hospital; None: not read, or no guarantee.

    `outsider`: of shared noise, against whoever knows no hospital's share (c = 0); `at_default`: at the product's usual delta.
    """

    at_default: float | None = None
    outsider: float | None = None
    outsider_at_default: float | None = None


class CellResult(Frozen):
    """What a finished cell gave, and what it cost."""

    cell: str  # id
    rounds: list[RoundRow]
    wall_s: float
    cpu_s: float
    vector_length: int
    plan_digest: str
    noise_multiplier: float
    epsilon: float | None  # worst hospital, over the whole cell
    delta: float
    hospitals: dict[str, int]  # name -> patients
    readings: Readings | None = None  # None: of a version that stored epsilon alone
    clipped: int = 0  # coordinates of updates outside update_clip, all hospitals and rounds, where counted

    @property
    def final(self) -> dict[str, float]:
        """Mean score of each label after the last measured round."""
        measured = [row for row in self.rounds if row.scores]
        return {} if not measured else {label: math.fsum(v) / len(v) for label, v in measured[-1].scores.items() if v}

    @property
    def score(self) -> float:
        """Mean over the labels of `final`: the figure of the tables. NaN where nothing was measured."""
        values = list(self.final.values())
        return math.fsum(values) / len(values) if values else math.nan


def _shown(value: Setting) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
