"""The privacy report as one frozen value, and its bytes: what is hashed, signed and read by machines.

Rules: the schema only grows (a field is never removed and never changes its meaning; a later one is optional, and the version's
second number rises). An epsilon that does not exist is null with `no_guarantee`, never 0 and never infinity. Every section has
its own digest in `digests`, so that a check can name the part that was changed. Nothing here computes or decides anything.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Literal

from pydantic import AwareDatetime, Field, ValidationError

from certs.signed_file import document
from proto.frozen import Frozen, explain

SCHEMA_VERSION: Final = "1.0"
FORMAT: Final = "hospital-secagg privacy report"
HEX_32_BYTES: Final = r"^[0-9a-f]{64}$"
LONGEST_REPORT_BYTES: Final = 64 << 20


class ReportError(ValueError):
    """A report that cannot be made or read; one sentence that says what to do."""


class ReportTampered(ReportError):
    """A report that does not verify. `item` is the first bad part: schema, digest, certificate, signature, or a rendering."""

    def __init__(self, item: str, sentence: str) -> None:
        super().__init__(f"{item}: {sentence}")
        self.item = item


class AsOf(Frozen):
    """The state of the ledger that everything derives from. `round`: the last charged one of the study, 0 before the first."""

    study: str
    round: int = Field(ge=0)
    ledger_head: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    ledger_entries: int = Field(ge=1)
    last_entry_at: AwareDatetime


class Subject(Frozen):
    """Whose patients, in which study. The declared size is public by the plan; the true one is never written anywhere."""

    hospital: str
    study: str
    plan_digest: str | None
    declared_patients: int | None
    data_is_public: bool  # people declared the data public or synthetic when they approved


class State(Frozen):
    """Whether the node may go on, in one word and one sentence: what is read before any number."""

    name: str
    sentence: str
    next_round: int | None
    next_epsilon: float | None


class Accountant(Frozen):
    """The library behind a figure."""

    name: Literal["pld", "renyi", "orders"]  # orders: Rényi divergences at whole orders, where noise was shared
    library: str


class SecondOpinion(Frozen):
    """Another library's and another method's reading of the same releases; it decides nothing. None: not asked."""

    name: Literal["prv"] = "prv"
    epsilon: float | None


class Recognised(Frozen):
    """The best attack there can be: the share recognised at a share of false alarms."""

    false_alarms: float
    recognised: float


class Reliance(Frozen):
    """Where noise is shared: on whom epsilon rests, and what it is against whoever knows no hospital's share."""

    outsider_epsilon: float | None
    colluders: int  # the fewest that any of these rounds withstands, together with the coordinator
    honest: int  # of a full roster, how many must keep their noise to themselves: this hospital is one of them
    sentence: str


class Profile(Frozen):
    """The same releases read at another delta; None without a guarantee."""

    delta: float
    epsilon: float | None


class Guarantee(Frozen):
    """What holds for one patient, over the ledger's whole life."""

    variant: Literal["approximate"] = "approximate"
    no_guarantee: bool
    epsilon: float | None  # as read; `stated_epsilon` is what the statement says
    stated_epsilon: str
    delta: float
    unit: Literal["patient"] = "patient"
    unit_in_words: str
    neighbouring: Literal["add_or_remove_one"] = "add_or_remove_one"
    accountant: Accountant
    non_adaptive_epsilon: float | None
    coarser_epsilon: float | None  # Renyi accounting at its best order
    cross_check: SecondOpinion
    profile: tuple[Profile, ...]
    attacker: tuple[Recognised, ...]
    best_guess: float  # from a coin flip
    reliance: Reliance | None  # None: every release holds this hospital's full noise, and epsilon rests on nobody else
    releases_covered: Literal["every masked update, every intermediate model, the final model"]


class Mechanism(Frozen):
    """One kind of charged mechanism, its steps summed over all releases."""

    name: Literal["dp_sgd", "noised_sums_of_scores"]
    noise_multiplier: float
    sampling: Literal["poisson", "everybody"]
    sampling_rate: float
    steps: int
    clip_norms: tuple[float, ...]
    clip_mode: Literal["flat"] | None
    noise_source: Literal["operating_system"] = "operating_system"
    noise_of: Literal["this hospital alone", "the hospitals together"]
    empty_draw: Literal["a step of noise alone"] | None


class Masking(Frozen):
    """What is done to the noised update before it leaves; post-processing of it. From the plan."""

    position: Literal["after_noise"] = "after_noise"
    lanes: int
    update_clip: float
    keep: float
    minimum_cohort: int
    threshold: int
    max_colluders: int


class Budget(Frozen):
    """The cap and who agreed. None: nobody has set one yet."""

    epsilon: float | None
    delta: float
    agreed: str  # by whom and when
    left: float
    left_share: float
    rounds_left: int
    stops_after_round: int | None
    decided_by: Literal["pld", "renyi", "orders"]
    on_exhaustion: Literal["the node stops itself"] = "the node stops itself"
    refresh: Literal["never"] = "never"


class Composition(Frozen):
    """What was composed into the figure."""

    releases: int
    rounds_done: int
    rounds_planned: int
    other_studies: tuple[str, ...]
    hospitals_per_patient: int
    epsilon_across_hospitals: float | None
    overlap_checked: Literal["no: stated in the plan, nobody compared patient lists"]
    tuning: Literal["charged where this node did it; work outside this node is not seen by it"]
    retries: Literal["a round is charged once and never released twice; what was charged is never refunded"]


class Actor(Frozen):
    """One party of the trust model."""

    who: str
    trusted_for: str
    if_it_fails: str


class Trust(Frozen):
    """On whom the figure relies."""

    relies_on_masking: bool
    collusion_threshold: int | None  # of the plan's masking; None where there is no plan
    actors: tuple[Actor, ...]


class LeavingRow(Frozen):
    """One item that leaves the hospital."""

    item: str
    how_often: str
    sent_bytes: int | None
    size: str
    readable_by: str
    covered: Literal["yes", "no", "not personal"]
    why: str
    switch_off: str


class AssumptionRow(Frozen):
    """Something that the guarantee needs and mathematics alone does not give."""

    text: str
    state: Literal["holds", "unverified", "does not hold"]
    evidence: str


class ReleaseRow(Frozen):
    """One charged release and the ledger's epsilon after it."""

    place: int
    at: AwareDatetime
    study: str
    round: int
    noise_multiplier: float
    sampling_rate: float
    steps: int
    scores: bool
    epsilon: float | None
    result_came: bool


class DecisionRow(Frozen):
    """What people decided: by the ledger, with its entry's number."""

    entry: int
    at: AwareDatetime
    who: str
    what: str
    why: str


class Point(Frozen):
    """Epsilon after a round, read or foreseen."""

    round: int
    epsilon: float


class Course(Frozen):
    """The budget over the rounds of the study."""

    spent: tuple[Point, ...]
    forecast: tuple[Point, ...]


class Security(Frozen):
    """How the node is kept and reached."""

    transport: Literal["TLS 1.3, both sides by certificate; the node only dials out"]
    certificate_issuer: str
    certificate_until: AwareDatetime
    key_at_rest: Literal["file of mode 0600, which the node refuses to use where others may read it"]
    audit_records: int
    audit_head: str | None


class Evidence(Frozen):
    """Findings that support the figure from outside of it. Empty where nobody recorded one at this node."""

    kind: str
    result: str


class Governance(Frozen):
    """What the hospital says of itself in its configuration ([report]); this software knows nothing of it. None: not stated."""

    legal_basis: str | None = None
    dpia_reference: str | None = None
    approver: str | None = None
    next_review: str | None = None
    contact: str | None = None
    incident_route: str | None = None


class Publication(Frozen):
    """What a registry asks and only the hospital can say ([report] of its configuration). None: not stated."""

    region: str | None = None
    intended_use: str | None = None
    curator_type: Literal["Government", "Industry", "Nonprofit"] | None = None
    registry_authors: tuple[str, ...] = ()


class WordsField(Frozen):
    """One row of the statement's fields."""

    group: str
    label: str
    value: str
    explanation: str


class Words(Frozen):
    """The statement as the app shows it, made from the same entries."""

    paragraph: str
    fields: tuple[WordsField, ...]


class Changes(Frozen):
    """What is different from the report before; `since` is None in the first one."""

    since: str | None
    since_sha256: str | None = Field(default=None, pattern=HEX_32_BYTES)
    lines: tuple[str, ...]


class Software(Frozen):
    """What made the report. `commit` is None where the installation does not know it."""

    name: Literal["hospital-secagg"] = "hospital-secagg"
    version: str
    commit: str | None
    accountant: str
    python: str


class Signer(Frozen):
    """Whose key signs: the hospital node's own."""

    uri: str
    key_sha256: str = Field(pattern=HEX_32_BYTES)
    key_words: str
    algorithm: Literal["ECDSA P-256, SHA-256, DER"] = "ECDSA P-256, SHA-256, DER"


class Body(Frozen):
    """Everything but the digests of the sections."""

    format: Literal["hospital-secagg privacy report"] = "hospital-secagg privacy report"
    schema_version: Literal["1.0"] = "1.0"
    report_id: str = Field(pattern=r"^[a-z0-9-]+-[0-9]{4,}$")
    number: int = Field(ge=1)
    issued_at: AwareDatetime
    as_of: AsOf
    subject: Subject
    state: State
    guarantee: Guarantee
    mechanisms: tuple[Mechanism, ...]
    masking: Masking | None
    budget: Budget
    composition: Composition
    course: Course
    trust: Trust
    leaves: tuple[LeavingRow, ...]
    leaves_measured_in_round: int | None
    unprotected_quantities: tuple[str, ...]
    assumptions: tuple[AssumptionRow, ...]
    releases: tuple[ReleaseRow, ...]
    decisions: tuple[DecisionRow, ...]
    statement: Words
    security: Security
    evidence: tuple[Evidence, ...] = ()
    utility: tuple[Evidence, ...] = ()
    governance: Governance
    publication: Publication
    changes: Changes
    software: Software
    signer: Signer


class PrivacyReport(Body):
    """The whole file."""

    digests: dict[str, str]


def sealed(body: Body) -> PrivacyReport:
    """The report with the digest of each of its sections."""
    fields = body.model_dump(mode="json")
    return PrivacyReport.model_validate(fields | {"digests": section_digests(fields)})


def section_digests(fields: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of every section that is an object or a list, by name; of canonical JSON without white space."""
    return {
        name: hashlib.sha256(_compact(value)).hexdigest()
        for name, value in sorted(fields.items())
        if isinstance(value, dict | list) and name != "digests"
    }


def bytes_of(report: PrivacyReport) -> bytes:
    """The file. These bytes are hashed and signed."""
    return document(report.model_dump(mode="json"))


def read_report(data: bytes) -> PrivacyReport:
    """The report in `data`. Raises ReportTampered naming the first bad item: the schema, or a section whose digest is wrong."""
    try:
        fields = json.loads(data)
        report = PrivacyReport.model_validate(fields)
    except ValidationError as error:
        raise ReportTampered("schema", explain(error, "the report")) from error
    except (ValueError, RecursionError) as error:
        raise ReportTampered("schema", "the file is not JSON: it was cut or changed") from error
    true = section_digests(fields)
    for name in sorted({*true, *report.digests}):
        if true.get(name) != report.digests.get(name):
            raise ReportTampered(f"digest of '{name}'", "this section is not the one that was written")
    if bytes_of(report) != data:
        raise ReportTampered(
            "schema", "the file is not in the form in which reports are written: a byte outside of its values differs"
        )
    return report


def _compact(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
