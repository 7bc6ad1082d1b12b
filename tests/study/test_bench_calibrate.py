"""Noise for a wanted epsilon where a plan asks only some hospitals in a round: counted for each hospital by itself.

The proof is made without the code under test: who is asked is read from the plan round by round, and each hospital's rounds are
composed one after another by the accountant, at the share of delta that a ledger reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hospital_node.accounting import Mechanism, epsilon, noise_multiplier_for
from hospital_node.cap import UNIFORM_SHARE
from proto.plan import Plan
from study.bench import cell as cells
from study.bench.calibrate import noised, refuse_unreachable
from study.bench.cell import Setting, complete_plan, prepare_cell
from study.bench.cells import Cell, CellResult, RoundRow
from study.bench.grid import load_study
from study.bench.groups import differences, grouped
from study.bench.task import StudyError
from study.results import CellRow

STEPS, K, DELTA = 2, 4, 1e-3
SIZES = {f"h{at}": 20 for at in range(8)}


def make_cell(target: float | None, participants: int | None = 3, rounds: int = 12, **changes: Any) -> Cell:
    fields = {
        "study": "trial",
        "task": "segmentation",
        "method": "masked",
        "seed": 1,
        "data": {},
        "partition": {},
        "start": "random",
        "epsilon": target,
        "plan": {
            "rounds": rounds,
            "participants": participants,
            "network": {"labels": ["near"]},
            "preparation": {"modality": "MR", "spacing_xyz_mm": [1, 1, 1], "patch_zyx": [8, 8, 8]},
            "training": {"local_steps": STEPS},
            "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": K, "delta": DELTA},
        },
        "settings": {},
    }
    return Cell.model_validate(fields | changes)


def plan_for(cell: Cell, start: str = "ab" * 32) -> Plan:
    return noised(cell, complete_plan(cell, SIZES).model_copy(update={"start_digest": start}))


def spent(plan: Plan, uri: str) -> float:
    """Composed over the rounds that this hospital is asked in, as its ledger would hold them."""
    one = Mechanism(plan.privacy.noise_multiplier, 1 / K, STEPS)
    return epsilon([one for number in range(1, plan.rounds + 1) if uri in plan.selected(number)], UNIFORM_SHARE * DELTA)


def cost(noise: float, rounds: int) -> float:
    return epsilon([Mechanism(noise, 1 / K, STEPS * rounds)], UNIFORM_SHARE * DELTA)


@settings(max_examples=8, deadline=None)
@given(participants=st.integers(3, 8), rounds=st.integers(1, 12), start=st.binary(min_size=32, max_size=32))
def test_no_hospital_spends_more_than_the_target(participants: int, rounds: int, start: bytes) -> None:
    plan = plan_for(make_cell(2.0, participants, rounds), start.hex())
    assert max(spent(plan, hospital.uri) for hospital in plan.hospitals) <= 2.0
    assert plan.privacy.no_guarantee is False


def most_asked(plan: Plan) -> int:
    return max(sum(h.uri in plan.selected(number) for number in range(1, plan.rounds + 1)) for h in plan.hospitals)


def test_only_the_rounds_of_the_most_asked_hospital_are_counted() -> None:
    plan, everybody = plan_for(make_cell(2.0)), plan_for(make_cell(2.0, participants=None))
    assert most_asked(plan) < plan.rounds == most_asked(everybody)
    assert (plan.most_steps, everybody.most_steps) == (STEPS * most_asked(plan), STEPS * plan.rounds)
    assert plan.privacy.noise_multiplier < 0.85 * everybody.privacy.noise_multiplier
    worst = max(spent(plan, hospital.uri) for hospital in plan.hospitals)
    assert 1.6 < worst <= 2.0
    assert cost(plan.privacy.noise_multiplier, plan.rounds) > 2.0, "counted over all rounds it would be too little"


def test_the_first_count_that_holds_is_used() -> None:
    """No smaller count holds: with its noise the plan asks some hospital more often than that."""
    cell = make_cell(2.0)
    plan = plan_for(cell)
    noise = plan.privacy.noise_multiplier
    count = next(one for one in range(1, 13) if cost(noise, one + 1) > 2.0)
    assert most_asked(plan) <= count
    assert cost(noise - 0.001, count) > 2.0, "the smallest noise for its count"
    for fewer in range(math.ceil(12 * 3 / 8), count):
        too_little = noise_multiplier_for(2.0, UNIFORM_SHARE * DELTA, 1 / K, STEPS * fewer)
        tried = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"noise_multiplier": too_little})})
        assert most_asked(tried) > fewer


def test_where_everybody_is_asked_all_rounds_count() -> None:
    noise = plan_for(make_cell(4.0, participants=None)).privacy.noise_multiplier
    assert cost(noise, 12) <= 4 < cost(noise - 0.001, 12)
    assert plan_for(make_cell(4.0, participants=8)).privacy.noise_multiplier == noise


def test_equal_cells_get_equal_plans_and_another_start_another_selection() -> None:
    assert plan_for(make_cell(2.0)) == plan_for(make_cell(2.0))
    asked = [
        [plan.selected(number) for number in range(1, 13)] for plan in (plan_for(make_cell(2.0), s * 32) for s in ("ab", "cd"))
    ]
    assert asked[0] != asked[1]


def test_no_target_leaves_the_plan_alone_and_infinity_silences_it() -> None:
    cell = make_cell(None)
    plan = complete_plan(cell, SIZES)
    assert noised(cell, plan) == plan
    noisy = plan_for(make_cell(2.0))
    silent = noised(make_cell(math.inf), noisy)
    assert (silent.privacy.noise_multiplier, silent.privacy.no_guarantee) == (0.0, True)


def test_the_caps_of_simulated_hospitals_hold_the_target() -> None:
    plan = plan_for(make_cell(2.0))
    cap = cells.cap_of(plan)
    assert cap is not None
    assert cap.epsilon <= 2.0 * cells.CAP_MARGIN
    assert cap.epsilon >= max(spent(plan, hospital.uri) for hospital in plan.hospitals)


def test_a_target_that_no_noise_reaches_is_refused_before_anything_is_dealt() -> None:
    with pytest.raises(StudyError, match=r"no noise multiplier .* ask for a larger epsilon or fewer steps"):
        refuse_unreachable(
            make_cell(1e-9, plan=make_cell(None).plan | {"privacy": {"delta": 1e-12, "inverse_sampling_rate": 1}})
        )
    refuse_unreachable(make_cell(2.0))
    refuse_unreachable(make_cell(math.inf))


def test_the_plan_with_noise_is_checked_as_any_plan() -> None:
    cell = make_cell(2.0)
    with pytest.raises(StudyError, match="must be below 1/20, one over the smallest declared size"):
        noised(
            cell,
            complete_plan(cell, SIZES).model_copy(
                update={"privacy": plan_for(cell).privacy.model_copy(update={"delta": 0.06})}
            ),
        )


def test_a_cell_whose_rounds_are_counted_by_the_newer_rule_has_another_id() -> None:
    """Results of the first rule are not taken for those of this one; all other cells keep their ids."""
    for kept in (make_cell(math.inf), make_cell(None), make_cell(2.0, participants=None)):
        assert kept.id == id_of_the_first_version(kept)
    assert make_cell(2.0).id != id_of_the_first_version(make_cell(2.0))


def id_of_the_first_version(cell: Cell) -> str:
    fields = cell.model_dump(mode="json", exclude={"study", "settings"})
    del fields["partition"]["local_steps"], fields["partition"]["paces"]
    del fields["epsilon_reading"], fields["hospital_clip"]
    content = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"hospital-secagg study cell v1\n" + content.encode()).hexdigest()[:16]


# ---- both federated methods ask the same hospitals ----

STUDY = """
study = "pairs"
task = "digits"
plan = "digits-plan.toml"
seeds = 4
[data]
kind = "public"
[partition]
kind = "iid"
hospitals = 6
[set]
participants = 3
rounds = 4
evaluate_every = 4
"training.local_steps" = 1
"privacy.inverse_sampling_rate" = 8
[[grid]]
method = ["plain", "masked"]
epsilon = EPSILON
"masking.lanes" = LANES
"""


def pair(folder: Path, epsilon: str, lanes: str = "4") -> list[Cell]:
    template = Path(__file__).parents[2] / "study" / "examples" / "digits-plan.toml"
    (folder / template.name).write_text(template.read_text())
    path = folder / "study.toml"
    path.write_text(STUDY.replace("seeds = 4", "seeds = [4]").replace("EPSILON", epsilon).replace("LANES", lanes))
    return list(load_study(path).cells())


def prepared(cell: Cell, folder: Path) -> tuple[Setting, list[tuple[str, int]]]:
    """The cell as it would run, and a list of who trained in which round, filled while it does."""
    setting = prepare_cell(cell, folder, threading.Event())
    asked: list[tuple[str, int]] = []

    def draws(uri: str, number: int) -> Callable[[int], bytes]:
        asked.append((uri, number))
        return setting.draws(uri, number)

    return dataclasses.replace(setting, draws=draws), asked


def test_plain_and_masked_ask_the_same_hospitals_in_every_round(tmp_path: Path) -> None:
    """Also with noise and with masks of their own kind; so both spend the same, and less than all rounds would cost."""
    plain, masked = pair(tmp_path, "6.0")
    (one, asked_plain), (other, asked_masked) = (prepared(cell, tmp_path / "cache") for cell in (plain, masked))
    assert one.plan == other.plan
    ran = cells._plain(one, lambda _: None, threading.Event())
    ran_masked = cells._masked(other, tmp_path / "cell", lambda _: None, threading.Event())
    rounds, others = ran.rounds, ran_masked.rounds
    assert sorted(asked_plain) == sorted(asked_masked)
    assert {number: sum(at == number for _, at in asked_plain) for number in range(1, 5)} == dict.fromkeys(range(1, 5), 3)
    assert [row.survivors for row in rounds[1:]] == [row.survivors for row in others[1:]] == [3] * 4
    assert most_asked(one.plan) < 4
    assert rounds[-1].epsilon == pytest.approx(others[-1].epsilon)
    assert 4.5 < rounds[-1].epsilon <= 6.0
    assert ran.readings == ran_masked.readings
    assert ran.readings.at_default is not None
    assert ran.noise_multiplier == ran_masked.noise_multiplier == one.plan.privacy.noise_multiplier


def test_each_masked_setting_has_a_plain_partner_of_the_same_plan(tmp_path: Path) -> None:
    listed = pair(tmp_path, "inf", "[3, 4]")
    assert [(cell.method.value, cell.settings["masking.lanes"]) for cell in listed] == [
        ("plain", 3),
        ("plain", 4),
        ("masked", 3),
        ("masked", 4),
    ]

    def done(cell: Cell) -> CellRow:
        row = RoundRow(
            round=1, survivors=3, scores={"accuracy": [0.5]}, epsilon=None, upload_bytes=0, download_bytes=0, seconds=0
        )
        result = CellResult(
            cell=cell.id,
            rounds=[row],
            wall_s=1,
            cpu_s=1,
            vector_length=1,
            plan_digest="",
            noise_multiplier=0,
            epsilon=None,
            delta=DELTA,
            hospitals={},
        )
        return CellRow(cell, "done", "", listed=True, started_at=None, ended_at=None, software="", rounds=(row,), result=result)

    found = [(one.group.cell.settings, one.other.cell) for one in differences(grouped(map(done, listed)))]
    assert [(settings["masking.lanes"], other.method.value, other.settings["masking.lanes"]) for settings, other in found] == [
        (3, "plain", 3),
        (4, "plain", 4),
    ]


def test_masking_makes_no_plain_cells_where_everybody_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    pair(tmp_path, "inf")
    path.write_text(
        path.read_text().replace("participants = 3\n", "").replace('"masking.lanes" = 4', '"masking.lanes" = [3, 4]')
    )
    assert [cell.method.value for cell in load_study(path).cells()] == ["plain", "masked", "masked"]
