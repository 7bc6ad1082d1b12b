"""A signed receipt for each round: what left this building, and what it cost. Pure: values, bytes, signatures, verification.

Rules:
(1) a receipt is canonical JSON, one line of ASCII without white space, keys sorted; the signature is ECDSA P-256 with SHA-256
    over exactly these bytes, by the node's own key, so that openssl alone verifies it; reports and certificates of withdrawal
    begin with a brace too, and none of the three has the fields of another;
(2) each has the next number and the SHA-256 of the one before it;
(3) each round of a plan has one, from round 1 on, whether or not anything was charged: a missing number or round is a gap;
(4) what cannot be known is named in `unknown`, never guessed;
(5) a key follows another only by the older one's statement (certs/succession.py), or where people confirm it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import Field, ValidationError

from certs.party import MALFORMED, fingerprint_of
from certs.succession import SIGN, Succession
from hospital_node.ledger_chain import Event
from hospital_node.ledger_schema import HEX_32_BYTES, Charge, Verified
from proto.plan import Frozen
from proto.roundlog import Entry

FORMAT: Final = "hospital-secagg receipt v1"
BEFORE_FIRST: Final = "0" * 64

Outcome: TypeAlias = Literal["counted", "lost", "declined", "failed", "aborted", "sat-out"]
MEANING: Final[Mapping[str, str]] = {
    "counted": "the update is in the sum",
    "lost": "charged, and no sum with it was verified here",
    "declined": "this node declined the round; nothing was charged",
    "failed": "training gave nothing; nothing was charged",
    "aborted": "the round ended without a sum; nothing was charged",
    "sat-out": "this node had no part in the round; nothing was charged",
}


class ReceiptError(ValueError):
    """Receipts that do not hold. `number` is that of the first bad one, 0 for a whole file; `text` says what is wrong."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"receipt {number} {text}" if number else text)
        self.number = number
        self.text = text


class ChargeFact(Frozen):
    """The ledger's entry of what was released."""

    entry: int = Field(ge=2)
    digest: str = Field(pattern=HEX_32_BYTES)


class EpsilonFact(Frozen):
    """As the cap's filter reads the ledger: `of_round` is by how much this round raised what is spent."""

    of_round: float = Field(ge=0, allow_inf_nan=False)
    spent: float = Field(ge=0, allow_inf_nan=False)
    left: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # None without a cap
    cap: float | None = None
    delta: float = Field(gt=0, lt=1)


class Receipt(Frozen):
    """One round at one hospital. Digests and ids in hexadecimal; None stands for what does not apply or is in `unknown`."""

    format: Literal["hospital-secagg receipt v1"] = FORMAT
    number: int = Field(ge=1)
    previous: str = Field(pattern=HEX_32_BYTES)
    hospital: str
    key: str = Field(pattern=HEX_32_BYTES)  # SHA-256 of the key that signs
    at: str  # when it was written, UTC
    study: str
    plan: str = Field(pattern=HEX_32_BYTES)
    round: int = Field(ge=1)
    outcome: Outcome
    code: str = ""  # why declined or failed (proto.plan.DECLINE_CODES)
    session: str | None = None
    base_model: str | None = None
    model: str | None = None  # published at the round's end
    lanes: int | None = None
    cohort: int | None = None
    dropped: tuple[str, ...] | None = None
    in_sum: bool | None
    sent_bytes: Mapping[str, int] | None = None  # by phase, since `bytes_since`
    received_bytes: Mapping[str, int] | None = None
    bytes_since: str | None = None
    charge: ChargeFact | None = None
    epsilon: EpsilonFact | None  # None: a plan without noise was released, and no finite figure holds
    ledger_entries: int = Field(ge=1)
    ledger_head: str = Field(pattern=HEX_32_BYTES)
    log_head: str | None = None  # of the kept log of rounds
    made_up: bool = False  # written after a restart, from ledger, log and attendance
    unknown: tuple[str, ...] = ()

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True, slots=True)
class Signed:
    """A receipt's bytes, its signature (DER), and the key that made it (SubjectPublicKeyInfo, DER)."""

    body: bytes
    signature: bytes
    public_key: bytes

    @property
    def digest(self) -> str:
        """What the next receipt names."""
        return hashlib.sha256(self.body).hexdigest()


def sign(receipt: Receipt, key: ec.EllipticCurvePrivateKey, public_key: bytes) -> Signed:
    """Canonical bytes and signature; deterministic, so that the same receipt is the same bytes."""
    body = receipt.canonical()
    return Signed(body, key.sign(body, SIGN), public_key)


def parse(body: bytes, number: int) -> Receipt:
    """The receipt in canonical bytes. ReceiptError naming `number` where it is none, or is spelled in another way."""
    try:
        receipt = Receipt.model_validate_json(body)
    except ValidationError as error:
        raise ReceiptError(number, "cannot be read: it was damaged or changed") from error
    if receipt.canonical() != body:
        raise ReceiptError(number, "is not in canonical form: it was changed")
    return receipt


def verify(
    signed: Sequence[Signed], successions: Sequence[Succession] = (), trusted: Collection[bytes] | None = None
) -> tuple[Receipt, ...]:
    """Every receipt, where chain, signatures, keys and rounds hold. ReceiptError names the first that does not.

    `trusted`: SHA-256 of keys that people confirmed; one of those that signed has to be among them.
    """
    found: list[Receipt] = []
    latest: dict[str, int] = {}  # round by plan
    for number, one in enumerate(signed, start=1):
        receipt = parse(one.body, number)
        before = found[-1] if found else None
        _check_place(receipt, number, before, signed[number - 2].digest if before else BEFORE_FIRST)
        _check_signature(one, receipt)
        if before is not None and before.key != receipt.key:
            _check_new_key(before, receipt, successions, trusted)
        due = latest.get(receipt.plan, 0) + 1
        if receipt.round != due:
            raise ReceiptError(number, f"is of round {receipt.round} of its plan: round {due} has no receipt")
        latest[receipt.plan] = due
        found.append(receipt)
    if found and trusted is not None and not {bytes.fromhex(receipt.key) for receipt in found} & set(trusted):
        raise ReceiptError(1, "is signed by a key that nobody confirmed: compare its words with the hospital's people")
    return tuple(found)


def check_ledger(receipts: Sequence[Receipt], events: Sequence[Event], study: str) -> str:
    """Receipts against the ledger that they speak of: each charge of the study has one, in this order. ReceiptError otherwise.

    Returns a note where the newest charge has none yet, because its round may be under way; "" where nothing is open.
    """
    charged = {(e.entry.plan, e.entry.round) for e in events if isinstance(e.entry, Charge)}
    for receipt in receipts:
        if receipt.charge is None and (receipt.plan, receipt.round) in charged:
            raise ReceiptError(receipt.number, f"says that round {receipt.round} was not charged, and the ledger charged it")
        _check_against(receipt, events)
    known = {receipt.charge.entry for receipt in receipts if receipt.charge is not None}
    charges = [event for event in events if isinstance(event.entry, Charge) and event.entry.study == study]
    missing = [event for event in charges if event.seq not in known]
    if not missing:
        return ""
    first, charge = missing[0], missing[0].entry
    assert isinstance(charge, Charge)
    over = any(e.entry == Verified(plan=charge.plan, round=charge.round) for e in events) or first is not charges[-1]
    if not over:
        return f"round {charge.round}, the newest charged, has no receipt yet: it is under way, or the node was stopped in it"
    raise ReceiptError(
        len(receipts) + 1,
        f"is missing: the ledger charged round {charge.round} (its entry {first.seq}) and no receipt says so; the tail was cut "
        "off, or the node was killed before it wrote it and writes it when it is started",
    )


def check_log(receipts: Sequence[Receipt], entries: Sequence[Entry]) -> None:
    """Receipts against the kept log of one plan: ReceiptError where a round that ended has none, or one tells another model."""
    plan = entries[0].plan.hex() if entries else ""
    by_round = {receipt.round: receipt for receipt in receipts if receipt.plan == plan}
    for entry in entries:
        receipt = by_round.get(entry.round)
        if receipt is None:
            raise ReceiptError(len(receipts) + 1, f"is missing: round {entry.round} is in the log of rounds and has no receipt")
        if receipt.model not in (None, entry.model.hex()) or (receipt.in_sum and entry.state != "opened"):
            raise ReceiptError(receipt.number, f"says something else of round {entry.round} than the log of rounds")


def _check_place(receipt: Receipt, number: int, before: Receipt | None, previous: str) -> None:
    if receipt.number != number:
        raise ReceiptError(number, f"is missing, or out of its place: number {receipt.number} stands there")
    if receipt.previous != previous:
        raise ReceiptError(number, "does not go on from the one before it: one of the two was changed")
    if before is not None and receipt.hospital != before.hospital:
        raise ReceiptError(number, f"is of another hospital, {receipt.hospital}")


def _check_signature(one: Signed, receipt: Receipt) -> None:
    if fingerprint_of(one.public_key).hex() != receipt.key:
        raise ReceiptError(receipt.number, "comes with another key than it names")
    try:
        key = load_der_public_key(one.public_key)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ReceiptError(receipt.number, "is signed by a key that is no EC key")
        key.verify(one.signature, one.body, ec.ECDSA(hashes.SHA256()))
    except (*MALFORMED, InvalidSignature) as error:
        if isinstance(error, ReceiptError):
            raise
        raise ReceiptError(receipt.number, "does not verify: it, its signature or its key was changed") from error


def _check_new_key(
    before: Receipt, receipt: Receipt, successions: Sequence[Succession], trusted: Collection[bytes] | None
) -> None:
    after = {one.old_sha256: one.new_sha256 for one in reversed(successions) if one.uri == receipt.hospital}
    key, wanted = bytes.fromhex(before.key), bytes.fromhex(receipt.key)
    for _ in range(len(after)):
        key = after.get(key, key)
        if key == wanted:
            return
    if trusted is None or wanted not in trusted:
        raise ReceiptError(
            receipt.number, "is signed by another key than the one before it, and no statement of the older key names it"
        )


def _check_against(receipt: Receipt, events: Sequence[Event]) -> None:
    if receipt.ledger_entries > len(events) or events[receipt.ledger_entries - 1].digest.hex() != receipt.ledger_head:
        raise ReceiptError(receipt.number, f"names a head at {receipt.ledger_entries} entries that this ledger does not have")
    if receipt.charge is None:
        return
    event = events[receipt.charge.entry - 1] if receipt.charge.entry <= len(events) else None
    if event is None or event.digest.hex() != receipt.charge.digest or not isinstance(event.entry, Charge):
        raise ReceiptError(receipt.number, f"names a charge, entry {receipt.charge.entry}, that this ledger does not have")
    if (event.entry.plan, event.entry.round) != (receipt.plan, receipt.round):
        raise ReceiptError(receipt.number, f"is of round {receipt.round} and names the charge of round {event.entry.round}")
