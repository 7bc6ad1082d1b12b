"""What only a store on a server can do wrong: passwords, two coordinators, connections that break at a commit, rights."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from coordinator_federation import LAYOUT, small_plan, write_study
from coordinator_world import make_plan, uri
from kill_world import Killed, KillWorld
from typer.testing import CliRunner

from coordinator import events as ev
from coordinator import store_write
from coordinator.cli import app
from coordinator.config import ConfigError, load_config
from coordinator.database import has_password, transaction, without_login, write_engine
from coordinator.run import Run
from coordinator.state import Phase
from coordinator.store import StoreError, StoreLost, open_store, store_in
from coordinator.store_write import StoreWriter

ROOT = Path(__file__).resolve().parents[2]
PLAN = make_plan(4)
SECRET = "s3cret/of@the:store"
ENCODED = "s3cret%2Fof%40the%3Astore"
COMMAND = [sys.executable, "-c", "from coordinator.cli import main; main()"]


def status(config: Path) -> Any:
    return CliRunner().invoke(app, ["status", "--config", str(config)])


def test_a_wrong_password_is_refused_and_said_by_nobody(postgres, tmp_path, identities):
    url = postgres.url("postgres", password=SECRET)
    assert ENCODED in url
    write_study(tmp_path, identities, PLAN, store_url=url)
    command = [*COMMAND, "run", "--config", str(tmp_path / "coordinator.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    shown = status(tmp_path / "coordinator.toml")
    for code, said in ((done.returncode, done.stdout + done.stderr), (shown.exit_code, shown.output)):
        assert code == 2, said
        assert "password authentication failed" in said
        assert SECRET not in said
        assert ENCODED not in said
        assert "Traceback" not in said
    assert SECRET not in repr(load_config(tmp_path / "coordinator.toml"))
    assert ENCODED not in repr(load_config(tmp_path / "coordinator.toml"))


def test_the_password_may_come_from_libpq(postgres, tmp_path, identities, monkeypatch):
    from postgres_server import PASSWORD

    url = postgres.database()
    StoreWriter.create(url, PLAN, LAYOUT).close()
    bare = url.replace(url[url.index("secagg:") + 6 : url.rindex("@")], "")
    assert not has_password(bare)
    config = tmp_path / "coordinator.toml"
    write_study(tmp_path, identities, PLAN, store_url=bare)
    config.chmod(0o644)
    assert status(config).exit_code == 2
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert status(config).exit_code == 0
    monkeypatch.delenv("PGPASSWORD")
    passes = tmp_path / "pgpass"
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passes.write_text(f"127.0.0.1:{postgres.port}:*:secagg:{escaped}\n")
    passes.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passes))
    assert status(config).exit_code == 0


def test_a_password_that_others_can_read_is_refused(tmp_path, identities):
    write_study(tmp_path, identities, PLAN, store_url=f"postgresql://secagg:{ENCODED}@127.0.0.1/store")
    (tmp_path / "coordinator.toml").chmod(0o640)
    with pytest.raises(ConfigError, match="others can read it") as refusal:
        load_config(tmp_path / "coordinator.toml")
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://secagg:s3cret/of@the:store@host/db",
        "postgresql://secagg:s3cret@host:port/db",
        "mysql://secagg:s3cret@host/db",
        "postgresql+psycopg2://secagg:s3cret@host/db",
        "nonsense://s3cret",
        "://s3cret",
    ],
)
def test_an_url_that_cannot_be_used_is_not_repeated(tmp_path, identities, url):
    with pytest.raises(StoreError) as refusal:
        write_engine(url)
    assert "s3cret" not in str(refusal.value)
    (tmp_path / "study").mkdir()
    with pytest.raises(ConfigError) as refused:
        write_study(tmp_path / "study", identities, PLAN, store_url=url)
    assert "s3cret" not in str(refused.value)


def test_the_later_of_two_coordinators_has_the_store(postgres):
    url = postgres.database()
    with StoreWriter.create(url, PLAN, LAYOUT) as first, StoreWriter.create(url, PLAN, LAYOUT) as second:
        first.next_epoch()
        with first.batch() as changes:
            changes.member(uri(0), "joined", 1.0)
        second.next_epoch()
        with pytest.raises(StoreError, match="another coordinator has taken the store"), first.batch() as changes:
            changes.member(uri(1), "joined", 1.0)
        with second.batch() as changes:
            changes.member(uri(2), "joined", 1.0)
        assert {row.uri: row.state for row in second.members() if "hospital" in row.uri} == {
            uri(0): "joined", uri(1): "absent", uri(2): "joined", uri(3): "absent",
        }  # fmt: skip


def test_a_server_that_went_away_is_told_from_a_wrong_statement(postgres):
    url = postgres.database()
    session = bytes(range(16))
    with StoreWriter.create(url, PLAN, LAYOUT) as store:
        with store.batch() as changes:
            changes.new_session(session, 1, [uri(0)], 1.0)
        with pytest.raises(StoreError) as twice, store.batch() as changes:
            changes.new_session(session, 1, [uri(0)], 1.0)
        assert not isinstance(twice.value, StoreLost)
        assert not store.lost
        name = url.rpartition("/")[2]

        def cut_off() -> None:
            with store.batch() as changes:
                changes.member(uri(0), "joined", 1.0)
                postgres.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

        with pytest.raises(StoreLost):
            cut_off()
        assert store.lost
        with pytest.raises(StoreLost):
            store.rounds()
    with StoreWriter.create(url, PLAN, LAYOUT) as again:
        assert {row.state for row in again.members()} == {"absent"}, "it was in no transaction that ended"
        assert again.sessions_used() == 1


def test_readers_need_no_more_than_the_right_to_read(postgres):
    url = postgres.database()
    name = url.rpartition("/")[2]
    StoreWriter.create(url, PLAN, LAYOUT).close()
    role = f"reader_{name}"
    postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'reads'", name)
    postgres.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", name)
    with open_store(postgres.url(name, role, "reads")) as store:
        assert store.plan() == PLAN
        assert store.rounds() == []


def test_an_empty_database_is_no_store(postgres):
    with pytest.raises(StoreError, match="holds no store yet"):
        open_store(postgres.database())


def test_a_state_folder_says_where_its_store_is_without_a_password(tmp_path, postgres):
    assert store_in(tmp_path) is None
    url = postgres.database()
    (tmp_path / "store.url").write_text(f"{without_login(url)}\n")
    assert store_in(tmp_path) == f"postgresql+psycopg://127.0.0.1:{postgres.port}/{url.rpartition('/')[2]}"
    (tmp_path / "store.db").touch()
    assert store_in(tmp_path) == tmp_path / "store.db"
    assert without_login("sqlite:///x.db") is None


@pytest.fixture(scope="module")
def undisturbed(identities, tmp_path_factory):
    """Models of the same run on SQLite, never killed."""
    world = KillWorld(tmp_path_factory.mktemp("undisturbed"), identities, small_plan(4, 2))
    asyncio.run(world.live())
    with open_store(world.config.database) as store:
        return [model.digest for model in store.models()]


@pytest.mark.parametrize("kill_at", [None, ("after", 30), ("before", 46), ("chunk", 6)])
def test_a_whole_run_and_kills_on_a_server(tmp_path, identities, postgres, undisturbed, kill_at):
    """As tests/coordinator/test_coordinator_kills.py does on SQLite: nobody is lost and every update counts once."""
    world = KillWorld(tmp_path, identities, small_plan(4, 2), store_url=postgres.database())
    world.kill_at = kill_at
    asyncio.run(world.live())
    assert world.starts == (1 if kill_at is None else 2)
    with open_store(world.config.database) as store:
        assert [(row.state, len(row.survivors)) for row in store.rounds()] == [("opened", 4)] * 2
        digests = [model.digest for model in store.models()]
    assert digests == undisturbed
    for node in world.nodes:
        assert [number for number, _ in node.ledger.committed] == [1, 2]
        assert node.ledger.verified == [1, 2]


class BreakingWorld(KillWorld):
    """Loses the answer to the second commit of the mask phase; the coordinator then begins anew, as serving.Desk has it."""

    commits_in_mask = 0

    @contextmanager
    def transaction(self, connection, *, durable):
        with transaction(connection, durable=durable):
            yield
        if getattr(getattr(self.run, "state", None), "phase", None) is Phase.MASK:
            self.commits_in_mask += 1
            if self.commits_in_mask == 2:
                raise StoreLost("the connection broke at the commit")

    async def _everybody(self):
        try:
            await super()._everybody()
        except StoreLost as error:
            assert self.run.store.lost
            raise Killed from error


def test_a_commit_whose_answer_was_lost_is_found_again(tmp_path, identities, postgres, monkeypatch):
    """The server did what was asked and the connection broke: the plan is taken up from its store, nothing is done twice."""
    world = BreakingWorld(tmp_path, identities, small_plan(4, 1), store_url=postgres.database())
    monkeypatch.setattr(store_write, "transaction", world.transaction)
    asyncio.run(world.live())
    assert world.starts == 2
    with open_store(world.config.database) as store:
        assert [(row.state, len(row.survivors)) for row in store.rounds()] == [("opened", 4)]
    for node in world.nodes:
        assert [number for number, _ in node.ledger.committed] == [1]


def test_ticks_of_a_lost_store_reach_no_server(tmp_path, identities, postgres):
    config = write_study(tmp_path, identities, PLAN, store_url=postgres.database())
    config.state.mkdir()
    run = Run(config, os.urandom)
    run.feed(ev.Tick())
    run.store.lost = "the server went away"
    before = run.state
    with pytest.raises(StoreLost, match="went away"):
        run.feed(ev.Joined(uri(0), b"key"))
    assert run.state is before
    run.store.close()
