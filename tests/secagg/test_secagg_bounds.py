"""How sparse a graph may be: the bounds against exact fractions and simulation, the choice, and what a node refuses."""

import re
from dataclasses import replace
from math import ceil, log2
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_bounds import failure, privacy
from secagg_round import Federation, small_params

from secagg import Complete, LocalError, RemoteError, Sparse, bounds
from secagg.policy import check_session, policy_of

README = (Path(bounds.__file__).parent / "README.md").read_text()


def log2_of(fraction):
    """log2 of an exact fraction, which may be far below the smallest float."""
    if fraction == 0:
        return -np.inf
    shift = fraction.denominator.bit_length() - fraction.numerator.bit_length()
    return log2(float(fraction * 2**shift)) - shift


@st.composite
def sessions(draw):
    n = draw(st.integers(4, 60))
    t = draw(st.integers(n // 2 + 1, n))
    c = draw(st.integers(0, max(0, min(2 * t - n - 1, t - 2))))
    k = draw(st.integers(2, n - 1))
    return n, t, c, k, draw(st.integers(2, k)), draw(st.integers(0, n))


@given(sessions())
def test_bounds_are_those_of_exact_fractions(case):
    n, t, c, k, need, lost = case
    rule = Sparse(k, need)
    for fast, exact in (
        (bounds.privacy_log2(n, t, c, rule), privacy(n, t, c, k, need)),
        (bounds.failure_log2(n, lost, rule), failure(n, lost, k, need)),
    ):
        assert fast == pytest.approx(log2_of(exact), abs=1e-6)


def test_ten_thousand_members_need_no_more_digits():
    rule = Sparse(58, 34)
    assert bounds.failure_log2(10_000, 1000, rule) == pytest.approx(log2_of(failure(10_000, 1000, 58, 34)), abs=1e-6)


@pytest.mark.parametrize(("n", "t", "c", "k", "need"), [(12, 8, 2, 3, 2), (20, 14, 3, 4, 3), (16, 12, 5, 6, 3)])
def test_what_the_adversary_wins_in_simulation_is_below_the_bound(n, t, c, k, need):
    """Neighbours are drawn at random; then everything that a coordinator may choose is tried for each of its two ways."""
    rng, wins, rounds = np.random.default_rng(n), 0, 2000
    for _ in range(rounds):
        drawn = [set(rng.choice([j for j in range(n) if j != i], k, replace=False).tolist()) for i in range(n)]
        honest = range(c, n)
        held = any(len(drawn[i] & set(range(c))) >= need for i in honest)
        wins += held or any(alone(drawn, i, n, t, c, need) for i in honest)
    assert 0 < wins / rounds <= min(1.0, 2 ** bounds.privacy_log2(n, t, c, Sparse(k, need)))


def alone(drawn, i, n, t, c, need):
    """Whether a list can be signed on which i has no honest neighbour: the rest of the roster but its honest neighbours."""
    gone = {j for j in range(c, n) if j in drawn[i] or i in drawn[j]}
    left = set(range(n)) - gone
    return len(left) >= t and all(len(drawn[j] & left) >= need for j in left)


@pytest.mark.parametrize(("need", "ten", "twenty"), [(43, -99.9, -51.4), (44, -105.3, -55.1)])
def test_the_reference_of_a_thousand_members_with_sixty_neighbours(need, ten, twenty):
    """What 60 neighbours give at 10 and 20 per cent corrupt, where a secret needs about 43 of them (README, Graph)."""
    for colluders, expected in ((100, ten), (200, twenty)):
        found = bounds.privacy_log2(1000, 667, colluders, Sparse(60, need))
        assert found == pytest.approx(expected, abs=0.5)


def table_rows():
    cells = re.findall(
        r"^\| (\d+) \| (\d+)% \| (\d+)% \| (\d+) \| (\d+) \| 2\^(-[\d.]+) \| 2\^(-[\d.]+) \|$", README, re.MULTILINE
    )
    return [tuple(map(float, row)) for row in cells]


@pytest.mark.parametrize("row", table_rows())
def test_the_table_of_the_specification_is_what_the_code_chooses(row):
    members, corrupt, dropouts, degree, need, private, failed = row
    rule = bounds.choose(int(members), corrupt / 100, dropouts / 100)
    assert rule == Sparse(int(degree), int(need))
    found = bounds.privacy_log2(int(members), 2 * int(members) // 3 + 1, ceil(members * corrupt / 100), rule)
    assert found == pytest.approx(private, abs=0.06)
    assert bounds.failure_log2(int(members), ceil(members * dropouts / 100), rule) == pytest.approx(failed, abs=0.06)


def test_the_table_is_read():
    assert len(table_rows()) == 7


RATES = [(101, 0.05, 0.1), (200, 0.1, 0.1), (1000, 0.1, 0.1), (1000, 0.2, 0.2), (4000, 0.01, 0.1)]


@pytest.mark.parametrize(("members", "corrupt", "dropout"), RATES)
def test_the_choice_keeps_both_promises_and_no_smaller_degree_does(members, corrupt, dropout):
    threshold, colluders, lost = 2 * members // 3 + 1, round(corrupt * members + 0.49), round(dropout * members + 0.49)
    rule = bounds.choose(members, corrupt, dropout)

    def keeps(rule):
        private = bounds.privacy_log2(members, threshold, colluders, rule) <= -50
        return private and bounds.failure_log2(members, lost, rule) <= -20

    assert keeps(rule)
    assert not any(keeps(Sparse(rule.degree - 1, need)) for need in range(2, rule.degree))


def test_more_colluders_or_dropouts_need_more_neighbours():
    degrees = [bounds.choose(1000, corrupt, dropout).degree for corrupt, dropout in ((0.05, 0.1), (0.1, 0.1), (0.1, 0.2))]
    assert degrees == sorted(set(degrees))
    assert bounds.choose(1000, 0.1, 0.1) == Sparse(50, 30)


@pytest.mark.parametrize(
    ("members", "corrupt", "dropout"),
    [(100, 0.4, 0.1), (5, 0.2, 0.5), (10, 0.0, 0.9), (2, 0.0, 0.0), (1000, 1.0, 0.1), (1000, 0.1, -0.1), (1 << 20, 0.1, 0.1)],
)
def test_what_no_graph_withstands_is_said(members, corrupt, dropout):
    with pytest.raises(LocalError):
        bounds.choose(members, corrupt, dropout)


def test_sessions_are_complete_up_to_a_hundred_members():
    assert {bounds.graph_for(n, 2 * n // 3 + 1, 1) for n in (3, 20, 64, 100)} == {Complete()}
    assert isinstance(bounds.graph_for(101, 68, 1), Sparse)
    assert bounds.graph_for(101, 68, 35) == Complete()  # nothing withstands so many: the policy says so
    for n, c in ((101, 1), (300, 10), (1000, 50)):
        rule = bounds.graph_for(n, 2 * n // 3 + 1, c)
        assert bounds.is_private(n, 2 * n // 3 + 1, c, rule)


def test_a_node_refuses_a_graph_too_sparse_for_its_own_number_of_colluders():
    names = tuple(f"h{i:03d}" for i in range(150))
    threshold, graph = 101, bounds.choose(150, 0.02, 0.1)
    params = Federation(small_params(names, threshold, graph=graph, max_colluders=3, minimum_cohort=5)).params
    own = policy_of(params)
    check_session(params, "h000", own)
    with pytest.raises(RemoteError, match="sparse graph of 150 members") as caught:
        check_session(params, "h000", replace(own, max_colluders=15))
    assert caught.value.code == "policy"
    check_session(replace(params, graph=Complete()), "h000", replace(own, max_colluders=15))


@pytest.mark.parametrize(("degree", "need"), [(2, 1), (2, 3), (1, 1)])
def test_rules_that_cannot_work_do_not_exist(degree, need):
    with pytest.raises(LocalError, match="neighbour_threshold"):
        Sparse(degree, need)
