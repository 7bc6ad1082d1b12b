"""The study plan: every public choice of a study in one frozen value, and the digest that names it.

Whatever two parties must agree on is a field here and therefore in the digest, which the masking context binds. What
cannot change the mechanism or the result (paths, threads, devices) is not. Epsilon is never a field: it is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, NewType, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from proto import buffering, precision, scaffold, shared_noise
from proto.aggregation import Aggregation
from proto.buffering import Buffer
from proto.evaluation import Evaluation
from proto.frozen import Frozen, Positive, explain, from_toml, parsed
from proto.network import ARCHITECTURES, Network
from proto.preparation import Preparation
from proto.privacy import Privacy
from proto.training import Training

__all__ = [
    "ARCHITECTURES",
    "DECLINE_CODES",
    "MIN_COHORT",
    "PROTOCOL_VERSION",
    "Aggregation",
    "Buffer",
    "Evaluation",
    "Frozen",
    "Hospital",
    "Masking",
    "Network",
    "Plan",
    "PlanError",
    "Preparation",
    "Privacy",
    "Timing",
    "Training",
    "Uri",
    "default_threshold",
    "drop_later_defaults",
    "explain",
    "from_canonical",
    "load_toml",
    "role_of",
    "short_name",
    "written",
]

PROTOCOL_VERSION = 1
DIGEST_LABEL = b"hospital-secagg plan v1\n"
# Fields that came after the first plans were approved: (name, part of the plan). Left out of the canonical form where they
# hold their default, so that a plan that does not use them keeps its digest and its approvals.
LATER_FIELDS: tuple[tuple[str, str | None], ...] = (
    ("participants", None),
    ("rotate", "masking"),
    ("keep", "masking"),
    ("tensor_clips", "masking"),
    ("clip_decay", "masking"),
    ("bind_log", "masking"),
    ("arguments", "network"),
    ("weight_decay", "training"),
    ("nesterov", "training"),
    ("schedule", "training"),
    ("warmup_rounds", "training"),
    ("proximal", "training"),
    ("parts", "training"),
    ("adapter_rank", "training"),
    ("local_steps", "hospitals"),
    ("precision", "training"),
    ("micro_batch", "training"),
    ("checkpointing", "training"),
    ("evaluation", None),
    ("rule", "aggregation"),
    ("second_momentum", "aggregation"),
    ("adaptivity", "aggregation"),
    ("learning_rate_decay", "aggregation"),
    ("absent", "aggregation"),
    ("weights", "aggregation"),
    ("precision_scale", "aggregation"),
    ("hounsfield_check", "preparation"),
    ("equalise_below", "preparation"),
    ("fine_below_mm", "preparation"),
    ("fine_spacing_xyz_mm", "preparation"),
    ("balance_labels", "training"),
    ("augment_rotation_deg", "training"),
    ("augment_scale", "training"),
    ("loss_scale", "training"),
    ("buffer", None),
    ("norm_steps", "privacy"),
    ("may_drop", "privacy"),
    ("may_collude", "privacy"),
)
SELECTION_LABEL = b"hospital-secagg participants v1\n"
MIN_COHORT = 3  # with two members each learns the other's update from the sum

Uri = NewType("Uri", str)

DECLINE_CODES = {
    "not-approved": "no officer has approved this plan at this node",
    "budget-exhausted": "the next round would cross the privacy cap of this node",
    "already-released": "this node has released an update of this round before",
    "ledger-damaged": "the ledger of this node does not verify",
    "ledger-rolled-back": "the ledger of this node is older than its own counter",
    "ledger-unwritable": "the ledger of this node cannot be written now",
    "clock-behind": "the clock of this node does not fit its ledger",
    "policy": "the plan does not meet the policy of this node",
    "wrong-model": "the model is not the announced one, or not the one that this node trained on",
    "data-unusable": "the studies of this node cannot be read or prepared",
    "too-few-patients": "more studies were unreadable than the plan allows",
    "paused": "this node was paused by its own people",
    "training-failed": "training did not finish",
    "log-forked": "the coordinator shows another history of rounds than this node has kept",
    "log-damaged": "the copy of the log of rounds that this node keeps cannot be used",
}


class PlanError(ValueError):
    """A plan that cannot be used; the text names the field and the remedy."""


def _party_uri(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "secagg" or not parts.netloc or len(parts.path.split("/")) != 3:
        raise ValueError(f"'{text}' is not of the form secagg://<study>/<role>/<name>")
    return text


PartyUri = Annotated[str, AfterValidator(_party_uri)]


class Hospital(Frozen):
    """One admitted hospital. `declared_patients` is public and fixes every divisor; the true number never leaves.

    `local_steps`: its own steps a round, by what its machines can do; they are what its patients pay for.
    """

    uri: PartyUri
    declared_patients: int = Field(ge=1)
    weight: int = Field(default=1, ge=1, le=1 << 20)
    local_steps: int | None = Field(default=None, ge=1)  # None: training.local_steps


class TensorClip(Frozen):
    """A clip for the tensors whose names begin with `prefix`."""

    prefix: str = Field(min_length=1)
    clip: Positive


class Masking(Frozen):
    """Masking session parameters; see secagg/README.md for the bounds that they must meet.

    Clips are multiplied by `clip_decay` from round to round, as the learning rate is. A tensor has the clip of the first
    entry of `tensor_clips` that fits its name, else `update_clip`. Fewer bits: `rotate` spreads every value over many, so
    that one clip and 8 to 16 lanes suit them all; `keep` sends that share of the coordinates, chosen anew in every session
    (secagg/README.md, step 0.4).
    """

    lanes: int = Field(default=3, ge=2, le=16)
    update_clip: Positive = 1.0  # each coordinate of an update, rotated or not, is clipped to [-update_clip, update_clip]
    rotate: bool = False
    keep: float = Field(default=1.0, ge=2**-10, le=1)
    tensor_clips: tuple[TensorClip, ...] = ()
    clip_decay: float = Field(default=1.0, gt=0, le=1)  # factor per round
    threshold: int | None = None  # None: floor(2n/3) + 1 of the session's roster
    minimum_cohort: int = Field(default=MIN_COHORT, ge=MIN_COHORT)
    max_colluders: int = Field(default=1, ge=0)
    bind_log: bool = False  # sessions hold only among members that were shown one history of rounds (proto/roundlog.py)

    def clip_factor(self, round_number: int) -> float:
        """What the clips of this round are multiplied by; by repeated products, which are the same on every machine."""
        factor = 1.0
        for _ in range(1, round_number):
            factor *= self.clip_decay
        return factor


class Timing(Frozen):
    """Deadlines. `ready_after_s` > 0 hides training time, which follows the number of drawn patients, in steps of so long."""

    training_deadline_s: Positive = 3600.0
    phase_deadline_s: Positive = 60.0
    lost_after_s: Positive = 60.0  # a hospital not heard of for so long does not hold up the cohort
    ready_after_s: float = Field(default=0.0, ge=0)


class Plan(Frozen):
    """One study. Build it with `load_toml` or `from_canonical`; both raise PlanError with one sentence."""

    study: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    rounds: int = Field(ge=1)
    participants: int | None = Field(default=None, ge=MIN_COHORT)  # hospitals asked in a round (`selected`); None: all
    buffer: Buffer | None = None  # None: a round waits for its hospitals
    evaluate_every: int = Field(default=1, ge=1)  # of the evaluators, on public data
    evaluation: Evaluation | None = None  # on the hospitals' own patients
    network: Network
    preparation: Preparation
    training: Training
    privacy: Privacy
    masking: Masking = Masking()
    timing: Timing = Timing()
    aggregation: Aggregation = Aggregation()
    start_digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # digest of the public start's vector
    hospitals: tuple[Hospital, ...] = Field(min_length=MIN_COHORT)
    evaluators: tuple[PartyUri, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        uris = [h.uri for h in self.hospitals] + list(self.evaluators)
        if len(set(uris)) != len(uris):
            raise ValueError("a party is listed twice in hospitals and evaluators")
        for uri in uris:
            if urlsplit(uri).netloc != self.study:
                raise ValueError(f"'{uri}' belongs to another study than '{self.study}'")
        if self.preparation.modality == "none" and self.network.architecture in ARCHITECTURES:
            raise ValueError(f"preparation.modality 'none' leaves {self.network.architecture} without scans: say CT or MR")
        smallest = min(h.declared_patients for h in self.hospitals)
        if not self.privacy.no_guarantee and self.privacy.delta >= 1 / smallest:
            raise ValueError(
                f"privacy.delta {self.privacy.delta:g} must be below 1/{smallest}, one over the smallest declared size"
            )
        if self.evaluation is not None:
            self.evaluation.check(self.rounds, no_guarantee=self.privacy.no_guarantee)
        if self.training.warmup_rounds >= self.rounds:
            raise ValueError(
                f"training.warmup_rounds {self.training.warmup_rounds} leaves none of the {self.rounds} rounds at the full "
                "learning rate: lower it"
            )
        if self.training.proximal and self.most_local_steps == 1:
            raise ValueError(
                "training.proximal pulls back what earlier steps of a round moved, and local_steps is 1: leave it out"
            )
        if self.privacy.hospitals_per_patient > 1 and len({self.local_steps(h.uri) for h in self.hospitals}) > 1:
            raise ValueError(
                f"a patient may attend {self.privacy.hospitals_per_patient} hospitals (privacy.hospitals_per_patient), whose "
                "epsilons compose only where all take equally many steps: leave out local_steps of the hospitals"
            )
        parts = (scaffold, precision, buffering, shared_noise)
        unsound = next((text for part in parts if (text := part.obstacle(self)) is not None), None)
        if unsound is not None:
            raise ValueError(unsound)
        if self.masking.minimum_cohort > len(self.hospitals):
            raise ValueError(
                f"masking.minimum_cohort {self.masking.minimum_cohort} exceeds the {len(self.hospitals)} hospitals"
            )
        if self.participants is not None and not self.masking.minimum_cohort <= self.participants <= len(self.hospitals):
            raise ValueError(
                f"participants {self.participants} must lie between {self.masking.minimum_cohort} (masking.minimum_cohort) and "
                f"{len(self.hospitals)}, all hospitals of the plan"
            )
        return self

    @property
    def fewest_updates(self) -> int:
        """Updates without which no sum opens, as far as the plan says."""
        return self.masking.minimum_cohort if self.buffer is None else self.buffer.updates

    def session_weights(self, uri: str) -> tuple[int, ...]:
        """Weights of `uri` in the masks, by the staleness of its update; PlanError if it is not admitted."""
        weight = self.hospital(uri).weight
        return (weight,) if self.buffer is None else tuple(weight * factor for factor in self.buffer.factors)

    @property
    def largest_cohort(self) -> int:
        """Most hospitals that one round can have."""
        return self.participants or len(self.hospitals)

    def hospital(self, uri: str) -> Hospital:
        """The entry of `uri`; PlanError if it is not admitted."""
        for entry in self.hospitals:
            if entry.uri == uri:
                return entry
        raise PlanError(f"{uri} is not among the hospitals of study '{self.study}': ask the coordinator to add it to the plan")

    def local_steps(self, uri: str) -> int:
        """Steps of `uri` in each round that it takes part in; PlanError if it is not admitted."""
        return self.hospital(uri).local_steps or self.training.local_steps

    @property
    def most_local_steps(self) -> int:
        """Steps of the hospital that takes most: the worst epsilon of equally many rounds."""
        return max(hospital.local_steps or self.training.local_steps for hospital in self.hospitals)

    @property
    def most_steps(self) -> int:
        """Steps over all rounds of the hospital that takes most: what the worst epsilon of the study counts."""
        asked = Counter(uri for number in range(1, self.rounds + 1) for uri in self.selected(number))
        return max(count * self.local_steps(uri) for uri, count in asked.items())

    def expected_batch(self, uri: str) -> float:
        """Public divisor of the noised gradient sum: expected patients per step, of the declared less validation's share."""
        trained = 1.0 - (self.evaluation.share if self.evaluation else 0.0)
        return trained * self.hospital(uri).declared_patients / self.privacy.inverse_sampling_rate

    def selected(self, round_number: int) -> tuple[str, ...]:
        """Who is asked in a round, in the plan's order: the `participants` hospitals whose hash for this round is smallest.

        It follows from the plan's digest and the number alone: everybody can compute it, and once a plan is approved nobody
        can bend it.
        """
        uris = [hospital.uri for hospital in self.hospitals]
        if self.participants is None:
            return tuple(uris)
        prefix = SELECTION_LABEL + self.digest() + round_number.to_bytes(8, "big")
        chosen = sorted(uris, key=lambda uri: hashlib.sha256(prefix + uri.encode()).digest())[: self.participants]
        return tuple(uri for uri in uris if uri in chosen)

    def share_of(self, survivors: Collection[str]) -> float:
        """Of the weights of all hospitals, that of those who are in a sum."""
        present = sum(hospital.weight for hospital in self.hospitals if hospital.uri in survivors)
        return present / sum(hospital.weight for hospital in self.hospitals)

    def threshold_of(self, roster_size: int) -> int:
        """Shares needed to open a session of `roster_size` members (protocol.md, threat model)."""
        return self.masking.threshold or default_threshold(roster_size)

    def canonical(self) -> bytes:
        """The bytes that the digest covers: JSON with sorted keys and no white space."""
        fields = self.model_dump(mode="json")
        drop_later_defaults(fields)
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def digest(self) -> bytes:
        """32 bytes that name this plan, made once: a plan never changes, and a node asks for them a dozen times in a round."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(DIGEST_LABEL + self.canonical()).digest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Another plan with its own digest; pydantic copies what was made of the fields along with them."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("_digest", None)
        return copied


def drop_later_defaults(fields: dict[str, Any], kept: tuple[str, ...] = ()) -> None:
    """Take out of a plan's JSON fields, in place, those of LATER_FIELDS that hold their default, but for `kept`."""
    for name, table in LATER_FIELDS:
        part = fields if table is None else fields.get(table, {})
        for owner in part if isinstance(part, list) else [part]:
            if name not in kept and name in owner and owner[name] == _default_of(name, table):
                del owner[name]


@cache  # of a few tables
def _default_of(name: str, table: str | None) -> Any:
    """As JSON holds it, a tuple as the list that it is; never changed."""
    return json.loads(json.dumps(_type_of(table).model_fields[name].get_default()))


def written(part: Frozen, table: str) -> dict[str, Any]:
    """JSON fields of one table of a plan, as digests cover them."""
    fields: dict[str, Any] = {table: part.model_dump(mode="json")}
    drop_later_defaults(fields)
    table_fields: dict[str, Any] = fields[table]
    return table_fields


def _type_of(table: str | None) -> type[Frozen]:
    """The class of a plan's table, or of its entries where it is a list."""
    kind: Any = Plan if table is None else Plan.model_fields[table].annotation
    return kind if isinstance(kind, type) else get_args(kind)[0]


def default_threshold(roster_size: int) -> int:
    """floor(2n/3) + 1: tolerates 1 colluder of 4, 3 of 10, 7 of 20 (protocol.md)."""
    return 2 * roster_size // 3 + 1


def short_name(uri: str) -> str:
    """Last part of a party's URI, for people: secagg://lidc/hospital/st-anna -> st-anna."""
    return uri.rsplit("/", 1)[-1]


def role_of(uri: str) -> str:
    """hospital, evaluator or coordinator."""
    return _party_uri(uri).split("/")[-2]


def load_toml(path: Path) -> Plan:
    """Read a plan from TOML. Raises PlanError naming file, field and reason."""
    return from_toml(Plan, path, "the plan", PlanError)


def from_canonical(data: bytes) -> Plan:
    """Read a plan as sent on the wire. Raises PlanError, also where the bytes are not in canonical form."""
    try:
        fields = json.loads(data)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError("the plan received is not valid JSON") from error
    plan = parsed(Plan, fields, "the plan received", PlanError)
    if plan.canonical() != data:
        raise PlanError("the plan received is not in canonical form: it was made by another software version")
    return plan
