"""What the coordinator makes of opened evaluation sums: means with their error, of the right model, and nothing else."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_federation import LAYOUT
from coordinator_world import World, make_plan

from coordinator import events as ev
from coordinator.store import ValidationRow, open_store
from coordinator.store_write import StoreWriter
from proto.evaluation import LabelMean, label_means, sensitivity
from proto.plan import Evaluation, Plan

PART = Evaluation(every=2, share=0.3, noise_multiplier=1.5)
SUMS = (12.0, 20.0)


def plan_of(rounds: int = 4) -> Plan:
    return make_plan(4, rounds).model_copy(update={"evaluation": PART})


class Summing(World):
    """Every opened sum of a round that evaluates holds SUMS."""

    def __init__(self, plan: Plan) -> None:
        self.found: list[tuple[ev.SaveValidation, int]] = []  # with the round that had been published last
        self.published = 0
        super().__init__(plan)

    def _feed(self, event: ev.Event) -> None:
        if (
            isinstance(event, ev.Opened)
            and self.plan.evaluation
            and self.plan.evaluation.is_due(self.session_round[event.session])
        ):
            event = replace(event, sums=SUMS)
        super()._feed(event)

    def carry_out(self, effect: ev.Effect) -> None:
        if isinstance(effect, ev.SaveValidation):
            self.found.append((effect, self.published))
        if isinstance(effect, ev.Publish):
            self.published = effect.round
        super().carry_out(effect)


def test_each_evaluation_is_stored_with_its_round_and_as_means_of_the_model_before_it() -> None:
    world = Summing(plan_of())
    assert world.settle()
    expected = label_means(("nodule",), SUMS, 1.5 * sensitivity(1) * math.sqrt(4))
    assert [effect for effect, _ in world.found] == [
        ev.SaveValidation(2, 1, 4, expected),
        ev.SaveValidation(4, 3, 4, expected),
    ]
    assert [published for _, published in world.found] == [2, 4], "in the step that publishes the round"


def test_after_an_aborted_round_the_older_model_is_named() -> None:
    world = Summing(plan_of())
    world.fail_opening = True  # of round 1
    assert world.settle()
    assert [effect.model_round for effect, _ in world.found] == [0, 3]


def test_fewer_hospitals_have_less_noise_in_their_sum() -> None:
    world = Summing(plan_of(2))
    for hospital in list(world.hospitals.values())[:1]:
        hospital.budget = 1
    assert world.settle()
    ((effect, _),) = world.found
    assert effect.hospitals == 3
    assert effect.means == label_means(("nodule",), SUMS, 1.5 * sensitivity(1) * math.sqrt(3))


def test_people_read_the_mean_with_its_error_and_no_sum() -> None:
    world = Summing(plan_of(2))
    world.settle()
    (record,) = [record for record in world.records if record.kind == "validated"]
    assert record.text == "Round 2 · model of round 1 on the hospitals' own patients, noised: nodule 0.80 ± 0.06"


def test_a_plan_without_evaluation_stores_none() -> None:
    world = Summing(make_plan(4, 2))
    assert world.settle()
    assert world.found == []


# ---- the store ----

MEANS = (LabelMean("anterior", 0.8, 0.06, 40.2), LabelMean("posterior", None, None, -3.5))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with StoreWriter.create(f"sqlite:///{path}", plan_of(), LAYOUT) as store, store.batch() as changes:
        changes.validation(2, 1, 4, MEANS)
    return path


def test_means_come_back_as_written_and_sums_are_nowhere(database: Path) -> None:
    with open_store(database) as store:
        assert store.validations() == [
            ValidationRow(2, "anterior", 1, 4, 0.8, 0.06, 40.2),
            ValidationRow(2, "posterior", 1, 4, None, None, -3.5),
        ]
        assert store.scores() == [], "never among the evaluators' scores"
    with sqlite3.connect(database) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(validations)")]
    assert not any("sum" in name for name in columns)


def test_a_store_from_before_has_none(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE validations")
    with open_store(database) as store:
        assert store.validations() == []


def test_a_restarted_coordinator_gives_an_older_store_the_table(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE validations")
        connection.execute("UPDATE counters SET number = 1 WHERE name = 'schema'")
    with StoreWriter.create(f"sqlite:///{database}", plan_of(), LAYOUT) as store, store.batch() as changes:
        changes.validation(4, 3, 3, MEANS[:1])
    with open_store(database) as store:
        assert [(row.round, row.model_round) for row in store.validations()] == [(4, 3)]
