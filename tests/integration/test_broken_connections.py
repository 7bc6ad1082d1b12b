"""A node whose connection is cut in mid-upload, over mutual TLS: it comes back into the same round and sends the rest, once."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import test_many_hospitals
from counting_proxy import CountingProxy
from test_many_hospitals import MANY_NODES, Crowd, coordinator_command, wait_for_file

from coordinator.store import open_store
from hospital_node.ledger import Ledger
from hospital_node.state import StateFolder
from study import sites
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

LENGTH = 1_000_000
SHORT_BYTES = 10_000  # two more polls, headers and sets of boxes; a chunk of the upload is fifty times as much


class CuttingProxy(CountingProxy):
    """Cuts the connection each time so many more bytes have gone up."""

    def __init__(self, target, cuts):
        self.cuts = list(cuts)
        super().__init__(target)

    def _relay(self, source, sink, direction):
        super()._relay(Watched(source, self) if direction == "up" else source, sink, direction)


class Watched:
    """A socket that ends where the next cut is due."""

    def __init__(self, inner, proxy):
        self.inner, self.proxy = inner, proxy

    def recv(self, size):
        proxy = self.proxy
        if proxy.cuts and proxy.up >= proxy.cuts[0]:
            proxy.cuts.pop(0)
            return b""
        return self.inner.recv(size)

    def shutdown(self, how):
        self.inner.shutdown(how)


def test_an_upload_goes_on_where_its_connection_was_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(test_many_hospitals, "LENGTH", LENGTH)
    crowd = Crowd(tmp_path / "study", 4)
    first, *others = crowd.world.cast.hospitals
    with Family(1) as family:
        coordinator = family.start("coordinator", coordinator_command(crowd), tmp_path / "coordinator.log")
        address = wait_for_file(crowd.world.coordinator / "state" / "address")
        host, port = address.rsplit(":", 1)
        proxy = CuttingProxy((host, int(port)), [1_300_000, 2_300_000])
        for role in others:
            sites.write_node(crowd.world, role, address)
        sites.write_node(crowd.world, first, f"127.0.0.1:{proxy.port}")
        configs = [str(crowd.world.config(role)) for role in (first, *others)]
        start = str(crowd.folder / "start.safetensors")
        nodes = family.start("nodes", [sys.executable, str(MANY_NODES), start, *configs], tmp_path / "nodes.log")
        until_s = time.monotonic() + 300
        while nodes.running:
            assert time.monotonic() < until_s, nodes.last_lines(5) + coordinator.last_lines(20)
            time.sleep(0.1)
        assert nodes.process.returncode == 0, nodes.last_lines(20)
        assert coordinator.process.wait(180) == 0
    assert proxy.cuts == [], "the connection was not cut"
    with open_store(crowd.world.store) as store:
        (row,) = store.rounds()
        assert (row.state, len(row.survivors), row.dropped) == ("opened", 4, {})
        assert store.sessions_used() == 1
        traffic = store.traffic(1)
    assert np.array_equal(crowd.opened(), crowd.expected())
    read = [row.bytes for row in traffic if (row.direction, row.phase) == ("up", "mask")]
    assert len(read) == 4
    assert max(read) - min(read) < SHORT_BYTES, "words that had come were sent again"
    events = Ledger.open_readonly(StateFolder(crowd.world.state(first)).ledger).events()
    assert [event.kind for event in events] == ["created", "approved", "charge", "verified"]
