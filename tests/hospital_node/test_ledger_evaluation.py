"""What an evaluation costs and how the ledger charges it: with its round, to everybody, in the reading that decides."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
from pathlib import Path
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import CAP, DELTA, at, make_plan, new_ledger, release

from hospital_node import ledger_rules as rules
from hospital_node.accounting import Mechanism, epsilon, merged
from hospital_node.cap import ORDERS, UNIFORM_SHARE, CapFilter, best_order, rounded_up, stated
from hospital_node.forecast import rounds_left
from hospital_node.ledger import BudgetExhausted, Cap, Charge, Ledger
from hospital_node.ledger_schema import Approved, Evaluated, EvaluationAgreed
from hospital_node.officer import _summary
from hospital_node.releases import Evaluations, Program, Release, counted, done, is_one_sequence
from hospital_node.reports import statement, what_leaves
from proto.evaluation import sensitivity
from proto.plan import Evaluation, Plan

ROUND = Mechanism(1.1, 0.05, 20)
WIDE = Cap(epsilon=8.0, delta=DELTA)
JUDGE = CapFilter(delta=DELTA, order=7)


def evaluating(every: int = 5, sigma: float = 6.0, **fields: object) -> Plan:
    part = Evaluation(every=every, share=0.25, noise_multiplier=sigma)
    return make_plan(**fields).model_copy(update={"evaluation": part})  # type: ignore[arg-type]


def program_of(plan: Plan) -> Program:
    return rules.program_of(plan, "st-anna")


def planned(plan: Plan, rounds: int) -> tuple[Mechanism, ...]:
    return rules.planned(plan, "st-anna", rounds)


PLAN = evaluating()


def charges(ledger: Ledger) -> list[Charge]:
    return [event.entry for event in ledger.events() if isinstance(event.entry, Charge)]


# ---- what is recorded ----


def test_a_round_that_evaluates_is_charged_for_both_in_one_entry(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, WIDE)
    for number in (4, 5):
        release(ledger, PLAN, number)
    plain, both = charges(ledger)
    assert plain.evaluation is None
    assert both.evaluation == Evaluated(noise_multiplier=6.0, sensitivity=sensitivity(1))
    assert (both.noise_multiplier, both.sampling_rate, both.steps) == (1.1, 0.05, 20)
    assert [event.kind for event in ledger.events()].count("charge") == 2


def test_the_approval_records_the_evaluation(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, WIDE)
    (approved,) = ledger.approvals()
    assert approved.evaluation == EvaluationAgreed(noise_multiplier=6.0, sensitivity=sensitivity(1), every=5)
    assert approved.program == program_of(PLAN)
    assert program_of(PLAN).evaluations == Evaluations(PLAN.digest().hex(), 6.0, every=5, most=6)


def test_leave_to_train_names_the_evaluation_and_the_commit_takes_it_from_the_approval(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, WIDE)
    assert ledger.authorize(PLAN, 4).evaluation is None
    asked = ledger.authorize(PLAN, 5)
    assert asked.evaluation is not None
    ledger.commit(
        type(asked)(**{**{n: getattr(asked, n) for n in asked.__slots__}, "evaluation": None}), b"u" * 32, b"s" * 16, at(3)
    )
    assert charges(ledger)[0].evaluation is not None, "a forged leave buys nothing"


def test_entries_of_plans_without_evaluation_are_written_as_before(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, make_plan(), WIDE)
    release(ledger, make_plan(), 1)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        bodies = [json.loads(body) for (body,) in connection.execute("SELECT body FROM events")]
    assert not any("evaluation" in body for body in bodies)
    assert not any(value is None for body in bodies for value in body.values())


# ---- what it costs ----


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of a Gaussian mechanism of shift `mu` (Balle and Wang 2018, theorem 8), by bisection."""
    normal = NormalDist()
    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        reached = normal.cdf(mu / 2 - middle / mu) - math.exp(middle) * normal.cdf(-mu / 2 - middle / mu)
        low, high = (low, middle) if reached <= delta else (middle, high)
    return high


@pytest.mark.parametrize(("sigma", "sums", "rounds"), [(20.0, 5.0, 10), (30.0, 4.0, 7), (15.0, 50.0, 25)])
def test_training_and_evaluation_compose_as_gaussians_do(sigma: float, sums: float, rounds: int) -> None:
    """At rate 1 both are plain Gaussian mechanisms: their squared shifts add."""
    plan = evaluating(every=5, sigma=sums, k=1, rounds=rounds, steps=3).model_copy()
    plan = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"noise_multiplier": sigma})})
    mu = math.sqrt(3 * rounds / sigma**2 + (rounds // 5) / sums**2)
    assert epsilon(planned(plan, rounds), DELTA) == pytest.approx(gaussian_epsilon(mu, DELTA), rel=2e-3)
    assert epsilon(planned(plan, rounds), DELTA) > gaussian_epsilon(math.sqrt(3 * rounds) / sigma, DELTA)


def test_one_evaluation_alone_is_one_gaussian_mechanism() -> None:
    only = Release(Mechanism(1.0, 1.0, 0), 1, 1, Evaluations("plan", 4.0, 1, 1))
    assert merged(done([only])) == (Mechanism(4.0, 1.0, 1),)
    assert epsilon(done([only]), DELTA) == pytest.approx(gaussian_epsilon(1 / 4, DELTA), rel=2e-3)


def test_a_plan_without_evaluation_costs_what_it_did() -> None:
    plan = make_plan()
    assert planned(plan, 7) == (ROUND.times(7),)
    assert JUDGE.spent([program_of(plan).released(1, 7)]) == JUDGE.spent([ROUND] * 7) == JUDGE.spent([ROUND.times(7)])


def test_a_hospital_with_steps_of_its_own_pays_for_them_and_for_the_same_evaluations() -> None:
    own = PLAN.hospitals[0].model_copy(update={"local_steps": 40})
    plan = PLAN.model_copy(update={"hospitals": (own, *PLAN.hospitals[1:])})
    assert planned(plan, 10) == (Mechanism(1.1, 0.05, 400), Mechanism(6.0, 1.0, 6))
    assert rules.planned(plan, "lakeside", 10) == (Mechanism(1.1, 0.05, 200), Mechanism(6.0, 1.0, 6))


# ---- the order of cost ----


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, 12)), st.integers(1, 6))
def test_the_reading_depends_on_how_many_rounds_ran_and_bounds_what_they_did(rounds: set[int], every: int) -> None:
    """Whichever rounds a hospital took part in, by chance or by what it saw, so many releases read the same."""
    program = program_of(evaluating(every=every, rounds=12))
    history = [program.released(number) for number in sorted(rounds)]
    reading = merged(counted(history))
    assert reading == merged(counted([program.released(1, len(rounds))]))
    steps = {(one.noise_multiplier, one.sampling_rate): one.steps for one in reading}
    for one in merged(done(history)):
        assert one.steps <= steps[one.noise_multiplier, one.sampling_rate]
    if len(rounds) == 12:
        assert reading == merged(done(history)), "at the end of the plan the two agree"


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 40))
def test_rounds_ahead_hold_the_evaluations_that_fall_due_in_them(first: int, every: int, count: int) -> None:
    program = Program(ROUND, Evaluations("plan", 4.0, every, 100))
    one_by_one = [program.released(number) for number in range(first, first + count)]
    together = program.ahead(first).times(count)
    assert together.evaluated == sum(one.evaluated for one in one_by_one)
    assert merged(done([together])) == merged(done(one_by_one))
    assert [one.evaluated for one in one_by_one] == [int(n % every == 0) for n in range(first, first + count)]


def test_readings_of_more_releases_are_never_smaller() -> None:
    program = program_of(evaluating(every=3, rounds=12))
    readings = [JUDGE.spent([program.released(1, count)]) for count in range(1, 13)]
    assert all(after > before for before, after in itertools.pairwise(readings))


def test_one_plan_with_evaluations_is_one_sequence_and_another_plan_makes_two() -> None:
    program, other = program_of(PLAN), program_of(evaluating(study="second"))
    own = [program.released(number) for number in (1, 2, 5)]
    assert is_one_sequence(own)
    assert JUDGE.kind(own) == "pld"
    assert not is_one_sequence([*own, other.released(1)]), "same mechanisms, and people chose to begin another plan"
    assert not is_one_sequence([*own, Release(ROUND)])
    assert not is_one_sequence([program.released(1), Release(ROUND)]), "even before the first evaluation"
    assert JUDGE.kind([*own, Release(ROUND)]) == "renyi"


def test_a_mixed_ledger_is_read_from_what_happened() -> None:
    program = program_of(PLAN)
    history = [program.released(1), program.released(5), Release(Mechanism(2.0, 0.05, 20))]
    assert set(done(history)) == {ROUND, Mechanism(6.0, 1.0, 0), Mechanism(6.0, 1.0, 1), Mechanism(2.0, 0.05, 20)}
    assert JUDGE.spent(history) > epsilon(counted(history), DELTA)
    assert JUDGE.spent(history, "pld") == epsilon(counted(history), UNIFORM_SHARE * DELTA)


@pytest.mark.parametrize("limit", [8.0, 12.0])
def test_the_renyi_order_admits_the_most_rounds_of_training_and_evaluation_together(limit: float) -> None:
    loud, cap = program_of(evaluating(every=1, sigma=3.0)), Cap(epsilon=limit, delta=DELTA)

    def rounds_that_fit(order: int) -> int:
        judge = CapFilter(delta=DELTA, order=order)
        return next(n for n in itertools.count(1) if judge.spent([loud.released(1, n)], "renyi") > cap.epsilon) - 1

    assert rounds_that_fit(best_order(cap, loud.ahead(1))) == max(map(rounds_that_fit, ORDERS)) > 1


# ---- the cap, the forecast, and words ----


def test_the_cap_counts_evaluations(tmp_path: Path) -> None:
    loud = evaluating(every=2, sigma=2.0)
    ledger = new_ledger(tmp_path, loud)
    fits = ledger.budget().rounds_left
    assert fits < 5, "without evaluation five rounds fit under this cap"
    for number in range(1, fits + 1):
        release(ledger, loud, number)
    with pytest.raises(BudgetExhausted, match=f"Round {fits + 1} would take epsilon"):
        ledger.authorize(loud, fits + 1)
    view = ledger.budget()
    assert (view.state, view.rounds_left) == ("spent", 0)
    assert view.spent == JUDGE.spent([program_of(loud).released(1, fits)]) <= CAP.epsilon


def test_the_forecast_ends_where_the_plan_was_said_to_end(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, WIDE)
    before = ledger.budget()
    whole = epsilon(planned(PLAN, 30), UNIFORM_SHARE * DELTA)
    assert before.forecast[-1] == (30, pytest.approx(whole))
    assert whole > epsilon([ROUND.times(30)], UNIFORM_SHARE * DELTA)
    for number in (1, 2, 5):
        release(ledger, PLAN, number)
    view = ledger.budget()
    assert view.reading == "pld"
    assert view.spent == pytest.approx(epsilon(planned(PLAN, 3), UNIFORM_SHARE * DELTA))
    assert view.by_round[-1] == (5, view.spent)
    assert view.forecast[0][1] == view.next_epsilon == pytest.approx(epsilon(planned(PLAN, 4), UNIFORM_SHARE * DELTA))
    assert view.forecast[-1][1] < whole, "rounds 3 and 4 were missed and cost nothing"
    assert view.rounds_left == rounds_left(
        JUDGE, WIDE, [program_of(PLAN).released(n) for n in (1, 2, 5)], program_of(PLAN).ahead(6), 25
    )


def test_the_statement_says_what_left(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, WIDE)
    release(ledger, PLAN, 4)
    assert "sums of scores" not in statement(ledger.events(), PLAN).paragraph
    release(ledger, PLAN, 5)
    found = statement(ledger.events(), PLAN)
    assert "40 steps of Poisson sampling at rate 0.05 with noise multiplier 1.1 and clipping norm 1" in found.paragraph
    assert "and 1 noised sums of scores with noise multiplier 6" in found.paragraph
    fields = {field.label: field.value for field in found.fields}
    assert fields["evaluations"] == "1 with noise multiplier 6"
    assert (fields["noise multiplier"], fields["steps"]) == ("1.1", "40")
    assert found.profile[1] == (1e-5, stated(planned(PLAN, 2), 1e-5))


def test_what_leaves_names_the_sums_and_promises_no_more_than_holds() -> None:
    rows = {row.item: row for row in what_leaves(PLAN, None)}
    (sums,) = [row for item, row in rows.items() if item.startswith("sums of scores")]
    assert (sums.covered, sums.how_often) == ("yes", "once in 5 rounds")
    never = next(item for item, row in rows.items() if row.how_often == "never")
    assert "accuracy on own patients" not in never
    assert "sums without noise" in never
    assert not any("sums" in row.item for row in what_leaves(make_plan(), None) if row.item.startswith("sums of scores"))


def test_the_officer_reads_what_the_evaluation_adds() -> None:
    def cells(plan: Plan) -> dict[str, str]:
        names, values = (list(column.cells) for column in _summary(plan, "st-anna").columns)
        return dict(zip(names, values, strict=True))

    with_it, without = cells(PLAN), cells(make_plan())
    assert "evaluation" not in without
    assert "6 times, scores of about 25% of the patients, who are not trained on" in with_it["evaluation"]
    plain = without["cost of all rounds"].split(" at ")[0]
    assert f"without this the rounds cost {plain}" in with_it["evaluation"]
    assert with_it["cost of all rounds"] == f"epsilon {rounded_up(stated(planned(PLAN, 30), DELTA))} at delta 1e-5"
    assert with_it["cost of all rounds"] > without["cost of all rounds"]


def test_without_a_guarantee_sums_may_leave_without_noise_and_nothing_finite_is_said(tmp_path: Path) -> None:
    public = evaluating(study="public", sigma=0.0).model_copy(update={"privacy": make_plan(sigma=0).privacy})
    public = make_plan(study="public", sigma=0).model_copy(update={"evaluation": public.evaluation})
    ledger = new_ledger(tmp_path)
    ledger.approve(public, "Dr Keller", "reference", CAP, at(1), accept_no_guarantee=True, data_is_public=True)
    release(ledger, public, 5)
    assert ledger.budget(public).spent == math.inf
    assert {row.covered for row in what_leaves(public, None) if row.item.startswith("sums of scores")} == {"no"}


def test_an_approval_from_before_reads_as_one_without_evaluation() -> None:
    fields = new_fields()
    assert Approved.model_validate(fields).program == Program(ROUND)


def new_fields() -> dict[str, object]:
    return {
        "plan": "0" * 64,
        "study": "lidc",
        "by": "Dr Keller",
        "reason": "vote",
        "cap": {"epsilon": 8, "delta": DELTA},
        "noise_multiplier": 1.1,
        "sampling_rate": 0.05,
        "steps_per_round": 20,
        "clip_norm": 1.0,
        "max_rounds": 30,
        "declared_patients": 100,
        "hospitals_per_patient": 1,
        "renyi_order": 7,
    }
