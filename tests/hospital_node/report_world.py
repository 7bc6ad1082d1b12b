"""What the tests of reports share: entries without a disk, the facts around them, and a node with a few charged rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node_world import ME, NOW_S, Folders, approved_ledger, make_folders, make_plan

from certs.words import words_of
from hospital_node.accounting import accountant_version
from hospital_node.ledger import Cap, Ledger
from hospital_node.ledger_chain import EPOCH, MICROSECOND, Event
from hospital_node.ledger_decisions import approve_entry
from hospital_node.ledger_rules import shares_of_plan
from hospital_node.ledger_schema import Charge, Created, Entry, Evaluated, NoiseShared, Verified
from hospital_node.progress import ItemBytes, Leaves
from hospital_node.reporting import model as parts
from hospital_node.reporting.facts import Facts
from proto.evaluation import Evaluation
from proto.plan import Plan, short_name

AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
NOW = datetime.fromtimestamp(NOW_S, UTC)
CAP = Cap(epsilon=8.0, delta=1e-5)
KEY = bytes(range(32))
STATED = """
[report.governance]
legal_basis = "Article 6(1)(e)"
dpia_reference = "DPIA 12/26"
contact = "privacy@st-anna.example"

[report.publication]
region = "Germany"
intended_use = "Finding lung nodules in CT"
curator_type = "Nonprofit"
registry_authors = ["Dr Keller"]
"""


def entries_of(
    plan: Plan, charged: int, cap: Cap = CAP, *, verified: bool = True, hospital: str = "h0", at: datetime = NOW
) -> tuple[Event, ...]:
    """An approved plan and its first `charged` rounds, as a ledger would hold them."""
    made: list[Entry] = [Created(hospital=hospital, ledger_id="0" * 32)]
    unguarded = plan.privacy.no_guarantee
    so_far = events_of(made, at)
    made.append(
        approve_entry(
            so_far,
            plan,
            cap,
            by="Dr Keller",
            confirmed_by="",
            reason="board decision",
            accept_no_guarantee=unguarded,
            data_is_public=unguarded,
        )
    )
    for number in range(1, charged + 1):
        made.append(charge_of(plan, number, hospital))
        if verified:
            made.append(Verified(plan=plan.digest().hex(), round=number))
    return events_of(made, at)


def charge_of(plan: Plan, number: int, hospital: str = "h0") -> Charge:
    own = next(one.uri for one in plan.hospitals if short_name(one.uri) == hospital)
    part = plan.evaluation
    evaluated = None
    if part is not None and number % part.every == 0:
        evaluated = Evaluated(noise_multiplier=part.noise_multiplier, sensitivity=1.0)
    return Charge(
        plan=plan.digest().hex(),
        study=plan.study,
        round=number,
        session="ab" * 16,
        update_id=f"{number:032x}",
        noise_multiplier=plan.privacy.noise_multiplier,
        sampling_rate=1 / plan.privacy.inverse_sampling_rate,
        steps=plan.local_steps(own),
        clip_norm=plan.privacy.clip_norm,
        evaluation=evaluated,
        shared=shared_by(plan),
    )


def shared_by(plan: Plan) -> NoiseShared | None:
    shares = shares_of_plan(plan)
    if shares is None:
        return None
    fields = {name: getattr(shares, name) for name in ("norm_steps", "members", "may_drop", "may_collude")}
    return NoiseShared(**fields)


def with_shared_noise(plan: Plan) -> Plan:
    """One step a round, its noise in shares of all hospitals."""
    content = plan.model_dump(mode="json")
    content["training"] = {"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0}
    content["privacy"] |= {"noise_mode": "shared", "norm_steps": 500, "may_drop": 1, "may_collude": 1}
    return Plan.model_validate(content)


def events_of(made: Sequence[Entry], at: datetime = NOW) -> tuple[Event, ...]:
    stamp = (at - EPOCH) // MICROSECOND
    return tuple(Event(seq, stamp, entry, bytes([seq]) * 32) for seq, entry in enumerate(made, 1))


def changed_plan(plan: Plan, **fields: Any) -> Plan:
    """The plan with other fields; `privacy__clip_norm=2` reaches into a part."""
    content = plan.model_dump(mode="json")
    for name, value in fields.items():
        place, parts_of_name = content, name.split("__")
        for step in parts_of_name[:-1]:
            place = place[step]
        place[parts_of_name[-1]] = value
    return Plan.model_validate(content)


def with_evaluation(plan: Plan, noise_multiplier: float = 6.0) -> Plan:
    part = Evaluation(share=0.2, noise_multiplier=noise_multiplier, every=1)
    return Plan.model_validate(plan.model_dump(mode="json") | {"evaluation": part.model_dump(mode="json")})


def facts_of(events: Sequence[Event], plan: Plan | None, **fields: Any) -> Facts:
    facts = Facts(
        events=events,
        plan=plan,
        leaves=Leaves(study="lidc", round=1, last_round=(ItemBytes(item="mask", sent_bytes=43_205),), totals=(), updated_at=AT),
        prv=None,
        number=1,
        at=AT,
        security=parts.Security(
            transport="TLS 1.3, both sides by certificate; the node only dials out",
            certificate_issuer="study root",
            certificate_until=datetime(2027, 2, 20, tzinfo=UTC),
            key_at_rest="file of mode 0600, which the node refuses to use where others may read it",
            audit_records=0,
            audit_head=None,
        ),
        software=parts.Software(version="0.1.0", commit=None, accountant=accountant_version(), python="3.11"),
        signer=parts.Signer(uri=ME, key_sha256=KEY.hex(), key_words=words_of(KEY)),
    )
    return replace(facts, **fields)


def reporting_node(root: Path, charged: int = 2, plan: Plan | None = None, stated: str = STATED) -> tuple[Folders, Ledger]:
    """A node whose ledger charged some rounds, and whose hospital states what a registry asks."""
    plan = plan or make_plan()
    folders = make_folders(root)
    folders.config_file.write_text(folders.config_file.read_text() + stated)
    ledger = approved_ledger(folders, plan)
    folders.state.write_plan(plan)
    for number in range(1, charged + 1):
        release(ledger, plan, number)
    return folders, ledger


def release(ledger: Ledger, plan: Plan, number: int) -> None:
    ledger.commit(ledger.authorize(plan, number), number.to_bytes(16, "big"), bytes([number]) * 16, NOW)
    ledger.record_verified(plan, number, NOW)
