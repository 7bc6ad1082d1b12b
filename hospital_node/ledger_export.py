"""The whole ledger as one file that another person can verify without this node: entries, chain, nothing computed.

Rules: an export holds exactly the stored rows, so that its digests prove it; a reader believes the chain, not the file.
An export is for people whom the hospital chooses: it names who decided what, and every release. The receipt key is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from hospital_node.durable import write_whole
from hospital_node.ledger_chain import Chain, Event, read_chain
from hospital_node.ledger_schema import ChainError, Row
from proto.plan import Frozen

FORMAT: Final = "hospital-secagg ledger export v1"
HEX: Final = r"^[0-9a-f]{64}$"


class ExportError(ValueError):
    """A file that is no export, or not a whole one; the text says where it breaks."""


class ExportedRow(Frozen):
    """One row as stored; digests in hexadecimal."""

    seq: int = Field(ge=1)
    at: str
    kind: str
    body: str
    previous: str = Field(pattern=HEX)
    digest: str = Field(pattern=HEX)


class Export(Frozen):
    """The file."""

    format: str = Field(pattern=f"^{FORMAT}$")
    entries: tuple[ExportedRow, ...]


def write_export(rows: Sequence[Row], path: Path) -> None:
    """Write all rows as one JSON file, whole or not at all. ExportError where the place cannot be written."""
    entries = tuple(
        ExportedRow(seq=row.seq, at=row.at, kind=row.kind, body=row.body, previous=row.previous.hex(), digest=row.digest.hex())
        for row in rows
    )
    text = json.dumps(Export(format=FORMAT, entries=entries).model_dump(mode="json"), indent=1)
    try:
        write_whole(path, text.encode() + b"\n")
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error


def read_export(path: Path) -> Chain:
    """Every entry of an export, its chain verified from the first. Raises ExportError."""
    try:
        return read_chain(read_rows(path))
    except ChainError as error:
        raise ExportError(f"{path} does not verify: {error}") from error


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of an export as they stand there; `read_chain` verifies them. Raises ExportError."""
    try:
        export = Export.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ExportError(f"{path} is no export of a ledger: make one with `secagg-node ledger export`") from error
    return tuple(
        Row(one.seq, one.at, one.kind, one.body, bytes.fromhex(one.previous), bytes.fromhex(one.digest))
        for one in export.entries
    )


def check_continues(older: Sequence[Event], newer: Sequence[Event]) -> None:
    """ExportError unless `newer` holds everything that `older` held, and then more or nothing."""
    if len(newer) < len(older):
        raise ExportError(f"the newer export has {len(newer)} entries, the older one {len(older)}: history is missing")
    for before, now in zip(older, newer, strict=False):
        if before.digest != now.digest:
            raise ExportError(f"entry {before.seq} is another one than in the older export: history was rewritten")
