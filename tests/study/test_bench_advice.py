"""What is advised: the rates' interpolation, what the noise costs, refusals, and that its template is a plan."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bench_readings import LOCAL, SHARED, cells_of, done, store
from typer.testing import CliRunner

from hospital_node.accounting import Mechanism, epsilon, outsider_epsilon
from hospital_node.cap import UNIFORM_SHARE
from hospital_node.shared_accounting import Shares
from study.bench.advice import (
    FILE,
    Advice,
    Question,
    Rate,
    Recommendations,
    Score,
    advise,
    interpolated,
    load,
    scores_near,
    strength_of,
)
from study.bench.advice_text import as_json, scores_toml, write_template
from study.bench.grid import load_study
from study.bench.task import StudyError
from study.cli import APP

KNOWN = load()
DELTA = 1 / 1310
RATES = tuple(Rate(strength=at, learning_rate=rate) for at, rate in ((0.01, 2.0), (0.04, 2.0), (0.4, 0.2)))
STUDY = """
study = "advised"
plan = "{plan}"
seeds = [1]
start = "public"
[partition]
hospitals = 4
[[grid]]
method = "masked"
"""


def answered(**changes: object) -> Advice:
    return advise(Question(**{"patients": 131, "hospitals": 4, "epsilon": 8.0, **changes}), KNOWN)


# ---- rates ----


@given(st.floats(0.01, 0.4))
def test_a_rate_lies_between_those_beside_it(strength: float) -> None:
    rate = interpolated(RATES, strength)
    if strength <= 0.04:
        assert rate == pytest.approx(2.0)
    else:
        assert rate * strength == pytest.approx(0.08)  # equal products at both ends stay equal between them
    assert 0.1999 < rate < 2.0001


@given(st.one_of(st.floats(1e-6, 0.00999), st.floats(0.401, 1e3)))
def test_nothing_is_known_beyond_what_was_measured(strength: float) -> None:
    assert interpolated(RATES, strength) is None


@given(patients=st.integers(30, 5000), hospitals=st.integers(3, 40), noise=st.floats(0.5, 20))
def test_noise_in_the_mean_falls_with_patients_and_grows_with_hospitals_of_their_own(
    patients: int, hospitals: int, noise: float
) -> None:
    local, shared = Question(patients, hospitals, 8.0), Question(patients, hospitals, 8.0, "shared")
    sums = [noise * hospitals / patients] * hospitals  # of each hospital's mean, with patients / hospitals in it
    assert strength_of(local, noise) == pytest.approx(math.sqrt(sum(one**2 for one in sums)) / hospitals)
    assert strength_of(shared, noise) < strength_of(local, noise)
    assert strength_of(dataclasses.replace(local, patients=2 * patients), noise) == pytest.approx(strength_of(local, noise) / 2)


# ---- answers ----


@pytest.mark.parametrize("mode", ["local", "shared"])
def test_the_noise_is_the_least_that_costs_what_was_asked(mode: str) -> None:
    found = answered(noise_mode=mode)
    rounds = found.template["rounds"]
    shares = Shares(1000, 4, 1, 1) if mode == "shared" else None
    for noise, fits in ((found.noise_multiplier, True), (found.noise_multiplier - 0.001, False)):
        assert (epsilon([Mechanism(noise, 1.0, rounds, shares)], UNIFORM_SHARE * DELTA) <= 8) is fits
    assert found.delta == pytest.approx(DELTA)
    assert found.charged == epsilon([Mechanism(found.noise_multiplier, 1.0, rounds, shares)], UNIFORM_SHARE * DELTA)
    assert found.readings.at_default > found.charged
    assert (found.readings.outsider is None) is (mode == "local")


def test_the_outsiders_reading_is_met_and_the_charged_one_shown() -> None:
    found = answered(noise_mode="shared", reading="outsider")
    spent = Mechanism(found.noise_multiplier, 1.0, found.template["rounds"], Shares(1000, 4, 1, 1))
    assert outsider_epsilon([spent], UNIFORM_SHARE * DELTA) == found.readings.outsider <= 8 < found.charged


def test_more_noise_in_the_mean_means_a_smaller_rate() -> None:
    rates = [answered(epsilon=wanted).learning_rate for wanted in (8.0, 4.0, 2.0, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 3 * rates[-1]
    assert answered(epsilon=2.0, hospitals=16).learning_rate < answered(epsilon=2.0).learning_rate


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epsilon": 0.2}, r"nothing is advised beyond: ask for a larger epsilon or more patients"),
        ({"patients": 100_000}, r"nothing is advised beyond: ask for a smaller epsilon"),
        ({"hospitals": 2}, "three hospitals or more"),
        ({"patients": 3}, "each with a patient"),
        ({"epsilon": math.inf}, "is no budget"),
        ({"epsilon": -1.0}, "is no budget"),
        ({"reading": "outsider"}, "has one reading"),
        ({"noise_mode": "shared", "may_collude": 4}, "4 colluders of 4 hospitals"),
        ({"delta": 0.2}, r"delta 0\.2 must be below 1/32, one over the patients of the smallest hospital"),
        (
            {"noise_mode": "shared", "hospitals": 16, "may_collude": 6},
            "charged against 6 colluders and a threshold of 11 of 16 withstands 5",
        ),
        ({"noise_mode": "shared", "may_drop": 3}, "3 may drop and 1 may collude: nobody honest is left"),
    ],
)
def test_what_nobody_can_answer_is_one_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence) as refused:
        answered(**changes)
    assert "\n" not in str(refused.value)


# ---- scores of the study ----


def with_scores(*noises: float) -> Recommendations:
    rows = [
        Score(noise_mode="local", hospitals=4, epsilon=8, delta=DELTA, noise_multiplier=noise, dice=0.7, half=0.01, seeds=5)
        for noise in noises
    ]
    return KNOWN.model_copy(update={"scores": tuple(rows)})


@pytest.mark.parametrize(
    ("factors", "shown"),
    [((1.1, 0.5, 3.0), [1.1]), ((0.5, 0.3, 2.0, 4.0), [0.5, 2.0]), ((3.0,), [3.0]), ((0.2, 0.4), [0.4]), ((), [])],
)
def test_the_rows_beside_this_noise_are_shown(factors: tuple[float, ...], shown: list[float]) -> None:
    usual = answered().noise_multiplier
    found = advise(Question(131, 4, 8.0), with_scores(*(factor * usual for factor in factors)))
    assert [one.noise_multiplier / usual for one in found.near] == pytest.approx(shown)


@pytest.mark.parametrize("may_collude", [4, 5])
def test_a_score_keeps_the_colluders_of_its_study(may_collude: int) -> None:
    row = Score(
        noise_mode="shared", hospitals=4, epsilon=8, delta=DELTA, noise_multiplier=1.833, may_collude=2, dice=0.7, seeds=1
    )
    known = KNOWN.model_copy(update={"scores": (row,)})
    found = advise(Question(400, 16, 2.0, "shared", may_collude=may_collude), known)
    ((_, strength),) = scores_near(found)
    assert strength == pytest.approx(1.833 * math.sqrt(2) / 131)


def test_a_score_of_colluders_only_is_refused() -> None:
    with pytest.raises(ValueError, match="4 colluders of 4 hospitals"):
        Score(noise_mode="shared", hospitals=4, epsilon=8, delta=DELTA, noise_multiplier=1, may_collude=4, dice=0.7, seeds=1)


def test_scores_of_the_other_mode_are_not_shown() -> None:
    assert advise(Question(131, 4, 8.0, "shared"), with_scores(1.7)).near == ()


def test_scores_of_a_study_are_what_its_report_says(tmp_path: Path) -> None:
    listed = [cell for cell in cells_of(tmp_path, LOCAL + SHARED) if cell.epsilon_reading == "charged"]
    store(tmp_path / "out", *((cell, done(cell)) for cell in listed))
    rows = [Score.model_validate(one) for one in tomllib.loads(scores_toml(tmp_path / "out"))["scores"]]
    assert [one.noise_mode for one in rows] == ["local", "shared"]
    for cell, one in zip(listed, rows, strict=True):
        result = done(cell)
        assert (one.hospitals, one.seeds, one.half, one.delta) == (4, 1, None, result.delta)
        assert (one.dice, one.noise_multiplier) == (round(result.score, 4), result.noise_multiplier)
        assert one.epsilon == pytest.approx(result.epsilon, abs=1e-3)
        assert one.may_collude == (cell.plan["privacy"].get("may_collude") or 1)


# ---- the file, and what comes out ----


def test_the_masks_bear_as_many_colluders_as_the_noise() -> None:
    masking = advise(Question(131, 16, 8.0, "shared", may_collude=3), KNOWN).template["masking"]
    assert masking["max_colluders"] == 3


def test_rates_out_of_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recommendations.toml"
    path.write_text(FILE.read_text().replace("strength = 0.0328", "strength = 0.5"))
    with pytest.raises(StudyError, match="in the order of their strengths"):
        load(path)


@pytest.mark.parametrize("mode", ["local", "shared"])
def test_the_template_is_one_that_a_study_runs(tmp_path: Path, mode: str) -> None:
    found = answered(noise_mode=mode)
    write_template(found, tmp_path / "plan.toml")
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(plan="plan.toml"))
    (cell,) = load_study(path).cells()
    assert cell.plan["privacy"]["noise_multiplier"] == found.noise_multiplier
    assert cell.plan["privacy"]["delta"] == pytest.approx(DELTA)
    assert cell.plan["aggregation"]["learning_rate"] == found.learning_rate
    assert cell.plan["privacy"]["noise_mode"] == mode
    assert found.template["start"].items() <= cell.plan["start"].items()


def test_json_holds_what_the_page_says() -> None:
    found = answered(noise_mode="shared")
    said = json.loads(json.dumps(as_json(found)))
    assert said["plan"]["privacy.noise_multiplier"] == found.noise_multiplier
    figures = [(one["delta"], one["epsilon"]) for one in said["epsilon"]]
    read = found.readings
    assert figures == [
        (found.delta, found.charged),
        (1e-5, read.at_default),
        (found.delta, read.outsider),
        (1e-5, read.outsider_at_default),
    ]
    assert said["question"]["delta"] == found.delta
    assert "promise nothing elsewhere" in said["caveat"]


def test_the_command(tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        APP, ["advise", "--patients", "131", "--hospitals", "4", "--epsilon", "8", "--out", str(tmp_path / "plan.toml")]
    )
    assert ran.exit_code == 0, ran.output
    for word in (
        "privacy.noise_multiplier",
        "aggregation.learning_rate",
        "everybody",
        "delta 1e-5",
        "promise nothing elsewhere",
    ):
        assert word in " ".join(ran.output.split()), word
    assert (tmp_path / "plan.toml").read_text().startswith("# Advised for 131 patients at 4 hospitals: epsilon 8 at delta")
    refused = CliRunner().invoke(APP, ["advise", "--patients", "131", "--hospitals", "4", "--epsilon", "0.1"])
    assert refused.exit_code == 2


def test_an_outsiders_epsilon_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    asked = ["--patients", "131", "--hospitals", "4", "--epsilon", "8", "--noise", "shared", "--out", str(path)]
    for reading, said in (("charged", False), ("outsider", True)):
        ran = CliRunner().invoke(APP, ["advise", *asked, "--reading", reading])
        assert ran.exit_code == 0, ran.output
        for line in (ran.output.splitlines()[0], path.read_text().splitlines()[0]):
            assert ("whoever knows no share (c = 0); a ledger is charged 9." in line) is said, line


def test_the_command_in_json() -> None:
    ran = CliRunner().invoke(
        APP, ["advise", "--patients", "131", "--hospitals", "16", "--epsilon", "2", "--noise", "shared", "--json"]
    )
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.output)["question"]["may_drop"] == 3
