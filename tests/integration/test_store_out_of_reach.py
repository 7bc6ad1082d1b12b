"""The store's server goes away in mid-round, with real processes: it goes on or ends with the reason, and counts once."""

from __future__ import annotations

import sys
import time
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from formula_node import update_of
from test_many_hospitals import LENGTH, Crowd, wait_for_file

from coordinator.store import StoreError, StoreReader, open_store
from hospital_node.ledger import Ledger
from hospital_node.state import StateFolder
from study import sites
from study.processes import Child, Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

HERE = Path(__file__).parent
WITHIN_S = 300
TOLERANCE = 2e-5  # a lane of 21 bits over [-1, 1]
COMMAND = [sys.executable, "-c", "from coordinator.cli import main; main()"]


@dataclass
class Away:
    """A federation whose store is on a server."""

    crowd: Crowd
    url: str
    coordinator: Child
    nodes: Child

    def store(self) -> StoreReader:
        return open_store(self.url)

    def wait(self, reached, what: str) -> None:
        until_s = time.monotonic() + WITHIN_S
        while not reached():
            assert time.monotonic() < until_s, f"{what}\n{self.coordinator.last_lines(25)}\n{self.nodes.last_lines(10)}"
            time.sleep(0.05)

    def phase(self) -> str:
        with self.store() as store:
            return store.phase()[0]

    def charges(self) -> list[list[str]]:
        states = [StateFolder(self.crowd.world.state(role)) for role in self.crowd.world.cast.hospitals]
        return [[event.kind for event in Ledger.open_readonly(state.ledger).events()][2:] for state in states]

    def mean(self, number: int) -> np.ndarray:
        return np.mean([update_of(hospital.uri, number, LENGTH) for hospital in self.crowd.plan.hospitals], axis=0)

    def model(self, number: int) -> np.ndarray:
        with self.store() as store:
            digest = next(row.digest for row in store.models() if row.round == number)
        return np.fromfile(self.crowd.world.coordinator / "state" / "models" / f"{digest}.f32", "<f4")


@contextmanager
def federation(tmp_path, postgres, monkeypatch, *, rounds: int, **config: object):
    monkeypatch.setitem(__import__("test_many_hospitals").FIELDS, "rounds", rounds)
    crowd, url = Crowd(tmp_path / "study", 4), postgres.database()
    where = crowd.world.coordinator_config
    where.write_text(tomli_w.dumps({**tomllib.loads(where.read_text()), "store_url": url, **config}))
    where.chmod(0o600)
    with Family(1) as family:
        command = [*COMMAND, "run", "--until-finished", "--config", str(where)]
        coordinator = family.start("coordinator", command, tmp_path / "coordinator.log")
        address = wait_for_file(crowd.world.coordinator / "state" / "address")
        configs = []
        for role in crowd.world.cast.hospitals:
            sites.write_node(crowd.world, role, address)
            configs.append(str(crowd.world.config(role)))
        start = str(crowd.folder / "start.safetensors")
        nodes = family.start("nodes", [sys.executable, str(HERE / "seeded_nodes.py"), start, *configs], tmp_path / "nodes.log")
        try:
            yield Away(crowd, url, coordinator, nodes)
        finally:
            if postgres.process is None:
                postgres.start()


def ended(away: Away) -> str:
    assert away.coordinator.process.wait(WITHIN_S) == 0, away.coordinator.last_lines(30)
    assert away.nodes.process.wait(120) == 0, away.nodes.last_lines(20)
    return "\n".join(away.coordinator.last_lines(200).splitlines())


def test_a_server_that_comes_back_in_time_costs_nothing(tmp_path, postgres, monkeypatch):
    with federation(tmp_path, postgres, monkeypatch, rounds=1, drill_pause_s=0.8) as away:
        away.wait(lambda: away.phase() == "mask", "the mask phase")
        postgres.stop()
        time.sleep(2.0)
        postgres.start()
        log = ended(away)
        with away.store() as store:
            assert [(row.state, len(row.survivors), row.dropped) for row in store.rounds()] == [("opened", 4, {})]
            assert store.sessions_used() == 1
        assert np.allclose(away.model(1), away.mean(1), atol=TOLERANCE)
    assert away.charges() == [["charge", "verified"]] * 4
    assert "the store is back" in log
    assert "Traceback" not in log
    assert "pass/word" not in log
    assert "pass%2Fword" not in log


def test_a_server_that_stays_away_ends_the_round_with_the_reason(tmp_path, postgres, monkeypatch):
    with federation(tmp_path, postgres, monkeypatch, rounds=2, drill_pause_s=2.0, store_patience_s=1.0) as away:
        away.wait(lambda: away.phase() == "confirm", "updates were released")
        postgres.stop()
        time.sleep(6.0)
        with pytest.raises(StoreError):
            away.store()
        postgres.start()
        ended(away)
        with away.store() as store:
            first, second = store.rounds()
            assert (first.state, second.state) == ("aborted", "opened")
            assert "store was out of reach for" in first.reason
            assert [row.round for row in store.models()] == [0, 2]
        assert np.allclose(away.model(2), away.mean(2), atol=TOLERANCE), "what the first round released is in no sum"
    assert away.charges() == [["charge", "charge", "verified"]] * 4, "each round once"
