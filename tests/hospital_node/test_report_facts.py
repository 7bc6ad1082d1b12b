"""A report says what the ledger's entries say, and nothing else: every figure and every sentence follows from a fact."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import make_plan
from report_world import AT, CAP, changed_plan, charge_of, entries_of, events_of, facts_of, with_evaluation, with_shared_noise

from hospital_node.budget import budget_view
from hospital_node.cap import plain, rounded_up
from hospital_node.ledger import Cap
from hospital_node.ledger_schema import CapLowered, Hold, Resume
from hospital_node.reporting.annexes import annexes, percent_up
from hospital_node.reporting.facts import Facts, report_of
from hospital_node.reporting.model import PrivacyReport, bytes_of, read_report, section_digests
from hospital_node.statement import statement
from proto.plan import Plan

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def usual(charged: int = 2, **fields: Any) -> Facts:
    plan = make_plan()
    return facts_of(entries_of(plan, charged), plan, **fields)


@cache
def usual_report() -> PrivacyReport:
    return report_of(usual())


def test_the_figures_are_those_of_the_budget_and_the_statement() -> None:
    facts, report = usual(), usual_report()
    view, said = budget_view(facts.events, facts.plan), statement(facts.events, facts.plan)
    assert report.guarantee.epsilon == view.spent
    assert report.guarantee.stated_epsilon == rounded_up(view.spent)
    assert report.guarantee.delta == view.delta == CAP.delta
    assert (report.budget.epsilon, report.budget.left, report.budget.rounds_left) == (8.0, view.left, view.rounds_left)
    assert report.statement.paragraph == said.paragraph
    assert [one.text for one in report.assumptions] == [one.text for one in said.assumptions]
    assert [(one.round, one.epsilon) for one in report.course.spent] == list(view.by_round)
    assert report.releases[-1].epsilon == view.spent
    assert report.as_of.ledger_head == f"sha256:{facts.events[-1].digest.hex()}"
    assert (report.composition.releases, report.mechanisms[0].steps) == (2, 4)


def test_the_report_comes_back_from_its_bytes_and_a_second_writing_is_equal() -> None:
    data = bytes_of(usual_report())
    assert read_report(data) == usual_report()
    assert bytes_of(report_of(usual())) == data
    assert list(json.loads(data)) == sorted(json.loads(data))
    assert usual_report().digests == section_digests(json.loads(data))


def test_what_is_uncovered_is_listed_from_the_table_of_what_leaves() -> None:
    report = usual_report()
    assert report.unprotected_quantities == tuple(row.item for row in report.leaves if row.covered == "no")
    assert "duration of training" in report.unprotected_quantities
    plan = make_plan(ready_after_s=60.0)
    hidden = report_of(facts_of(entries_of(plan, 1), plan))
    assert "duration of training" not in hidden.unprotected_quantities


def test_without_noise_there_is_no_epsilon_anywhere() -> None:
    plan = make_plan(sigma=0)
    report = report_of(facts_of(entries_of(plan, 1), plan))
    assert report.guarantee.no_guarantee
    assert report.guarantee.epsilon is None
    assert {one.epsilon for one in report.guarantee.profile} == {None}
    assert "Infinity" not in bytes_of(report).decode()
    assert "has no guarantee" in report.statement.paragraph
    assert report.subject.data_is_public


def test_a_ledger_without_a_plan_or_a_release_has_a_report_of_its_own() -> None:
    bare = report_of(facts_of(entries_of(make_plan(), 0)[:1], None, leaves=None))
    assert bare.report_id == "h0-none-0001"
    assert (bare.mechanisms, bare.leaves, bare.masking) == ((), (), None)
    assert bare.statement.paragraph == "Nothing computed from patients has left h0 so far."


# ---- every sentence follows from a fact ----


def in_models_words(report: PrivacyReport) -> set[str]:
    """Every number of the report's structured sections, in each form in which sentences write one."""
    fields = report.model_dump(mode="json")
    for own in ("statement", "digests", "changes", "state"):
        del fields[own]
    found: set[str] = set()
    for value in leaves_of(fields):
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, str):
            found |= set(NUMBER.findall(value))
            continue
        written = {f"{value:g}", f"{value:.4g}", rounded_up(value), plain(value) if value else "0", percent_up(value)}
        found |= {number for text in written | {f"{100 * value:g}", f"{100 * value:.1f}"} for number in NUMBER.findall(text)}
    return found


def leaves_of(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for one in value.values():
            yield from leaves_of(one)
    elif isinstance(value, list | tuple):
        yield len(value)
        for one in value:
            yield from leaves_of(one)
    else:
        yield value


def plans() -> st.SearchStrategy[Plan]:
    """Few values of each field, so that the accountant answers most questions from memory."""
    made = st.builds(
        lambda sigma, rate, steps, clip, attends: changed_plan(
            make_plan(sigma=sigma),
            privacy__inverse_sampling_rate=rate,
            training__local_steps=steps,
            privacy__clip_norm=clip,
            privacy__hospitals_per_patient=attends,
        ),
        st.sampled_from([2.5, 4.0]),
        st.sampled_from([4, 7]),
        st.sampled_from([2, 3]),
        st.sampled_from([0.5, 1.25]),
        st.sampled_from([1, 3]),
    )
    return st.one_of(made, made.map(with_evaluation))


@settings(max_examples=12)
@given(plan=plans(), charged=st.integers(0, 2), cap=st.sampled_from([Cap(epsilon=9.5, delta=1e-5), Cap(epsilon=7, delta=1e-6)]))
def test_no_sentence_states_a_number_that_is_not_a_fact_of_the_report(plan: Plan, charged: int, cap: Cap) -> None:
    report = report_of(facts_of(entries_of(plan, charged, cap), plan))
    known = in_models_words(report)
    texts = [report.statement.paragraph]
    texts += [text for annex in annexes(report)[:3] for _, text in annex.rows]
    for text in texts:
        assert set(NUMBER.findall(text)) <= known | {"1"}, (text, set(NUMBER.findall(text)) - known)


def lowered(facts: Facts) -> Facts:
    entries = [event.entry for event in facts.events]
    cap = CapLowered(cap=Cap(epsilon=7.5, delta=1e-5), by="Dr Keller", reason="less")
    plan = facts.plan
    assert plan is not None
    return replace(facts, events=events_of([*entries[:2], cap, *entries[2:], charge_of(plan, 3)]))


def with_plan(**fields: Any) -> Callable[[Facts], Facts]:
    def change(_: Facts) -> Facts:
        plan = changed_plan(make_plan(), **fields)
        return facts_of(entries_of(plan, 2), plan)

    return change


def other_study(facts: Facts) -> Facts:
    """A second study on the same patients, with other noise: from then on a filter decides, and the cap is the guarantee."""
    plan, second = make_plan(), changed_plan(make_plan(sigma=6.0), rounds=3)
    entries = [event.entry for event in entries_of(plan, 2)] + [event.entry for event in entries_of(second, 1)][1:]
    return replace(facts, events=events_of(entries), plan=second)


CHANGES: dict[str, tuple[Callable[[Facts], Facts], str, str]] = {
    # what changes: how, the section that holds the fact, what the paragraph then says
    "rounds": (lambda _: usual(charged=3), "composition", "round 3 of study"),
    "noise": (with_plan(privacy__noise_multiplier=5.0), "mechanisms", "noise multiplier 5 "),
    "rate": (with_plan(privacy__inverse_sampling_rate=5), "mechanisms", "at rate 0.2 "),
    "steps": (with_plan(training__local_steps=3), "mechanisms", "for 6 steps"),
    "clip": (with_plan(privacy__clip_norm=2.0), "mechanisms", "clipping norm 2."),
    "hospitals": (with_plan(privacy__hospitals_per_patient=2), "composition", "attends 2 hospitals"),
    "evaluation": (
        lambda _: facts_of(entries_of(with_evaluation(make_plan()), 2), with_evaluation(make_plan())),
        "mechanisms",
        "2 noised sums of scores",
    ),
    "shared noise": (
        lambda _: facts_of(entries_of(with_shared_noise(make_plan()), 2), with_shared_noise(make_plan())),
        "trust",
        "keeping their noise to themselves (3 of 4)",
    ),
    "no noise": (
        lambda _: facts_of(entries_of(make_plan(sigma=0), 1), make_plan(sigma=0)),
        "guarantee",
        "has no guarantee",
    ),
    "delta": (lambda f: replace(f, events=entries_of(make_plan(), 2, Cap(epsilon=8, delta=1e-6))), "guarantee", "δ = 1e-6"),
    "cap": (lambda f: replace(f, events=entries_of(make_plan(), 2, Cap(epsilon=9, delta=1e-5))), "budget", "(ε = 9)"),
    "a lower cap": (lowered, "budget", "round 3 of study"),
    "the filter": (other_study, "guarantee", "which a Rényi filter enforces"),
    "nothing sent": (lambda _: usual(charged=0), "composition", "Nothing computed from patients has left h0"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_where_a_fact_changes_its_section_and_the_statement_change(name: str) -> None:
    change, section, says = CHANGES[name]
    before, now = usual_report(), report_of(change(usual()))
    assert says in now.statement.paragraph
    assert says not in before.statement.paragraph
    assert before.digests[section] != now.digests[section]
    assert before.digests["statement"] != now.digests["statement"]


def test_what_is_not_the_statements_business_leaves_it_alone() -> None:
    before, now = usual_report(), report_of(usual(number=2, prv=3.0))
    assert before.digests["statement"] == now.digests["statement"]
    assert now.guarantee.cross_check.epsilon == 3.0


def test_where_noise_is_shared_the_report_says_on_whom_it_rests_in_every_part() -> None:
    plan = with_shared_noise(make_plan())
    before, now = (report_of(facts_of(entries_of(plan, charged), plan)) for charged in (0, 2))
    assert (before.trust.relies_on_masking, before.guarantee.reliance) == (False, None)
    assert now.trust.relies_on_masking
    assert now.guarantee.accountant.name == "orders"
    assert now.mechanisms[0].noise_of == "the hospitals together"
    relies = now.guarantee.reliance
    assert relies is not None
    assert (relies.colluders, relies.honest) == (1, 3)
    assert "where 2 of them keep their noise" in now.trust.actors[2].trusted_for, "and this hospital itself"
    assert relies.sentence in now.statement.paragraph
    assert relies.sentence in dict(annexes(now)[2].rows)["Epsilon"]
    assert "holds all the same" not in dict(annexes(now)[2].rows)["Trust model"]


# ---- changes since the last report ----


def since(now: Facts) -> tuple[str, ...]:
    before = usual_report()
    return report_of(replace(now, number=2, previous=before, previous_sha256="0" * 64)).changes.lines


def test_the_first_report_says_that_it_is_one() -> None:
    assert usual_report().changes.lines == ("This is the first report that this node has kept.",)


def test_an_unchanged_ledger_changes_nothing() -> None:
    assert since(usual()) == ("Nothing that this report states has changed.",)


def test_changes_name_both_figures() -> None:
    lines = since(usual(charged=3))
    was, became = (usual_report().guarantee.stated_epsilon, report_of(usual(charged=3)).guarantee.stated_epsilon)
    assert lines[:2] == ("1 further release charged, 3 in all.", f"Epsilon was {was} and is {became}, at delta 1e-5.")
    held = usual()
    entries = [event.entry for event in held.events]
    paused = replace(held, events=events_of([*entries, Hold(by="Dr Keller", reason="audit")]))
    assert "The state was 'within budget' and is 'paused'." in since(paused)
    assert any("is of another ledger" in line for line in since(usual(charged=1)))


def test_decisions_are_listed_with_their_entries() -> None:
    facts = usual()
    entries = [event.entry for event in facts.events]
    more = [Hold(by="Dr Keller", reason="audit"), Resume(by="Dr Keller", reason="done")]
    report = report_of(replace(facts, events=events_of([*entries, *more]), at=AT))
    assert [(row.who, row.what, row.why) for row in report.decisions] == [
        ("Dr Keller", "approved study 'lidc', at most 5 rounds, cap ε 8 at δ 1e-5", "board decision"),
        ("Dr Keller", "paused the node", "audit"),
        ("Dr Keller", "let the node go on", "done"),
    ]
