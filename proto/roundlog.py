"""The transparency log of rounds: one entry for each round that ended, each naming the one before it. Pure arithmetic.

    head_0 = H("hospital-secagg round log v1", plan digest)
    head_i = H("hospital-secagg round log entry v1", i, plan digest, round, state, session, base model digest, new model digest,
               sum digest, list of survivors, head_(i-1))

with the encoding of secagg.encoding. One chain belongs to one plan, as a store does: two plans on one coordinator have two.
What holds of every honest log, and is checked of each entry in this order:
(1) its number is one more than the last one's, and is its round's: no round that ended is left out;
(2) it is of this plan and names the last head;
(3) its base is the last new model (of the first entry: any, or the plan's start digest where the plan names one);
(4) an opened round has survivors, in order and each once, a session and a sum; an aborted one left the model as it was;
(5) its head is the hash of all that.
A log that holds says that nothing was changed since somebody kept its head. It does not say that a sum or a model is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from secagg.encoding import digest, encode_list

ENTRY_LABEL: Final = "hospital-secagg round log entry v1"
START_LABEL: Final = "hospital-secagg round log v1"
FORMAT: Final = "hospital-secagg round log v1"
DIGEST_BYTES: Final = 32
SESSION_BYTES: Final = 16
HEX: Final = re.compile(r"(?:[0-9a-f]{2})*")
DIGEST_FIELDS: Final = ("plan", "session", "base", "model", "sum_digest", "previous", "head")
UNREADABLE: Final = "cannot be read: it was damaged or changed"

State: TypeAlias = Literal["opened", "aborted"]


class RoundLogError(ValueError):
    """A log that does not hold. `index` is the first entry that is wrong, `text` says what of it."""

    def __init__(self, index: int, text: str) -> None:
        super().__init__(f"entry {index} of the log of rounds {text}")
        self.index = index
        self.text = text


@dataclass(frozen=True, slots=True)
class Entry:
    """One round that ended. Digests are bytes; `session` and `sum_digest` are empty where there was none."""

    index: int
    plan: bytes
    round: int
    state: str
    session: bytes
    base: bytes
    model: bytes
    sum_digest: bytes
    survivors: tuple[str, ...]
    previous: bytes
    head: bytes


def first_head(plan: bytes) -> bytes:
    """What the first entry names as the one before it."""
    return digest(START_LABEL, plan)


def head_of(entry: Entry) -> bytes:
    """The hash of everything else in an entry."""
    return digest(
        ENTRY_LABEL,
        entry.index,
        entry.plan,
        entry.round,
        entry.state,
        entry.session,
        entry.base,
        entry.model,
        entry.sum_digest,
        encode_list(entry.survivors),
        entry.previous,
    )


def next_entry(
    last: Entry | None,
    plan: bytes,
    *,
    round_number: int,
    state: State,
    session: bytes,
    base: bytes,
    model: bytes,
    sum_digest: bytes,
    survivors: Iterable[str],
) -> Entry:
    """The entry that follows `last`, or begins a log; survivors are put in order."""
    index, previous = (1, first_head(plan)) if last is None else (last.index + 1, last.head)
    fields = (index, plan, round_number, state, session, base, model, sum_digest, tuple(sorted(survivors)), previous)
    return Entry(*fields, head=head_of(Entry(*fields, head=b"")))


def check_next(last: Entry | None, entry: Entry, plan: bytes, start: bytes | None = None) -> None:
    """RoundLogError unless `entry` may follow `last`; `start` is the start's digest where the plan names it."""
    due = 1 if last is None else last.index + 1
    if entry.index != due:
        raise RoundLogError(due, f"is missing: the next one has number {entry.index}")
    if entry.round != due:
        raise RoundLogError(due, f"is of round {entry.round}: the round before it is left out or comes twice")
    if entry.plan != plan:
        raise RoundLogError(due, f"is of another plan, {entry.plan.hex()[:12]}")
    if entry.previous != (first_head(plan) if last is None else last.head):
        raise RoundLogError(due, "does not go on from the entry before it")
    base = start if last is None else last.model
    if base is not None and entry.base != base:
        raise RoundLogError(due, "begins from another model than the round before it ended with")
    wrong = _malformed(entry)
    if wrong:
        raise RoundLogError(due, wrong)
    if entry.head != head_of(entry):
        raise RoundLogError(due, "was changed: its head is not the hash of its content")


def _malformed(entry: Entry) -> str:
    if entry.state not in ("opened", "aborted"):
        return f"has the unknown state '{entry.state}'"
    if entry.survivors != tuple(sorted(set(entry.survivors))):
        return "lists its survivors out of order or twice"
    if {len(entry.base), len(entry.model)} != {DIGEST_BYTES}:
        return "names a model by something that is no digest"
    if entry.state == "aborted":
        if entry.model != entry.base or entry.sum_digest:
            return "was aborted and yet names a sum or another model"
        return "names a session by something that is no session id" if len(entry.session) not in (0, SESSION_BYTES) else ""
    if not entry.survivors or len(entry.session) != SESSION_BYTES or len(entry.sum_digest) != DIGEST_BYTES:
        return "opened a sum and lacks its survivors, its session or the digest of the sum"
    return ""


def check_log(entries: Sequence[Entry], plan: bytes, start: bytes | None = None) -> None:
    """RoundLogError naming the first entry that does not hold."""
    last = None
    for entry in entries:
        check_next(last, entry, plan, start)
        last = entry


def first_difference(kept: Sequence[Entry], shown: Sequence[Entry]) -> int | None:
    """Number of the first entry that is not the same in both; None where the shorter one begins the longer one."""
    for one, other in zip(kept, shown, strict=False):
        if one != other:
            return one.index
    return None


# ---- as text: a file of a node, an export ----


def to_fields(entry: Entry) -> dict[str, Any]:
    """JSON fields of an entry; digests in hexadecimal."""
    return {
        **{name: getattr(entry, name) for name in ("index", "round", "state")},
        **{name: getattr(entry, name).hex() for name in DIGEST_FIELDS},
        "survivors": list(entry.survivors),
    }


def exported(entries: Iterable[Entry]) -> bytes:
    """Entries as one JSON file for others, from a node or a coordinator alike."""
    return json.dumps({"format": FORMAT, "entries": [to_fields(entry) for entry in entries]}, indent=1).encode() + b"\n"


def read_exported(data: bytes) -> tuple[Entry, ...]:
    """What `exported` wrote, unchecked but for its form. ValueError where it is no such file, RoundLogError for an entry."""
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("entries"), list):
        raise ValueError("no log of rounds")
    found = []
    for index, fields in enumerate(content["entries"], start=1):
        try:
            found.append(_entry(fields))
        except (KeyError, TypeError, ValueError) as error:
            raise RoundLogError(index, UNREADABLE) from error
    return tuple(found)


def line_of(entry: Entry) -> bytes:
    """An entry as one line of a file; there is no second spelling."""
    return json.dumps(to_fields(entry), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def entry_of(line: bytes, index: int) -> Entry:
    """What `line_of` wrote. RoundLogError where it is anything else."""
    try:
        entry = _entry(json.loads(line))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RoundLogError(index, UNREADABLE) from error
    if line_of(entry) != line:
        raise RoundLogError(index, UNREADABLE)
    return entry


def _entry(fields: object) -> Entry:
    if not isinstance(fields, Mapping) or fields.keys() != {*DIGEST_FIELDS, "index", "round", "state", "survivors"}:
        raise ValueError("other fields")
    survivors = fields["survivors"]
    if not isinstance(survivors, list) or not all(isinstance(uri, str) for uri in survivors):
        raise ValueError("no names")
    digests = {name: _from_hex(fields[name]) for name in DIGEST_FIELDS}
    return Entry(
        index=_number(fields["index"]),
        round=_number(fields["round"]),
        state=_text(fields["state"]),
        survivors=tuple(survivors),
        **digests,
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**32:
        raise ValueError("no number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > DIGEST_BYTES:
        raise ValueError("no state")
    return value


def _from_hex(value: object) -> bytes:
    if not isinstance(value, str) or not HEX.fullmatch(value):
        raise ValueError("not hexadecimal")
    return bytes.fromhex(value)
