"""Small CSV lists of a data folder: UTF-8 with or without a mark, LF or CRLF, columns found by name."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from hospital_node.cohort import CohortError


def rows_of(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of `path` reduced to `columns`, stripped; a short row has empty strings. Raises CohortError, quoting no row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                names = ",".join(columns)
                raise CohortError(f"{path} lacks the column {', '.join(missing)}: its first line must name {names}")
            return [{column: (row[column] or "").strip() for column in columns} for row in reader]
    except OSError as error:
        raise CohortError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error):
        raise CohortError(f"{path} is not a CSV file in UTF-8: export it again as UTF-8") from None


def one_value(path: Path, key: str, value: str) -> dict[str, str]:
    """Column `value` by column `key`; a key listed with two different values maps to the empty string: it cannot be trusted."""
    found: dict[str, str] = {}
    for row in rows_of(path, (key, value)):
        found[row[key]] = row[value] if found.get(row[key], row[value]) == row[value] else ""
    return found
