"""The officer's figures: each state, the sentence that says what happens next, and the statement in words."""

from __future__ import annotations

import dataclasses
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import pytest
from ledger_world import CAP, DELTA, at, make_plan, new_ledger, release

from hospital_node.accounting import Mechanism, attacker_recognised, epsilon
from hospital_node.cap import UNIFORM_SHARE
from hospital_node.forecast import MAX_POINTS
from hospital_node.ledger import Cap, Ledger, LedgerMissing, read_budget
from hospital_node.progress import ItemBytes, Leaves
from hospital_node.reports import Leaving, statement, what_leaves
from proto.plan import Timing

PLAN = make_plan()
ROUND = Mechanism(1.1, 0.05, 20)


def after(rounds: int) -> float:
    return epsilon([ROUND.times(rounds)], UNIFORM_SHARE * DELTA)


def test_before_any_approval(tmp_path: Path) -> None:
    view = new_ledger(tmp_path).budget()
    assert (view.state, view.spent, view.cap, view.rounds_left, view.forecast) == ("not approved", 0, None, 0, ())


def test_a_plan_that_waits_for_approval_shows_what_it_would_cost(tmp_path: Path) -> None:
    view = new_ledger(tmp_path).budget(PLAN)
    assert view.state == "not approved"
    assert "waits for approval" in view.sentence
    assert view.forecast[0] == (1, pytest.approx(after(1)))
    assert view.next_epsilon == view.forecast[0][1]


def up(value: float) -> str:
    """Two decimals, never less than the value."""
    return str(Decimal(value).quantize(Decimal("0.01"), ROUND_CEILING))


def test_within_budget(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, Cap(epsilon=8, delta=DELTA))
    release(ledger, PLAN, 1)
    release(ledger, PLAN, 3)  # it missed round 2
    view = ledger.budget()
    assert view.state == "within budget"
    assert (view.spent, view.left) == (pytest.approx(after(2)), pytest.approx(8 - after(2)))
    assert view.left_share == pytest.approx(1 - after(2) / 8)
    assert view.by_round == ((1, pytest.approx(after(1))), (3, pytest.approx(after(2))))
    assert (view.rounds_done, view.rounds_planned, view.next_round, view.rounds_left) == (2, 30, 4, 27)
    assert view.forecast == tuple((3 + k, pytest.approx(after(2 + k))) for k in range(1, 28))
    assert view.stops_after_round is None
    assert view.sentence == (
        f"Round 4 would take epsilon from {up(after(2))} to {up(after(3))} of 8; all 27 rounds left in the plan fit, "
        f"ending at {up(after(29))}."
    )
    assert view.recognised == attacker_recognised([ROUND.times(2)])
    assert (view.head, view.entries) == (ledger.head.hex(), 6)


def test_near_the_cap_and_spent(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)  # five rounds fit
    release(ledger, PLAN, 1)
    assert ledger.budget().state == "within budget"
    assert "stops by itself after round 5 of 30" in ledger.budget().sentence
    release(ledger, PLAN, 2)
    view = ledger.budget()
    assert (view.state, view.rounds_left, view.stops_after_round) == ("near the cap", 3, 5)
    for number in (3, 4, 5):
        release(ledger, PLAN, number)
    view = ledger.budget()
    assert (view.state, view.rounds_left, view.stops_after_round) == ("spent", 0, 5)
    assert view.sentence == (
        f"Round 6 would take epsilon from {up(after(5))} to {up(after(6))}, above the cap of 3: "
        "this hospital stopped by itself."
    )


def test_a_finished_study_is_not_spent(tmp_path: Path) -> None:
    short = make_plan(rounds=2)
    ledger = new_ledger(tmp_path, short)
    release(ledger, short, 1)
    release(ledger, short, 2)
    view = ledger.budget()
    assert (view.state, view.rounds_left, view.next_epsilon, view.forecast) == ("within budget", 0, None, ())
    assert "used all its rounds" in view.sentence


def test_long_histories_are_shown_at_some_of_their_rounds(tmp_path: Path) -> None:
    cheap = make_plan(sigma=50.0, k=100, steps=1, rounds=400)
    ledger = new_ledger(tmp_path, cheap)
    for number in range(1, MAX_POINTS + 11):
        release(ledger, cheap, number)
    view = ledger.budget()
    assert len(view.by_round) == len(view.forecast) == MAX_POINTS
    assert (view.by_round[0][0], view.by_round[-1][0]) == (1, MAX_POINTS + 10)
    assert view.by_round[-1][1] == view.spent
    assert (view.forecast[0][0], view.forecast[-1][0]) == (MAX_POINTS + 11, 400)


def test_a_patient_of_several_hospitals_is_shown(tmp_path: Path) -> None:
    shared = make_plan(attends=2)
    ledger = new_ledger(tmp_path, shared)
    release(ledger, shared, 1)
    view = ledger.budget()
    assert view.across_hospitals == pytest.approx(after(2))
    assert "who attends 2 hospitals" in statement(ledger.events()).paragraph


def test_a_later_study_of_one_hospital_each_does_not_hide_an_earlier_overlap(tmp_path: Path) -> None:
    """A patient of two hospitals pays the first study twice and the second once, whichever study is asked about."""
    shared, alone = make_plan(attends=2), make_plan(study="alone")
    ledger = new_ledger(tmp_path, shared, Cap(epsilon=8, delta=DELTA))
    release(ledger, shared, 1)
    ledger.approve(alone, "Dr Keller", "second study", Cap(epsilon=8, delta=DELTA), at(11))
    release(ledger, alone, 1, minutes=12)
    for asked in (shared, alone):
        view = ledger.budget(asked)
        assert view.hospitals_per_patient == 2
        assert view.across_hospitals == pytest.approx(after(3))
        assert f"ε is {up(after(3))}" in statement(ledger.events(), asked).paragraph


def test_no_ledger_is_said_and_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(LedgerMissing):
        Ledger.open_readonly(tmp_path / "ledger.db")
    assert read_budget(tmp_path / "ledger.db").state == "ledger damaged"


def test_the_paragraph_says_what_the_ledger_says(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    assert statement(ledger.events()).paragraph == "Nothing computed from patients has left st-anna so far."
    release(ledger, PLAN, 1)
    release(ledger, PLAN, 2)
    words = statement(ledger.events()).paragraph
    assert (
        f"Up to and including round 2 of study 'lidc', everything st-anna has sent satisfies (ε = {up(after(2))}, δ = 1e-5)"
        in words
    )
    assert "the cap kept so far (ε = 3) is the guarantee" in words
    assert "PLD accounting (dp-accounting" in words
    assert "for 40 steps of Poisson sampling at rate 0.05 with noise multiplier 1.1 and clipping norm 1." in words
    assert "a patient attends one hospital only" in words


def test_the_statement_of_a_mixed_ledger_promises_only_the_cap(tmp_path: Path) -> None:
    wide = Cap(epsilon=8, delta=DELTA)
    ledger = new_ledger(tmp_path, PLAN, wide)
    release(ledger, PLAN, 1)
    other = make_plan(study="second", sigma=2.0)
    ledger.approve(other, "Dr Keller", "second study", wide, at(20))
    release(ledger, other, 1, minutes=21)
    words = statement(ledger.events()).paragraph
    assert "everything st-anna has sent satisfies (ε = 8.00, δ = 1e-5)" in words
    view = ledger.budget()
    assert "which a Rényi filter enforces, for" in words
    assert f"the filter has read ε = {up(view.spent)} of it so far" in words
    assert f"would read ε = {up(view.non_adaptive)}" in words
    assert view.non_adaptive < view.spent < 8
    assert "noise multiplier 1.1 and 20 steps of" in words
    fields = {field.label: field.value for field in statement(ledger.events()).fields}
    assert fields["other studies"] == "lidc"
    assert fields["decided by"] == "Rényi filter at one order"


def test_the_statement_without_noise_never_shows_a_number(tmp_path: Path) -> None:
    public = make_plan(study="public", sigma=0)
    ledger = new_ledger(tmp_path)
    ledger.approve(public, "Dr Keller", "reference", CAP, at(1), accept_no_guarantee=True, data_is_public=True)
    release(ledger, public, 1)
    found = statement(ledger.events())
    assert "has no guarantee" in found.paragraph
    values = {field.label: field.value for field in found.fields}
    assert values["epsilon"] == values["coarser accountant"] == "no guarantee"
    assert values["attacker"] == "at 1 false alarm in 100 at most 100 of 100 recognised"


def test_the_budget_field_names_who_agreed(tmp_path: Path) -> None:
    def agreed() -> str:
        return {field.label: field.value for field in statement(ledger.events()).fields}["budget"]

    ledger = new_ledger(tmp_path, PLAN)
    assert agreed() == "ε = 3 at δ = 1e-5, agreed by Dr Keller on 2026-11-21"
    ledger.raise_cap(Cap(epsilon=4, delta=DELTA), "Dr Keller", "Dr Amsel", "board", at(2), confirmed_reason="the board agreed")
    assert agreed() == "ε = 4 at δ = 1e-5, agreed by Dr Keller and Dr Amsel on 2026-11-21"
    ledger.lower_cap(Cap(epsilon=2, delta=DELTA), "Dr Amsel", "caution", at(3))
    assert agreed() == "ε = 2 at δ = 1e-5, agreed by Dr Amsel on 2026-11-21"


LEAVES = Leaves(
    study="lidc",
    round=3,
    last_round=(
        ItemBytes(item="mask", sent_bytes=3 << 20),
        ItemBytes(item="share", sent_bytes=1500),
        ItemBytes(item="advertise", sent_bytes=548),
        ItemBytes(item="train", sent_bytes=90),
    ),
    updated_at=at(5),
)


def rows(plan: object = PLAN, leaves: Leaves | None = LEAVES) -> dict[str, Leaving]:
    return {row.item.split(",")[0].split(":")[0]: row for row in what_leaves(plan, leaves)}  # type: ignore[arg-type]


def test_precisions_are_a_row_where_the_plan_has_them_covered_as_the_update_is() -> None:
    assert not any("how certain" in item for item in rows())
    fields = PLAN.model_dump()
    fields["training"]["local_steps"] = 2
    precise = type(PLAN).model_validate({**fields, "aggregation": {"weights": "precision"}})
    found = rows(precise)["how certain this hospital is of each value"]
    assert found.covered == "yes"
    assert "only the sum" in found.readable_by


def test_what_leaves_has_the_measured_sizes() -> None:
    found = rows()
    assert found["masked update"].size == "3.0 MiB"
    assert found["public keys"].size == "2.0 KiB"
    assert found["training state"].size == "90 B"
    assert found["certificate"].size == "-"
    assert {row.size for row in rows(leaves=None).values()} <= {"-", "0 B"}


def test_what_epsilon_does_not_cover_is_listed() -> None:
    uncovered = {item for item, row in rows().items() if row.covered == "no"}
    assert uncovered == {"declared number of patients and weight", "training state", "duration of training"}
    assert rows()["masked update"].covered == rows()["sum of updates and the new model"].covered == "yes"


def test_without_noise_the_update_is_not_covered() -> None:
    public = make_plan(sigma=0)
    assert rows(public)["masked update"].covered == rows(public)["sum of updates and the new model"].covered == "no"


def test_a_fixed_reporting_time_covers_the_duration() -> None:
    hidden = PLAN.model_copy(update={"timing": Timing(ready_after_s=600)})
    assert rows(hidden)["duration of training"].covered == "not personal"


def test_figures_are_frozen(tmp_path: Path) -> None:
    view = new_ledger(tmp_path, PLAN).budget()
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.spent = 0.0  # type: ignore[misc]
