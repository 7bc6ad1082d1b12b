"""The audit log: who did what, when and why, as lines that each name the digest of the line before them.

Pure: lines in, records out, and the other way round; the file is certs/audit_file.py. Rules: (1) a record is written once and
never changed; (2) any byte that differs makes the chain break at a place that can be named; (3) what another chain keeps (a
hospital's ledger) is named here by its digest and not repeated; (4) no patient, no figure of patients, no secret. That the
newest lines were cut off the chain cannot show: an older export does (`check_continues`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

LABEL = b"hospital-secagg audit record v1\n"
BEFORE_FIRST = bytes(32)  # stands for the digest before record 1
KIND = re.compile(r"[a-z]+(-[a-z]+)*")
NAME_LETTERS = 200  # of a person, and of the name of a field
TEXT_LETTERS = 2_000
MOST_FIELDS = 32


class AuditError(ValueError):
    """A record that cannot be made, or a log that cannot be used; one sentence."""


class AuditDamaged(AuditError):
    """The chain is broken; the sentence names the first bad line."""


@dataclass(frozen=True, slots=True)
class Action:
    """What somebody did. `kind` is a word or several with hyphens; `fields` name what it was done to, digests in hexadecimal.

    Raises AuditError where nobody is named or a text is no line of readable letters.
    """

    by: str
    kind: str
    reason: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.by.strip():
            raise AuditError("an action needs the name of the person who takes it")
        if not KIND.fullmatch(self.kind):
            raise AuditError(f"'{self.kind}' is no kind of action: lower-case words joined by hyphens")
        if len(self.fields) > MOST_FIELDS:
            raise AuditError(f"{len(self.fields)} fields are more than the {MOST_FIELDS} of a record")
        for name, text, most in (("name", self.by, NAME_LETTERS), ("reason", self.reason, TEXT_LETTERS)):
            _check_text(name, text, most)
        for name, text in self.fields.items():
            _check_text("name of a field", name, NAME_LETTERS)
            _check_text(name, text, TEXT_LETTERS)


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log. `before` is the digest of the line before it, `digest` that of this one."""

    seq: int
    at: datetime
    action: Action
    before: bytes
    digest: bytes


def next_record(last: Record | None, at: datetime, action: Action) -> Record:
    """The record that follows `last` (None: the first). `at` is aware; a clock that went back is recorded as it is."""
    seq, before = (1, BEFORE_FIRST) if last is None else (last.seq + 1, last.digest)
    at = at.astimezone(UTC)
    return Record(seq, at, action, before, _digest(seq, at, action, before))


def line_of(record: Record) -> bytes:
    """The record as it is stored, line break included."""
    shown = {**_content(record.seq, record.at, record.action, record.before), "digest": record.digest.hex()}
    return _json(shown) + b"\n"


def records_of(data: bytes) -> tuple[Record, ...]:
    """Every record, verified. A last line that a power cut left short was never confirmed and does not count.

    Raises AuditDamaged, naming the first bad line.
    """
    *lines, rest = data.split(b"\n")
    records: list[Record] = []
    for line in lines:
        records.append(_parsed(line, records[-1] if records else None))
    with suppress(AuditDamaged):  # whole, but for its line break
        records += [_parsed(rest, records[-1] if records else None)] if rest else []
    return tuple(records)


def check_continues(older: Sequence[Record], newer: Sequence[Record]) -> None:
    """Raise AuditDamaged unless `newer` begins with every record of `older`: nothing was cut off or written anew since."""
    if len(newer) < len(older):
        raise AuditDamaged(f"the log has {len(newer)} records and an older export of it {len(older)}: its end was cut off")
    for one, other in zip(older, newer, strict=False):
        if one.digest != other.digest:
            raise AuditDamaged(f"record {one.seq} is another one than in the older export: the log was written anew")


def in_words(record: Record) -> str:
    """One line for people."""
    why = f": {record.action.reason}" if record.action.reason else ""
    fields = ", ".join(f"{name} {text}" for name, text in record.action.fields.items())
    what = f"{record.action.kind.replace('-', ' ')}{f' ({fields})' if fields else ''}"
    return f"{record.seq}  {record.at:%Y-%m-%d %H:%M:%S} UTC  {record.action.by}  {what}{why}"


def _check_text(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise AuditError(f"the {name} has {len(text)} letters, at most {most} are kept: say it shorter")
    if text and not text.isprintable():
        raise AuditError(f"the {name} has a line break or another unprintable letter: write it on one line")


def _content(seq: int, at: datetime, action: Action, before: bytes) -> dict[str, object]:
    return {
        "seq": seq,
        "at": at.isoformat(timespec="microseconds"),
        "by": action.by,
        "kind": action.kind,
        "reason": action.reason,
        "fields": dict(action.fields),
        "before": before.hex(),
    }


def _digest(seq: int, at: datetime, action: Action, before: bytes) -> bytes:
    return hashlib.sha256(LABEL + _json(_content(seq, at, action, before))).digest()


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _parsed(line: bytes, last: Record | None) -> Record:
    """The record in a line, which is the same bytes again when it is written again: no second spelling is accepted."""
    number = 1 if last is None else last.seq + 1
    try:
        found = json.loads(line)
        fields = {str(name): str(text) for name, text in found["fields"].items()}
        action = Action(by=found["by"], kind=found["kind"], reason=found["reason"], fields=fields)
        record = next_record(last, datetime.fromisoformat(found["at"]), action)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AuditDamaged(f"line {number} of the audit log cannot be read: it was damaged or changed") from error
    if line_of(record) != line + b"\n":
        raise AuditDamaged(f"line {number} of the audit log does not go on from the line before it, or was changed")
    return record
