"""A party's own policy: effective cohorts against brute force, and each demand on a session."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_round import Federation, small_params

from secagg import LocalError, Policy, RemoteError, TooFewSurvivors, effective_cohort
from secagg.policy import check_cohort, check_session, policy_of

NAMES = ("a", "b", "c", "d", "e")
PARAMS = Federation(small_params(NAMES, 4)).params
POLICY = policy_of(PARAMS)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(0, 9))
def test_effective_cohort_is_the_worst_removal(weights, colluders):
    kept = len(weights) - colluders
    worst = (
        min((sum(rest) ** 2 / sum(w * w for w in rest) for rest in combinations(weights, kept)), default=0.0)
        if kept > 0
        else 0.0
    )
    assert effective_cohort(weights, colluders) == worst


@pytest.mark.parametrize(("weights", "effective"), [((1, 1, 1), 3.0), ((1000, 1, 1), 1.004), ((5, 5, 1), 121 / 51)])
def test_effective_cohort_by_hand(weights, effective):
    assert effective_cohort(weights, 0) == pytest.approx(effective, rel=1e-3)


def test_a_fitting_session_is_accepted():
    check_session(PARAMS, "a", POLICY)


@pytest.mark.parametrize("pins", [{}, {**POLICY.pinned, "b": bytes(32)}])
def test_a_key_that_nobody_confirmed_is_refused(pins):
    with pytest.raises(RemoteError, match="compare fingerprints") as caught:
        check_session(PARAMS, "a", replace(POLICY, pinned=pins))
    assert (caught.value.code, caught.value.party) == ("unpinned-key", "unknown")


def test_more_colluders_than_the_threshold_withstands_are_refused():
    check_session(PARAMS, "a", replace(POLICY, max_colluders=2, minimum_cohort=2))
    with pytest.raises(RemoteError, match="withstands 2 colluders") as caught:
        check_session(PARAMS, "a", replace(POLICY, max_colluders=3))
    assert caught.value.code == "policy"


def test_another_protocol_version_is_refused():
    with pytest.raises(RemoteError, match="version 2"):
        check_session(replace(PARAMS, protocol_version=2), "a", POLICY)


def test_a_cohort_below_the_own_minimum_is_refused():
    with pytest.raises(TooFewSurvivors) as caught:
        check_session(PARAMS, "a", replace(POLICY, minimum_cohort=6))
    assert caught.value.phase == "advertise"


def test_weights_that_isolate_one_hospital_are_refused():
    heavy = replace(PARAMS, weights=(1, 1, 50, 1, 1))
    with pytest.raises(TooFewSurvivors, match="equal members"):
        check_session(heavy, "a", POLICY)


def test_colluders_can_hide_the_isolation():
    even_enough = replace(PARAMS, weights=(10, 10, 10, 1, 1))  # 3.4 as they are, 1.2 with two of the large ones colluding
    check_cohort(even_enough, NAMES, "a", replace(POLICY, minimum_cohort=3, max_colluders=0), "confirm")
    with pytest.raises(TooFewSurvivors, match="without 2 colluders"):
        check_cohort(even_enough, NAMES, "a", replace(POLICY, minimum_cohort=3, max_colluders=2), "confirm")


def test_the_floor_of_the_effective_cohort():
    assert Policy({}, minimum_cohort=5, max_colluders=1).effective_floor == 4
    assert Policy({}, minimum_cohort=3, max_colluders=2).effective_floor == 2
    assert Policy({}, minimum_cohort=3, max_colluders=2, minimum_effective=2.5).effective_floor == 2.5
    for cohort, colluders in ((1, 0), (3, -1)):
        with pytest.raises(LocalError):
            Policy({}, cohort, colluders)


def test_members_with_another_base_model_do_not_count_as_company():
    bases = (b"x" * 32, b"x" * 32, b"y" * 32, b"y" * 32, b"y" * 32)
    parked = replace(PARAMS, base_digests=bases)
    check_cohort(parked, NAMES, None, POLICY, "share")
    with pytest.raises(TooFewSurvivors, match="2 members are left with this member's own model, beside 3 with others,"):
        check_session(parked, "a", POLICY)
    with pytest.raises(RemoteError, match="local noise"):
        check_session(replace(parked, noise_mode="central"), "c", POLICY)


def test_the_own_key_needs_no_pin():
    check_session(PARAMS, "a", replace(POLICY, pinned={p: f for p, f in POLICY.pinned.items() if p != "a"}))
