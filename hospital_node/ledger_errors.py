"""Why a ledger says no. Each error is one sentence for people at the hospital, and one coarse code for the coordinator.

The code (proto.plan.DECLINE_CODES) is all that may leave; the sentence holds figures of this hospital and stays here.
"""

from __future__ import annotations

from typing import ClassVar


class LedgerError(RuntimeError):
    """The ledger does not allow it. Raise one of the children, never this."""

    code: ClassVar[str] = "ledger-damaged"


class NotApproved(LedgerError):
    """Nobody at this hospital approved the plan, or the approval was withdrawn."""

    code: ClassVar[str] = "not-approved"


class BudgetExhausted(LedgerError):
    """The round would cross the cap."""

    code: ClassVar[str] = "budget-exhausted"


class Paused(LedgerError):
    """People hold the node, or two releases in a row came to nothing and people have to look."""

    code: ClassVar[str] = "paused"


class AlreadyReleased(LedgerError):
    """A round of a plan, or an update, was released before: two sums would subtract to this hospital's update."""

    code: ClassVar[str] = "already-released"


class PatientWithdrew(LedgerError):
    """A patient withdrew after this round's training began: its update is not released.

    The code is that of a pause, which people cause at the same place: a code of its own would tell the coordinator.
    """

    code: ClassVar[str] = "paused"


class DecisionRefused(LedgerError):
    """An approval or a change of the cap that one person may not make, or nobody may."""

    code: ClassVar[str] = "policy"


class ClockJumped(LedgerError):
    """The clock of this machine is behind the last entry, or so far ahead that it must be wrong."""

    code: ClassVar[str] = "clock-behind"


class LedgerMissing(LedgerError):
    """There is no ledger where one is expected."""

    code: ClassVar[str] = "ledger-damaged"


class LedgerDamaged(LedgerError):
    """The ledger does not verify: it was edited, shortened or destroyed."""

    code: ClassVar[str] = "ledger-damaged"


class LedgerRolledBack(LedgerError):
    """The ledger is older than the counter beside it: a backup was restored."""

    code: ClassVar[str] = "ledger-rolled-back"


class CannotRecord(LedgerError):
    """The disk or a lock does not let the ledger write. Nothing was released."""

    code: ClassVar[str] = "ledger-unwritable"
