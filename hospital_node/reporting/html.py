"""The report as one HTML page: a function of the signed bytes alone, so that a page can be compared with them.

No scripts, no fonts, no links to anywhere: it opens and prints without a network. Texts of people are escaped.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from hospital_node.cap import plain, rounded_up
from hospital_node.reporting.annexes import annexes
from hospital_node.reporting.kept import CHAIN_FILE, JSON_FILE, SIGNATURE_FILE
from hospital_node.reporting.model import PrivacyReport, ReportError

if TYPE_CHECKING:
    from jinja2 import Environment

MISSING: Final = "Jinja2 is not installed, which the page needs: run pip install '.[reports]' in the repository's folder"
SHORT_HASH: Final = 12


def render(report: PrivacyReport, data: bytes) -> str:
    """The page of `report`, whose file's bytes are `data`. Raises ReportError where Jinja2 is missing."""
    environment = _environment()
    from hospital_node.reporting import charts

    sha256 = hashlib.sha256(data).hexdigest()
    return environment.get_template("privacy-report.html").render(
        report=report,
        sha256=sha256,
        short=sha256[:SHORT_HASH],
        figures=figures(report),
        groups=_groups(report),
        spending=charts.spending(report),
        spending_sentence=charts.spending_sentence(report),
        attacker=charts.attacker(report),
        attacker_sentence=charts.attacker_sentence(),
        annexes=annexes(report),
        files={"json": JSON_FILE, "signature": SIGNATURE_FILE, "chain": CHAIN_FILE},
    )


def page(template: str, data: bytes, **facts: object) -> str:
    """Another page of the same look, of the signed bytes `data`. Raises ReportError where Jinja2 is missing."""
    sha256 = hashlib.sha256(data).hexdigest()
    return _environment().get_template(template).render(**facts, sha256=sha256, short=sha256[:SHORT_HASH])


def figures(report: PrivacyReport) -> tuple[tuple[str, str, str], ...]:
    """The four figures of the first page: name, value, and what stands beneath it."""
    guarantee, budget = report.guarantee, report.budget
    delta = f"δ {plain(guarantee.delta)} · unit: one patient"
    done = f"{report.composition.rounds_done} of {report.composition.rounds_planned} rounds charged"
    if guarantee.no_guarantee:
        return (
            ("Spent", "no guarantee", "no epsilon can be stated"),
            ("Left", "no guarantee", "a cap has nothing to protect"),
            ("Rounds left", str(budget.rounds_left), done),
            ("Attacker recognises", "anyone", "nothing limits an attacker"),
        )
    of = "" if budget.epsilon is None else f" of {budget.epsilon:g}"
    left = ("no cap yet", "an officer has to approve a plan") if budget.epsilon is None else _left(report)
    stop = f"stops itself after round {budget.stops_after_round}" if budget.stops_after_round is not None else done
    tenths = next(one.recognised for one in guarantee.attacker if one.false_alarms == 0.01)
    return (
        ("Spent", f"ε {guarantee.stated_epsilon}{of}", delta),
        ("Left", *left),
        ("Rounds left", str(budget.rounds_left), stop),
        ("Attacker recognises", f"≤ {_up(100 * tenths)} in 100", "at 1 false alarm in 100"),
    )


def _left(report: PrivacyReport) -> tuple[str, str]:
    budget = report.budget
    return f"{int(100 * budget.left_share + 1e-9)} %", f"ε {int(budget.left * 100 + 1e-9) / 100:.2f} below the cap"


def _groups(report: PrivacyReport) -> dict[str, list[tuple[str, str, str]]]:
    """The fields of the statement and those of the report beside it, by group, in the order of reading."""
    groups: dict[str, list[tuple[str, str, str]]] = {"identity": [*_identity(report)]}
    for one in report.statement.fields:
        groups.setdefault(one.group, []).append((one.label, one.value, one.explanation))
    second = report.guarantee.cross_check.epsilon
    if second is not None:
        groups["strength"].append(
            ("second library", rounded_up(second), "PRV accounting of Opacus, of the same releases; it decides nothing.")
        )
    if report.masking is not None:
        masks = report.masking
        value = f"{masks.lanes} lanes, values clipped to ±{masks.update_clip:g}, after the noise"
        who = f"{masks.threshold} or more open a sum, of {masks.minimum_cohort} or more; {masks.max_colluders} may collude"
        groups["masking"] = [("packing", value, "Post-processing of the noised update."), ("who opens", who, "Of the plan.")]
    groups["trust"] = [
        (one.who, f"trusted for {one.trusted_for}", f"If it fails: {one.if_it_fails}.") for one in report.trust.actors
    ]
    groups["security"] = [*_security(report)]
    groups["evidence, utility"] = [
        *((one.kind, one.result, "") for one in (*report.evidence, *report.utility)),
        *(
            ()
            if report.evidence or report.utility
            else [("recorded at this node", "nothing", "Audits and scores are kept with the study.")]
        ),
    ]
    groups["governance, as the hospital states it"] = [
        (name.replace("_", " "), value or "not stated", "") for name, value in report.governance.model_dump().items()
    ]
    return groups


def _identity(report: PrivacyReport) -> list[tuple[str, str, str]]:
    made = report.software
    commit = f", commit {made.commit[:12]}" if made.commit else ""
    declared = report.subject.declared_patients
    return [
        ("report", report.report_id, f"Issued {_moment(report.issued_at)}."),
        ("plan", (report.subject.plan_digest or "none")[:16], "Digest of the plan that the study follows."),
        (
            "declared size",
            "none" if declared is None else f"{declared} patients",
            "Public, in the plan; the true size is in no report.",
        ),
        ("software", f"{made.name} {made.version}{commit}", f"Python {made.python}, {made.accountant}."),
        ("signer", report.signer.uri, f"Key {report.signer.key_sha256[:16]}, in words: {report.signer.key_words}."),
    ]


def _security(report: PrivacyReport) -> list[tuple[str, str, str]]:
    kept = report.security
    head = f"head {kept.audit_head[:12]}" if kept.audit_head else "nothing was recorded yet"
    return [
        ("transport", kept.transport, ""),
        ("certificate", f"by {kept.certificate_issuer}", f"Valid until {kept.certificate_until:%Y-%m-%d}."),
        ("key at rest", kept.key_at_rest, ""),
        ("audit log", f"{kept.audit_records} records", f"A hash chain of who did what at this node; {head}."),
    ]


@lru_cache(maxsize=1)
def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise ReportError(MISSING) from error
    loader = PackageLoader("hospital_node.reporting")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"moment": _moment, "plain": plain, "figure": _figure}
    return environment


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _figure(value: float | None) -> str:
    return "no guarantee" if value is None else rounded_up(value)


def _up(value: float) -> int:
    return -int(-(value - 1e-9) // 1)
