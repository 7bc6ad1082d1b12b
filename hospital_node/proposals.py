"""An approval that raises the cap and waits for a second person: read from the audit log, so that no restart loses it.

Pure: records in, the proposal that stands out. Rules: (1) only the newest one stands, and only until a plan is approved,
declined or proposed anew, or the cap is set by command; (2) it stands for three days; (3) whoever made it cannot confirm it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydantic import ValidationError

from certs.audit import Action, Record
from hospital_node.cap import Cap
from proto.control import Approve, Confirm, ControlError, Proved

PROPOSED: Final = "approve-proposed"
ENDS: Final = frozenset({PROPOSED, "approve", "confirm", "decline", "cap-lowered", "cap-raised"})
STANDS_FOR: Final = timedelta(days=3)  # over a weekend


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a first person asked for. `digest` is that of its record, by which the second person names it."""

    digest: str
    at: datetime
    by: str
    reason: str
    proved: Proved
    plan: str
    cap: Cap


def proposed(request: Approve, proved: Proved, cap: Cap, fields: dict[str, str]) -> Action:
    """The record of a proposal."""
    figures = {"epsilon": repr(cap.epsilon), "delta": repr(cap.delta)}
    return Action(request.by, PROPOSED, request.reason, {**fields, **figures, **proved.fields(), "plan": request.plan})


def standing(records: Sequence[Record], at: datetime) -> Proposal | None:
    """The proposal that waits for a second person at `at`; None where there is none."""
    last = next((one for one in reversed(records) if one.action.kind in ENDS), None)
    if last is None or last.action.kind != PROPOSED or at - last.at > STANDS_FOR:
        return None
    kept = last.action.fields
    try:
        proved = Proved.model_validate({"issuer": kept["signed in at"], "subject": kept["subject"], "role": kept["role"]})
        cap = Cap(epsilon=float(kept["epsilon"]), delta=float(kept["delta"]))
        return Proposal(last.digest.hex(), last.at, last.action.by, last.action.reason, proved, kept["plan"], cap)
    except (KeyError, ValueError, ValidationError):  # written by something else under this name: nothing to confirm
        return None


def meant(records: Sequence[Record], request: Confirm, at: datetime) -> Proposal:
    """The proposal that `request` says yes to. Raises ControlError."""
    found = standing(records, at)
    if found is None or found.digest != request.proposal:
        raise ControlError("what was to be confirmed stands no more: read the page again, and propose it anew if need be")
    if request.proved is None:
        raise ControlError("only a person who has signed in can confirm this: a typed name is not accepted")
    if found.proved.same_person(request.proved):
        raise ControlError("a second person has to confirm this: you proposed it yourself")
    return found
