"""What a ledger holds: a closed table of entry kinds, their bytes, and the hash chain over them.

Rules: an entry stores what was done or decided, never an epsilon as truth. Kinds are never removed and never change their
meaning; a new field must be optional. An entry that this table does not know makes the ledger unreadable, never ignored. This
file decides nothing and opens nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from pydantic import Field, ValidationError

from hospital_node.accounting import Mechanism
from hospital_node.cap import MAX_RENYI_ORDER, Cap
from hospital_node.releases import Evaluations, Program
from proto.plan import Frozen

ENTRY_LABEL: Final = b"hospital-secagg ledger entry v1\n"
BEFORE_FIRST: Final = bytes(32)  # stands for the digest before entry 1
KEPT_ROWS: Final = 16_384  # rows already checked in this process, about 1 kB each: a node asks its ledger all the time
HEX_32_BYTES: Final = r"^[0-9a-f]{64}$"


class Created(Frozen):
    """Entry 1. `ledger_id` is random: two ledgers of one hospital never continue each other's chain."""

    hospital: str = Field(min_length=1)
    ledger_id: str = Field(pattern=r"^[0-9a-f]{32}$")


class Evaluated(Frozen):
    """The Gaussian mechanism of one evaluation: every patient at rate 1, one noised vector of sums."""

    noise_multiplier: float = Field(ge=0, allow_inf_nan=False)  # over the sensitivity
    sensitivity: float = Field(gt=0, allow_inf_nan=False)  # L2, all scores and counts together


class EvaluationAgreed(Evaluated):
    """One in every `every`-th round of the plan."""

    every: int = Field(ge=1)


class Approved(Frozen):
    """People at the hospital agreed to one plan: this mechanism in each round, at most so many rounds, under this cap."""

    plan: str = Field(pattern=HEX_32_BYTES)
    study: str
    by: str = Field(min_length=1)
    confirmed_by: str = ""  # the second person, where the cap was raised
    reason: str = Field(min_length=1)
    cap: Cap
    noise_multiplier: float = Field(ge=0, allow_inf_nan=False)
    sampling_rate: float = Field(gt=0, le=1)
    steps_per_round: int = Field(ge=1)
    clip_norm: float = Field(gt=0, allow_inf_nan=False)
    max_rounds: int = Field(ge=1)
    declared_patients: int = Field(ge=1)
    hospitals_per_patient: int = Field(ge=1)
    renyi_order: int = Field(ge=2, le=MAX_RENYI_ORDER)  # of the filter (cap.py): the first one with a guarantee holds for life
    no_guarantee: bool = False
    data_is_public: bool = False
    evaluation: EvaluationAgreed | None = None  # sums over validation patients, beside the training

    @property
    def mechanism(self) -> Mechanism:
        """What the training of one round of this plan does."""
        return Mechanism(self.noise_multiplier, self.sampling_rate, self.steps_per_round)

    @property
    def program(self) -> Program:
        """What the rounds of this plan do, evaluations included."""
        if self.evaluation is None:
            return Program(self.mechanism)
        every = self.evaluation.every
        evaluations = Evaluations(self.plan, self.evaluation.noise_multiplier, every, self.max_rounds // every)
        return Program(self.mechanism, evaluations)


class Withdrawn(Frozen):
    """An approval was taken back; what was charged stays charged."""

    plan: str = Field(pattern=HEX_32_BYTES)
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class CapLowered(Frozen):
    """One person suffices, at once."""

    cap: Cap
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class CapRaised(Frozen):
    """Two different people."""

    cap: Cap
    by: str = Field(min_length=1)
    confirmed_by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Charge(Frozen):
    """One release: written before its first masked byte leaves, never refunded."""

    plan: str = Field(pattern=HEX_32_BYTES)
    study: str
    round: int = Field(ge=1)
    session: str = Field(pattern=r"^[0-9a-f]{2,128}$")
    update_id: str = Field(pattern=r"^[0-9a-f]{2,128}$")
    noise_multiplier: float = Field(ge=0, allow_inf_nan=False)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    clip_norm: float = Field(gt=0, allow_inf_nan=False)
    purpose: Literal["training"] = "training"
    unit: Literal["patient"] = "patient"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampling: Literal["poisson"] = "poisson"
    evaluation: Evaluated | None = None  # sums that left with the update

    @property
    def mechanism(self) -> Mechanism:
        """What training did to the patients."""
        return Mechanism(self.noise_multiplier, self.sampling_rate, self.steps)


class Verified(Frozen):
    """The sum of a charged round was opened and its result fits what this node signed."""

    plan: str = Field(pattern=HEX_32_BYTES)
    round: int = Field(ge=1)


class Hold(Frozen):
    """People hold the node."""

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Resume(Frozen):
    """People let the node go on, after a hold or after releases without a result."""

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class ClockConfirmed(Frozen):
    """People say that the time of this entry is right, whatever the times before it say."""

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Note(Frozen):
    """Anything people want to keep beside the figures."""

    by: str = Field(min_length=1)
    text: str = Field(min_length=1)


Entry: TypeAlias = (
    Created | Approved | Withdrawn | CapLowered | CapRaised | Charge | Verified | Hold | Resume | ClockConfirmed | Note
)

KINDS: Final[Mapping[str, type[Entry]]] = MappingProxyType(
    {
        "created": Created,
        "approved": Approved,
        "withdrawn": Withdrawn,
        "cap_lowered": CapLowered,
        "cap_raised": CapRaised,
        "charge": Charge,
        "verified": Verified,
        "hold": Hold,
        "resume": Resume,
        "clock_confirmed": ClockConfirmed,
        "note": Note,
    }
)
KIND_OF: Final[Mapping[type[Entry], str]] = MappingProxyType({model: kind for kind, model in KINDS.items()})


class ChainError(ValueError):
    """Rows that are not an unbroken chain of known entries; the text says where and what."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as stored."""

    seq: int
    at: str
    kind: str
    body: str
    previous: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """One verified entry: its number, its time by the node's clock, what happened, and the chain's digest after it."""

    seq: int
    at: datetime
    kind: str
    entry: Entry
    digest: bytes


def row_digest(seq: int, at: str, kind: str, body: str, previous: bytes) -> bytes:
    """SHA-256 over every field of a row, each preceded by its length."""
    state = hashlib.sha256(ENTRY_LABEL)
    for part in (str(seq).encode(), at.encode(), kind.encode(), body.encode(), previous):
        state.update(len(part).to_bytes(8, "big") + part)
    return state.digest()


def make_row(seq: int, at: datetime, entry: Entry, previous: bytes) -> Row:
    """The row that appends `entry` after `previous`. `at` must be aware; it is stored in UTC."""
    if at.tzinfo is None:
        raise ValueError("a ledger entry needs a time with a time zone")
    stamp = at.astimezone(UTC).isoformat(timespec="microseconds")
    fields = entry.model_dump(mode="json", exclude_none=True)  # what came later and is not there leaves no trace
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    kind = KIND_OF[type(entry)]
    return Row(seq, stamp, kind, body, previous, row_digest(seq, stamp, kind, body, previous))


def read_chain(rows: Iterable[Row]) -> tuple[Event, ...]:
    """Verify and decode all rows of a ledger, first to last. Raises ChainError."""
    events: list[Event] = []
    previous = BEFORE_FIRST
    for row in rows:
        if row.seq != len(events) + 1:
            raise ChainError(f"entry {len(events) + 1} is missing")
        if row.previous != previous:
            raise ChainError(f"entry {row.seq} was changed after it was written")
        events.append(_checked(row))
        previous = row.digest
    if not events or not isinstance(events[0].entry, Created):
        raise ChainError("the first entry, which names the hospital, is missing")
    return tuple(events)


@lru_cache(maxsize=KEPT_ROWS)
def _checked(row: Row) -> Event:
    """One row by itself, decoded. A pure function of everything in the row: one that was changed is another row."""
    if row.digest != row_digest(row.seq, row.at, row.kind, row.body, row.previous):
        raise ChainError(f"entry {row.seq} was changed after it was written")
    return _decoded(row)


def _decoded(row: Row) -> Event:
    model = KINDS.get(row.kind)
    if model is None:
        raise ChainError(f"entry {row.seq} is of the unknown kind '{row.kind}': a newer version of this software wrote it")
    try:
        at = datetime.fromisoformat(row.at)
        entry = model.model_validate_json(row.body)
    except ValidationError as error:
        fields = ", ".join(str(item["loc"][0]) for item in error.errors(include_url=False) if item["loc"])
        raise ChainError(f"entry {row.seq} ({row.kind}) has an unusable body: {fields or 'not JSON'}") from error
    except ValueError as error:
        raise ChainError(f"entry {row.seq} has no readable time") from error
    if isinstance(entry, Created) != (row.seq == 1):
        raise ChainError(f"entry {row.seq} names the hospital, which only the first entry does")
    return Event(row.seq, at, row.kind, entry, row.digest)
