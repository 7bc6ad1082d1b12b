"""Connections to the store's database: SQLite in a file, PostgreSQL by URL; for its one writer, or for reading only.

A password is said by nobody: URLs are shown without it, and an URL that cannot be read is not shown at all. A server that
does not answer is noticed within seconds, whatever the network does (`WAITS`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

SQLITE = "sqlite:///"
POSTGRES = "postgresql+psycopg"
OWNER_ONLY = 0o600
BUSY_S = 10.0  # a reader waits so long for a writer's checkpoint before it gives up
WAITS: dict[str, int | str] = {  # libpq's settings: a server that is gone costs seconds, not the kernel's quarter of an hour
    "connect_timeout": 5,  # s
    "tcp_user_timeout": 5_000,  # ms that bytes may stay unacknowledged
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "options": "-c statement_timeout=20s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s",
}


class StoreError(RuntimeError):
    """The store cannot be read or written; one sentence that names it and the remedy."""


class StoreLost(StoreError):
    """The server of the store went away. Whether the last transaction was done is known only to whoever asks it again."""


def write_engine(where: str) -> Engine:
    """For the one writer: SQLite's file is made where there is none, with rights for its owner only."""
    if _is_server(where):
        return create_engine(_url_of(where), connect_args=WAITS, pool_pre_ping=True)
    path = where.removeprefix(SQLITE)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, OWNER_ONLY))  # SQLite gives its other files the same rights
    engine = _sqlite_engine(path)

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA secure_delete=ON")  # messages of a session that ended are overwritten

    return engine


def read_engine(where: str) -> Engine:
    """Cannot write: SQLite by mode=ro, PostgreSQL by read-only transactions, each of one moment."""
    if _is_server(where):
        options = {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        return create_engine(_url_of(where), connect_args=WAITS, pool_pre_ping=True, execution_options=options)
    path = Path(where.removeprefix(SQLITE))
    if not path.is_file():
        raise StoreError(f"there is no store at {path}: start the coordinator, or name the state folder's store.db")
    return _sqlite_engine(f"file:{quote(str(path.resolve()))}?mode=ro&uri=true")


@contextmanager
def whole(engine: Engine) -> Iterator[Connection]:
    """One transaction that takes in changes of the schema too: all of it, or the database as it was."""
    if is_server(engine):
        with engine.begin() as connection:
            yield connection
        return
    # Python's driver begins a transaction at the first row that is written, which is after the tables were changed
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        with ExitStack() as otherwise:
            otherwise.callback(connection.exec_driver_sql, "ROLLBACK")
            yield connection
            connection.exec_driver_sql("COMMIT")
            otherwise.pop_all()


@contextmanager
def transaction(connection: Connection, *, durable: bool) -> Iterator[None]:
    """One transaction, whose end waits for the disk where it has to be `durable`."""
    server = is_server(connection.engine)
    if not server:  # cannot be chosen within a transaction
        driver: Any = connection.connection.driver_connection
        driver.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    with connection.begin():
        if server and not durable:
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
        yield


def is_server(engine: Engine) -> bool:
    """Whether the store is not a file of this machine."""
    return engine.dialect.name != "sqlite"


def shown(engine: Engine) -> str:
    """The store's URL for a sentence, without its password."""
    return engine.url.render_as_string(hide_password=True)


def refused(engine: Engine, does: str, error: SQLAlchemyError) -> StoreError:
    """What the database said as an error of the store, in its first line. `does`: read or write."""
    said = str(getattr(error, "orig", None) or error).splitlines()[0]
    gone = isinstance(error, DBAPIError) and is_server(engine) and _is_gone(error)
    kind = StoreLost if gone else StoreError
    return kind(f"cannot {does} the store {shown(engine)}: {said}")


def without_login(where: str) -> str | None:
    """A server's URL without user and password, for readers that have their own; None for a file."""
    if not _is_server(where):
        return None
    url = _url_of(where)
    return URL.create(url.drivername, host=url.host, port=url.port, database=url.database, query=url.query).render_as_string()


def has_password(where: str) -> bool:
    """Whether an URL holds a password. Raises StoreError."""
    return _is_server(where) and _url_of(where).password is not None


def _is_gone(error: DBAPIError) -> bool:
    """A broken connection, a refused one, a server that is shutting down or out of space: anything but a wrong statement."""
    return error.connection_invalidated or type(error).__name__ in {"OperationalError", "InterfaceError"}


def _is_server(where: str) -> bool:
    return "://" in where.removeprefix(SQLITE)


def _url_of(where: str) -> URL:
    """`where` with the driver that this package uses. Its text is in no error: it may hold a password."""
    try:
        url = make_url(where)
        if url.drivername == "postgresql":
            url = url.set(drivername=POSTGRES)
        if url.drivername != POSTGRES:
            raise StoreError(f"the store is SQLite or PostgreSQL, not '{url.drivername}': begin its URL with postgresql://")
        url.get_dialect().import_dbapi()
    except (ArgumentError, ValueError, NoSuchModuleError):
        raise StoreError(
            "the URL of the store cannot be read: write postgresql://user@host:5432/database, and percent-encode what a "
            "password holds of /, @ and :"
        ) from None
    except ImportError as error:
        raise StoreError("PostgreSQL needs its driver: pip install 'hospital-secagg[postgres]'") from error
    return url


def _sqlite_engine(name: str) -> Engine:
    """SQLite engine on a path or file: URI whose connections wait for each other."""
    engine = create_engine(f"{SQLITE}{name}", connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA foreign_keys=ON")

    return engine
