"""The report as an entry of the OpenDP deployments registry: a draft, for people to complete and send.

Pure, from the report alone. An entry that the schema would not admit is not written: the sentence names the field, and the key
of node.toml that fills it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from hospital_node.cap import plain
from hospital_node.reporting import annexes
from hospital_node.reporting.model import PrivacyReport, ReportError
from hospital_node.reporting.registry_fields import SCHEMA_COMMIT, problems

MISSING: Final = (
    "PyYAML is not installed, which the registry's entry needs: run pip install '.[reports]' in the repository's folder"
)
KEYS: Final = {
    "deployment.basic.intended_use": "intended_use",
    "deployment.basic.data_product_region": "region",
    "deployment.basic.data_curators": "curator_type",
    "deployment.administrative.registry_authors": "registry_authors",
}
TIER: Final = 3


def render(report: PrivacyReport, data: bytes) -> str:
    """The entry in YAML. Raises ReportError where PyYAML is missing or the schema would not admit it."""
    found = entry(report, hashlib.sha256(data).hexdigest())
    wrong = problems(found)
    if wrong:
        keys = [key for path, key in KEYS.items() if any(one.startswith(f"{path}:") for one in wrong)]
        remedy = (
            f"state {', '.join(keys)} under [report.publication] of node.toml"
            if keys
            else "report this as a fault of the software"
        )
        raise ReportError(f"the registry's schema would not admit the entry ({'; '.join(wrong)}): {remedy}")
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ReportError(MISSING) from error
    head = (
        f"# Draft, from report {report.report_id}. Checked against schemas/deployments-schema.yaml of {SCHEMA_COMMIT[:12]}.\n"
    )
    text: str = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)
    return head + text


def entry(report: PrivacyReport, sha256: str) -> dict[str, Any]:
    """The entry. What nobody has stated is left out, so that the check names it."""
    found: dict[str, Any] = _without_none(
        {
            "url_slug": f"{report.subject.study}-{report.subject.hospital}",
            "deployment": {
                "basic": _basic(report),
                "dp_variant": {
                    "variant_name": "Approximate DP",
                    "data_domain": "Sets of any number of patients of one hospital, each with all scans and their labels.",
                    "unprotected_quantities": "\n".join(f"- {item}" for item in report.unprotected_quantities) or "None.",
                },
                "privacy_loss": _loss(report),
                "deployment_model": _model(report),
                "implementation": _implementation(report, sha256),
                "administrative": {
                    "status": "Draft",
                    "registry_authors": list(report.publication.registry_authors) or None,
                    "tier": TIER,
                },
            },
        }
    )
    return found


def _basic(report: PrivacyReport) -> dict[str, Any]:
    stated, subject = report.publication, report.subject
    curator = None
    if stated.curator_type is not None:
        curator = [{"data_curator_name": subject.hospital, "data_curator_type": stated.curator_type}]
    first = report.releases[0].at if report.releases else report.issued_at
    return {
        "name": f"Segmentation network of study {subject.study}",
        "data_curators": curator,
        "description": f"Contribution of {subject.hospital} to a segmentation network that hospitals train together.",
        "intended_use": stated.intended_use,
        "data_product_type": "Machine learning model",
        "data_product_region": stated.region,
        "data_product_sector": "Healthcare",
        "publication_date": f"{first:%Y-%m-%d}",
    }


def _loss(report: PrivacyReport) -> dict[str, Any]:
    guarantee = report.guarantee
    profile = ", ".join(f"{one.epsilon:.4g} at δ = {plain(one.delta)}" for one in guarantee.profile if one.epsilon is not None)
    return {
        "privacy_unit": "Patient",
        "privacy_unit_details": f"Adding or removing {guarantee.unit_in_words}. Distance: symmetric difference; bound: one.",
        "number_of_privacy_units": report.subject.declared_patients,
        "privacy_parameters": {
            "epsilon": None if guarantee.no_guarantee else float(guarantee.stated_epsilon),
            "delta": None if guarantee.no_guarantee else guarantee.delta,
        },
        "privacy_parameters_details": "No finite epsilon holds."
        if guarantee.no_guarantee
        else f"Over the life of the hospital's ledger. At other deltas: {profile}. {annexes.risk(report)}",
    }


def _model(report: PrivacyReport) -> dict[str, Any]:
    many = f"{report.composition.releases} charged releases so far, {report.composition.rounds_planned} rounds planned."
    return {
        "model_name": "Federated",
        "model_name_details": _whose_noise(report),
        "trust_assumptions": annexes.actors(report),
        "actors": "; ".join(one.who for one in report.trust.actors),
        "release_type": "Many releases",
        "release_type_details": f"{many} {annexes.limits(report)}",
        "data_source_type": "Dynamic",
        "data_source_type_details": "The hospital may add patients; new data inherit everything that was spent.",
        "access_type": "Non-interactive",
    }


def _whose_noise(report: PrivacyReport) -> str:
    opened = "only the sum of the masked updates is opened"
    if report.guarantee.reliance is None:
        return f"Each hospital adds the full noise itself; {opened}."
    return f"Hospitals add shares of the noise; {opened}. {report.guarantee.reliance.sentence}"


def _implementation(report: PrivacyReport, sha256: str) -> dict[str, Any]:
    made, together = report.software, report.composition
    return {
        "preprocessing_and_hyperparameter_tuning": f"Each scan is prepared by itself. Tuning: {together.tuning}.",
        "mechanisms": f"{annexes.mechanisms(report)} Software: {made.name} {made.version}, accountant {made.accountant}.",
        "composition": f"Over the ledger's life, by {made.accountant}. {together.retries.capitalize()}.",
        "post_processing": "Rounding to whole numbers, masks, the sum, the coordinator's optimizer: none costs anything.",
        "justification": report.statement.paragraph,
        "utility": "; ".join(f"{one.kind}: {one.result}" for one in report.utility) or "Not recorded at this node.",
        "additional_information": f"Signed report {report.report_id}, SHA-256 {sha256}.",
    }


def _without_none(value: Any) -> Any:
    """Without fields that nobody stated, and without parts that are then empty."""
    if isinstance(value, dict):
        kept = {name: _without_none(one) for name, one in value.items() if one is not None}
        return {name: one for name, one in kept.items() if one != {}}
    return value
