"""The validation part: who is in it, what one patient changes, and that nothing leaves it without noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_world import SILENT, URI, people, person, plan, replayed

from hospital_node import network
from hospital_node.noise import NormalStream
from hospital_node.train import train_round
from hospital_node.validation import is_measured, noised_sums, parts, patient_scores
from hospital_node.work import Scored, WorkFailed
from hospital_node.workshop import real_scorer
from proto.evaluation import GRID, sensitivity
from proto.plan import Plan

LABELS = ("lesion",)


def evaluating(share: float = 0.5, sigma: float = 0.0, **tables: Any) -> Plan:
    part = {"every": 1, "share": share, "noise_multiplier": sigma}
    made = plan(privacy=SILENT if sigma == 0 else {}, **tables)
    return Plan.model_validate(made.model_dump() | {"evaluation": part})


@dataclass(frozen=True)
class Known:
    """A patient whose scans have given scores."""

    key: str
    cases: tuple[float | None, ...] = field(default=(0.75,))


def score(case: float | None) -> Scored:
    return Scored({"lesion": case}, np.zeros((1, 1, 1), np.uint8))


def clear_sums(patients: list[Known]) -> tuple[float, ...]:
    """Without noise, which only a plan without a guarantee allows."""
    return noised_sums(evaluating(), patients, score, NormalStream(replayed(b"unused")))


keys = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=25)


# ---- who ----


@given(keys, st.floats(0.01, 0.99))
def test_every_patient_is_in_exactly_one_part(names: list[str], share: float) -> None:
    made, patients = evaluating(share), [Known(name) for name in names]
    split = parts(made, patients)
    assert sorted([*split.training, *split.validation], key=patients.index) == patients
    assert all(is_measured(made, one.key) for one in split.validation)


@given(keys, st.data())
def test_nobodys_part_depends_on_anybody_else(names: list[str], data: st.DataObject) -> None:
    made, patients = evaluating(0.4), [Known(name) for name in names]
    fewer = [one for one in patients if data.draw(st.booleans())]
    whole, less = parts(made, patients), parts(made, fewer)
    assert set(less.training) == set(whole.training) & set(fewer)
    assert set(less.validation) == set(whole.validation) & set(fewer)


def test_the_parts_stay_when_a_plan_of_the_study_changes_and_differ_between_studies() -> None:
    names = [f"p{number}" for number in range(200)]

    def measured(made: Plan) -> set[str]:
        return {name for name in names if is_measured(made, name)}

    first = evaluating(0.3)
    longer = first.model_copy(update={"rounds": 9})
    other = first.model_copy(update={"study": "other"})
    assert measured(first) == measured(longer) != measured(other)
    assert measured(evaluating(0.1)) < measured(first), "a smaller share takes none that was trained on"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_share_is_what_the_plan_says(share: float) -> None:
    made, count = evaluating(share), 20_000
    found = sum(is_measured(made, f"patient {number}") for number in range(count)) / count
    assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))


def test_without_the_part_everybody_is_trained_on() -> None:
    patients = people(4)
    split = parts(plan(), patients)
    assert (list(split.training), split.validation) == (patients, ())


def test_a_person_listed_twice_would_add_two_vectors_and_is_refused() -> None:
    with pytest.raises(WorkFailed, match="same patient key") as caught:
        parts(evaluating(), [Known("a"), Known("b"), Known("a")])
    assert caught.value.code == "training-failed"


# ---- what ----


@given(st.lists(st.lists(st.none() | st.floats(-1, 2), max_size=4), max_size=20), st.data())
def test_removing_one_patient_changes_the_sums_by_at_most_the_sensitivity(
    scans: list[list[float | None]], data: st.DataObject
) -> None:
    patients = [Known(str(number), tuple(cases)) for number, cases in enumerate(scans)]
    if not patients:
        return
    out = data.draw(st.sampled_from(patients))
    change = np.subtract(clear_sums(patients), clear_sums([one for one in patients if one is not out]))
    assert np.linalg.norm(change) <= sensitivity(1)
    assert change.tolist() == list(clear_sums([out])), "exactly the vector of that patient"


def test_many_scans_of_one_patient_count_once() -> None:
    once, often = clear_sums([Known("a", (0.5, 1.0, None))]), clear_sums([Known("a", (0.5, 1.0) * 50)])
    assert once == often == (0.25, 0.5)
    assert patient_scores(Known("a", (None, None)), LABELS, score) == [None]
    assert clear_sums([Known("a", (None,)), Known("b", ())]) == (0.0, 0.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_score_is_left_out_and_a_wild_one_is_clipped(broken: float) -> None:
    assert clear_sums([Known("a", (broken,))]) == (0.0, 0.0)
    assert clear_sums([Known("a", (broken, 0.75))]) == clear_sums([Known("a", (0.75,))]) == (0.25, 0.5)
    assert clear_sums([Known("a", (1e300, -1e300))]) == (0.0, 0.5)


def test_training_and_validation_do_not_touch_each_other() -> None:
    """To the bit: removing a validation patient leaves the update, removing a trained one leaves the sums."""
    made = evaluating(0.5, training={"local_steps": 2})
    patients = people(8)
    split = parts(made, patients)
    assert min(len(split.training), len(split.validation)) >= 2
    base = network.vector_of(network.build(made.network))

    def both(present: list[Any]) -> tuple[bytes, tuple[float, ...]]:
        sides = parts(made, present)
        sums = noised_sums(made, sides.validation, real_scorer(made, base, 1), NormalStream(replayed(b"noise")))
        trained = train_round(made, URI, base, sides.training, rand=replayed(b"coins"))
        return trained.update.tobytes(), sums

    update, sums = both(patients)
    without_measured = both([one for one in patients if one is not split.validation[0]])
    without_trained = both([one for one in patients if one is not split.training[0]])
    assert without_measured[0] == update
    assert without_trained[1] == sums
    assert without_measured[1] != sums
    assert without_trained[0] != update


def test_the_real_scorer_measures_one_patient_whoever_else_is_there() -> None:
    made = evaluating()
    scorer = real_scorer(made, network.vector_of(network.build(made.network)), 1)
    alone = patient_scores(person("x", scans=2), LABELS, scorer)
    for other in people(2):
        patient_scores(other, LABELS, scorer)
    assert patient_scores(person("x", scans=2), LABELS, scorer) == alone


# ---- noise ----


def test_the_noise_has_the_plans_deviation_on_every_coordinate_and_no_pattern() -> None:
    made, runs = evaluating(sigma=3.0, network={"labels": ("lesion", "cyst")}), 6000
    rand = replayed(b"many runs")
    drawn = np.array([noised_sums(made, (), score, NormalStream(rand)) for _ in range(runs)])
    deviation = 3.0 * sensitivity(2)
    assert deviation == pytest.approx(3.0)
    assert drawn.shape == (runs, 4)
    assert np.abs(drawn.mean(0)).max() < 4.5 * deviation / math.sqrt(runs)
    assert np.abs(drawn.std(0) / deviation - 1).max() < 4.5 / math.sqrt(2 * runs)
    assert np.abs((drawn**4).mean(0) / deviation**4 - 3).max() < 4.5 * math.sqrt(96 / runs)
    correlation = np.corrcoef(drawn.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(runs)
    inside = (np.abs(drawn) < deviation).mean()
    assert inside == pytest.approx(0.6827, abs=4.5 * math.sqrt(0.22 / (4 * runs)))


def test_the_noise_is_added_to_the_sums() -> None:
    made, patients = evaluating(sigma=2.0), [Known(str(number)) for number in range(40)]
    rand = replayed(b"again")
    drawn = np.array([noised_sums(made, patients, score, NormalStream(rand)) for _ in range(2000)])
    bound = 4.5 * 2.0 * sensitivity(1) / math.sqrt(2000)
    assert np.abs(drawn.mean(0) - clear_sums(patients)).max() < bound


def test_nobody_in_the_part_sends_noise_alone() -> None:
    made = evaluating(sigma=2.0)
    sums = noised_sums(made, (), score, NormalStream(replayed(b"x")))
    assert sums == tuple(2.0 * sensitivity(1) * NormalStream(replayed(b"x")).draw(2))
    assert 0.0 not in sums


@settings(max_examples=20)
@given(st.integers(1, 6))
def test_a_fresh_key_for_every_evaluation(count: int) -> None:
    asked: list[int] = []

    def rand(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    drawn = {noised_sums(evaluating(sigma=1.0), (), score, NormalStream(rand)) for _ in range(count)}
    assert (len(drawn), asked) == (count, [32] * count)


def test_sums_are_whole_steps_before_the_noise() -> None:
    steps = np.array(clear_sums([Known(str(number), (number / 7 % 1,)) for number in range(30)])) * GRID
    assert steps.tolist() == np.round(steps).tolist()
