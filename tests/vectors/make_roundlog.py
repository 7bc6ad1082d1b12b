"""Writes roundlog.json: logs of rounds that hold, and named ones that do not, with the entry at which each is refused.

Run from the repository's root: python -m tests.vectors.make_roundlog. The file changes only if the format does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from proto.roundlog import FORMAT, Entry, first_head, head_of, next_entry, to_fields

PLAN = hashlib.sha256(b"vector plan").digest()
NAMES = [f"secagg://vector/hospital/h{number}" for number in range(4)]


def log() -> list[Entry]:
    entries: list[Entry] = []
    base = hashlib.sha256(b"vector start").digest()
    for number, state in ((1, "opened"), (2, "aborted"), (3, "opened"), (4, "aborted")):
        opened = state == "opened"
        model = hashlib.sha256(base).digest() if opened else base
        entry = next_entry(
            entries[-1] if entries else None,
            PLAN,
            round_number=number,
            state=state,  # type: ignore[arg-type]
            session=b"" if number == 4 else bytes([number]) * 16,
            base=base,
            model=model,
            sum_digest=hashlib.sha256(bytes([number])).digest() if opened else b"",
            survivors=NAMES[: 2 + number % 3] if number < 4 else (),
        )
        entries.append(entry)
        base = model
    return entries


def again(entry: Entry) -> Entry:
    return replace(entry, head=head_of(entry))


def bad_logs(good: list[Entry]) -> list[tuple[str, int, str, list[Entry]]]:
    one, two, three, four = good
    other = hashlib.sha256(b"other").digest()
    return [
        ("a survivor is taken out", 1, "was changed", [replace(one, survivors=one.survivors[1:]), two, three, four]),
        ("and hashed again", 2, "does not go on", [again(replace(one, survivors=one.survivors[1:])), two, three, four]),
        ("an entry is dropped", 2, "is missing", [one, three, four]),
        ("the first is dropped", 1, "is missing", [two, three, four]),
        ("two are swapped", 2, "is missing", [one, three, two, four]),
        ("an entry twice", 3, "is missing", [one, two, two, three]),
        ("another model was published", 1, "was changed", [replace(one, model=other), two, three, four]),
        ("a base from nowhere", 3, "another model", [one, two, again(replace(three, base=other)), four]),
        ("another sum", 3, "was changed", [one, two, replace(three, sum_digest=other), four]),
        ("an aborted round with a sum", 2, "aborted and yet", [one, again(replace(two, sum_digest=other)), three, four]),
        ("an opened round without survivors", 1, "lacks its survivors", [again(replace(one, survivors=())), two]),
        ("a survivor twice", 1, "twice", [again(replace(one, survivors=(NAMES[0], NAMES[0]))), two]),
        ("a state that nobody knows", 1, "unknown state", [again(replace(one, state="closed")), two]),
        ("another plan", 1, "another plan", [again(replace(one, plan=other)), two]),
        ("a round left out", 2, "is of round 3", [one, again(replace(two, round=3))]),
        ("a start in the middle", 2, "does not go on", [one, again(replace(two, previous=first_head(PLAN)))]),
    ]


def form(entries: list[Entry]) -> dict[str, Any]:
    return {"format": FORMAT, "entries": [to_fields(entry) for entry in entries]}


def main() -> None:
    good = log()
    head = first_head(PLAN).hex()
    content = {
        "good": [
            {
                "name": f"{count} rounds",
                "plan": PLAN.hex(),
                "first_head": head,
                "heads": [entry.head.hex() for entry in good[:count]],
                "log": form(good[:count]),
            }
            for count in (0, 1, 4)
        ],
        "bad": [
            {"name": name, "plan": PLAN.hex(), "index": index, "sentence": sentence, "log": form(entries)}
            for name, index, sentence, entries in bad_logs(good)
        ],
    }
    Path(__file__).with_name("roundlog.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
