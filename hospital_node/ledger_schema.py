"""What a ledger holds: a closed table of entry kinds, and their bytes.

Rules: an entry stores what was done or decided, never an epsilon as truth. Kinds are never removed and never change their
meaning; a new field must be optional. An entry that this table does not know makes the ledger unreadable, never ignored. This
file decides nothing and opens nothing. What a round leaves (`Charge`, `Verified`) is kept small, since a ledger has thousands.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from hospital_node.accounting import Mechanism
from hospital_node.cap import MAX_RENYI_ORDER, Cap
from hospital_node.releases import Evaluations, Program
from hospital_node.shared_accounting import Shares
from proto.control import Proved
from proto.plan import Frozen

ENTRY_LABEL: Final = b"hospital-secagg ledger entry v1\n"
BEFORE_FIRST: Final = bytes(32)  # stands for the digest before entry 1
HEX_32_BYTES: Final = r"^[0-9a-f]{64}$"

Number = TypeVar("Number", int, float)


@lru_cache(maxsize=64, typed=True)  # the entries of one round follow each other
def _one_object(number: Number) -> Number:
    """The same number as one object, for values that repeat from entry to entry."""
    return number


Name = Annotated[str, AfterValidator(sys.intern)]  # the same text as one object
PlanDigest = Annotated[str, Field(pattern=HEX_32_BYTES), AfterValidator(sys.intern)]
Round = Annotated[int, Field(ge=1), AfterValidator(_one_object)]
STRICT: Final = ConfigDict(extra="forbid")


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


class NoiseShared(Frozen):
    """How one discrete noise is shared: what the rounds' cost rests on besides multiplier, rate and steps.

    `norm_steps` bounds a patient's integers, `members` is the plan's largest cohort; the charge holds against `may_collude` of
    them with the coordinator, and for at most `may_drop` lost.
    """

    norm_steps: int = Field(ge=1)
    members: int = Field(ge=2)
    may_drop: int = Field(ge=0)
    may_collude: int = Field(ge=1)

    @property
    def shares(self) -> Shares:
        """The same for the accountant."""
        return Shares(self.norm_steps, self.members, self.may_drop, self.may_collude)


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
    shared: NoiseShared | None = None  # None: the hospital adds the whole noise itself
    proved: Proved | None = None  # whose sign-in the name `by` comes from; None: it was typed
    confirmed_proved: Proved | None = None
    confirmed_reason: str | None = None

    @property
    def mechanism(self) -> Mechanism:
        """What the training of one round of this plan does."""
        return Mechanism(self.noise_multiplier, self.sampling_rate, self.steps_per_round, shares_of(self.shared))

    @property
    def program(self) -> Program:
        """What the rounds of this plan do, evaluations included."""
        if self.evaluation is None:
            return Program(self.mechanism)
        every = self.evaluation.every
        evaluations = Evaluations(self.plan, self.evaluation.noise_multiplier, every, self.max_rounds // every)
        return Program(self.mechanism, evaluations)


def shares_of(shared: NoiseShared | None) -> Shares | None:
    """Of an entry, for the accountant."""
    return None if shared is None else shared.shares


@lru_cache(maxsize=64)
def _one_shared(shared: NoiseShared | None) -> NoiseShared | None:
    """The same value as one object, as for numbers."""
    return shared


class Withdrawn(Frozen):
    """An approval was taken back; what was charged stays charged."""

    plan: str = Field(pattern=HEX_32_BYTES)
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    proved: Proved | None = None


class PatientWithdrawn(Frozen):
    """A patient withdrew: no later training and no later evaluation uses the patient's studies. What was charged stays charged.

    `code` is an HMAC of the hospital's own patient id under a key of this ledger (withdrawal.py); `key_check` tells that key.
    """

    code: str = Field(pattern=HEX_32_BYTES)
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    key_check: str = Field(pattern=r"^[0-9a-f]{32}$")
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class CapLowered(Frozen):
    """One person suffices, at once."""

    cap: Cap
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class CapRaised(Frozen):
    """Two different people, each with a reason; entries from before the second was asked for have none."""

    cap: Cap
    by: str = Field(min_length=1)
    confirmed_by: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    confirmed_reason: str | None = None


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Charge:
    """One release: written before its first masked byte leaves, never refunded."""

    plan: PlanDigest
    study: Name
    round: Round
    session: str = Field(pattern=r"^[0-9a-f]{2,128}$")
    update_id: str = Field(pattern=r"^[0-9a-f]{2,128}$")
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_one_object)]
    sampling_rate: Annotated[float, Field(gt=0, le=1), AfterValidator(_one_object)]
    steps: Annotated[int, Field(ge=1), AfterValidator(_one_object)]
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_one_object)]
    purpose: Literal["training"] = "training"
    unit: Literal["patient"] = "patient"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampling: Literal["poisson"] = "poisson"
    evaluation: Evaluated | None = None  # sums that left with the update
    shared: Annotated[NoiseShared | None, AfterValidator(_one_shared)] = None

    @property
    def mechanism(self) -> Mechanism:
        """What training did to the patients."""
        return Mechanism(self.noise_multiplier, self.sampling_rate, self.steps, shares_of(self.shared))


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Verified:
    """The sum of a charged round was opened and its result fits what this node signed."""

    plan: PlanDigest
    round: Round


class Hold(Frozen):
    """People hold the node."""

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    proved: Proved | None = None


class Resume(Frozen):
    """People let the node go on, after a hold or after releases without a result."""

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    proved: Proved | None = None


class ClockConfirmed(Frozen):
    """People say that the time of this entry is right, whatever the times before it say."""

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Note(Frozen):
    """Anything people want to keep beside the figures."""

    by: str = Field(min_length=1)
    text: str = Field(min_length=1)


Entry: TypeAlias = (
    Created
    | Approved
    | Withdrawn
    | CapLowered
    | CapRaised
    | Charge
    | Verified
    | Hold
    | Resume
    | ClockConfirmed
    | Note
    | PatientWithdrawn
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
        "patient_withdrawn": PatientWithdrawn,
    }
)
KIND_OF: Final[Mapping[type[Entry], str]] = MappingProxyType({model: kind for kind, model in KINDS.items()})
FORMS: Final[Mapping[str, TypeAdapter[Any]]] = MappingProxyType({kind: TypeAdapter(model) for kind, model in KINDS.items()})


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


def row_digest(seq: int, at: str, kind: str, body: str, previous: bytes) -> bytes:
    """SHA-256 over every field of a row, each preceded by its length."""
    number, time, what, content = str(seq).encode(), at.encode(), kind.encode(), body.encode()
    fields = (ENTRY_LABEL, _length(len(number)), number, _length(len(time)), time, _length(len(what)), what)
    rest = (_length(len(content)), content, _length(len(previous)), previous)
    return hashlib.sha256(b"".join(fields + rest)).digest()


@lru_cache(maxsize=1024)  # every row of a ledger is hashed for every question, and lengths repeat
def _length(size: int) -> bytes:
    return size.to_bytes(8, "big")


def make_row(seq: int, at: datetime, entry: Entry, previous: bytes) -> Row:
    """The row that appends `entry` after `previous`. `at` must be aware; it is stored in UTC."""
    if at.tzinfo is None:
        raise ValueError("a ledger entry needs a time with a time zone")
    stamp = at.astimezone(UTC).isoformat(timespec="microseconds")
    kind = KIND_OF[type(entry)]
    fields = FORMS[kind].dump_python(entry, mode="json", exclude_none=True)  # what came later and is not there leaves no trace
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Row(seq, stamp, kind, body, previous, row_digest(seq, stamp, kind, body, previous))


def decoded(row: Row) -> tuple[datetime, Entry]:
    """When, and what happened. Raises ChainError where the row is no entry of this table."""
    form = FORMS.get(row.kind)
    if form is None:
        raise ChainError(f"entry {row.seq} is of the unknown kind '{row.kind}': a newer version of this software wrote it")
    try:
        at = datetime.fromisoformat(row.at)
        entry: Entry = form.validate_json(row.body)
    except ValidationError as error:
        fields = ", ".join(str(item["loc"][0]) for item in error.errors(include_url=False) if item["loc"])
        raise ChainError(f"entry {row.seq} ({row.kind}) has an unusable body: {fields or 'not JSON'}") from error
    except ValueError as error:
        raise ChainError(f"entry {row.seq} has no readable time") from error
    if at.tzinfo is None:
        raise ChainError(f"entry {row.seq} has no readable time")
    if isinstance(entry, Created) != (row.seq == 1):
        raise ChainError(f"entry {row.seq} names the hospital, which only the first entry does")
    return at, entry
