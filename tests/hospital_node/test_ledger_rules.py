"""What the ledger allows and refuses: approval, cap, one release for each round, pauses, the clock."""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from ledger_world import CAP, DELTA, HOSPITAL, at, make_plan, new_ledger, release, session_id, update_id

from hospital_node import ledger as ledger_module
from hospital_node.ledger import (
    AlreadyReleased,
    BudgetExhausted,
    CannotRecord,
    Cap,
    Charge,
    ClockJumped,
    DecisionRefused,
    Ledger,
    LedgerDamaged,
    LedgerError,
    NotApproved,
    Paused,
)
from hospital_node.ledger_schema import Verified
from proto.plan import DECLINE_CODES

PLAN = make_plan()


def error_types() -> Iterator[type[LedgerError]]:
    for value in vars(ledger_module).values():
        if isinstance(value, type) and issubclass(value, LedgerError):
            yield value


@pytest.mark.parametrize("error", list(error_types()), ids=lambda error: error.__name__)
def test_every_refusal_has_a_code_that_may_leave(error: type[LedgerError]) -> None:
    assert error.code in DECLINE_CODES


def test_an_unapproved_plan_is_refused_with_the_remedy(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    with pytest.raises(NotApproved, match=r"No one at st-anna has approved plan .* of study 'lidc'.*secagg-node approve"):
        ledger.authorize(PLAN, 1)
    assert NotApproved.code == "not-approved"


def test_approval_holds_for_exactly_one_plan(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    ledger.authorize(PLAN, 1)
    with pytest.raises(NotApproved):
        ledger.authorize(PLAN.model_copy(update={"rounds": 31}), 1)


@pytest.mark.parametrize("round_number", [0, -1, 31])
def test_a_round_outside_of_the_approved_ones_is_refused(tmp_path: Path, round_number: int) -> None:
    with pytest.raises(NotApproved, match="approved 30 rounds"):
        new_ledger(tmp_path, PLAN).authorize(PLAN, round_number)


def test_a_withdrawn_approval_stops_the_study_and_refunds_nothing(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    release(ledger, PLAN, 1)
    spent = ledger.budget().spent
    asked = ledger.authorize(PLAN, 2)
    ledger.withdraw(PLAN, "Dr Keller", "ethics board", at(20))
    with pytest.raises(NotApproved):
        ledger.commit(asked, b"u" * 32, b"s" * 16, at(21))
    assert ledger.budget(PLAN).spent == spent > 0
    ledger.approve(PLAN, "Dr Keller", "board agreed", CAP, at(30))
    ledger.authorize(PLAN, 2)


def test_the_charge_says_what_was_done(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    receipt = release(ledger, PLAN, 1, verified=False)
    event = ledger.events()[-1]
    assert event.digest == receipt.head == ledger.head
    assert event.at == at(10)
    assert event.entry == Charge(
        plan=PLAN.digest().hex(),
        study="lidc",
        round=1,
        session=session_id(1).hex(),
        update_id=update_id(PLAN, 1).hex(),
        noise_multiplier=1.1,
        sampling_rate=0.05,
        steps=20,
        clip_norm=1.0,
        purpose="training",
        unit="patient",
        adjacency="add_or_remove_one",
    )


def test_authorizing_writes_and_reserves_nothing(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    head = ledger.head
    assert ledger.authorize(PLAN, 1) == ledger.authorize(PLAN, 1)
    assert ledger.head == head


def test_a_round_is_released_once(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    asked = ledger.authorize(PLAN, 1)
    ledger.commit(asked, b"a" * 32, b"s" * 16, at(2))
    head = ledger.head
    with pytest.raises(AlreadyReleased, match="Round 1 of study 'lidc'"):
        ledger.authorize(PLAN, 1)
    with pytest.raises(AlreadyReleased):
        ledger.commit(asked, b"b" * 32, b"t" * 16, at(3))
    assert ledger.head == head


def test_an_update_is_released_once_whatever_the_round(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    ledger.commit(ledger.authorize(PLAN, 1), b"a" * 32, b"s" * 16, at(2))
    asked = ledger.authorize(PLAN, 2)
    head = ledger.head
    with pytest.raises(AlreadyReleased, match="never sent again"):
        ledger.commit(asked, b"a" * 32, b"t" * 16, at(3))
    assert ledger.head == head


def rounds_by_prv(cap: float) -> int:
    """How many rounds of PLAN fit, by Opacus' accountant."""
    from opacus.accountants import PRVAccountant

    rounds = 0
    while True:
        accountant = PRVAccountant()
        accountant.history = [(1.1, 1 / 20, 20 * (rounds + 1))]
        if accountant.get_epsilon(DELTA) > cap:
            return rounds
        rounds += 1


@pytest.mark.parametrize("cap", [1.8, 2.75])  # each well between two rounds, so that the accountants must agree
def test_the_cap_stops_the_node_after_exactly_the_rounds_that_fit(tmp_path: Path, cap: float) -> None:
    expected = rounds_by_prv(cap)
    ledger = new_ledger(tmp_path, PLAN, Cap(epsilon=cap, delta=DELTA))
    assert ledger.budget().rounds_left == expected > 0
    for number in range(1, expected + 1):
        release(ledger, PLAN, number)
    with pytest.raises(BudgetExhausted, match=rf"Round {expected + 1} would take epsilon from .* above the cap of {cap:g}"):
        ledger.authorize(PLAN, expected + 1)
    view = ledger.budget()
    assert (view.state, view.rounds_left, view.rounds_done) == ("spent", 0, expected)
    assert view.spent <= cap


def test_the_cap_is_asked_again_when_the_charge_is_written(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, Cap(epsilon=1.7, delta=DELTA))  # one round
    first, second = ledger.authorize(PLAN, 1), ledger.authorize(PLAN, 2)
    ledger.commit(first, b"a" * 32, b"s" * 16, at(2))
    with pytest.raises(BudgetExhausted):
        ledger.commit(second, b"b" * 32, b"t" * 16, at(3))
    assert ledger.budget().rounds_done == 1


def test_lowering_the_cap_takes_effect_at_once(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    release(ledger, PLAN, 1)
    asked = ledger.authorize(PLAN, 2)
    ledger.lower_cap(Cap(epsilon=1.7, delta=DELTA), "Dr Keller", "enough", at(11))
    with pytest.raises(BudgetExhausted):
        ledger.commit(asked, b"b" * 32, b"t" * 16, at(12))
    with pytest.raises(BudgetExhausted):
        ledger.authorize(PLAN, 2)


@pytest.mark.parametrize("cap", [Cap(epsilon=3.1, delta=DELTA), Cap(epsilon=2.0, delta=1e-4)], ids=str)
def test_one_person_cannot_raise_the_cap_by_any_road(tmp_path: Path, cap: Cap) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    head = ledger.head
    with pytest.raises(DecisionRefused, match="not lower"):
        ledger.lower_cap(cap, "Dr Keller", "more rounds", at(2))
    for second in ("", "  ", "Dr Keller", " dr keller "):
        with pytest.raises(DecisionRefused, match="two different people"):
            ledger.raise_cap(cap, "Dr Keller", second, "more rounds", at(2), confirmed_reason="the board agreed")
        with pytest.raises(DecisionRefused, match="two different people"):
            ledger.approve(PLAN, "Dr Keller", "more rounds", cap, at(2), confirmed_by=second)
    assert ledger.head == head
    assert ledger.cap == CAP


def test_two_people_raise_the_cap_and_are_recorded(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, Cap(epsilon=1.7, delta=DELTA))
    release(ledger, PLAN, 1)
    ledger.raise_cap(CAP, "Dr Keller", "Dr Amsel", "board decision 12", at(11), confirmed_reason="the board agreed")
    ledger.authorize(PLAN, 2)
    entry = ledger.events()[-1].entry
    assert isinstance(entry, ledger_module.CapRaised)
    assert (entry.by, entry.confirmed_by, entry.reason) == ("Dr Keller", "Dr Amsel", "board decision 12")


@pytest.mark.parametrize("delta", [0.01, 0.5])
def test_a_delta_of_one_over_the_declared_size_is_refused(tmp_path: Path, delta: float) -> None:
    ledger = new_ledger(tmp_path)
    with pytest.raises(DecisionRefused, match="below 1/100"):
        ledger.approve(PLAN, "Dr Keller", "first study", Cap(epsilon=8, delta=delta), at(1))
    ledger.approve(PLAN, "Dr Keller", "first study", Cap(epsilon=8, delta=0.0099), at(1))
    with pytest.raises(DecisionRefused, match="below 1/100"):
        ledger.raise_cap(
            Cap(epsilon=8, delta=delta), "Dr Keller", "Dr Amsel", "more", at(2), confirmed_reason="the board agreed"
        )


@pytest.mark.parametrize(("by", "reason"), [("", "why"), ("  ", "why"), ("Dr Keller", ""), ("Dr Keller", " ")])
def test_decisions_need_a_person_and_a_reason(tmp_path: Path, by: str, reason: str) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    lower = Cap(epsilon=2, delta=DELTA)
    for decide in (
        lambda: ledger.approve(PLAN, by, reason, CAP, at(2)),
        lambda: ledger.withdraw(PLAN, by, reason, at(2)),
        lambda: ledger.lower_cap(lower, by, reason, at(2)),
        lambda: ledger.pause(by, reason, at(2)),
        lambda: ledger.resume(by, reason, at(2)),
        lambda: ledger.note(by, reason, at(2)),
    ):
        with pytest.raises(DecisionRefused, match="needs"):
            decide()
    assert len(ledger.events()) == 2


def test_a_hospital_that_the_plan_does_not_name_cannot_approve_it(tmp_path: Path) -> None:
    stranger = Ledger.create(tmp_path / "ledger.db", "secagg://lidc/hospital/elsewhere", at(0))
    with pytest.raises(DecisionRefused, match="elsewhere is not among the hospitals"):
        stranger.approve(PLAN, "Dr Keller", "first study", CAP, at(1))


def test_the_ledger_outlives_the_study(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    for number in (1, 2, 3):
        release(ledger, PLAN, number)
    later = make_plan(study="second", rounds=10)
    ledger.approve(later, "Dr Keller", "second study", CAP, at(20))
    assert ledger.budget(later).rounds_left == 2  # five rounds fit a life, three were spent
    release(ledger, later, 1, minutes=21)
    release(ledger, later, 2, minutes=22)
    with pytest.raises(BudgetExhausted):
        ledger.authorize(later, 3)
    with pytest.raises(BudgetExhausted):
        ledger.authorize(PLAN, 4)


def test_a_second_mechanism_is_judged_by_the_renyi_filter(tmp_path: Path) -> None:
    wide = Cap(epsilon=8, delta=DELTA)
    ledger = new_ledger(tmp_path, PLAN, wide)
    release(ledger, PLAN, 1)
    later = make_plan(study="second", sigma=2.0, rounds=400)
    ledger.approve(later, "Dr Keller", "second study", wide, at(20))
    assert ledger.authorize(later, 1).reading == "renyi"
    assert ledger.authorize(PLAN, 2).reading == "pld"  # still one kind in this ledger's life
    release(ledger, later, 1, minutes=21)
    assert ledger.authorize(PLAN, 2).reading == "renyi"
    view = ledger.budget(later)
    assert view.reading == "renyi"
    assert view.spent > view.non_adaptive
    assert 0 < view.rounds_left < 400


def test_the_renyi_order_is_fixed_by_the_first_approval(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN, Cap(epsilon=8, delta=DELTA))
    ledger.approve(make_plan(study="second", sigma=4.0), "Dr Keller", "second", Cap(epsilon=1, delta=DELTA), at(2))
    first, second = ledger.approvals()
    assert first.renyi_order == second.renyi_order


UNGUARDED = make_plan(study="public", sigma=0)


def test_a_plan_without_noise_is_approved_only_aloud_and_on_public_data(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    with pytest.raises(DecisionRefused, match=r"adds no noise.*accept-no-guarantee"):
        ledger.approve(UNGUARDED, "Dr Keller", "reference", CAP, at(1), data_is_public=True)
    with pytest.raises(DecisionRefused, match="public or synthetic"):
        ledger.approve(UNGUARDED, "Dr Keller", "reference", CAP, at(1), accept_no_guarantee=True)
    ledger.approve(UNGUARDED, "Dr Keller", "reference", CAP, at(1), accept_no_guarantee=True, data_is_public=True)
    release(ledger, UNGUARDED, 1)
    release(ledger, UNGUARDED, 2)
    view = ledger.budget()
    assert (view.state, view.spent, view.recognised) == ("no guarantee", float("inf"), 1.0)
    assert view.left == 0


def test_private_patients_are_never_released_without_noise(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)  # approved as private
    with pytest.raises(DecisionRefused, match="as private data"):
        ledger.approve(UNGUARDED, "Dr K", "reference", CAP, at(2), accept_no_guarantee=True, data_is_public=True)


def test_a_later_private_approval_stops_a_plan_without_noise(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    ledger.approve(UNGUARDED, "Dr Keller", "reference", CAP, at(1), accept_no_guarantee=True, data_is_public=True)
    asked = ledger.authorize(UNGUARDED, 1)
    ledger.approve(PLAN, "Dr Keller", "patients joined", CAP, at(2))
    with pytest.raises(DecisionRefused, match="as private data"):
        ledger.commit(asked, b"a" * 32, b"s" * 16, at(3))


def test_after_a_release_without_noise_no_epsilon_is_ever_finite_again(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    ledger.approve(UNGUARDED, "Dr Keller", "reference", CAP, at(1), accept_no_guarantee=True, data_is_public=True)
    release(ledger, UNGUARDED, 1)
    ledger.approve(PLAN, "Dr Keller", "with noise", CAP, at(20), data_is_public=True)
    with pytest.raises(BudgetExhausted, match="Round 1 of study 'public' was released without noise"):
        ledger.authorize(PLAN, 1)
    view = ledger.budget(PLAN)
    assert (view.state, view.spent, view.next_epsilon, view.rounds_left) == ("no guarantee", float("inf"), float("inf"), 0)


def test_people_pause_and_resume(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    asked = ledger.authorize(PLAN, 1)
    ledger.pause("Dr Keller", "scanner under repair", at(2))
    with pytest.raises(Paused, match=r"Dr Keller paused this node \('scanner under repair'\).*secagg-node resume"):
        ledger.authorize(PLAN, 1)
    with pytest.raises(Paused):
        ledger.commit(asked, b"a" * 32, b"s" * 16, at(3))
    assert ledger.budget().state == "paused"
    ledger.resume("Dr Keller", "repaired", at(4))
    ledger.commit(asked, b"a" * 32, b"s" * 16, at(5))


def test_two_releases_without_a_result_pause_the_node(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    release(ledger, PLAN, 1, verified=False)
    release(ledger, PLAN, 2, verified=False)
    with pytest.raises(Paused, match="2 releases in a row"):
        ledger.authorize(PLAN, 3)
    ledger.resume("Dr Keller", "the coordinator was repaired", at(20))
    release(ledger, PLAN, 3, verified=False, minutes=21)
    ledger.authorize(PLAN, 4)


def test_a_verified_result_between_them_resets_the_count(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    release(ledger, PLAN, 1, verified=False)
    release(ledger, PLAN, 2, verified=True)
    release(ledger, PLAN, 3, verified=False)
    ledger.authorize(PLAN, 4)


def test_a_result_is_recorded_once_and_only_for_a_release(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    with pytest.raises(DecisionRefused, match="never released"):
        ledger.record_verified(PLAN, 1, at(2))
    release(ledger, PLAN, 1)
    head = ledger.head
    ledger.record_verified(PLAN, 1, at(30))
    ledger.record_result_of(charges_of(ledger)[0], at(30))
    assert ledger.head == head


def test_a_result_is_recorded_for_a_charge_whose_plan_is_not_at_hand(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    release(ledger, PLAN, 1, verified=False)
    (charge,) = charges_of(ledger)
    with pytest.raises(DecisionRefused, match="Round 2 of study 'lidc' was never released"):
        ledger.record_result_of(dataclasses.replace(charge, round=2), at(20))
    ledger.record_result_of(charge, at(20))
    assert ledger.events()[-1].entry == Verified(plan=PLAN.digest().hex(), round=1)


def charges_of(ledger: Ledger) -> list[Charge]:
    return [event.entry for event in ledger.events() if isinstance(event.entry, Charge)]


def test_a_clock_that_jumps_back_stops_the_node_before_anything_leaves(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    asked = ledger.authorize(PLAN, 1)
    with pytest.raises(ClockJumped, match=r"2026-11-21 07:00 UTC.*2026-11-21 08:01 UTC: set the clock"):
        ledger.commit(asked, b"a" * 32, b"s" * 16, at(-60))
    assert ledger.budget().rounds_done == 0
    ledger.commit(asked, b"a" * 32, b"s" * 16, at(1) - timedelta(minutes=5))  # what a time server does


def test_times_without_a_zone_are_refused(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    with pytest.raises(ValueError, match="time zone"):
        ledger.note("Dr Keller", "noon", datetime(2026, 11, 21, 12))  # noqa: DTZ001


def test_receipts_differ_by_study_and_by_hospital_and_hide_the_head(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = new_ledger(tmp_path / "a", PLAN), new_ledger(tmp_path / "b", PLAN)
    receipt = release(one, PLAN, 1)
    assert receipt.hmac not in {receipt.head, release(other, PLAN, 1).hmac}
    assert receipt.hmac == hmac.digest(one._files.receipt_key("lidc"), receipt.head, "sha256")
    assert one._files.receipt_key("lidc") != one._files.receipt_key("second")


def test_an_authorization_of_another_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    asked = new_ledger(tmp_path / "a", PLAN).authorize(PLAN, 1)
    other = new_ledger(tmp_path / "b", PLAN)
    with pytest.raises(LedgerDamaged, match="exchanged for another"):
        other.commit(asked, b"a" * 32, b"s" * 16, at(2))


def test_a_forged_authorization_buys_nothing(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    asked = ledger.authorize(PLAN, 1)
    cheap = dataclasses.replace(asked, mechanism=dataclasses.replace(asked.mechanism, steps=1))
    ledger.commit(cheap, b"a" * 32, b"s" * 16, at(2))
    charge = ledger.events()[-1].entry
    assert isinstance(charge, Charge)
    assert charge.steps == 20  # from the approval, not from what the caller holds


def test_reading_only_means_reading_only(tmp_path: Path) -> None:
    new_ledger(tmp_path, PLAN)
    reader = Ledger.open_readonly(tmp_path / "ledger.db")
    assert reader.hospital == "st-anna"
    assert reader.authorize(PLAN, 1).round == 1
    before = (tmp_path / "ledger.db").read_bytes()
    for write in (
        lambda: reader.note("Dr Keller", "x", at(2)),
        lambda: reader.commit(reader.authorize(PLAN, 1), b"a" * 32, b"s" * 16, at(2)),
        lambda: reader.approve(PLAN, "Dr Keller", "again", CAP, at(2)),
    ):
        with pytest.raises(CannotRecord, match="reading only"):
            write()
    assert (tmp_path / "ledger.db").read_bytes() == before


def test_the_hospital_is_named_without_its_study(tmp_path: Path) -> None:
    assert HOSPITAL.endswith("/st-anna")
    assert new_ledger(tmp_path).hospital == "st-anna"
