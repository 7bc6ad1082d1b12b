"""From the stores of older releases to the present schema: no row lost, all or nothing, and a newer one refused by name."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from coordinator_federation import LAYOUT
from coordinator_world import make_plan, uri
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, inspect

from coordinator import migrations, tables
from coordinator.database import whole, write_engine
from coordinator.journal import Message
from coordinator.migrations import Step
from coordinator.store import StoreError, open_store
from coordinator.store_write import StoreWriter

RECORDED = Path(__file__).parent / "stores" / "version_1.sql"  # written by the first release: two rounds, the second one open
PLAN = make_plan(4, 3)
LATER_TABLES = (  # as two later releases added them without another number
    (
        "CREATE TABLE validations (round INTEGER NOT NULL, label VARCHAR(128) NOT NULL, position INTEGER NOT NULL, model_round "
        "INTEGER NOT NULL, hospitals INTEGER NOT NULL, mean FLOAT, standard_error FLOAT, patients FLOAT NOT NULL, "
        "PRIMARY KEY (round, label));"
        "INSERT INTO validations VALUES (1, 'nodule', 0, 0, 3, 0.5, 0.1, 20.0);"
    ),
    (
        "CREATE TABLE session_outlines (session VARCHAR(32) NOT NULL, body BLOB NOT NULL, PRIMARY KEY (session));"
        "CREATE TABLE session_messages (seq INTEGER NOT NULL, session VARCHAR(32) NOT NULL, kind VARCHAR(16) NOT NULL, party "
        "VARCHAR(512) NOT NULL, body BLOB NOT NULL, PRIMARY KEY (seq), UNIQUE (session, kind, party));"
        "INSERT INTO session_outlines VALUES ('02020202020202020202020202020202', X'7B7D');"
    ),
)


@pytest.fixture(params=[0, 1, 2], ids=["first", "with-evaluations", "with-outlines"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of schema 1 as each of three releases left it."""
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(RECORDED.read_text() + "".join(LATER_TABLES[: request.param]))
    connection.close()
    return path


def rows_of(path: Path) -> dict[str, list[tuple]]:
    with sqlite3.connect(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in names}
    connection.close()
    return rows


def schema_of(engine: Engine) -> dict[str, object]:
    look = inspect(engine)
    return {
        name: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in look.get_columns(name)],
            look.get_pk_constraint(name)["constrained_columns"],
            [constraint["column_names"] for constraint in look.get_unique_constraints(name)],
        )
        for name in sorted(look.get_table_names())
    }


def test_an_older_store_is_migrated_without_losing_a_row(old):
    before = rows_of(old)
    StoreWriter.create(f"sqlite:///{old}", PLAN, LAYOUT).close()
    after = rows_of(old)
    assert dict(after["counters"]).pop("schema") == tables.SCHEMA_VERSION
    assert {**dict(after["counters"]), "schema": 1} == dict(before["counters"])
    for name in before.keys() - {"counters"}:
        assert after[name] == before[name], name


def test_a_migrated_store_is_what_a_new_one_is(old, tmp_path):
    """Whoever changes tables.py without a step in migrations.py fails here."""
    StoreWriter.create(f"sqlite:///{old}", PLAN, LAYOUT).close()
    StoreWriter.create(f"sqlite:///{tmp_path / 'new.db'}", PLAN, LAYOUT).close()
    migrated, new = (schema_of(create_engine(f"sqlite:///{path}")) for path in (old, tmp_path / "new.db"))
    assert migrated == new
    assert set(new) == set(tables.metadata.tables)


def test_a_migrated_store_goes_on(old):
    with StoreWriter.create(f"sqlite:///{old}", PLAN, LAYOUT) as store:
        resume = store.resume(2e9)
        assert (resume.round, resume.model_round) == (3, 1), "the second round had begun to mask and is over"
        with store.batch() as changes:
            changes.session_message(bytes([3]) * 16, Message("advert", uri(0), b"body"))
            changes.mean(3, "ef" * 32)
        assert [row.state for row in store.rounds()] == ["opened", "aborted"]
        assert store.means() == {3: "ef" * 32}


def test_an_older_store_is_read_as_it_is(old):
    before = rows_of(old)
    with open_store(old) as store:
        assert [row.state for row in store.rounds()] == ["opened", "masking"]
        assert store.means() == {}
        assert [row.round for row in store.validations()] == [1] * ("validations" in before)
        assert store.plan() == PLAN
    assert rows_of(old) == before


def test_a_newer_store_is_refused_by_name_and_left_alone(url, writer):
    del writer
    with whole(write_engine(url)) as connection:
        connection.exec_driver_sql("UPDATE counters SET number = 99 WHERE name = 'schema'")
    for opening in (lambda: StoreWriter.create(url, PLAN, LAYOUT), lambda: open_store(url)):
        with pytest.raises(StoreError, match=r"schema 99.*up to 4.*newer release") as refusal:
            opening()
        assert "store" in str(refusal.value)


@pytest.fixture
def writer(url: str) -> Iterator[StoreWriter]:
    with StoreWriter.create(url, PLAN, LAYOUT) as store:
        yield store


def test_a_failed_migration_leaves_the_store_as_it_was(url, writer, monkeypatch):
    """On either kind of server: a step that fails takes the steps before it back, tables and number."""
    del writer
    engine = write_engine(url)
    with whole(engine) as connection:
        for name in ("means", "session_messages"):
            connection.exec_driver_sql(f"DROP TABLE {name}")
        connection.exec_driver_sql("UPDATE counters SET number = 1 WHERE name = 'schema'")
    before = schema_of(engine)
    apart = MetaData()
    made = Table("made", apart, Column("number", Integer, primary_key=True))
    impossible = Table("impossible", apart, Column("number", Integer, primary_key=True), prefixes=["NO SUCH KIND OF"])
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, Step(4, (made, impossible))))
    with pytest.raises(StoreError, match="cannot write the store"):
        StoreWriter.create(url, PLAN, LAYOUT)
    assert schema_of(engine) == before
    with whole(engine) as connection:
        assert migrations.version_of(connection) == 1
    monkeypatch.undo()
    with StoreWriter.create(url, PLAN, LAYOUT) as store:
        assert store.means() == {}
    assert set(schema_of(engine)) == set(tables.metadata.tables)
    engine.dispose()


def test_a_store_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    """A kill between tables and plan would leave a database that belongs to nobody."""
    path = tmp_path / "store.db"

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("coordinator.store_write._claim", dies)
    with pytest.raises(KeyboardInterrupt):
        StoreWriter.create(f"sqlite:///{path}", PLAN, LAYOUT)
    assert rows_of(path) == {}
    monkeypatch.undo()
    StoreWriter.create(f"sqlite:///{path}", PLAN, LAYOUT).close()


def test_every_schema_number_has_its_step():
    assert [step.number for step in migrations.STEPS] == list(range(2, tables.SCHEMA_VERSION + 1))
