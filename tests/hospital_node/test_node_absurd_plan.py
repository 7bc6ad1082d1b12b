"""A coordinator offers a plan that nobody approved and whose network would fill the memory: the node ends in one sentence."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
from node_world import EVALUATOR, ME, NOW_S, FakeLink, make_folders, make_plan

from hospital_node import evaluator, runner
from hospital_node.config import load_config
from hospital_node.workshop import real_workshop
from proto.plan import Plan, PlanError

ALLOWED_BYTES = 100 << 20  # the network that is asked for would take 480 MB


def absurd(channels: tuple[int, ...]) -> Plan:
    plan = make_plan()
    return plan.model_copy(update={"network": plan.network.model_copy(update={"channels": channels})})


def most_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("channels", [(100_000, 100_000, 100_000), (400, 800, 920), (4,) * 100_000])
@pytest.mark.parametrize("role", ["hospital", "evaluator"])
def test_it_is_refused_before_memory_is_taken(tmp_path: Path, channels: tuple[int, ...], role: str) -> None:
    folders = make_folders(tmp_path)
    link, before = FakeLink(absurd(channels), EVALUATOR if role == "evaluator" else ME), most_bytes()
    given: dict[str, Any] = {"dial": lambda _config, _meter: link, "clock": lambda: NOW_S, "rand": os.urandom}
    config, run = folders.config, runner.run_with
    if role == "evaluator":
        config, run = load_config(tmp_path / "evaluator.toml"), evaluator.evaluate_with
    with pytest.raises(PlanError, match=r"network of study 'lidc' cannot be built: network\.channels") as refusal:
        run(config, real_workshop(config), stop=threading.Event(), **given)
    assert "\n" not in str(refusal.value)
    assert most_bytes() - before < ALLOWED_BYTES
    assert folders.state.read_plan() is None
