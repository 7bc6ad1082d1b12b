"""A patient withdraws: what it would mean, the record of it, and the certificate.

The ledger keeps a salted code and decides who may be used from then on; the audit log names the entry, as for every decision
(people.py). Nothing is sent, and nothing that is sent changes: the declared size, weights and messages stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from pydantic import AwareDatetime, Field, ValidationError

from certs.identity import load_identity
from certs.signed_file import chain_of, document, sign_file
from hospital_node import ledger_rules as rules
from hospital_node import people
from hospital_node.budget import budget_view
from hospital_node.cap import plain, rounded_up
from hospital_node.cases import discover
from hospital_node.config import NodeConfig
from hospital_node.ledger import CannotRecord, Ledger
from hospital_node.ledger_chain import Event
from hospital_node.ledger_schema import Charge, PatientWithdrawn
from hospital_node.prepared_cache import PreparedCache
from hospital_node.reporting.kept import write_folder
from hospital_node.reporting.model import ReportError, ReportTampered, Signer
from hospital_node.reporting.write import signer_of
from hospital_node.scans import forget_scans
from hospital_node.state import StateFolder
from hospital_node.statement import guaranteed
from hospital_node.studies import usable_studies
from hospital_node.withdrawal import SHORT_CODE, identified, refuse_named
from proto.frozen import Frozen, explain
from proto.plan import Plan

WITHDRAWALS_FOLDER: Final = "withdrawals"  # in the node's state folder: certificates, by number of the ledger's entry
JSON_FILE: Final = "withdrawal.json"
SIGNATURE_FILE: Final = "withdrawal.json.sig"
CHAIN_FILE: Final = "withdrawal.crt"
HTML_FILE: Final = "withdrawal.html"


class EligibleRound(Frozen):
    """One charged release for which the patient was eligible. `part`: of the study's patients, where the plan is at hand."""

    study: str
    round: int
    charged_at: AwareDatetime
    part: Literal["trained on", "measured", "trained on or measured"]


class Spent(Frozen):
    """What those releases cost at most, as the statement says it, up to the withdrawal. None: no guarantee."""

    epsilon: float | None
    stated_epsilon: str
    delta: float
    read_by: Literal["pld", "renyi", "orders"]


class Certificate(Frozen):
    """The certificate. It names the patient by a salted code that only the hospital can resolve, and by nothing else."""

    format: Literal["hospital-secagg withdrawal certificate"] = "hospital-secagg withdrawal certificate"
    schema_version: Literal["1.0"] = "1.0"
    hospital: str
    code: str = Field(pattern=r"^[0-9a-f]{64}$")
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    recorded_at: AwareDatetime
    recorded_by: str
    ledger_entry: int
    ledger_head: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    eligible: tuple[EligibleRound, ...]
    spent: Spent
    sentences: tuple[str, ...]
    signer: Signer


@dataclass(frozen=True, slots=True)
class Shown:
    """What people see before they decide. `studies`: of this patient, that would be left out."""

    eligible: tuple[EligibleRound, ...]
    spent: Spent
    studies: int
    withdrawn: PatientWithdrawn | None


def show(node: NodeConfig, patient: str) -> Shown:
    """What a withdrawal of this patient would mean. Changes nothing. Raises LedgerError, CohortError, CacheError."""
    patient = identified(patient)
    folder = StateFolder(node.state, node.ledger_counter)
    ledger = Ledger.open_readonly(node.ledger or folder.ledger, witness=node.ledger_counter)
    events = ledger.events()
    known = ledger.withdrawals().entry_of(patient)
    counted = events if known is None else _up_to(events, known)
    listed = discover(node.data, site=node.site, fold=node.fold).by_patient().get(patient, ())
    return Shown(eligible_rounds(counted, _part_of(node, patient)), spent(counted), len(listed), known)


def withdraw(
    node: NodeConfig, patient: str, by: str, reason: str, at: datetime, *, although_absent: bool = False
) -> Certificate:
    """Record the withdrawal, forget what was prepared, keep a signed certificate.

    Where it is recorded and has no certificate, as after a power cut or where something could not be deleted, the rest is done
    and the entry stays the only one. Raises what `people.REFUSALS` names, CohortError, CacheError, ReportError, ScansError.
    """
    patient = identified(patient)
    shown = show(node, patient)
    if not shown.studies and shown.withdrawn is None and not although_absent:
        raise CannotRecord(
            "No study of a patient with this id is in the data folder, so nothing would be left out: look at the id, or say "
            "--although-absent where the studies come later."
        )
    ledger = people.ledger_of(node, at)
    entry = shown.withdrawn
    if entry is None or _is_certified(node, ledger.events(), entry):
        entry, kind = ledger.withdraw_patient(patient, by, reason, at), "patient-withdrawn"
    else:
        refuse_named(patient, by, reason)
        kind = "withdrawal-completed"
    people.record(node, ledger, at, kind, by, reason, code=entry.code[:SHORT_CODE])
    usable_studies(node)  # deletes what was prepared of the patient
    forget_scans(node.state)  # pictures of the hospital's own app, which may show the patient
    return _certify(node, ledger.events(), entry, _part_of(node, patient))


def eligible_rounds(events: Sequence[Event], part: dict[str, bool]) -> tuple[EligibleRound, ...]:
    """Every charged release, since each is charged to every patient. `part`: by plan, whether the patient is measured there."""
    words: dict[bool | None, Literal["trained on", "measured", "trained on or measured"]]
    words = {None: "trained on or measured", True: "measured", False: "trained on"}
    return tuple(
        EligibleRound(study=one.study, round=one.round, charged_at=event.at, part=words[part.get(one.plan)])
        for event in events
        if isinstance(one := event.entry, Charge)
    )


def spent(events: Sequence[Event]) -> Spent:
    """The ledger's own reading of these entries."""
    view = budget_view(events, None)
    holds, delta = guaranteed(view, rules.guaranteed_cap(events))
    return Spent(
        epsilon=holds if math.isfinite(holds) else None, stated_epsilon=rounded_up(holds), delta=delta, read_by=view.read_by
    )


def certificate_of(events: Sequence[Event], entry: PatientWithdrawn, part: dict[str, bool], signer: Signer) -> Certificate:
    """The certificate of one recorded withdrawal, from entries up to it. Pure."""
    counted = _up_to(events, entry)
    recorded, rounds, cost = counted[-1], eligible_rounds(counted, part), spent(counted)
    hospital = events[0].entry
    return Certificate(
        hospital=getattr(hospital, "hospital", ""),
        code=entry.code,
        salt=entry.salt,
        recorded_at=recorded.at,
        recorded_by=entry.by,
        ledger_entry=recorded.seq,
        ledger_head=f"sha256:{recorded.digest.hex()}",
        eligible=rounds,
        spent=cost,
        sentences=sentences(rounds, cost, recorded),
        signer=signer,
    )


def sentences(rounds: Sequence[EligibleRound], cost: Spent, recorded: Event) -> tuple[str, ...]:
    """What the certificate says in words, each from the facts given."""
    from_now = (
        f"From entry {recorded.seq} of the ledger, {recorded.at:%Y-%m-%d %H:%M} UTC, on no training and no evaluation of this "
        "hospital uses this patient's studies; an update whose training had begun before is not released any more."
    )
    stays = (
        "The number of patients that the hospital declared stays as it is, and nothing that is sent says that anybody withdrew."
    )
    if not rounds:
        return ("Nothing computed from this patient has left the hospital.", from_now, stays)
    many = f"{len(rounds)} charged release{'' if len(rounds) == 1 else 's'}"
    before = f"The patient was eligible for {many} before; whether the patient was drawn was chance, and is kept nowhere."
    limit = "At least one release left without noise, so nothing limits what it may reveal about a patient."
    if cost.epsilon is not None:
        pair = f"(ε = {cost.stated_epsilon}, δ = {plain(cost.delta)})"
        limit = f"Together they satisfy {pair}-differential privacy: that bounds what they tell about this patient, for good."
    return (
        before,
        limit,
        "What was released cannot be called back; no later release adds to it for this patient.",
        from_now,
        stays,
    )


def bytes_of(certificate: Certificate) -> bytes:
    """The file that is signed."""
    return document(certificate.model_dump(mode="json"))


def read_certificate(data: bytes) -> Certificate:
    """The certificate in `data`. Raises ReportTampered."""
    try:
        found = Certificate.model_validate_json(data)
    except ValidationError as error:
        raise ReportTampered("schema", explain(error, "the certificate")) from error
    if bytes_of(found) != data:
        raise ReportTampered("schema", "the file is not in the form in which certificates are written")
    return found


def folder_of(entry: int) -> str:
    """Where the certificate of a ledger's entry is kept, below the state folder."""
    return f"{WITHDRAWALS_FOLDER}/{entry:06d}"


def _certify(node: NodeConfig, events: Sequence[Event], entry: PatientWithdrawn, part: dict[str, bool]) -> Certificate:
    identity = load_identity(node.identity)
    made = certificate_of(events, entry, part, signer_of(identity))
    data = bytes_of(made)
    files = {
        JSON_FILE: data,
        SIGNATURE_FILE: sign_file(identity.key, data),
        CHAIN_FILE: chain_of(identity, node.identity),
    }
    with suppress(ReportError):  # the page needs a library that a node does not; whoever has the signed file makes it
        files[HTML_FILE] = page_of(made, data).encode()
    try:
        (node.state / WITHDRAWALS_FOLDER).mkdir(mode=0o700, exist_ok=True)
        write_folder(node.state / folder_of(made.ledger_entry), files)
    except OSError as error:
        raise ReportError(f"the withdrawal is recorded, but its certificate cannot be written: {error.strerror}") from error
    return made


def page_of(certificate: Certificate, data: bytes) -> str:
    """The certificate as a page, from its signed bytes alone."""
    from hospital_node.reporting.html import page

    return page("withdrawal.html", data, certificate=certificate)


def _is_certified(node: NodeConfig, events: Sequence[Event], entry: PatientWithdrawn) -> bool:
    return (node.state / folder_of(_up_to(events, entry)[-1].seq)).exists()


def _up_to(events: Sequence[Event], entry: PatientWithdrawn) -> tuple[Event, ...]:
    place = next(place for place, event in enumerate(events) if event.entry == entry)
    return tuple(events[: place + 1])


def _part_of(node: NodeConfig, patient: str) -> dict[str, bool]:
    """By digest of the plan at hand, whether the patient is in its validation part: the node's own mapping to keys says so."""
    from hospital_node.validation import is_measured

    folder = StateFolder(node.state)
    plan: Plan | None = folder.read_plan()
    if plan is None or (plan.evaluation is not None and not folder.patient_secret.exists()):
        return {}
    if plan.evaluation is None:
        return {plan.digest().hex(): False}
    opened = PreparedCache.open(folder.cache, plan.preparation, len(plan.network.labels), folder.patient_secret)
    return {plan.digest().hex(): is_measured(plan, opened.patient_key(patient))}
