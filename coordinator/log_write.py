"""The log of rounds (proto/roundlog.py) in the store: an entry is written where a round's end is written, in one transaction.

Rules: nobody can end a round without an entry, because both are one call (store_write.Batch.round_state); rows are only ever
added; rounds that an older release ended are entered once, when its store is opened (`complete`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection, insert, select

from coordinator import tables
from coordinator.store import log_entry_of
from proto.plan import from_canonical
from proto.roundlog import DIGEST_FIELDS, Entry, State, next_entry


def append_ended(
    connection: Connection, number: int, state: str, survivors: Sequence[str], model: str | None, *, had_session: bool
) -> None:
    """Add the entry of round `number`, which has just got its last state; its session has got its own before."""
    last = _last(connection)
    base = last.model if last is not None else _start(connection)
    opened = state == "opened"
    session = _session(connection, number, state) if had_session or opened else None
    entry = next_entry(
        last,
        last.plan if last is not None else _plan(connection),
        round_number=number,
        state=cast("State", state),
        session=b"" if session is None else bytes.fromhex(session.session),
        base=base,
        model=bytes.fromhex(model) if opened and model is not None else base,
        sum_digest=bytes.fromhex(session.sum_digest or "") if opened and session is not None else b"",
        survivors=survivors,
    )
    texts = {name: getattr(entry, name).hex() for name in DIGEST_FIELDS}
    row = {"number": entry.index, "round": number, "state": state, "survivors": list(entry.survivors), **texts}
    connection.execute(insert(tables.round_log).values(row))


def complete(connection: Connection) -> None:
    """Enter the rounds that ended before there was a log."""
    last, table = _last(connection), tables.rounds
    ended = table.c.state.in_(("opened", "aborted"))
    query = select(table).where(ended, table.c.number > (0 if last is None else last.round))
    for row in connection.execute(query.order_by(table.c.number)).all():
        had_session = bool(row.cohort)
        append_ended(connection, row.number, row.state, row.survivors, row.model_digest, had_session=had_session)


def _last(connection: Connection) -> Entry | None:
    table = tables.round_log
    row = connection.execute(select(table).order_by(table.c.number.desc()).limit(1)).first()
    return None if row is None else log_entry_of(row)


def _start(connection: Connection) -> bytes:
    table = tables.models
    return bytes.fromhex(connection.scalar(select(table.c.digest).where(table.c.round == 0)) or "")


def _plan(connection: Connection) -> bytes:
    table = tables.documents
    return from_canonical(bytes(connection.scalar(select(table.c.body).where(table.c.name == "plan")) or b"")).digest()


def _session(connection: Connection, number: int, state: str) -> Any:
    """The session that ended the round: the last one that ended so."""
    table = tables.sessions
    query = select(table).where(table.c.round == number, table.c.state == state)
    return connection.execute(query.order_by(table.c.created_at.desc())).first()
