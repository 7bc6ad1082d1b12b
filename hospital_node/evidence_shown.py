"""What the hospital's own app says of receipts and log of rounds: one sentence each, read from the state folder and verified.

A read side: it opens nothing for writing, and says nothing where there is nothing yet. Keys are held together by the statements
of the node's old ones; whether the first is the hospital's is asked by `secagg-node receipts verify`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from certs.party import CertificateError
from certs.succession import load_successions
from certs.words import words_of
from hospital_node.ledger_chain import Event
from hospital_node.receipt_book import RECEIPTS_FILE, read_book
from hospital_node.receipts import Receipt, ReceiptError, Signed, check_ledger, verify
from hospital_node.roundlog import KeptLog, LogDamaged, log_file
from hospital_node.state import StateFolder
from proto.plan import Plan

__all__ = ["RECEIPTS_FILE", "evidence_lines"]  # the file changes when there is something new to say


def evidence_lines(state: Path, plan: Plan | None, events: Sequence[Event]) -> tuple[str, ...]:
    """Receipts first, then the log."""
    return tuple(line for line in (_receipts(state, plan, events), _log(state, plan)) if line)


def _receipts(state: Path, plan: Plan | None, events: Sequence[Event]) -> str:
    try:
        signed = read_book(state / RECEIPTS_FILE)
        if not signed:
            return ""
        receipts = _verified(signed, StateFolder(state).own_successions)
        if plan is not None and events:
            check_ledger(receipts, events, plan.study)
    except (ReceiptError, CertificateError) as error:
        return f"Receipts do not hold: {error}."
    return (
        f"{len(receipts)} receipts in an unbroken chain, every signature holds; the last one is of round {receipts[-1].round}."
    )


@lru_cache(maxsize=4)
def _verified(signed: tuple[Signed, ...], statements: Path) -> tuple[Receipt, ...]:
    return verify(signed, load_successions(statements))


def _log(state: Path, plan: Plan | None) -> str:
    if plan is None or not log_file(state, plan.digest()).exists():
        return ""
    try:
        kept = KeptLog(state, plan)
    except LogDamaged as error:
        return str(error)
    forked = _forked(kept.path.with_suffix(".fork.json"))
    seen = f" Another history was shown on {forked:%Y-%m-%d %H:%M} UTC and refused." if forked is not None else ""
    return f"{kept.count} rounds in the kept log, head {words_of(kept.head)}.{seen}"


def _forked(path: Path) -> datetime | None:
    try:
        return datetime.fromisoformat(json.loads(path.read_bytes())["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
