"""The studies of this hospital that may be used: what its folder lists, without the patients who have withdrawn.

The one door from a configuration to a cohort. Whoever has withdrawn is taken out here, by the lists alone, so that no volume of
theirs is read again; what was prepared of them before is deleted.
"""

from __future__ import annotations

from pathlib import Path

from hospital_node.cases import discover
from hospital_node.cohort import Cohort
from hospital_node.config import NodeConfig
from hospital_node.ledger import Ledger, LedgerMissing
from hospital_node.prepared_cache import forget
from hospital_node.state import StateFolder, ledger_to_read
from hospital_node.withdrawal import Withdrawals


def withdrawals_at(node: NodeConfig) -> Withdrawals:
    """Who has withdrawn at this hospital; nobody where there is no ledger. Raises LedgerError."""
    try:
        return Ledger.open_readonly(ledger_to_read(node.state, node.ledger), witness=node.ledger_counter).withdrawals()
    except LedgerMissing:
        return Withdrawals((), b"")


def usable_studies(node: NodeConfig) -> Cohort:
    """The studies that may be used. Raises CohortError, LedgerError, CacheError."""
    cohort, gone = withdrawals_at(node).without(discover(node.data, site=node.site, fold=node.fold))
    folder = StateFolder(node.state)
    if gone.cases and folder.cache.exists():
        forget(folder.cache, _secret_of(folder), gone.cases)
    return cohort


def _secret_of(folder: StateFolder) -> Path | None:
    return folder.patient_secret if folder.patient_secret.exists() else None
