"""The write side of the coordinator's store: one writer, one transaction for everything that one step decided.

What a step decided is durable before any party hears of it: the service commits a batch first and delivers orders
afterwards. A session id is a primary key, so that a second use of one fails here at the latest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from coordinator import log_write, tables
from coordinator.database import StoreError, StoreLost, is_server, refused, shown, transaction, whole, write_engine
from coordinator.journal import Message
from coordinator.meter import Direction, Lane
from coordinator.migrations import migrate
from coordinator.store import RoundRow, StoreReader
from proto.evaluation import LabelMean
from proto.layout import Layout
from proto.plan import Plan, short_name

DONE_STATES = ("opened", "aborted")
UPSERTING: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}  # SQL has no standard form of it
RESTARTED = "the coordinator was restarted in this round"


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a restarted coordinator goes on."""

    round: int  # the round to work on next
    model_round: int  # round whose model is the base; 0: the start
    model_digest: str
    interrupted: tuple[str, ...]  # session ids (hexadecimal) that were open and are now aborted


@dataclass(frozen=True, slots=True)
class StoredSession:
    """The masking session that an earlier start left open, as it was stored."""

    session: bytes
    round: int
    outline: bytes
    messages: tuple[Message, ...]  # in the order in which they were taken


@dataclass(frozen=True, slots=True)
class LastResult:
    """How the newest finished round ended, and who was in its cohort."""

    row: RoundRow
    session: bytes
    sum_digest: bytes


class Batch:
    """Changes of one transaction. Made by `StoreWriter.batch` alone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def event(self, at: float, round: int, kind: str, text: str, *, party: str = "", phase: str = "") -> None:  # noqa: A002
        """Append one event."""
        row = {"at": at, "round": round, "party": party, "kind": kind, "phase": phase, "text": text}
        self._connection.execute(insert(tables.events), row)

    def round_state(
        self,
        number: int,
        state: str,
        at: float,
        *,
        cohort: Sequence[str] = (),
        survivors: Sequence[str] = (),
        dropped: Mapping[str, str] | None = None,
        model_digest: str | None = None,
        reason: str = "",
    ) -> None:
        """Insert or replace what is known of a round; the first call sets its start, a final state its end and log entry."""
        values: dict[str, Any] = {
            "state": state,
            "ended_at": at if state in DONE_STATES else None,
            "cohort": list(cohort),
            "survivors": list(survivors),
            "dropped": dict(dropped or {}),
            "model_digest": model_digest,
            "reason": reason,
        }
        self._upsert(tables.rounds, {"number": number}, values, {"started_at": at})
        if state in DONE_STATES:
            had_session = bool(cohort)
            log_write.append_ended(self._connection, number, state, survivors, model_digest, had_session=had_session)

    def new_session(self, session: bytes, round: int, roster: Sequence[str], at: float) -> None:  # noqa: A002
        """Record a session before its first order; a used id raises StoreError through its key."""
        self._connection.execute(
            insert(tables.sessions).values(
                session=session.hex(), round=round, state="open", roster=list(roster), survivors=[], reason="", created_at=at
            )
        )

    def session_state(
        self, session: bytes, state: str, survivors: Sequence[str] = (), sum_digest: str | None = None, reason: str = ""
    ) -> None:
        """Move a session on: open -> masking -> opened or aborted. With its end its outline and messages are deleted."""
        table = tables.sessions
        values = {"state": state, "survivors": list(survivors), "sum_digest": sum_digest, "reason": reason}
        self._connection.execute(update(table).where(table.c.session == session.hex()).values(values))
        if state in DONE_STATES:
            for kept in (tables.session_messages, tables.session_outlines):
                self._connection.execute(delete(kept).where(kept.c.session == session.hex()))

    def session_outline(self, session: bytes, body: bytes) -> None:
        """Replace what the engine has decided about an open session."""
        self._upsert(tables.session_outlines, {"session": session.hex()}, {"body": body})

    def session_message(self, session: bytes, message: Message) -> None:
        """Append a message that was taken."""
        row = {"session": session.hex(), "kind": message.kind, "party": message.party, "body": message.body}
        self._connection.execute(insert(tables.session_messages), row)

    def forget_message(self, session: bytes, kind: str, party: str) -> None:
        """Delete a message whose upload is gone; its sender is asked again."""
        table = tables.session_messages
        where = (table.c.session == session.hex(), table.c.kind == kind, table.c.party == party)
        self._connection.execute(delete(table).where(*where))

    def phase_seconds(self, round: int, phase: str, seconds: float) -> None:  # noqa: A002
        """Add to the time that a round spent in a phase (a restarted session enters one twice)."""
        self._add(tables.phase_times, "seconds", [{"round": round, "phase": phase, "seconds": seconds}])

    def traffic(self, round: int, party: str, direction: Direction, phase: str, count: int) -> None:  # noqa: A002
        """Add to the bytes of one party, direction and phase of a round."""
        self.traffic_of({Lane(round, party, direction, phase): count})

    def traffic_of(self, counts: Mapping[Lane, int]) -> None:
        """Add to the bytes of many, in one statement."""
        if counts:
            self._add(tables.traffic, "bytes", [{**lane._asdict(), "bytes": size} for lane, size in counts.items()])

    def member(self, uri: str, state: str, last_seen_at: float | None, phase: str = "", code: str = "") -> None:
        """Replace what is known of a party."""
        values = {"state": state, "last_seen_at": last_seen_at, "phase": phase, "code": code}
        self._upsert(tables.members, {"uri": uri}, values)

    def model(self, round: int, digest: str, length: int, at: float) -> None:  # noqa: A002
        """Name the model that a round published."""
        self._upsert(tables.models, {"round": round}, {"digest": digest, "length": length, "created_at": at})

    def mean(self, round: int, digest: str) -> None:  # noqa: A002
        """Name the mean update that a round opened."""
        self._upsert(tables.means, {"round": round}, {"digest": digest})

    def scores(self, round: int, evaluator: str, per_case: Sequence[tuple[str, Sequence[float]]]) -> None:  # noqa: A002
        """Replace an evaluator's measurement of a round."""
        for position, (label, values) in enumerate(per_case):
            key = {"round": round, "evaluator": evaluator, "label": label}
            self._upsert(tables.scores, key, {"position": position, "per_case": [float(value) for value in values]})

    def validation(self, round: int, model_round: int, hospitals: int, means: Sequence[LabelMean]) -> None:  # noqa: A002
        """Record what rode along in a round."""
        for position, one in enumerate(means):
            values = {"position": position, "model_round": model_round, "hospitals": hospitals, "mean": one.mean}
            values |= {"standard_error": one.standard_error, "patients": one.patients}
            self._upsert(tables.validations, {"round": round, "label": one.label}, values)

    def status(self, waiting: str, finished: str, **more: object) -> None:
        """Say what the run waits for, or why it ended; `more`: phase, about, since, awaited (StoreReader)."""
        self.document("status", json.dumps({"waiting": waiting, "finished": finished, **more}).encode())

    def heartbeat(self, at: float) -> None:
        """Say that the coordinator runs."""
        self.document("heartbeat", json.dumps({"at": at}).encode())

    def document(self, name: str, body: bytes) -> None:
        """Replace a named document."""
        self._upsert(tables.documents, {"name": name}, {"body": body})

    def count(self, name: str, by: int = 1) -> int:
        """Add to a counter and return it."""
        adding = _adding(self._connection.dialect.name, tables.counters, "number").returning(tables.counters.c.number)
        return int(self._connection.execute(adding, {"name": name, "number": by}).scalar_one())

    def _upsert(
        self, table: Table, key: Mapping[str, Any], values: Mapping[str, Any], at_first: Mapping[str, Any] | None = None
    ) -> None:
        """Insert a row; where the key is there already, replace `values` and leave what was set `at_first`."""
        replacing = _replacing(self._connection.dialect.name, table, tuple(values))
        self._connection.execute(replacing, {**key, **values, **(at_first or {})})

    def _add(self, table: Table, column: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows; where the key is there already, add to `column` instead."""
        self._connection.execute(_adding(self._connection.dialect.name, table, column), rows)


class StoreWriter(StoreReader):
    """The one writer of a store. A store belongs to one plan for ever.

    Of two coordinators on one server the later start has the store: the earlier one's transactions fail from then on. Once
    `lost`, a writer does nothing more: what its last transaction did is found out by a new one, as after a kill.
    """

    _epoch: int | None = None
    lost = ""  # why, once its server went away

    @classmethod
    def create(cls, url: str, plan: Plan, layout: Layout) -> StoreWriter:
        """Open the store at `url`, making or migrating its tables. StoreError if it belongs to another plan."""
        engine = write_engine(url)
        try:
            with whole(engine) as connection:
                migrate(connection, shown(engine))
                _claim(Batch(connection), connection, plan, layout, engine)
                log_write.complete(connection)
        except SQLAlchemyError as error:
            engine.dispose()
            raise refused(engine, "write", error) from error
        except StoreError:
            engine.dispose()
            raise
        return cls(engine)

    @contextmanager
    def batch(self, *, durable: bool = True) -> Iterator[Batch]:
        """One transaction: all of it durable on leaving, or none of it. Raises StoreError.

        Not `durable`: it outlives this process, and a power cut only together with a later one that is.
        """
        with self._reading("write") as connection, transaction(connection, durable=durable):
            self._check_epoch(connection)
            changes = Batch(connection)
            yield changes
            changes.count("revision")

    def next_epoch(self) -> int:
        """Count this start of the coordinator; instruction ids of later starts are larger than all earlier ones."""
        with self.batch() as changes:
            epoch = changes.count("epoch")
        self._epoch = epoch
        return epoch

    @contextmanager
    def _reading(self, does: str = "read") -> Iterator[Connection]:
        if self.lost:
            raise StoreLost(self.lost)
        try:
            with super()._reading(does) as connection:
                yield connection
        except StoreLost as error:
            self.lost = str(error)
            raise

    def _check_epoch(self, connection: Connection) -> None:
        """Raise StoreError where a later start has taken the store over. A file has its folder's lock instead."""
        if self._epoch is None or not is_server(self._engine):
            return
        table = tables.counters
        query = select(table.c.number).where(table.c.name == "epoch").with_for_update(read=True)
        if connection.scalar(query) != self._epoch:
            raise StoreError(f"another coordinator has taken the store {shown(self._engine)} over: stop one of the two")

    def status_since(self) -> tuple[list[object], float]:
        """What the last status was about (round, phase, session), and when that began; ([], 0) where none says so."""
        status = json.loads(self._document("status"))
        return status.get("about", []), status.get("since", 0.0)

    def open_session(self) -> StoredSession | None:
        """The session of the present round that an earlier start left open; None where nobody was told of one."""
        outlines, messages, number = tables.session_outlines, tables.session_messages, self._next_round()
        for row in self._open_sessions():
            found = self._all(select(outlines.c.body).where(outlines.c.session == row.session))
            if found and row.round == number:
                query = select(messages).where(messages.c.session == row.session).order_by(messages.c.seq)
                taken = tuple(Message(item.kind, item.party, bytes(item.body)) for item in self._all(query))
                return StoredSession(bytes.fromhex(row.session), row.round, bytes(found[0].body), taken)
        return None

    def last_result(self) -> LastResult | None:
        """The newest finished round that had a cohort, whose members may not have read its result before a restart."""
        done = [row for row in self.rounds() if row.state in DONE_STATES and row.cohort]
        if not done:
            return None
        table = tables.sessions
        query = select(table).where(table.c.round == done[-1].number).order_by(table.c.created_at)
        session = self._all(query)[-1]
        return LastResult(done[-1], bytes.fromhex(session.session), bytes.fromhex(session.sum_digest or ""))

    def resume(self, at: float, keep: bytes | None = None) -> Resume:
        """Close what a crash left open, except for the session that goes on (`keep`), and say where to go on.

        A session whose mask phase had begun has consumed its updates: its round ends aborted. Before that nothing was
        released and the same round is offered again.
        """
        models = self.models()
        interrupted = [row for row in self._open_sessions() if keep is None or row.session != keep.hex()]
        next_round = self._next_round()
        with self.batch() as changes:
            for row in interrupted:
                changes.session_state(bytes.fromhex(row.session), "aborted", reason=RESTARTED)
                changes.event(at, row.round, "session-aborted", f"Round {row.round} · {RESTARTED}: its masking session is over")
            consumed = any(row.state == "masking" and row.round == next_round for row in interrupted)
            if consumed:
                roster = next(row.roster for row in interrupted if row.state == "masking")
                changes.round_state(next_round, "aborted", at, cohort=roster, reason=RESTARTED)
        return Resume(
            round=next_round + consumed,
            model_round=models[-1].round,
            model_digest=models[-1].digest,
            interrupted=tuple(row.session for row in interrupted),
        )

    def _next_round(self) -> int:
        done = [row.number for row in self.rounds() if row.state in DONE_STATES]
        return max(done, default=0) + 1

    def _open_sessions(self) -> list[Any]:
        table = tables.sessions
        return self._all(select(table).where(table.c.state.in_(("open", "masking"))))


def _claim(changes: Batch, connection: Connection, plan: Plan, layout: Layout, engine: Engine) -> None:
    """Write plan, layout and members into a new store, or check that an old one has the same plan."""
    table = tables.documents
    stored = connection.scalar(select(table.c.body).where(table.c.name == "plan"))
    if stored is not None:
        if bytes(stored) != plan.canonical():
            raise StoreError(f"the store {shown(engine)} belongs to another plan: name another state folder")
        return
    changes.count("schema", tables.SCHEMA_VERSION)
    changes.document("plan", plan.canonical())
    changes.document("layout", layout.to_json().encode())
    waiting = ", ".join(short_name(hospital.uri) for hospital in plan.hospitals)
    changes.status(f"Waiting for {waiting} to join", "")
    for uri in (*(hospital.uri for hospital in plan.hospitals), *plan.evaluators):
        changes.member(uri, "absent", None)


@lru_cache
def _adding(dialect: str, table: Table, column: str) -> Any:
    """Statement that inserts a row or adds to `column`. Built once: a coordinator runs it thousands of times."""
    new = UPSERTING[dialect](table)
    more = {column: table.c[column] + new.excluded[column]}
    return new.on_conflict_do_update(index_elements=table.primary_key.columns, set_=more)


@lru_cache
def _replacing(dialect: str, table: Table, columns: tuple[str, ...]) -> Any:
    """Statement that inserts a row or replaces `columns`."""
    new = UPSERTING[dialect](table)
    return new.on_conflict_do_update(
        index_elements=table.primary_key.columns, set_={name: new.excluded[name] for name in columns}
    )
