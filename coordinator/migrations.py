"""From the schema of any older release to the present one: numbered steps, in one transaction, on SQLite and PostgreSQL alike.

Rules: (1) a step is never changed once it was released, so its tables are written out here and not taken from tables.py;
(2) a store is migrated by the coordinator that writes it, whole or not at all; readers read older ones as they are;
(3) a store of a newer release is refused by name: what it holds beyond this is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    inspect,
    select,
    update,
)

from coordinator import tables
from coordinator.database import StoreError

_then = MetaData()


@dataclass(frozen=True, slots=True)
class Step:
    """What leads to schema `number` from the one before: tables that are made where they are missing."""

    number: int
    tables: tuple[Table, ...]


STEPS = (
    Step(
        2,
        (  # came one by one while the number stood still: a store of schema 1 has none, the first or all of them
            Table(
                "validations",
                _then,
                Column("round", Integer, primary_key=True),
                Column("label", String(128), primary_key=True),
                Column("position", Integer, nullable=False),
                Column("model_round", Integer, nullable=False),
                Column("hospitals", Integer, nullable=False),
                Column("mean", Float),
                Column("standard_error", Float),
                Column("patients", Float, nullable=False),
            ),
            Table(
                "session_outlines",
                _then,
                Column("session", String(32), primary_key=True),
                Column("body", LargeBinary, nullable=False),
            ),
            Table(
                "session_messages",
                _then,
                Column("seq", Integer, primary_key=True, autoincrement=True),
                Column("session", String(32), nullable=False),
                Column("kind", String(16), nullable=False),
                Column("party", String(512), nullable=False),
                Column("body", LargeBinary, nullable=False),
                UniqueConstraint("session", "kind", "party"),
            ),
        ),
    ),
    Step(
        3,
        (
            Table(
                "means",
                _then,
                Column("round", Integer, primary_key=True),
                Column("digest", String(64), nullable=False),
            ),
        ),
    ),
    Step(
        4,
        (  # its rows for rounds that ended before: log_write.complete, which every opening for writing calls
            Table(
                "round_log",
                _then,
                Column("number", Integer, primary_key=True, autoincrement=False),
                Column("plan", String(64), nullable=False),
                Column("round", Integer, nullable=False, unique=True),
                Column("state", String(16), nullable=False),
                Column("session", String(32), nullable=False),
                Column("base", String(64), nullable=False),
                Column("model", String(64), nullable=False),
                Column("sum_digest", String(64), nullable=False),
                Column("survivors", JSON, nullable=False),
                Column("previous", String(64), nullable=False),
                Column("head", String(64), nullable=False),
            ),
        ),
    ),
)


def version_of(connection: Connection) -> int:
    """Schema of a store; 0 where there is none yet."""
    if not inspect(connection).has_table(tables.counters.name):
        return 0
    table = tables.counters
    return int(connection.scalar(select(table.c.number).where(table.c.name == "schema")) or 0)


def migrate(connection: Connection, name: str) -> tuple[int, ...]:
    """Bring the store `name` to the present schema inside the caller's transaction; the steps taken. Raises StoreError.

    A database without a store gets its tables; the number of its schema is written with what it is for (store_write.py).
    """
    version = version_of(connection)
    refuse_newer(version, name)
    if version == 0:
        tables.metadata.create_all(connection)
        return ()
    taken = [step for step in STEPS if step.number > version]
    for step in taken:
        for table in step.tables:
            table.create(connection, checkfirst=True)
        counters = tables.counters
        connection.execute(update(counters).where(counters.c.name == "schema").values(number=step.number))
    return tuple(step.number for step in taken)


def refuse_newer(version: int, name: str) -> None:
    """Raise StoreError where a store was written by a newer release."""
    if version > tables.SCHEMA_VERSION:
        raise StoreError(
            f"the store {name} has schema {version}, this release knows schemas up to {tables.SCHEMA_VERSION}: a newer release "
            "wrote it, so install that one"
        )
