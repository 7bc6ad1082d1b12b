"""The privacy ledger of one hospital: who approved what, what was spent, and whether the next round may run.

Rule: check, record, act. `authorize` before training, `commit` before the first masked byte leaves; what was committed counts
as spent whatever happens next, and nothing is refunded. The ledger belongs to the hospital and outlives every study. Decisions
are pure functions (ledger_rules, cap), files are elsewhere (ledger_store); this file joins them, one transaction for each call.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from hospital_node import ledger_decisions as decisions
from hospital_node import ledger_rules as rules
from hospital_node.budget import BudgetView, budget_view, unreadable_view
from hospital_node.cap import Cap
from hospital_node.ledger_chain import Chain, Event, followed
from hospital_node.ledger_errors import (
    AlreadyReleased,
    BudgetExhausted,
    CannotRecord,
    ClockJumped,
    DecisionRefused,
    LedgerDamaged,
    LedgerError,
    LedgerMissing,
    LedgerRolledBack,
    NotApproved,
    PatientWithdrew,
    Paused,
)
from hospital_node.ledger_rules import Authorization
from hospital_node.ledger_schema import (
    BEFORE_FIRST,
    Approved,
    CapLowered,
    CapRaised,
    Charge,
    ClockConfirmed,
    Created,
    Entry,
    Hold,
    Note,
    PatientWithdrawn,
    Resume,
    Row,
    Verified,
    Withdrawn,
    make_row,
)
from hospital_node.ledger_store import LedgerFiles
from hospital_node.withdrawal import SALT_BYTES, Withdrawals, withdrawal_entry, withdrawals, withdrawn_in
from proto.control import Proved
from proto.plan import Plan, short_name

__all__ = [
    "AlreadyReleased",
    "Approved",
    "Authorization",
    "BudgetExhausted",
    "BudgetView",
    "CannotRecord",
    "Cap",
    "CapLowered",
    "CapRaised",
    "Charge",
    "ClockConfirmed",
    "ClockJumped",
    "DecisionRefused",
    "Event",
    "Ledger",
    "LedgerDamaged",
    "LedgerError",
    "LedgerMissing",
    "LedgerRolledBack",
    "NotApproved",
    "PatientWithdrawn",
    "PatientWithdrew",
    "Paused",
    "Receipt",
    "read_budget",
]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of one commit. Only `hmac` may leave the hospital: it shows continuity and tells nothing."""

    head: bytes
    hmac: bytes


class Ledger:
    """One hospital's ledger. Every method opens the files for itself, so one object may serve several threads."""

    def __init__(self, files: LedgerFiles) -> None:
        """Verified when made. Raises LedgerMissing, LedgerDamaged or LedgerRolledBack."""
        self._files = files
        self._opened_on, self._counter_is_behind = files.open()
        self._hospital = rules.hospital_of(self._opened_on)

    @classmethod
    def create(cls, path: Path, hospital_uri: str, at: datetime | None = None, *, witness: Path | None = None) -> Self:
        """Make the ledger of the hospital that `hospital_uri` names (its last part, so that it serves later studies)."""
        files = LedgerFiles.beside(path, witness, "rw")
        first = Created(hospital=short_name(hospital_uri), ledger_id=os.urandom(16).hex())
        files.create(make_row(1, at or datetime.now(UTC), first, BEFORE_FIRST))
        return cls.open(path, witness=witness)

    @classmethod
    def open(cls, path: Path, *, witness: Path | None = None) -> Self:
        """Open for the node. Verifies schema, pages, chain and counters: LedgerMissing, LedgerDamaged or LedgerRolledBack."""
        ledger = cls(LedgerFiles.beside(path, witness, "rw"))
        if ledger._counter_is_behind:
            ledger._files.catch_up()
        return ledger

    @classmethod
    def open_readonly(cls, path: Path, *, witness: Path | None = None) -> Self:
        """Open for the app: verified the same way, and no method of it can write."""
        return cls(LedgerFiles.beside(path, witness, "ro"))

    @classmethod
    def restore(
        cls, path: Path, rows: Sequence[Row], by: str, reason: str, at: datetime, *, witness: Path | None = None
    ) -> Self:
        """Bring a lost or older ledger to the history of an export that the counters know as the newest; it is noted.

        Raises LedgerRolledBack where the export is older than the counters, LedgerDamaged where the ledger holds anything else.
        """
        by, reason = decisions.person(by), decisions.said(reason)
        count = LedgerFiles.beside(path, witness, "rw").restore(rows)
        ledger = cls.open(path, witness=witness)
        ledger.note(by, f"restored {count} entries from an export: {reason}", at)
        return ledger

    @classmethod
    def start_witness(cls, path: Path, witness: Path, by: str, reason: str, at: datetime) -> Self:
        """Start a second counter for a ledger that has none: from now on it opens with it only. Raises DecisionRefused."""
        if witness.exists():
            raise DecisionRefused(f"{witness} exists already: a counter is never started again, because it would forget.")
        cls.open(path).note(by, f"started a second counter: {decisions.said(reason)}", at)
        LedgerFiles.beside(path, witness, "rw").catch_up()
        return cls.open(path, witness=witness)

    @property
    def opened_on(self) -> Chain:
        """Every entry as it was verified when this was made: for one question of somebody who opens the ledger for it."""
        return self._opened_on

    def events(self) -> Chain:
        """Every entry, verified again. Raises LedgerDamaged, LedgerRolledBack."""
        return self._files.read()

    def rows(self) -> tuple[Row, ...]:
        """Every row as stored, verified: what an export holds. Raises LedgerDamaged, LedgerRolledBack."""
        return self._files.read_rows()

    def verify(self) -> None:
        """Raise LedgerDamaged or LedgerRolledBack unless chain and counters hold."""
        self._files.read()

    @property
    def hospital(self) -> str:
        """Name of the hospital, which the first entry fixes for the ledger's life."""
        return self._hospital

    @property
    def head(self) -> bytes:
        """Digest of the last entry: names everything before it."""
        return self.events()[-1].digest

    @property
    def cap(self) -> Cap | None:
        """The cap in force; None before the first approval with a guarantee."""
        return rules.current_cap(self.events())

    def approvals(self) -> tuple[Approved, ...]:
        """Every approval ever recorded, withdrawn ones included, in order."""
        return tuple(event.entry for event in self.events().decisions() if isinstance(event.entry, Approved))

    def approval(self, plan: Plan) -> Approved | None:
        """The approval in force for exactly this plan."""
        return rules.approval_of(self.events(), plan.digest().hex())

    def budget(self, plan: Plan | None = None) -> BudgetView:
        """The figures of the officer's page for `plan`, or for the plan that was approved last."""
        return budget_view(self.events(), plan)

    def authorize(self, plan: Plan, round_number: int) -> Authorization:
        """Ask before training. Raises Paused, NotApproved, AlreadyReleased, BudgetExhausted, or that the ledger is unusable."""
        return rules.admit(self.events(), plan.digest().hex(), plan.study, round_number)

    def commit(self, authorization: Authorization, update_id: bytes, session: bytes, at: datetime) -> Receipt:
        """Charge the round, durably, before anything leaves. Asks everything again inside the transaction.

        Raises what `authorize` raises, AlreadyReleased for an update that was charged before, and CannotRecord where the disk
        fails: then nothing may leave, whether or not the charge was kept.
        """

        def decide(events: Sequence[Event]) -> Charge:
            if authorization.ledger_id != rules.created(events).ledger_id:
                raise LedgerDamaged(
                    "The ledger was exchanged for another one since this round was authorized: start the node again."
                )
            rules.refuse_known_update(events, update_id.hex())
            now = rules.admit(events, authorization.plan, authorization.study, authorization.round)
            if now.withdrawn != authorization.withdrawn:
                raise PatientWithdrew(
                    "A patient has withdrawn since this round's training began: the update is discarded, uncharged and unsent."
                )
            return Charge(
                plan=now.plan,
                study=now.study,
                round=now.round,
                session=session.hex(),
                update_id=update_id.hex(),
                noise_multiplier=now.mechanism.noise_multiplier,
                sampling_rate=now.mechanism.sampling_rate,
                steps=now.mechanism.steps,
                clip_norm=now.clip_norm,
                evaluation=now.evaluation,
                shared=now.shared,
            )

        key = self._files.receipt_key(authorization.study)  # first: a charge without a receipt would be wasted
        _, row = self._append(decide, at)
        return Receipt(row.digest, hmac.digest(key, row.digest, hashlib.sha256))

    def record_verified(self, plan: Plan, round_number: int, at: datetime) -> Chain:
        """The charged round's result came back and was verified. Recording it twice changes nothing.

        Returns the entries as they are then: verified inside the transaction, and the one that it added.
        """
        return self._record_verified(Verified(plan=plan.digest().hex(), round=round_number), plan.study, at)

    def record_result_of(self, charge: Charge, at: datetime) -> None:
        """`record_verified` for a charge that was read from this ledger, where its plan is not at hand."""
        self._record_verified(Verified(plan=charge.plan, round=charge.round), charge.study, at)

    def approve(
        self,
        plan: Plan,
        by: str,
        reason: str,
        cap: Cap,
        at: datetime,
        *,
        confirmed_by: str = "",
        accept_no_guarantee: bool = False,
        data_is_public: bool = False,
        proved: Proved | None = None,
        confirmation: decisions.Confirmation | None = None,
    ) -> None:
        """Record that `by` agrees to `plan` under `cap`. Raises DecisionRefused.

        A cap above the present one needs `confirmed_by`, another person; where `proved`, in a sign-in of their own. A plan
        without noise needs both flags, and a ledger on which no study was ever approved as private.
        """
        self._append(
            lambda events: decisions.approve_entry(
                events,
                plan,
                cap,
                by=by,
                confirmed_by=confirmed_by,
                reason=reason,
                accept_no_guarantee=accept_no_guarantee,
                data_is_public=data_is_public,
                proved=proved,
                confirmation=confirmation,
            ),
            at,
        )

    def withdraw(self, plan: Plan, by: str, reason: str, at: datetime, *, proved: Proved | None = None) -> None:
        """Take an approval back, at once; what was charged stays charged."""
        entry = Withdrawn(plan=plan.digest().hex(), by=decisions.person(by), reason=decisions.said(reason), proved=proved)
        self._append(lambda _: entry, at)

    def lower_cap(self, cap: Cap, by: str, reason: str, at: datetime) -> None:
        """Lower the cap, at once. Raises DecisionRefused where it would loosen either figure."""
        self._append(lambda events: decisions.lowered(events, cap, by, reason), at)

    def raise_cap(self, cap: Cap, by: str, confirmed_by: str, reason: str, at: datetime, *, confirmed_reason: str) -> None:
        """Set any cap; two different people, each with a reason. Raises DecisionRefused."""
        self._append(lambda events: decisions.raised(events, cap, by, confirmed_by, reason, confirmed_reason), at)

    def pause(self, by: str, reason: str, at: datetime, *, proved: Proved | None = None) -> None:
        """Hold the node until `resume`."""
        entry = Hold(by=decisions.person(by), reason=decisions.said(reason), proved=proved)
        self._append(lambda _: entry, at)

    def resume(self, by: str, reason: str, at: datetime, *, proved: Proved | None = None) -> None:
        """Let the node go on, after a hold or after releases without a result."""
        entry = Resume(by=decisions.person(by), reason=decisions.said(reason), proved=proved)
        self._append(lambda _: entry, at)

    def confirm_clock(self, by: str, reason: str, at: datetime) -> None:
        """Let people say that `at` is the right time, although the last entry is of a later or a long past one."""
        entry = ClockConfirmed(by=decisions.person(by), reason=decisions.said(reason))
        self._append(lambda _: entry, at)

    def note(self, by: str, text: str, at: datetime) -> None:
        """Keep a remark beside the figures."""
        entry = Note(by=decisions.person(by), text=decisions.said(text))
        self._append(lambda _: entry, at)

    def withdrawals(self) -> Withdrawals:
        """Everybody who has withdrawn. Raises LedgerDamaged, LedgerRolledBack."""
        events = self.events()
        if not withdrawn_in(events):
            return Withdrawals((), b"")
        return withdrawals(events, self._files.withdrawal_key())

    def withdraw_patient(self, patient: str, by: str, reason: str, at: datetime) -> PatientWithdrawn:
        """Record that a patient withdrew, from the next training on. Only a code of the id is kept. Raises DecisionRefused."""
        by, reason = decisions.person(by), decisions.said(reason)
        key, salt = self._files.withdrawal_key(), os.urandom(SALT_BYTES)
        self._append(lambda events: withdrawal_entry(withdrawals(events, key), patient, salt, by, reason), at)
        return withdrawn_in(self.events())[-1]

    def _record_verified(self, verified: Verified, study: str, at: datetime) -> Chain:
        events = self.events()
        if rules.is_verified(events, verified.plan, verified.round):
            return events

        def decide(events: Sequence[Event]) -> Verified:
            if not rules.is_charged(events, verified.plan, verified.round):
                raise DecisionRefused(f"Round {verified.round} of study '{study}' was never released here: it has no result.")
            return verified

        return followed(*self._append(decide, at))

    def _append(self, decide: Callable[[Sequence[Event]], Entry], at: datetime) -> tuple[Chain, Row]:
        """Decide on the verified entries and add one, in one transaction; those entries, and the row added to them."""
        if self._files.mode == "ro":
            raise CannotRecord(f"{self._files.database} is open for reading only.")
        with self._files.appending() as transaction:
            entry = decide(transaction.events)
            if not isinstance(entry, ClockConfirmed):
                rules.check_clock(transaction.events, at)
            last = transaction.events[-1]
            row = make_row(last.seq + 1, at, entry, last.digest)
            transaction.add(row)
        return transaction.events, row


def read_budget(path: Path, plan: Plan | None = None, *, witness: Path | None = None) -> BudgetView:
    """What the app shows: the figures, or the state "ledger damaged" with the sentence that says why."""
    try:
        return Ledger.open_readonly(path, witness=witness).budget(plan)
    except LedgerError as error:
        return unreadable_view(str(error))
