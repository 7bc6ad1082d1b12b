"""From the store to a session that goes on: what an earlier start took is checked again, as if it arrived now, in its order.

Rule: nothing is trusted because it is stored. Signatures, shares and the digests of spooled uploads are verified; a session
whose record does not hold is given up, as if it had failed. A survivor list that was fixed stays that list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator import orders
from coordinator.journal import Body, JournalError, Outline, body_of, kept_of, read_outline
from coordinator.spool import Spool, SpoolError
from coordinator.state import Kept, Phase
from coordinator.store_write import LastResult, StoredSession
from coordinator.wire_orders import to_open
from proto.layout import Layout
from proto.plan import Plan
from proto.wire import WireError, open_params
from secagg import SecaggError
from secagg.coordinate import SessionView
from secagg.messages import Advert, Confirmation, Revealed, ShareSet, UploadSeal

AFTER_LIST = ("confirmation", "revealed")


@dataclass(frozen=True, slots=True)
class Restored:
    """A session that can go on. `asked_again`: members whose spooled upload is gone or damaged while it can still be sent."""

    kept: Kept
    view: SessionView
    asked_again: tuple[str, ...]


def restore(stored: StoredSession, plan: Plan, layout: Layout, spool: Spool, log_head: bytes = b"") -> Restored:
    """The session that an earlier start left open; `layout` is that of an update. Raises JournalError where it cannot go on."""
    outline = read_outline(stored.outline)
    bodies = [(message.kind, message.party, body_of(message)) for message in stored.messages]
    try:
        digests = {party: spool.digest_of(stored.session, party) for kind, party, _ in bodies if kind == "seal"}
        gone = tuple(party for _, party, body in bodies if isinstance(body, UploadSeal) and digests[party] != body.digest)
        if gone and (outline.phase is not Phase.MASK or outline.closed):
            raise JournalError(f"{len(gone)} spooled uploads of the survivor list are missing or damaged")
        whole = [item for item in bodies if not (item[0] == "seal" and item[1] in gone)]
        kept = kept_of(stored.session, outline, whole)
        order = orders.Open(stored.session, stored.round, kept.session.roster)
        view = SessionView(open_params(plan, to_open(order, log_head), layout))
        _replay(view, whole, digests, outline)
    except (SecaggError, WireError, SpoolError, ValueError) as error:
        raise JournalError(str(error)) from error
    return Restored(kept, view, gone)


def result_again(last: LastResult, base_digest: bytes) -> orders.RoundResult:
    """The result of the newest finished round, for members that had not read it; nodes that had pass over it."""
    row = last.row
    opened = row.state == "opened"
    digest = bytes.fromhex(row.model_digest) if row.model_digest else base_digest
    return orders.RoundResult(
        row.number, last.session, row.survivors, last.sum_digest, digest, opened=opened, reason=row.reason
    )


def _replay(
    view: SessionView, bodies: list[tuple[str, str, Body]], digests: Mapping[str, bytes | None], outline: Outline
) -> None:
    for kind, party, body in bodies:
        if kind in AFTER_LIST and not view.survivors:
            view.close(outline.survivors)
        match body:
            case Advert():
                view.add_advert(body)
            case ShareSet():
                view.add_share_set(body)
            case UploadSeal():
                view.add_seal(party, digests[party] or b"", body)
            case Confirmation():
                view.add_confirmation(body)
            case Revealed():
                view.add_revealed(party, body)
    if outline.survivors and not view.survivors:
        view.close(outline.survivors)
