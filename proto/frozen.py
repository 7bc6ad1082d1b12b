"""Frozen values from TOML and JSON: an unknown key is an error, and every mistake is one sentence for people.

The plan and every configuration file are read through this file, each with the exception type of its own package.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Frozen(BaseModel):
    """Base of all plan and configuration parts: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Part = TypeVar("Part", bound=Frozen)


def read_toml(path: Path, what: str, error: type[ValueError]) -> dict[str, Any]:
    """Content of a TOML file; `what` it is, for the sentence of the `error` raised where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"cannot read {what} {path}: {cause.strerror}; name an existing file") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise error(f"{path} is not valid TOML: {cause}") from cause


def parsed(
    kind: type[Part], fields: object, source: str, error: type[ValueError], context: dict[str, Any] | None = None
) -> Part:
    """`fields` as a `kind`; `error` with one sentence that begins with `source` otherwise."""
    try:
        return kind.model_validate(fields, context=context)
    except ValidationError as cause:
        raise error(explain(cause, source)) from cause


def from_toml(kind: type[Part], path: Path, what: str, error: type[ValueError], context: dict[str, Any] | None = None) -> Part:
    """`read_toml`, then `parsed`."""
    return parsed(kind, read_toml(path, what, error), str(path), error, context)


def explain(error: ValidationError, source: str) -> str:
    """One sentence for people from a pydantic error: where, which key, what is wrong. Used for every config file."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(step) for step in item["loc"]) or "the whole file"
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key '{where}': remove it or correct its spelling")
        elif item["type"] == "missing":
            parts.append(f"key '{where}' is missing")
        else:
            parts.append(f"'{where}': {item['msg'].removeprefix('Value error, ')}")
    return f"{source}: " + "; ".join(parts)
