"""A real federation in which one hospital trains in two processes that torchrun started."""

import sys

import numpy as np
import pytest
from small_federation import HOSPITALS, SmallFederation

from hospital_node.ledger import Charge
from proto.plan import short_name
from study import sites
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_a_hospital_of_two_processes_is_one_hospital(tmp_path):
    with Family(1) as family:
        federation = SmallFederation(tmp_path, family, rounds=2)
        federation.approve()
        address = federation.start_coordinator()
        double, log = federation.world.cast.hospitals[0], tmp_path / "double.log"
        sites.write_node(federation.world, double, address)
        command = [*TORCHRUN, "-m", "hospital_node.cli", "run", "--config", str(federation.world.config(double))]
        child = family.start(double.name, command, log)
        federation.wait(lambda: log.is_file() and "joined" in log.read_text(), 300, "the first process joins")
        for name in HOSPITALS[1:]:
            federation.start_node(name, address)
        with federation.store() as reader:

            def both_opened():
                return [row.state for row in reader.rounds()] == ["opened"] * 2

            federation.wait(both_opened, 200, "both rounds open")
            for row in reader.rounds():
                assert double.name in {short_name(uri) for uri in row.survivors}
        federation.wait(lambda: child.process.poll() is not None, 300, "both processes end with the study")
        assert child.process.returncode == 0, child.last_lines()
        charged = [event.entry for event in federation.ledger(double.name).events() if isinstance(event.entry, Charge)]
        assert [(charge.round, charge.steps) for charge in charged] == [(1, 2), (2, 2)]
        assert np.linalg.norm(federation.model(2) - federation.model(0)) > 0
        assert log.read_text().count("update ready") == 2, "one process speaks for both"
