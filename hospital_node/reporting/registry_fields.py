"""The fields of an entry of the OpenDP deployments registry, as a table, and the check of an entry against it. Pure.

Source: `schemas/deployments-schema.yaml` and `tests/good_deployments/template.yaml` of the repository
opendp/deployments-registry-data at SCHEMA_COMMIT (`basic`, `dp_variant`, `privacy_loss`, `deployment_model`, `implementation`,
`administrative`; no field beside these is admitted). Only names, types, choices and tiers are taken over; of
`evidence_sources`, which takes articles, nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any, Final, Literal

Kind = Literal["text", "date", "number", "whole", "texts", "curators", "free"]

SCHEMA_COMMIT: Final = "057e5d81cf60150dd3307e0cf4504b957802fb3b"


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `tier`: from which level of completeness on it is asked for, as guidance."""

    kind: Kind
    tier: int
    required: bool = False
    choices: tuple[str, ...] = ()


STATUS: Final = (
    "Converted",
    "Draft",
    "Pending",
    "Changes Required",
    "Approved",
    "Approved (Update Requested)",
    "Approved (Pending)",
)
PRODUCTS: Final = (
    "Summary statistics",
    "Machine learning model",
    "Dataset",
    "Synthetic data",
    "Interactive API",
    "SQL queries",
)
SECTORS: Final = ("Technology", "Healthcare", "Education", "Government", "Energy", "Finance")
CURATORS: Final = ("Government", "Industry", "Nonprofit")
VARIANTS: Final = ("Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom")
MODELS: Final = ("Local", "Central", "Shuffle", "Federated", "Varies")

FIELDS: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "url_slug": Field("text", 1, required=True),
        "deployment.basic.name": Field("text", 1, required=True),
        "deployment.basic.data_curators": Field("curators", 1, required=True),
        "deployment.basic.description": Field("text", 1, required=True),
        "deployment.basic.intended_use": Field("text", 1, required=True),
        "deployment.basic.data_product_type": Field("text", 1, required=True, choices=PRODUCTS),
        "deployment.basic.data_product_region": Field("text", 1, required=True),
        "deployment.basic.data_product_sector": Field("text", 1, choices=SECTORS),
        "deployment.basic.publication_date": Field("date", 1, required=True),
        "deployment.dp_variant.variant_name": Field("text", 2, choices=VARIANTS),
        "deployment.dp_variant.data_domain": Field("text", 3),
        "deployment.dp_variant.unprotected_quantities": Field("text", 3),
        "deployment.privacy_loss.privacy_unit": Field("text", 2),
        "deployment.privacy_loss.privacy_unit_details": Field("text", 3),
        "deployment.privacy_loss.number_of_privacy_units": Field("whole", 3),
        "deployment.privacy_loss.privacy_parameters.epsilon": Field("number", 2),
        "deployment.privacy_loss.privacy_parameters.delta": Field("number", 2),
        "deployment.privacy_loss.privacy_parameters.rho": Field("number", 2),
        "deployment.privacy_loss.privacy_parameters_details": Field("free", 3),
        "deployment.deployment_model.model_name": Field("text", 2, choices=MODELS),
        "deployment.deployment_model.model_name_details": Field("text", 3),
        "deployment.deployment_model.trust_assumptions": Field("text", 3),
        "deployment.deployment_model.actors": Field("free", 3),
        "deployment.deployment_model.release_type": Field("text", 2, choices=("One release", "Many releases")),
        "deployment.deployment_model.release_type_details": Field("text", 3),
        "deployment.deployment_model.data_source_type": Field("text", 2, choices=("Static", "Dynamic")),
        "deployment.deployment_model.data_source_type_details": Field("text", 2),
        "deployment.deployment_model.access_type": Field("text", 2, choices=("Interactive", "Non-interactive")),
        "deployment.deployment_model.access_type_details": Field("text", 3),
        "deployment.implementation.preprocessing_and_hyperparameter_tuning": Field("text", 3),
        "deployment.implementation.mechanisms": Field("text", 3),
        "deployment.implementation.composition": Field("text", 3),
        "deployment.implementation.post_processing": Field("text", 3),
        "deployment.implementation.justification": Field("text", 3),
        "deployment.implementation.utility": Field("free", 3),
        "deployment.implementation.additional_information": Field("free", 1),
        "deployment.administrative.status": Field("text", 1, required=True, choices=STATUS),
        "deployment.administrative.registry_authors": Field("texts", 1, required=True),
        "deployment.administrative.tier": Field("whole", 1, required=True, choices=("1", "2", "3")),
    }
)


def problems(entry: Mapping[str, Any]) -> list[str]:
    """What the registry's schema would say against `entry`, one sentence each; none where it is admitted."""
    given = dict(_leaves(entry))
    found = [f"{path}: the schema has no such field" for path in given if path not in FIELDS]
    found += [f"{path}: is required" for path, field in FIELDS.items() if field.required and path not in given]
    return found + [
        f"{path}: {wrong}" for path, value in given.items() if path in FIELDS and (wrong := _wrong(FIELDS[path], value))
    ]


def _leaves(part: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in part.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _wrong(field: Field, value: Any) -> str:
    checks = {
        "text": isinstance(value, str),
        "free": isinstance(value, str),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "whole": isinstance(value, int) and not isinstance(value, bool),
        "date": isinstance(value, str) and _is_date(value),
        "texts": isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value),
        "curators": isinstance(value, list) and bool(value) and all(_is_curator(one) for one in value),
    }
    if not checks[field.kind]:
        return f"{value!r} is no {field.kind}"
    if field.choices and str(value) not in field.choices:
        return f"{value!r} is none of {', '.join(field.choices)}"
    return ""


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _is_curator(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(one.get("data_curator_name"), str)
        and one.get("data_curator_type") in CURATORS
        and set(one) == {"data_curator_name", "data_curator_type"}
    )
