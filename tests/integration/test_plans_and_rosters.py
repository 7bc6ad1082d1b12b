"""Real processes: two plans on one coordinator, and hospitals that join and leave between the rounds of one of them."""

from __future__ import annotations

import itertools
import sys
import time
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from formula_node import update_of
from test_many_hospitals import FIELDS, LENGTH, Crowd, wait_for_file

from certs.peers import PeerList, load_peers, write_peers
from coordinator.store import open_store
from hospital_node.ledger import Cap, Ledger
from hospital_node.state import StateFolder
from study import presets, sites
from study.processes import Child, Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-c", "from coordinator.cli import main; main()"]
WITHIN_S = 300
TOLERANCE = 2e-5
GATED = 1


def wait(reached, what, *children):
    until_s = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < until_s, "\n".join([what, *(child.last_lines(20) for child in children)])
        time.sleep(0.05)


@dataclass
class Part:
    """One plan for some hospitals of the crowd, with its files."""

    crowd: Crowd
    name: str
    places: range
    rounds: int

    def __post_init__(self) -> None:
        self.home = self.crowd.folder / self.name
        self.home.mkdir()
        self.roles = [self.crowd.world.cast.hospitals[place] for place in self.places]
        self.uris = [self.crowd.world.uri(role) for role in self.roles]
        everybody = presets.admitted(self.crowd.world.cast, self.crowd.world.uri)
        mine = [hospital for hospital in everybody if hospital.uri in self.uris]
        timing = {**FIELDS["timing"], "lost_after_s": 6.0}  # nobody waits longer for who is not on the list yet
        fields = {**FIELDS, "rounds": self.rounds, "timing": timing}
        self.plan = presets.complete(fields, study="crowd", hospitals=mine, evaluators=[], start_digest=None, rounds=None)
        presets.write_toml(self.plan, self.home / "plan.toml")

    @property
    def fields(self) -> dict[str, str]:
        names = {"plan": "plan.toml", "allow": "peers.toml", "state": "state"}
        return {
            **{key: str(self.home / name) for key, name in names.items()},
            "start": str(self.crowd.folder / "start.safetensors"),
        }

    def admit(self, *places: int) -> None:
        """Write the list of confirmed parties anew."""
        uris = {self.uris[place] for place in places}
        known = load_peers(self.crowd.world.coordinator / "peers.toml").peers
        write_peers(self.home / "peers.toml", PeerList(tuple(peer for peer in known if peer.uri in uris)))

    def configure(self, address: str) -> None:
        """Every node's files; their people approve this plan."""
        public = {"accept_no_guarantee": True, "data_is_public": True}
        for role in self.roles:
            sites.write_node(self.crowd.world, role, address)
            path = self.crowd.world.config(role)
            path.write_text(tomli_w.dumps({**tomllib.loads(path.read_text()), "plan": self.plan.digest().hex()}))
            ledger = Ledger.open(StateFolder(self.crowd.world.state(role)).ledger)
            ledger.approve(self.plan, "Dr Test", "integration test", Cap(epsilon=1.0, delta=1e-3), datetime.now(UTC), **public)

    def start(self, family: Family, *places: int, gates: Path | None = None) -> list[Child]:
        """The nodes of these hospitals, a process each; GATED trains a round once there is a file of its number in `gates`."""
        start, children = str(self.crowd.folder / "start.safetensors"), []
        for place in places:
            role = self.roles[place]
            command = [sys.executable, str(HERE / "formula_node.py"), str(self.crowd.world.config(role)), start]
            command += [str(gates)] if gates is not None and place == GATED else []
            children.append(family.start(role.name, command, self.home / f"{role.name}.log"))
        return children

    def masks(self) -> bool:
        with open_store(self.home / "state" / "store.db") as store:
            return any(row.state == "masking" for row in store.rounds())

    def has_joined(self, place: int) -> bool:
        with open_store(self.home / "state" / "store.db") as store:
            return any(row.uri == self.uris[place] and row.state not in {"absent", "lost"} for row in store.members())

    def opened(self) -> list[list[int]]:
        """Whose updates are in the sum of each round that is over."""
        with open_store(self.home / "state" / "store.db") as store:
            rows = [row for row in store.rounds() if row.ended_at is not None]
        assert {row.state for row in rows} <= {"opened"}, [(row.state, row.reason) for row in rows]
        return [[self.uris.index(uri) for uri in row.survivors] for row in rows] or [[]]

    def model(self, number: int) -> np.ndarray:
        with open_store(self.home / "state" / "store.db") as store:
            digest = next(row.digest for row in store.models() if row.round == number)
        return np.fromfile(self.home / "state" / "models" / f"{digest}.f32", "<f4")

    def expected(self, cohorts: list[list[int]]) -> np.ndarray:
        """The start is 0, so that the last model is the sum of the rounds' means."""
        updates = [[update_of(self.uris[place], n, LENGTH) for place in one] for n, one in enumerate(cohorts, start=1)]
        return np.sum([np.mean(rows, axis=0) for rows in updates], axis=0)


def test_two_plans_run_at_once_and_hospitals_join_and_leave_between_rounds(tmp_path):
    crowd = Crowd(tmp_path / "study", 7)
    first, second = Part(crowd, "first", range(4), 8), Part(crowd, "second", range(4, 7), 1)
    first.admit(0, 1, 2)
    second.admit(0, 1, 2)
    config = crowd.world.coordinator_config
    kept = {**tomllib.loads(config.read_text()), **first.fields, "further": [second.fields], "drill_pause_s": 0.7}
    config.write_text(tomli_w.dumps(kept))
    gates = tmp_path / "gates"
    gates.mkdir()
    (gates / "1").touch()
    with Family(1) as family:
        coordinator = family.start(
            "coordinator", [*COMMAND, "run", "--until-finished", "--config", str(config)], tmp_path / "log"
        )
        address = wait_for_file(second.home / "state" / "address")
        for part in (first, second):
            part.configure(address)
        nodes = [*first.start(family, 0, 1, 2, gates=gates), *second.start(family, 0, 1, 2)]
        wait(lambda: first.masks(), "the first round masks", coordinator, *nodes)
        first.admit(0, 1, 2, 3)
        nodes += first.start(family, 3)
        wait(lambda: first.has_joined(3), "the hospital that joins", coordinator, *nodes)
        for number in range(2, first.rounds + 1):  # however long its process takes to start, there are rounds left for it
            (gates / str(number)).touch()
        wait(lambda: 3 in first.opened()[-1], "a round with the hospital that joined", coordinator, *nodes)
        first.admit(1, 2, 3)
        assert coordinator.process.wait(WITHIN_S) == 0, coordinator.last_lines(40)
        for node in nodes[1:]:
            assert node.process.wait(120) == 0, node.last_lines(20)
    rounds = first.opened()
    assert [one for one, _ in itertools.groupby(rounds)] == [[0, 1, 2], [0, 1, 2, 3], [1, 2, 3]]
    assert len(rounds) == first.rounds
    assert second.opened() == [[0, 1, 2]]
    for part in (first, second):
        assert np.allclose(part.model(part.rounds), part.expected(part.opened()), atol=part.rounds * TOLERANCE)
