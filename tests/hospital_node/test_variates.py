"""A hospital's own control variate: what is kept, what is proposed, and what becomes of a proposal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from node_world import LAYOUT, make_plan

from hospital_node.variates import Variates, VariatesDamaged
from proto.plan import Plan

PLAN, OTHER = make_plan(), make_plan(rounds=9)
SESSION, ANOTHER = bytes(16), bytes(range(16))
VALUES = np.linspace(-1, 1, LAYOUT.length, dtype=np.float32)


def variates(folder: Path, plan: Plan = PLAN) -> Variates:
    """As a node that was just started has them."""
    return Variates(folder / "variate.safetensors", folder / "variate-proposed.safetensors", plan, LAYOUT)


def test_a_hospital_begins_at_zero(tmp_path: Path) -> None:
    assert variates(tmp_path).own().tolist() == [0.0] * LAYOUT.length


@pytest.mark.parametrize("counted", [True, False])
def test_a_proposal_takes_the_place_if_the_round_counted_also_after_a_restart(tmp_path: Path, counted: bool) -> None:
    variates(tmp_path).propose(SESSION, VALUES)
    assert not variates(tmp_path).own().any()
    variates(tmp_path).settle(SESSION, counted=counted)
    assert np.array_equal(variates(tmp_path).own(), VALUES if counted else np.zeros_like(VALUES))
    assert not (tmp_path / "variate-proposed.safetensors").exists()


def test_the_result_of_another_session_changes_nothing(tmp_path: Path) -> None:
    variates(tmp_path).propose(SESSION, VALUES)
    variates(tmp_path).settle(ANOTHER, counted=True)
    assert not variates(tmp_path).own().any()
    variates(tmp_path).settle(SESSION, counted=True)
    assert np.array_equal(variates(tmp_path).own(), VALUES)
    variates(tmp_path).settle(SESSION, counted=False)  # said again
    assert np.array_equal(variates(tmp_path).own(), VALUES)


def test_another_plan_begins_at_zero_and_takes_no_proposal_of_this_one(tmp_path: Path) -> None:
    variates(tmp_path).propose(SESSION, VALUES)
    variates(tmp_path, OTHER).settle(SESSION, counted=True)
    variates(tmp_path).settle(SESSION, counted=True)
    assert np.array_equal(variates(tmp_path).own(), VALUES)
    assert not variates(tmp_path, OTHER).own().any()


def test_a_proposal_whose_result_never_came_is_dropped_before_another_round(tmp_path: Path) -> None:
    variates(tmp_path).propose(SESSION, VALUES)
    variates(tmp_path).drop_unsettled()
    variates(tmp_path).settle(SESSION, counted=True)
    assert not variates(tmp_path).own().any()


def test_a_damaged_file_is_named_with_the_remedy_and_a_damaged_proposal_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "variate.safetensors").write_bytes(b"not a model")
    with pytest.raises(VariatesDamaged, match=r"variate\.safetensors is damaged: restore it"):
        variates(tmp_path).own()
    (tmp_path / "variate-proposed.safetensors").write_bytes(b"not a model")
    variates(tmp_path).settle(SESSION, counted=True)
    assert not (tmp_path / "variate-proposed.safetensors").exists()
