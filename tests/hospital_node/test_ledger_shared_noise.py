"""Shared noise in the ledger: what is charged, against whom, and that what was there before keeps its bytes and its reading."""

import math
from fractions import Fraction
from io import StringIO

import pytest
from ledger_world import CAP, at, make_plan, new_ledger, release
from rich.console import Console

from hospital_node.accounting import (
    Mechanism,
    attacker_recognised,
    best_guess,
    epsilon,
    merged,
    noise_multiplier_for,
    outsider_epsilon,
    renyi_epsilon,
)
from hospital_node.budget import history
from hospital_node.budget_screen import budget_screen
from hospital_node.cap import MIXED_SHARE, UNIFORM_SHARE, Cap, rounded_up
from hospital_node.ledger import BudgetExhausted
from hospital_node.ledger_schema import Charge, make_row
from hospital_node.offer import terms
from hospital_node.shared_accounting import IntegerMechanism, Shares, advantage, delta_at, integer_epsilon
from hospital_node.statement import statement
from proto.plan import Hospital, Plan, Privacy, Training
from secagg.noise_shares import NoiseShares

SHARES = Shares(norm_steps=500, members=5, may_drop=1, may_collude=1)
DELTA = CAP.delta
LOCAL_CHARGE = "39a662191b2a56afab83de67c92eb9e4f11aff24f7f31b09779ef3436156c300"  # as written before noise was ever shared


def shared_plan(study: str = "lidc", rounds: int = 400) -> Plan:
    base = make_plan(study=study, rounds=rounds)
    names = ("st-anna", "nordklinik", "lakeside", "seefeld", "westpark")
    return Plan.model_validate(
        base.model_dump()
        | {
            "training": Training(local_steps=1, optimizer="sgd", learning_rate=1.0),
            "privacy": Privacy(
                noise_mode="shared", noise_multiplier=1.1, inverse_sampling_rate=20, norm_steps=500, may_drop=1, may_collude=1
            ),
            "hospitals": [Hospital(uri=f"secagg://{study}/hospital/{name}", declared_patients=100) for name in names],
        }
    )


def said(view, made, events) -> str:
    text = StringIO()
    Console(width=400, file=text).print(budget_screen(view, made, events))
    return text.getvalue()


def test_a_round_is_charged_with_what_its_cost_rests_on(tmp_path):
    plan = shared_plan()
    ledger = new_ledger(tmp_path, plan)
    release(ledger, plan, 1)
    (charge,) = [event.entry for event in ledger.events() if isinstance(event.entry, Charge)]
    assert charge.shared.shares == SHARES
    assert charge.mechanism == Mechanism(1.1, 1 / 20, 1, SHARES)
    assert ledger.budget(plan).spent == integer_epsilon([charge.mechanism.in_integers()], UNIFORM_SHARE * DELTA)


def test_a_charge_of_local_noise_has_the_bytes_that_it_always_had(tmp_path):
    plan = make_plan()
    ledger = new_ledger(tmp_path, plan)
    release(ledger, plan, 1)
    assert all("shared" not in row.body for row in ledger.rows())
    entry = Charge(
        plan="a" * 64,
        study="lidc",
        round=1,
        session="ab",
        update_id="cd",
        noise_multiplier=1.1,
        sampling_rate=0.05,
        steps=20,
        clip_norm=1.0,
    )
    assert make_row(7, at(3), entry, bytes(32)).digest.hex() == LOCAL_CHARGE


def test_the_cap_stops_rounds_by_whole_orders_and_the_view_says_both_readings(tmp_path):
    plan = shared_plan()
    one = Mechanism(1.1, 1 / 20, 1, SHARES)
    cap = Cap(epsilon=(math.ceil(100 * epsilon([one.times(3)], UNIFORM_SHARE * DELTA)) / 100), delta=DELTA)
    ledger = new_ledger(tmp_path, plan, cap)
    fits = ledger.budget(plan).rounds_left
    for number in range(1, fits + 1):
        release(ledger, plan, number)
    with pytest.raises(BudgetExhausted):
        ledger.authorize(plan, fits + 1)
    view = ledger.budget(plan)
    assert (view.read_by, view.reading, view.state) == ("orders", "orders", "spent")
    assert view.spent <= cap.epsilon < epsilon([one.times(fits + 1)], UNIFORM_SHARE * DELTA)
    assert view.relies.outsider == outsider_epsilon([one.times(fits)], UNIFORM_SHARE * DELTA) < view.spent
    assert (view.relies.colluders, view.relies.honest, view.relies.members) == (1, 4, 5)
    assert history(ledger.events())[-1].read_by == "orders"


def test_a_ledger_of_both_kinds_composes_both_by_renyi_at_its_one_order(tmp_path):
    local, shared = make_plan(rounds=3), shared_plan("second")
    ledger = new_ledger(tmp_path, local, Cap(epsilon=20.0, delta=DELTA))
    release(ledger, local, 1)
    ledger.approve(shared, "Dr Keller", "second study", Cap(epsilon=20.0, delta=DELTA), at(12))
    release(ledger, shared, 1, minutes=13)
    order = ledger.approvals()[0].renyi_order
    both = [Mechanism(1.1, 1 / 20, 20), Mechanism(1.1, 1 / 20, 1, SHARES)]
    view = ledger.budget(shared)
    assert view.read_by == "renyi"
    assert view.spent == renyi_epsilon(both, MIXED_SHARE * DELTA, (order,))
    assert view.spent == integer_epsilon([one.in_integers() for one in both], MIXED_SHARE * DELTA, (order,))
    assert "whole orders" in said(view, statement(ledger.events(), shared), ledger.events())


def test_an_officer_reads_what_the_figure_relies_on(tmp_path):
    plan = shared_plan()
    ledger = new_ledger(tmp_path, plan)
    kept = "on all but 1 of the hospitals in every sum keeping their noise to themselves (4 of 5)"
    assert f"relies on masking and {kept}" in terms(plan, "st-anna")["noise"]
    release(ledger, plan, 1)
    view, made = ledger.budget(plan), statement(ledger.events(), plan)
    sentence = (
        "Epsilon is charged against the coordinator together with 1 hospital. With shared noise it relies on masking and "
        f"{kept}. Against whoever knows no hospital's noise it reads {rounded_up(view.relies.outsider)}."
    )
    assert view.relies.sentence == sentence
    assert sentence in made.paragraph
    assert "does not rely on the coordinator" not in made.paragraph
    assert "PLD" not in made.paragraph
    assert "against outsiders" in said(view, made, ledger.events())


def test_sentences_about_own_noise_are_said_where_some_was_own(tmp_path):
    local, shared = make_plan(), shared_plan("second")
    ledger = new_ledger(tmp_path, shared, Cap(epsilon=20.0, delta=DELTA))
    assert "1.1 times the most that one patient changes in each sum" in terms(shared, "st-anna")["noise"]
    release(ledger, shared, 1)

    def everything() -> str:
        made = statement(ledger.events())
        parts = [field.explanation for field in made.fields]
        return " ".join([*parts, *(f"{one.text} {one.evidence}" for one in made.assumptions)])

    own = ("Noise is Gaussian at full strength", "The training history is compared with the plan")
    assert not any(sentence in everything() for sentence in (*own, "whatever the attacker knows"))
    assert "by whoever knows the noise of at most 1 of the hospitals" in everything()
    ledger.approve(local, "Dr Keller", "second study", Cap(epsilon=20.0, delta=DELTA), at(12))
    release(ledger, local, 1, minutes=13)
    assert all(sentence in everything() for sentence in own)
    text = said(ledger.budget(local), statement(ledger.events(), local), ledger.events())
    assert "PRV not defined for shared noise" in text


def test_a_ledger_of_local_noise_alone_says_what_it_always_said(tmp_path):
    plan = make_plan()
    ledger = new_ledger(tmp_path, plan)
    release(ledger, plan, 1)
    assert ledger.budget(plan).relies is None
    assert "does not rely on the coordinator or on other hospitals being honest" in statement(ledger.events()).paragraph


def test_a_plan_that_shares_noise_says_nothing_of_it_about_releases_before_its_first_round(tmp_path):
    local, shared = make_plan(), shared_plan("second")
    ledger = new_ledger(tmp_path, local, Cap(epsilon=20.0, delta=DELTA))
    release(ledger, local, 1)
    ledger.approve(shared, "Dr Keller", "second study", Cap(epsilon=20.0, delta=DELTA), at(12))
    view, made = ledger.budget(shared), statement(ledger.events(), shared)
    assert view.relies is None
    assert "against outsiders" not in said(view, made, ledger.events())
    labels = {field.label: field for field in made.fields}
    assert "epsilon against outsiders" not in labels
    assert "PLD" in labels["non-adaptive reading"].explanation
    assert not any("hared noise" in assumption.text for assumption in made.assumptions)
    release(ledger, shared, 1, minutes=13)
    assert ledger.budget(local).relies == ledger.budget(shared).relies is not None, "whatever plan is asked about"


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.1, 0.05, 100), (4.0, 0.5, 20), (2.0, 1.0, 4)])
def test_whole_orders_are_never_below_the_tightest_reading_of_continuous_noise_and_not_far_above(sigma, rate, steps):
    shared, alone = Mechanism(sigma, rate, steps, SHARES), Mechanism(sigma, rate, steps)
    assert epsilon([alone], DELTA) <= epsilon([shared], DELTA) <= 1.25 * epsilon([alone], DELTA)
    assert attacker_recognised([alone]) <= attacker_recognised([shared]) <= 1
    assert best_guess([alone]) <= best_guess([shared]) <= 1


def test_delta_at_epsilon_undoes_epsilon_at_delta():
    listed = [IntegerMechanism(400.0, 500.0, 0.1, 50)]
    assert delta_at(listed, integer_epsilon(listed, 1e-6)) == pytest.approx(1e-6, rel=1e-9)
    assert delta_at([], 1.0) == 0


def test_both_sides_of_a_guess_are_truncated():
    exact, cut = (IntegerMechanism(400.0, 500.0, 0.01, 2, left_out=left_out) for left_out in (0.0, 1e-3))
    assert advantage([cut]) - advantage([exact]) == pytest.approx(4e-3, rel=1e-9)


def test_shares_are_kept_apart_and_noise_is_found_for_them():
    shared, alone = Mechanism(1.1, 0.05, 2, SHARES), Mechanism(1.1, 0.05, 3)
    assert merged([shared, alone, shared]) == (alone, Mechanism(1.1, 0.05, 4, SHARES))
    sigma = noise_multiplier_for(4.0, DELTA, 0.5, 10, shares=SHARES)
    assert (
        epsilon([Mechanism(sigma, 0.5, 10, SHARES)], DELTA) <= 4.0 < epsilon([Mechanism(sigma - 1e-3, 0.5, 10, SHARES)], DELTA)
    )


def test_noise_too_coarse_for_its_shares_is_no_guarantee():
    assert epsilon([Mechanism(0.01, 0.5, 1, Shares(8, 5, 1, 1))], DELTA) == math.inf


@pytest.mark.parametrize("lost", [0, 1])
def test_with_one_honest_hospital_fewer_than_it_relies_on_less_than_the_charged_noise_is_left(lost):
    noise = NoiseShares(Fraction(300**2), SHARES.members, SHARES.may_drop, SHARES.may_collude)
    assert noise.remaining(lost, SHARES.members - SHARES.honest) == noise.variance
    assert noise.remaining(lost, SHARES.members - SHARES.honest + 1) < noise.variance
