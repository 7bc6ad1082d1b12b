"""Which patients have withdrawn, told from the ledger without naming anybody: salted codes that only this hospital can resolve.

A code is HMAC-SHA-256 of the hospital's own patient id and a salt of its own, under a key that never leaves the ledger's folder
(`ledger.key`, mode 0600). An export, a report or a certificate holds codes and salts, and without the key nobody can try ids.
Pure.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hospital_node.cohort import Cohort
from hospital_node.ledger_chain import Event, decisions
from hospital_node.ledger_errors import DecisionRefused, LedgerDamaged
from hospital_node.ledger_schema import PatientWithdrawn

CODE_LABEL: Final = b"hospital-secagg withdrawn patient v1\n"
CHECK_LABEL: Final = b"hospital-secagg withdrawal key v1\n"
SALT_BYTES: Final = 16
CHECK_BYTES: Final = 16
SHORT_CODE: Final = 12  # hexadecimal digits that people compare


@dataclass(frozen=True, slots=True)
class Withdrawals:
    """Everybody who has withdrawn, as codes, and the key that resolves them."""

    entries: tuple[PatientWithdrawn, ...]
    key: bytes = field(repr=False)

    def entry_of(self, patient: str) -> PatientWithdrawn | None:
        """The entry of the patient with this id, if there is one."""
        return next((one for one in self.entries if hmac.compare_digest(one.code, code_of(self.key, one.salt, patient))), None)

    def without(self, cohort: Cohort) -> tuple[Cohort, Cohort]:
        """The cohort without those who have withdrawn, and what was taken out of it. Nothing of either is read."""
        if not self.entries:
            return cohort, Cohort(cohort.layout, ())
        gone = {patient for patient in cohort.by_patient() if self.entry_of(patient) is not None}
        kept = tuple(case for case in cohort.cases if case.patient not in gone)
        out = tuple(case for case in cohort.cases if case.patient in gone)
        return Cohort(cohort.layout, kept, cohort.skipped), Cohort(cohort.layout, out)


def withdrawn_in(events: Sequence[Event]) -> tuple[PatientWithdrawn, ...]:
    """Every withdrawal, in order."""
    return tuple(event.entry for event in decisions(events) if isinstance(event.entry, PatientWithdrawn))


def withdrawals(events: Sequence[Event], key: bytes) -> Withdrawals:
    """Those of a ledger. Raises LedgerDamaged where another key made the codes: then nobody could be told apart."""
    entries = withdrawn_in(events)
    if any(one.key_check != check_of(key) for one in entries):
        raise LedgerDamaged(
            "Patients have withdrawn, and the ledger's key is not the one that their codes were made with, so nobody can tell "
            "who they are: bring back ledger.key from the backup of the ledger's folder."
        )
    return Withdrawals(entries, key)


def withdrawal_entry(known: Withdrawals, patient: str, salt: bytes, by: str, reason: str) -> PatientWithdrawn:
    """The entry that records a withdrawal. Raises DecisionRefused."""
    patient = identified(patient)
    refuse_named(patient, by, reason)
    before = known.entry_of(patient)
    if before is not None:
        raise DecisionRefused(f"This patient has withdrawn already, with code {before.code[:SHORT_CODE]}: nothing was added.")
    code = code_of(known.key, salt.hex(), patient)
    return PatientWithdrawn(code=code, salt=salt.hex(), key_check=check_of(known.key), by=by, reason=reason)


def refuse_named(patient: str, by: str, reason: str) -> None:
    """Raise DecisionRefused where the patient's id is part of what is kept."""
    for what, text in (("name", by), ("reason", reason)):
        if re.search(rf"(?<!\w){re.escape(patient.casefold())}(?!\w)", text.casefold()):
            raise DecisionRefused(f"The {what} holds the patient's id, which is written nowhere: say it without.")


def identified(patient: str) -> str:
    """The id without white space around it. Raises DecisionRefused where there is none, or more than a line."""
    text = patient.strip()
    if not text or not text.isprintable():
        raise DecisionRefused("A withdrawal needs the hospital's own id of one patient, on one line.")
    return text


def code_of(key: bytes, salt: str, patient: str) -> str:
    """The code of a patient under a salt, in hexadecimal."""
    return hmac.new(key, CODE_LABEL + bytes.fromhex(salt) + patient.strip().encode(), hashlib.sha256).hexdigest()


def check_of(key: bytes) -> str:
    """Tells the key without giving it away."""
    return hmac.digest(key, CHECK_LABEL, hashlib.sha256)[:CHECK_BYTES].hex()
