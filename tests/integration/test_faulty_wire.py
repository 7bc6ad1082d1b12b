"""Hospitals and coordinator in network namespaces of their own, over a wire that loses, delays, repeats and cuts.

Two seeds of the first test by default; SECAGG_WIRE_SEEDS=20 plays as many. What must hold: every round opens, its sum is that
of its survivors' updates, each once, and no ledger is below what left.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import faulty_wire
import numpy as np
import pytest
import test_many_hospitals
from faulty_wire import Weather, Wire
from formula_node import signs_of
from test_many_hospitals import LENGTH, Crowd

from certs import authority
from coordinator.store import StoreError, open_store
from hospital_node.ledger import Ledger
from hospital_node.ledger_schema import Charge
from hospital_node.state import StateFolder
from study import sites
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

HERE = Path(__file__).parent
PORT = 8443
SEEDS = range(int(os.environ.get("SECAGG_WIRE_SEEDS", "2")))
WITHIN_S = 300


@pytest.fixture(scope="module", autouse=True)
def _wires_are_possible():
    reason = faulty_wire.why_not()
    if reason is not None:
        pytest.skip(reason)


class Study:
    """One crowd whose coordinator is at the far side of the wires."""

    def __init__(self, folder, monkeypatch, wires, size, rounds, **timing):
        monkeypatch.setitem(test_many_hospitals.FIELDS, "rounds", rounds)
        monkeypatch.setitem(test_many_hospitals.FIELDS, "timing", {**test_many_hospitals.FIELDS["timing"], **timing})
        self.crowd, self.folder, self.wires = Crowd(folder / "study", size), folder, wires
        self.roles, self.world = self.crowd.world.cast.hospitals, self.crowd.world
        names, identity = [wire.far for wire in wires], self.world.coordinator / "identity-on-wires"
        uri = f"secagg://crowd/coordinator/{sites.COORDINATOR}"
        authority.issue(self.world.folder / sites.AUTHORITY, uri, identity, dns_names=(), ip=names)
        config = self.world.coordinator_config
        text = config.read_text().replace("127.0.0.1:0", f"0.0.0.0:{PORT}").replace('"identity"', f'"{identity}"')
        config.write_text(text)

    def start_coordinator(self, family):
        script = Path(sys.executable).parent / "secagg-coordinator"
        command = [str(script), "run", "--until-finished", "--config", str(self.world.coordinator_config)]
        return family.start("coordinator", self.wires[0].inside("far", command), self.folder / "coordinator.log")

    def start_nodes(self, family, wire, roles):
        """One process of some hospitals at the near side of a wire."""
        for role in roles:
            sites.write_node(self.world, role, f"{wire.far}:{PORT}")
        start, configs = self.crowd.folder / "start.safetensors", [str(self.world.config(role)) for role in roles]
        command = [sys.executable, str(HERE / "hasty_nodes.py"), str(start), *configs]
        return family.start(f"nodes of {wire.near}", wire.inside("near", command), self.folder / f"nodes-{wire.near}.log")

    def until(self, what, children):
        """Wait until `what(store)` holds or the coordinator has ended well."""
        until_s = time.monotonic() + WITHIN_S
        while True:
            said = "\n".join(child.last_lines(12) for child in children)
            assert time.monotonic() < until_s, said
            assert children[0].running or children[0].process.returncode == 0, said
            try:
                with open_store(self.world.store) as store:
                    if what(store) or not children[0].running:
                        return
            except StoreError:
                pass  # not there yet
            time.sleep(0.05)

    def check(self, rounds):
        """The rules; returns the survivors of each round by name."""
        with open_store(self.world.store) as store:
            done, models = store.rounds(), {model.round: model.digest for model in store.models()}
        assert [row.state for row in done] == ["opened"] * rounds
        before = self.model(models[0])
        for row in done:
            after = self.model(models[row.number])
            mean = np.mean([signs_of(uri, row.number, LENGTH) for uri in row.survivors], axis=0)
            assert np.abs(after - before - mean).max() < 1e-5, "the sum is not that of the survivors, each once"
            before = after
        for role in self.roles:
            uri = self.world.uri(role)
            events = Ledger.open_readonly(StateFolder(self.world.state(role)).ledger).events()
            charged = [event.entry.round for event in events if isinstance(event.entry, Charge)]
            assert len(charged) == len(set(charged))
            assert {row.number for row in done if uri in row.survivors} <= set(charged), "a ledger is below what left"
        return [{uri.rsplit("/", 1)[-1] for uri in row.survivors} for row in done]

    def model(self, digest):
        return np.fromfile(self.world.coordinator / "state" / "models" / f"{digest}.f32", dtype="<f4")


@pytest.mark.parametrize("seed", SEEDS)
def test_rounds_over_a_wire_with_losses_repetitions_and_partitions_lose_nobody(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    weather = Weather(lost=rng.uniform(0, 0.03), repeated=rng.uniform(0, 0.1), delay_s=(0.0, rng.uniform(0.001, 0.03)))
    with Wire(seed, weather) as wire, Family(1) as family:
        study = Study(tmp_path, monkeypatch, [wire], 4, 2)
        children = [study.start_coordinator(family), study.start_nodes(family, wire, study.roles)]
        ended, cuts = threading.Event(), 0
        pauses = [(rng.uniform(0.3, 2), rng.uniform(0.1, 1.5)) for _ in range(100)]

        def partitions():
            nonlocal cuts
            for calm_s, cut_s in pauses:
                if ended.wait(calm_s):
                    return
                wire.cut, cuts = True, cuts + 1
                ended.wait(cut_s)
                wire.cut = False

        thread = threading.Thread(target=partitions)
        thread.start()
        try:
            study.until(lambda _: False, children)
        finally:
            ended.set()
            thread.join()
    assert cuts
    assert wire.swallowed
    assert study.check(2) == [{"h000", "h001", "h002", "h003"}] * 2


def test_a_connection_that_dies_without_a_word_in_mid_upload_costs_the_others_nothing(tmp_path, monkeypatch):
    with ExitStack() as stack:
        clean = stack.enter_context(Wire(1))
        slow = stack.enter_context(Wire(2, Weather(bytes_per_s=60_000), beside=clean))
        family = stack.enter_context(Family(1))
        study = Study(tmp_path, monkeypatch, [clean, slow], 4, 2, phase_deadline_s=20.0, lost_after_s=12.0)
        children = [study.start_coordinator(family), study.start_nodes(family, clean, study.roles[1:])]
        children.append(study.start_nodes(family, slow, study.roles[:1]))
        study.until(lambda store: store.phase()[0] == "mask", children)
        time.sleep(1.0)
        slow.cut = True  # no FIN, no RST
        study.until(lambda store: any(row.state == "opened" for row in store.rounds()), children)
        slow.cut, slow.weather = False, Weather()
        study.until(lambda _: False, children)
    first, second = study.check(2)
    assert first == {"h001", "h002", "h003"}
    assert second >= first


def test_peers_that_send_a_byte_a_second_hold_nobody_up(tmp_path, monkeypatch):
    with ExitStack() as stack:
        clean = stack.enter_context(Wire(1))
        crawling = stack.enter_context(Wire(2, Weather(bytes_per_s=1), beside=clean))
        family = stack.enter_context(Family(1))
        study = Study(tmp_path, monkeypatch, [clean, crawling], 5, 2, lost_after_s=10.0)
        children = [study.start_coordinator(family), study.start_nodes(family, crawling, study.roles[:1])]
        dripping = family.start("drip", clean.inside("near", [sys.executable, __file__, clean.far]), tmp_path / "drip.log")
        children.append(study.start_nodes(family, clean, study.roles[1:]))
        study.until(lambda _: False, children)
        assert dripping.running or "refused" in dripping.last_lines()
    assert study.check(2) == [{"h001", "h002", "h003", "h004"}] * 2


def drip(host, connections=24):
    """Connections that begin a TLS handshake, a byte a second, for ever."""
    hello = bytes.fromhex("16030102000100")
    open_now = []
    while len(open_now) < connections:
        try:
            open_now.append(socket.create_connection((host, PORT)))
        except ConnectionError:  # the coordinator is not there yet
            time.sleep(0.1)
    for number in range(1000):
        for one in list(open_now):
            try:
                one.send(hello[number % len(hello) : number % len(hello) + 1])
            except OSError:
                print("refused", flush=True)
                open_now.remove(one)
        time.sleep(1)


if __name__ == "__main__":
    drip(sys.argv[1])
