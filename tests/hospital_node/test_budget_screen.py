"""What an officer sees before, near and past the cap, and that every place says the same figure of one history."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import CAP, DELTA, at, make_plan, new_ledger, release
from rich.console import Console

from hospital_node import crosscheck
from hospital_node.accounting import Mechanism, epsilon
from hospital_node.budget import history
from hospital_node.budget_screen import budget_screen
from hospital_node.cap import Cap, plain, rounded_up, stated
from hospital_node.ledger import Ledger
from hospital_node.statement import statement
from proto.plan import Evaluation, Plan

PLAN = make_plan()
WIDE = Cap(epsilon=8, delta=DELTA)
ROUND = Mechanism(1.1, 0.05, 20)


def screen(ledger: Ledger, plan: Plan | None = None) -> dict[str, str]:
    """What is printed, by the name of the row; lines of the tables below under their own heading."""
    events = ledger.events()
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(budget_screen(ledger.budget(plan), statement(events, plan), events))
    text = console.export_text()
    lines = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in text.splitlines() if "│" in line]
    return {line[0]: line[1] for line in lines if len(line) == 2} | {"all": text}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return new_ledger(tmp_path, PLAN)


def test_before_the_first_round(ledger: Ledger) -> None:
    rows = screen(ledger)
    assert rows["spent"] == "epsilon 0.00 of 3 (100 % left) at delta 1e-5"
    assert rows["forecast"] == (
        "round 1: 1.60, round 2: 2.01, round 3: 2.34, round 4: 2.63, round 5: 2.89, round 6 would reach 3.14 and does not run"
    )
    assert "attacker" not in rows


def test_near_the_cap(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        release(ledger, PLAN, number)
    rows = screen(ledger)
    reached = rounded_up(stated([ROUND.times(3)], DELTA))
    assert rows["spent"].startswith(f"epsilon {reached} of 3 (")
    assert f"from {reached} to" in rows["what happens next"]
    assert rows["read by"].startswith("PLD (dp-accounting)")
    assert rows["at other deltas"].startswith("1e-4: ")
    assert f"1e-5: {reached}" in rows["at other deltas"]
    prv = float(re.search(r"epsilon ([\d.]+) by PRV", rows["second opinion"])[1])
    assert prv == pytest.approx(float(reached), abs=0.03)
    assert rows["attacker"] == "at 1 false alarm in 100, at most 4 of 100 patients recognised"  # 3.6 is never said to be 3
    assert rows["rounds"] == "3 done of 30, 2 more fit"


def test_past_the_cap(ledger: Ledger) -> None:
    for number in range(1, 6):
        release(ledger, PLAN, number)
    rows = screen(ledger)
    assert rows["rounds"] == "5 done of 30, 0 more fit"
    assert rows["forecast"] == "round 6 would reach 3.14 and does not run"
    assert "stopped by itself" in rows["what happens next"]
    assert "st-anna, study 'lidc': spent" in rows["all"]


def test_before_anything_was_approved(tmp_path: Path) -> None:
    rows = screen(new_ledger(tmp_path))
    assert rows["what happens next"] == "No plan was approved yet: this hospital takes part in nothing."
    assert "no study: not approved" in rows["all"]
    assert set(rows) == {"what happens next", "spent", "ledger", "all"}


def test_a_paused_node_says_what_resuming_would_not_change(ledger: Ledger) -> None:
    release(ledger, PLAN, 1)
    ledger.pause("Dr Keller", "audit", at(20))
    rows = screen(ledger)
    assert rows["what happens next"] == "Dr Keller paused this node ('audit'): it goes on after `secagg-node resume`."
    assert rows["rounds"] == "1 done of 30, 4 more would fit"
    assert "paused the node" in rows["all"]
    ledger.lower_cap(Cap(epsilon=1.7, delta=DELTA), "Dr Keller", "board", at(21))
    assert "Even then: Round 2 would take epsilon from 1.60 to 2.01, above the cap" in screen(ledger)["what happens next"]
    ledger.withdraw(PLAN, "Dr Keller", "no", at(22))
    rows = screen(ledger)
    assert "Even then: Study 'lidc' waits for approval" in rows["what happens next"]
    assert "withdrew the approval of 'lidc'" in rows["all"]


def test_what_is_left_out_of_a_table_is_said(tmp_path: Path) -> None:
    public = make_plan(study="public", sigma=0)
    ledger = new_ledger(tmp_path)
    for _ in range(6):
        ledger.approve(public, "Dr Keller", "x", CAP, at(1), accept_no_guarantee=True, data_is_public=True)
    for number in range(1, 12):
        release(ledger, public, number)
    rows = screen(ledger)
    assert "Releases: the newest 10 of 11" in rows["all"]
    assert "Decisions: the newest 5 of 6" in rows["all"]


def test_a_release_whose_result_never_came_is_shown(ledger: Ledger) -> None:
    release(ledger, PLAN, 1)
    release(ledger, PLAN, 2, verified=False)
    assert [one.result_came for one in history(ledger.events())] == [True, False]
    assert re.findall(r"(came|none yet) +│", screen(ledger)["all"]) == ["came", "none yet"]


def test_a_cap_lowered_below_what_was_spent_is_not_said_to_have_been_kept(ledger: Ledger) -> None:
    release(ledger, PLAN, 1)
    ledger.lower_cap(Cap(epsilon=1.5, delta=DELTA), "Dr Keller", "board", at(20))
    assert screen(ledger)["spent"] == "epsilon 1.60 of 1.5 (0 % left) at delta 1e-5"
    assert "the cap kept so far (ε = 3) is the guarantee" in statement(ledger.events()).paragraph


def test_releases_and_decisions_of_the_whole_life(ledger: Ledger) -> None:
    for number in range(1, 4):
        release(ledger, PLAN, number)
    ledger.raise_cap(WIDE, "Dr Keller", "Dr Amsel", "board", at(20), confirmed_reason="the board agreed")
    second = make_plan(study="second")
    ledger.approve(second, "Dr Keller", "go on", WIDE, at(21))
    release(ledger, second, 1, minutes=22)
    rows = screen(ledger, second)
    assert [one.epsilon for one in history(ledger.events())] == [stated([ROUND.times(k)], DELTA) for k in (1, 2, 3, 4)]
    assert [one.study for one in history(ledger.events(), newest=2)] == ["lidc", "second"]
    assert "Dr Keller and Dr Amsel" in rows["all"]
    assert "raised the cap to epsilon 8 at delta 1e-5" in rows["all"]


def test_a_change_of_mechanism_is_explained_before_it_happens_and_labelled_after(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, WIDE)
    release(ledger, PLAN, 1)
    other = make_plan(study="second", sigma=2.5)
    ledger.approve(other, "Dr Keller", "less noise is needed", WIDE, at(20))
    before = screen(ledger, other)
    assert "From here on a Rényi filter decides" in before["what happens next"]
    assert re.search(r"it reads what was spent so far as 4\.\d\d instead of 1\.60", before["what happens next"])
    assert "by PLD" not in before["all"]
    assert before["read by"].startswith("PLD")
    release(ledger, other, 1, minutes=21)
    after = screen(ledger, other)
    view = ledger.budget(other)
    assert "From here on" not in after["what happens next"]
    assert after["read by"].startswith("a Rényi filter at one order")
    assert after["spent"].startswith(f"epsilon {rounded_up(view.spent)} of 8")
    assert after["as if fixed in advance"].startswith(f"epsilon {rounded_up(view.non_adaptive)} by PLD, epsilon ")
    assert after["attacker"].endswith("(as if fixed in advance)")
    assert re.search(r"1\.60 by PLD .*\n.*\n.*4\.\d\d by the filter", after["all"])


def test_scores_of_own_patients_stand_with_their_round_in_both_opinions(tmp_path: Path) -> None:
    part = Evaluation(every=2, share=0.25, noise_multiplier=6.0)
    plan = make_plan(attends=2).model_copy(update={"evaluation": part})
    ledger = new_ledger(tmp_path, plan, WIDE)
    for number in (1, 2):
        release(ledger, plan, number)
    rows, paid = screen(ledger, plan), [ROUND.times(2), Mechanism(6.0, 1.0, 2)]  # evaluations are counted first: cap.py
    assert rows["spent"].startswith(f"epsilon {rounded_up(stated(paid, DELTA))} of 8")
    prv = float(re.search(r"epsilon ([\d.]+) by PRV", rows["second opinion"])[1])
    assert prv == pytest.approx(stated(paid, DELTA), abs=0.03)
    assert prv > stated(paid[:1], DELTA) + 0.03
    both = rounded_up(stated([one.times(2) for one in paid], DELTA))
    assert rows["a patient of 2 hospitals"].startswith(f"epsilon {both}, composed")
    assert [(one.steps, one.scores) for one in history(ledger.events())] == [(20, False), (20, True)]
    assert "20 and scores" in rows["all"]


def test_without_noise_there_is_no_figure(tmp_path: Path) -> None:
    public = make_plan(study="public", sigma=0)
    ledger = new_ledger(tmp_path)
    ledger.approve(public, "Dr Keller", "reference", CAP, at(1), accept_no_guarantee=True, data_is_public=True)
    release(ledger, public, 1)
    rows = screen(ledger)
    assert rows["spent"] == "no guarantee: a release left without noise"
    assert set(rows) & {"attacker", "forecast", "second opinion", "at other deltas"} == set()


@settings(max_examples=8)
@given(rounds=st.integers(1, 4), mixed=st.booleans(), delta=st.sampled_from([1e-5, 1e-6]))
def test_page_paragraph_table_and_command_say_one_figure(
    tmp_path_factory: pytest.TempPathFactory, rounds: int, mixed: bool, delta: float
) -> None:
    """One history, one epsilon: wherever it stands, it is the reading that decides, at the cap's delta, rounded up."""
    cap = Cap(epsilon=20, delta=delta)
    ledger = new_ledger(tmp_path_factory.mktemp("one"), PLAN, cap)
    for number in range(1, rounds + 1):
        release(ledger, PLAN, number)
    if mixed:
        other = make_plan(study="second", sigma=2.0)
        ledger.approve(other, "Dr Keller", "x", cap, at(20))
        release(ledger, other, 1, minutes=21)
    view, made = ledger.budget(), statement(ledger.events())
    said = rounded_up(view.spent)
    fields = {field.label: field.value for field in made.fields}
    assert fields["epsilon"] == said
    assert fields["non-adaptive reading"] == rounded_up(view.non_adaptive)
    assert rounded_up(dict(made.profile)[delta]) == rounded_up(view.non_adaptive)
    assert rounded_up(history(ledger.events())[-1].epsilon) == said
    assert rounded_up(view.by_round[-1][1]) == said
    assert screen(ledger)["spent"].startswith(f"epsilon {said} of 20")
    assert f"from {said} to" in view.sentence
    if mixed:
        assert f"has read ε = {said} of it so far" in made.paragraph
        assert f"satisfies (ε = 20.00, δ = {plain(delta)})" in made.paragraph
    else:
        assert view.non_adaptive == view.spent
        assert f"satisfies (ε = {said}, δ = {plain(delta)})" in made.paragraph


def test_what_is_stated_is_a_bound_at_the_full_delta_too() -> None:
    for count in (1, 5, 30):
        tight = epsilon([ROUND.times(count)], DELTA)
        assert tight <= stated([ROUND.times(count)], DELTA) < tight + 0.01


# ---- the second opinion ----


def test_two_libraries_agree_and_a_difference_is_shouted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    release(ledger, PLAN, 1)
    assert "DISAGREE" not in screen(ledger)["second opinion"]
    monkeypatch.setattr("hospital_node.budget_screen.prv_epsilon", lambda *_: 0.9)
    assert "THE TWO ACCOUNTANTS DISAGREE; pause this node" in screen(ledger)["second opinion"]


def test_the_second_opinion_knows_its_limits() -> None:
    assert crosscheck.prv_epsilon([], DELTA) == 0
    assert crosscheck.prv_epsilon([Mechanism(0.0, 0.5, 1)], DELTA) == float("inf")
    assert crosscheck.prv_epsilon([Mechanism(0.5, 0.1, 2000)], DELTA) is None  # it would take minutes
    assert crosscheck.prv_epsilon([Mechanism(50.0, 0.01, crosscheck.MOST_STEPS + 1)], DELTA) is None
    assert crosscheck.agree(1.0, None)
    assert crosscheck.agree(float("inf"), float("inf"))
    assert not crosscheck.agree(1.0, float("inf"))
    assert not crosscheck.agree(5.0, 4.8)


@pytest.mark.parametrize(
    ("value", "shown"), [(1e-5, "1e-5"), (1e-4, "1e-4"), (2.5e-6, "2.5e-6"), (0.001, "1e-3"), (0.5, "5e-1")]
)
def test_a_delta_is_written_as_people_write_it(value: float, shown: str) -> None:
    assert plain(value) == shown
