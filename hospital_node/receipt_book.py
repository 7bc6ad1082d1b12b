"""The receipts of one state folder: one file, one line each, only ever added to; and what a node writes into it.

A receipt is written when its round's end is known here: with the result, with the log of rounds, or at the latest before the
next training begins. What a crash prevented is made up then, from the ledger (was it charged), the log (how did it end) and the
attendance book (what was signed); what those do not hold is named as unknown. Writing one twice is impossible: a round that has
a receipt is passed over. A receipt never stands in the way of a round: a disk that does not take it is logged, and it is made
up later.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from certs.identity import Identity
from hospital_node import ledger_rules as rules
from hospital_node.attendance import Attendance
from hospital_node.budget import DEFAULT_DELTA
from hospital_node.cap import Cap
from hospital_node.durable import append_lines
from hospital_node.ledger_chain import Event, until
from hospital_node.ledger_schema import Charge
from hospital_node.receipts import BEFORE_FIRST, ChargeFact, EpsilonFact, Outcome, Receipt, ReceiptError, Signed, parse, sign
from proto import federation_pb2 as pb
from proto.plan import Plan
from proto.roundlog import Entry

RECEIPTS_FILE = "receipts.jsonl"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What crossed the connection since `since`, by phase. `whole`: nothing before `since` is missing in an earlier receipt."""

    sent: Mapping[str, int]
    received: Mapping[str, int]
    since: datetime
    whole: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one round besides the ledger. `result`: what the coordinator told of it, where this process heard it."""

    round: int
    entry: Entry | None = None
    result: pb.RoundResult | None = None
    attendance: Attendance | None = None
    declined: tuple[Outcome, str] | None = None
    traffic: Traffic | None = None
    log_head: bytes | None = None
    made_up: bool = False

    @property
    def survivors(self) -> tuple[str, ...] | None:
        """As told, or as logged; None where neither says so or nothing was opened."""
        told = self.result
        if told is not None:
            return tuple(told.survivors) if told.opened else None
        return self.entry.survivors if self.entry is not None and self.entry.state == "opened" else None

    @property
    def ended_without_sum(self) -> bool:
        """Whether somebody said that the round ended without a sum."""
        return (self.result is not None and not self.result.opened) or (
            self.entry is not None and self.entry.state == "aborted"
        )

    @property
    def model(self) -> bytes | None:
        """Published at its end."""
        if self.entry is not None:
            return self.entry.model
        return self.result.model_digest or None if self.result is not None else None


class ReceiptBook:
    """The file, for its one writer. Construction raises ReceiptError where what is there cannot be continued."""

    def __init__(self, state: Path) -> None:
        self.path = state / RECEIPTS_FILE
        self._last, self._count = BEFORE_FIRST, 0
        self._rounds: Counter[str] = Counter()  # receipts by plan, which is the last round that has one
        for number, one in enumerate(read_book(self.path), start=1):
            self._remember(parse(one.body, number), one)

    @property
    def count(self) -> int:
        """Receipts written."""
        return self._count

    def last_round(self, plan: str) -> int:
        """The last round of a plan that has a receipt; 0 where none has."""
        return self._rounds[plan]

    def write(self, plan: Plan, rounds: Sequence[Known], events: Sequence[Event], identity: Identity, at: datetime) -> int:
        """Make, sign and keep the receipts of the next rounds; how many. Raises OSError: then none was written."""
        facts, previous, made = LedgerFacts(events, plan.digest().hex(), [known.round for known in rounds]), self._last, []
        for number, known in enumerate(rounds, start=1):
            assert known.round == self.last_round(facts.plan) + number, "receipts follow the rounds"
            receipt = receipt_of(plan, known, facts, identity, at, number=self._count + number, previous=previous)
            made.append((receipt, sign(receipt, identity.key, identity.public_key_der)))
            previous = made[-1][1].digest
        if made:
            append_lines(self.path, b"".join(_line(signed) for _, signed in made))
        for receipt, signed in made:
            self._remember(receipt, signed)
        return len(made)

    def _remember(self, receipt: Receipt, signed: Signed) -> None:
        self._last, self._count = signed.digest, self._count + 1
        self._rounds[receipt.plan] = receipt.round


class LedgerFacts:
    """What a verified ledger says of these rounds of one plan; read once for many receipts, from the newest entry back."""

    def __init__(self, events: Sequence[Event], plan: str, rounds: Sequence[int]) -> None:
        self.events, self.plan = events, plan
        self.charges: dict[int, tuple[Event, Charge]] = {}
        self.verified = {number for number in rounds if rules.is_verified(events, plan, number)}
        wanted = {number for number in rounds if rules.is_charged(events, plan, number)}
        for event in reversed(events) if wanted else ():
            entry = event.entry
            if isinstance(entry, Charge) and entry.plan == plan and entry.round in wanted:
                self.charges[entry.round] = event, entry
                if len(self.charges) == len(wanted):
                    break
        self._as_of_now: tuple[EpsilonFact | None, bool] | None = None

    def epsilon(self, charge: tuple[Event, Charge] | None) -> tuple[EpsilonFact | None, bool]:
        """After this charge, or after all, by the filter that decides; False where no finite figure holds."""
        if charge is not None:
            return _epsilon(self.events, charge[0].seq - 1, charge[0].seq)
        if self._as_of_now is None:
            self._as_of_now = _epsilon(self.events, len(self.events), len(self.events))
        return self._as_of_now


def receipt_of(
    plan: Plan,
    known: Known,
    facts: LedgerFacts,
    identity: Identity,
    at: datetime,
    *,
    number: int,
    previous: str,
) -> Receipt:
    """What can be said of a round, and what cannot (`unknown`)."""
    charge = facts.charges.get(known.round)
    attendance = _attendance(known, facts.plan, charge)
    outcome, in_sum = _outcome(known, facts, attendance, identity.uri)
    survivors, roster = known.survivors, None if attendance is None else attendance.roster
    epsilon, finite = facts.epsilon(charge)
    unknown = [
        *(["bytes"] if known.traffic is None else [] if known.traffic.whole else ["bytes before bytes_since"]),
        *(["in_sum"] if in_sum is None else []),
        *(["cohort"] if charge is not None and roster is None else []),
        *(["dropped"] if charge is not None and not known.ended_without_sum and None in (roster, survivors) else []),
        *(["model"] if known.model is None else []),
        *([] if finite else ["epsilon: no finite figure holds"]),
    ]
    return Receipt(
        number=number,
        previous=previous,
        hospital=identity.uri,
        key=identity.fingerprint.hex(),
        at=at.isoformat(),
        study=plan.study,
        plan=facts.plan,
        round=known.round,
        outcome=outcome,
        code=known.declined[1] if charge is None and known.declined is not None else "",
        session=None if charge is None else charge[1].session,
        base_model=None if attendance is None else attendance.base,
        model=None if known.model is None else known.model.hex(),
        lanes=None if attendance is None else attendance.lanes,
        cohort=None if roster is None else len(roster),
        dropped=None if roster is None or survivors is None else tuple(sorted(set(roster) - set(survivors))),
        in_sum=in_sum,
        sent_bytes=None if known.traffic is None else dict(known.traffic.sent),
        received_bytes=None if known.traffic is None else dict(known.traffic.received),
        bytes_since=None if known.traffic is None else known.traffic.since.isoformat(),
        charge=None if charge is None else ChargeFact(entry=charge[0].seq, digest=charge[0].digest.hex()),
        epsilon=epsilon,
        ledger_entries=len(facts.events),
        ledger_head=facts.events[-1].digest.hex(),
        log_head=None if known.log_head is None else known.log_head.hex(),
        made_up=known.made_up,
        unknown=tuple(unknown),
    )


def read_book(path: Path) -> tuple[Signed, ...]:
    """Every line, unverified but for its form. One that a power cut left short was never written. Raises ReceiptError."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ReceiptError(0, f"{path} cannot be read: {error.strerror}") from error
    return tuple(_signed(line, number) for number, line in enumerate(lines, start=1) if line.endswith(b"\n"))


def fields_of(signed: Signed) -> dict[str, str]:
    """JSON fields of one signed receipt."""
    return {"receipt": signed.body.decode(), "signature": signed.signature.hex(), "public_key": signed.public_key.hex()}


def signed_of(fields: object, number: int) -> Signed:
    """What `fields_of` gave. Raises ReceiptError."""
    try:
        if not isinstance(fields, dict) or fields.keys() != {"receipt", "signature", "public_key"}:
            raise ReceiptError(number, "cannot be read: it was damaged or changed")
        signature, key = (bytes.fromhex(fields[name]) for name in ("signature", "public_key"))
        return Signed(fields["receipt"].encode(), signature, key)
    except (ValueError, TypeError, AttributeError) as error:
        raise ReceiptError(number, "cannot be read: it was damaged or changed") from error


def _line(signed: Signed) -> bytes:
    return json.dumps(fields_of(signed), sort_keys=True).encode() + b"\n"


def _signed(line: bytes, number: int) -> Signed:
    try:
        return signed_of(json.loads(line), number)
    except (ValueError, RecursionError) as error:
        raise ReceiptError(number, "cannot be read: it was damaged or changed") from error


def _attendance(known: Known, plan: str, charge: tuple[Event, Charge] | None) -> Attendance | None:
    """What the book says of this very round; nothing of a session that another one replaced."""
    one = known.attendance
    if one is None or (one.plan, one.round) != (plan, known.round):
        return None
    return one if charge is None or charge[1].session == one.session else None


def _outcome(known: Known, facts: LedgerFacts, attendance: Attendance | None, me: str) -> tuple[Outcome, bool | None]:
    """How the round ended for this hospital, and whether its update is in the sum; None where it cannot know."""
    if known.round not in facts.charges:
        if known.declined is not None:
            return known.declined[0], False
        return "aborted" if known.ended_without_sum else "sat-out", False
    if known.round in facts.verified:
        return "counted", True
    survivors = known.survivors
    if known.ended_without_sum or (survivors is not None and me not in survivors):
        return "lost", False
    signed = None if attendance is None else attendance.signed
    if survivors is not None and signed is not None and sorted(signed) == sorted(survivors):
        return "lost", True  # it was restarted before it could verify what it had signed
    return "lost", None


def _epsilon(events: Sequence[Event], first: int, last: int) -> tuple[EpsilonFact | None, bool]:
    """What is spent after `last` entries, and how much more that is than after `first`."""
    earlier, now = until(events, first), until(events, last)
    cap = rules.current_cap(now)
    judge = rules.filter_of(now, cap or Cap(epsilon=1.0, delta=DEFAULT_DELTA))
    past = rules.runs(now)
    kind = judge.kind(past)
    spent, before = judge.spent(past, kind), judge.spent(rules.runs(earlier), kind)
    if not spent < float("inf"):
        return None, False
    left = None if cap is None else max(0.0, cap.epsilon - spent)
    most = None if cap is None else cap.epsilon
    return EpsilonFact(of_round=max(0.0, spent - before), spent=spent, left=left, cap=most, delta=judge.delta), True
