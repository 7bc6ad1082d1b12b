"""The app reads a run whose store is on a server: its folder says where, and the reader logs in with rights of its own."""

from __future__ import annotations

import pytest
from worlds import LAYOUT, World

from coordinator.database import without_login
from coordinator.store import StoreError
from coordinator.store_write import StoreWriter
from ui import sources


class ServerWorld(World):
    """As World, with the coordinator's store on a server."""

    url = ""

    def store(self) -> StoreWriter:
        return StoreWriter.create(self.url, self.plan, LAYOUT)


@pytest.fixture
def world(tmp_path, postgres, monkeypatch):
    """A run of one round; this process may only read it."""
    made = ServerWorld(tmp_path)
    made.url = postgres.database()
    made.start()
    made.round(1, charge=False)
    (made.coordinator / "store.url").write_text(f"{without_login(made.url)}\n")
    name = made.url.rpartition("/")[2]
    postgres.sql(f"CREATE ROLE app_{name} LOGIN PASSWORD 'reads'", name)
    postgres.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO app_{name}", name)
    monkeypatch.setenv("PGUSER", f"app_{name}")
    monkeypatch.setenv("PGPASSWORD", "reads")
    return made


def test_it_reads_what_it_would_read_from_a_file(world, tmp_path):
    file = World(tmp_path / "file")
    file.start()
    file.round(1, charge=False)
    here, there = sources.federation(file.coordinator), sources.federation(world.coordinator)
    assert here is not None
    assert there is not None
    assert [(row.number, row.state, row.survivors) for row in there.rounds] == [(1, "opened", here.rounds[0].survivors)]
    assert (there.plan, there.scores, there.float32_bytes) == (here.plan, here.scores, here.float32_bytes)
    assert set(there.traffic) == set(here.traffic)
    assert sources.totals(world.coordinator) == sources.totals(file.coordinator)
    assert [event.text for event in sources.events_of(world.coordinator, 1)] == [
        event.text for event in sources.events_of(file.coordinator, 1)
    ]


def test_a_new_round_is_seen_and_a_server_out_of_reach_is_said(world, postgres):
    world.round(2, charge=False)
    found = sources.federation(world.coordinator)
    assert found is not None
    assert len(found.rounds) == 2
    postgres.stop()
    try:
        with pytest.raises(StoreError, match="cannot read the store"):
            sources.federation(world.coordinator)
    finally:
        postgres.start()
    again = sources.federation(world.coordinator)
    assert again is not None
    assert len(again.rounds) == 2
