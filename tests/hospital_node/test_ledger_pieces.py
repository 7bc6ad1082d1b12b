"""A ledger in packed pieces answers as the plain list of its entries does, whatever they are and wherever a piece ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import CAP, DELTA, at, make_plan

from hospital_node import ledger_chain, ledger_decisions
from hospital_node import ledger_rules as rules
from hospital_node.cap import Cap, CapFilter
from hospital_node.ledger_chain import Chain, Event, decisions, read_chain, until
from hospital_node.ledger_errors import AlreadyReleased
from hospital_node.ledger_schema import (
    BEFORE_FIRST,
    Approved,
    CapLowered,
    Charge,
    Created,
    Entry,
    Evaluated,
    Hold,
    Note,
    PatientWithdrawn,
    Resume,
    Row,
    Verified,
    Withdrawn,
    make_row,
)
from hospital_node.withdrawal import withdrawn_in
from proto.evaluation import sensitivity
from proto.plan import Evaluation, Plan

SMALL_PIECE = 3
PLAIN = make_plan()
EVALUATING = make_plan(sigma=1.3, steps=7).model_copy(
    update={"evaluation": Evaluation(every=2, share=0.25, noise_multiplier=6.0)}
)
FIRST = (Event(1, 0, Created(hospital="st-anna", ledger_id="0" * 32), bytes(32)),)
LEDGER = iter(range(10**6))


def approved(plan: Plan) -> Approved:
    return ledger_decisions.approve_entry(
        FIRST, plan, CAP, by="Dr Keller", confirmed_by="", reason="a study", accept_no_guarantee=False, data_is_public=False
    )


def charge(plan: Plan, number: int, update: int) -> Charge:
    evaluated = Evaluated(noise_multiplier=6.0, sensitivity=sensitivity(1)) if plan.evaluation and number % 2 == 0 else None
    return Charge(
        plan=plan.digest().hex(),
        study=plan.study,
        round=number,
        session=number.to_bytes(16, "big").hex(),
        update_id=update.to_bytes(32, "big").hex(),
        noise_multiplier=plan.privacy.noise_multiplier,
        sampling_rate=1 / plan.privacy.inverse_sampling_rate,
        steps=plan.training.local_steps,
        clip_norm=plan.privacy.clip_norm,
        evaluation=evaluated,
    )


def after(kinds: list[tuple[str, int]]) -> list[Entry]:
    """Both plans approved, and then these, each round of a plan charged once."""
    entries: list[Entry] = [approved(PLAIN), approved(EVALUATING)]
    charged = {"plain": 0, "evaluating": 0}
    plans = {"plain": PLAIN, "evaluating": EVALUATING}
    for place, (kind, which) in enumerate(kinds):
        name = "plain" if which % 2 else "evaluating"
        plan = plans[name].digest().hex()
        if kind == "charge":
            charged[name] += 1
            entries.append(charge(plans[name], charged[name], place + 1))
        else:
            decided: dict[str, Entry] = {
                "verified": Verified(plan=plan, round=which + 1),
                "withdrawn": Withdrawn(plan=plan, by="a", reason="b"),
                "approved": approved(plans[name]),
                "lowered": CapLowered(cap=Cap(epsilon=1.0 + which, delta=DELTA), by="a", reason="b"),
                "hold": Hold(by="a", reason="b"),
                "resume": Resume(by="a", reason="b"),
                "note": Note(by="a", text="two\nlines"),
                "patient": PatientWithdrawn(code="0" * 64, salt="1" * 32, key_check="2" * 32, by="a", reason="b"),
            }
            entries.append(decided[kind])
    return entries


def rows_of(entries: list[Entry]) -> list[Row]:
    rows = [make_row(1, at(0), Created(hospital="st-anna", ledger_id=f"{next(LEDGER):032x}"), BEFORE_FIRST)]
    for entry in entries:
        rows.append(make_row(len(rows) + 1, at(len(rows)), entry, rows[-1].digest))
    return rows


KINDS = ("charge", "charge", "verified", "withdrawn", "approved", "lowered", "hold", "resume", "note", "patient")
histories = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5)), max_size=20)


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_chain, "PIECE", SMALL_PIECE)
        yield


def known(events: Any, update_id: str) -> str:
    """The words of the refusal, if there is one."""
    try:
        rules.refuse_known_update(events, update_id)
    except AlreadyReleased as error:
        return str(error)
    return ""


QUESTIONS: tuple[Callable[[Any], object], ...] = (
    rules.held_by,
    rules.open_releases,
    rules.charges,
    rules.releases,
    rules.runs,
    rules.current_cap,
    rules.guaranteed_cap,
    rules.agreed_by,
    rules.filter_order,
    rules.hospitals_per_patient,
    rules.across_hospitals,
    withdrawn_in,
    lambda events: rules.approval_of(events, PLAIN.digest().hex()),
    lambda events: tuple(decisions(events)),
    lambda events: tuple(rules.is_charged(events, EVALUATING.digest().hex(), number) for number in range(8)),
    lambda events: tuple(rules.is_verified(events, PLAIN.digest().hex(), number) for number in range(8)),
    lambda events: tuple(known(events, f"{number:064x}") for number in range(22)),
)


@settings(max_examples=60, deadline=None)
@given(histories)
def test_every_question_has_the_answer_of_the_plain_list(kinds: list[tuple[str, int]]) -> None:
    chain = read_chain(rows_of(after(kinds)))
    plain = tuple(chain)
    assert [event.entry for event in plain][1:] == after(kinds)
    for ask in QUESTIONS:
        assert ask(chain) == ask(plain)


@settings(max_examples=30, deadline=None)
@given(histories, st.data())
def test_a_history_read_in_two_goes_is_the_one_read_at_once(kinds: list[tuple[str, int]], data: st.DataObject) -> None:
    rows = rows_of(after(kinds))
    cut = data.draw(st.integers(1, len(rows)))
    whole = read_chain(rows)
    begun = read_chain(rows[:cut])
    assert (tuple(begun), tuple(whole)) == (tuple(whole)[:cut], tuple(read_chain(rows)))
    assert read_chain(rows) == whole
    assert tuple(until(whole, cut)) == tuple(begun)
    assert until(whole, cut) == begun
    assert rules.runs(until(whole, cut)) == rules.runs(tuple(begun))


@settings(max_examples=30, deadline=None)
@given(histories)
def test_runs_cost_what_their_releases_do(kinds: list[tuple[str, int]]) -> None:
    chain = read_chain(rows_of(after(kinds)))
    judge = CapFilter(delta=DELTA, order=rules.filter_order(chain) or 2)
    one_by_one, together = rules.releases(chain), rules.runs(chain)
    assert sum(release.rounds for release in together) == len(one_by_one)
    assert judge.kind(together) == judge.kind(one_by_one)
    for kind in ("pld", "renyi"):
        assert judge.spent(together, kind) == judge.spent(one_by_one, kind)  # type: ignore[arg-type]


def test_an_update_is_known_in_every_piece_and_one_like_it_is_not() -> None:
    chain = read_chain(rows_of([approved(PLAIN), *(charge(PLAIN, number, number) for number in range(1, 12))]))
    for number in range(1, 12):
        with pytest.raises(AlreadyReleased, match=f"round {number} of"):
            rules.refuse_known_update(chain, f"{number:064x}")
    rules.refuse_known_update(chain, f"{12:064x}")  # begins like all of them


def test_a_full_piece_is_shared_and_not_made_again() -> None:
    rows = rows_of([approved(PLAIN), *(charge(PLAIN, number, number) for number in range(1, 9))])
    shorter, longer = read_chain(rows[:7]), read_chain(rows)
    assert isinstance(shorter, Chain)
    assert [piece is other for piece, other in zip(shorter._pieces, longer._pieces, strict=False)] == [True, True]
