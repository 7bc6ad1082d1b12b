"""Opening on this machine and on others: the fastest door and all cores are used, and neither changes a sum or a digest."""

from __future__ import annotations

import asyncio
import os

import coordinator_federation
import pytest
from coordinator_federation import LOSES_ONE, coordinating, hospitals, live_all, small_plan, write_study
from structlog.testing import capture_logs

import coordinator.opening
from coordinator.machine import Machine
from coordinator.opening import Opener
from coordinator.run import Run
from proto.layout import Layout
from secagg import Door
from secagg.unmasking import SHORT_WORDS

SHORT = Layout((("conv.weight", (7, 3)),))
LONG = Layout((("conv.weight", (3, SHORT_WORDS + 5)),))  # threads share runs of the vector, no longer its masks


@pytest.mark.sockets
@pytest.mark.parametrize("layout", [SHORT, LONG], ids=["short", "long"])
def test_every_door_and_number_of_threads_opens_the_same_sum(layout, tmp_path, identities, monkeypatch):
    monkeypatch.setattr(coordinator_federation, "LAYOUT", layout)
    plan = small_plan(4, **LOSES_ONE)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)
    nodes[2].die_before = "mask"  # so that masks of pairs are left in the sum
    opened, machines, really = [], [Machine(door, threads) for door in Door for threads in (1, 2, 7)], Opener.open

    def on_every_machine(self, *session):
        for self.machine in machines:
            opened.append(really(self, *session))
        return opened[0]

    monkeypatch.setattr(Opener, "open", on_every_machine)

    async def scenario():
        async with coordinating(config):
            await live_all(nodes)

    asyncio.run(scenario())
    assert len(opened) == len(machines)
    assert len({made.event for made in opened}) == 1


def test_the_fastest_door_and_all_cores_are_used_and_logged_once(tmp_path, identities, monkeypatch):
    config = write_study(tmp_path, identities, small_plan())
    config.state.mkdir()
    monkeypatch.setattr("coordinator.machine.faster_door", lambda clock_s: Door.CTR if clock_s() >= 0 else None)
    with capture_logs() as lines:
        run = Run(config, os.urandom)
    assert [line for line in lines if "door" in line] == [
        {"event": "sums are opened", "door": "ctr", "threads": os.cpu_count(), "log_level": "info"}
    ]
    given = {}

    class Stopped(Exception):
        pass

    def open_sum(_view, _total, **machine):
        given.update(machine)
        raise Stopped

    class View:
        class params:
            words = 1

    monkeypatch.setattr(coordinator.opening, "open_sum", open_sum)
    with pytest.raises(Stopped):
        run.opener.open(View, b"session", (), run.state.base_digest.hex())
    assert given == {"threads": os.cpu_count(), "door": Door.CTR}
    run.store.close()
