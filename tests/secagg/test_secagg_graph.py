"""Sparse graphs: neighbours as they are drawn, edges against brute force, and who keeps enough of its neighbours."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_round import Drbg, Federation, small_params

from secagg import Complete, LocalError, Sparse, TooFewSurvivors
from secagg.graph import CompleteGraph, SparseGraph, are_neighbours, draw_neighbours, graph_of

ROSTER = tuple("abcdefghij")


def test_the_smallest_tickets_are_drawn():
    tickets = [9, 3, 7, 1, 5]  # of a, b, d, e, f, as c draws
    rand = {80: b"".join(ticket.to_bytes(16, "big") for ticket in tickets)}.__getitem__
    assert draw_neighbours(Sparse(3, 2), 2, 6, rand) == (1, 4, 5)
    assert draw_neighbours(Complete(), 2, 6, rand) == ()


def test_every_neighbour_is_as_likely_as_every_other():
    rand = Drbg("drawn")
    counts = Counter(other for _ in range(3000) for other in draw_neighbours(Sparse(3, 2), 4, 10, rand))
    assert set(counts) == set(range(10)) - {4}
    assert all(abs(count - 1000) < 130 for count in counts.values())  # five standard deviations of a binomial


def test_members_draw_with_their_own_randomness():
    adverts = Federation(small_params(ROSTER, graph=Sparse(6, 3))).advertise().view.adverts
    assert len({advert.neighbours for advert in adverts.values()}) == len(ROSTER)


def test_a_source_that_runs_dry_draws_nobody():
    with pytest.raises(LocalError, match="instead of 144"):
        draw_neighbours(Sparse(3, 2), 0, 10, lambda size: bytes(size - 1))


@pytest.mark.parametrize(
    ("neighbours", "fit"),
    [
        ((0, 1, 9), True),
        ((0, 1), False),
        ((0, 1, 2, 3), False),
        ((), False),
        ((0, 1, 4), False),  # itself
        ((0, 0, 1), False),
        ((1, 0, 9), False),
        ((0, 1, 10), False),
        ((-1, 0, 1), False),
    ],
)
def test_neighbours_are_distinct_others_in_order(neighbours, fit):
    assert are_neighbours(Sparse(3, 2), 4, 10, neighbours) is fit
    assert are_neighbours(Complete(), 4, 10, neighbours) is (neighbours == ())


@st.composite
def graphs(draw):
    count, degree = draw(st.integers(3, 10)), draw(st.integers(2, 9))
    roster = ROSTER[: max(count, degree + 1)]
    advertised = draw(st.sets(st.sampled_from(roster), min_size=1))
    rule = Sparse(degree, draw(st.integers(2, degree)))
    seed = draw(st.integers(0, 1 << 20))
    outgoing = {p: draw_neighbours(rule, roster.index(p), len(roster), Drbg(f"{seed}{p}")) for p in advertised}
    return rule, roster, outgoing, draw(st.sets(st.sampled_from(roster)))


@given(graphs())
def test_edges_are_those_of_brute_force(case):
    rule, roster, outgoing, present = case
    graph = graph_of(rule, roster, outgoing)
    drawn = {p: {roster[place] for place in places} for p, places in outgoing.items()}
    assert graph.advertised == tuple(sorted(outgoing))
    assert {p for p in roster if p in graph} == set(outgoing)
    for p in outgoing:
        assert graph.receivers(p) == tuple(sorted(drawn[p] & set(outgoing)))
        assert [graph.sends(p, q) for q in graph.advertised] == [q in drawn[p] for q in graph.advertised]
        assert graph.senders(p) == tuple(q for q in sorted(outgoing) if p in drawn[q])
        assert graph.masked_with(p) == tuple(q for q in sorted(outgoing) if q in drawn[p] or p in drawn[q])
    short = [p for p in sorted(outgoing) if len(drawn[p] & present) < rule.neighbour_threshold]
    if short:
        with pytest.raises(TooFewSurvivors, match=f"{short[0]} has .* where {rule.neighbour_threshold} are needed") as caught:
            graph.check_kept(graph.advertised, present, "mask")
        assert caught.value.phase == "mask"
    graph.check_kept([p for p in graph.advertised if p not in short], present, "mask")


def test_in_the_complete_graph_everybody_is_everything():
    graph = graph_of(Complete(), ROSTER, dict.fromkeys("cab", ()))
    assert isinstance(graph, CompleteGraph)
    assert [graph.sends("b", reader) for reader in "abc"] == [True, False, True]
    assert graph.receivers("b") == graph.senders("b") == graph.masked_with("b") == ("a", "c")
    graph.check_kept(("a", "b"), (), "mask")


def test_a_sparse_graph_of_all_others_is_the_complete_one():
    rule = Sparse(9, 2)
    outgoing = {p: draw_neighbours(rule, place, 10, Drbg(p)) for place, p in enumerate(ROSTER)}
    sparse, complete = SparseGraph(rule, ROSTER, outgoing), CompleteGraph(ROSTER)
    for p in ROSTER:
        assert sparse.receivers(p) == sparse.senders(p) == sparse.masked_with(p) == complete.receivers(p)


@pytest.mark.parametrize(
    ("dropped", "count", "phase"),
    [("advertise", 2, "share"), ("share", 2, "mask"), ("mask", 2, "confirm"), ("confirm", 2, None), ("reveal", 3, "open")],
)
def test_each_phase_counts_what_is_left_of_every_neighbourhood(dropped, count, phase):
    """Six of eight suffice for the list; the one whose neighbours are those that vanish ends the session.

    To open, its own share counts as well: it takes three to leave it without.
    """
    federation = Federation(small_params(tuple("abcdefgh"), 6, graph=Sparse(5, 4)))
    twin = Federation(federation.params).advertise()
    gone = [twin.params.participants[place] for place in twin.view.adverts["a"].neighbours[:count]]
    if phase is None:
        federation.play(federation.updates(), dict.fromkeys(gone, dropped))
        return
    with pytest.raises(TooFewSurvivors) as caught:
        federation.play(federation.updates(), dict.fromkeys(gone, dropped))
    assert caught.value.phase == phase


def test_a_member_that_is_no_holder_holds_nothing():
    federation = Federation(small_params(ROSTER, 8, graph=Sparse(6, 3))).until("ready")
    for party, state in federation.states.items():
        drawn_by = {p for p, a in federation.view.adverts.items() if federation.params.place(party) in a.neighbours}
        assert state.sharing.held.keys() == drawn_by | {party}
        assert state.sharing.sharers == federation.params.participants
        assert len(state.masks) == 1 + len(federation.view.graph.masked_with(party))


def test_an_opened_sparse_sum_is_the_mean():
    federation = Federation(small_params(ROSTER, 7, length=50, graph=Sparse(6, 3)))
    opened = federation.play(federation.updates(), {"b": "mask", "f": "share", "j": "confirm"})
    left = [federation.updates()[p] for p in "acdeghij"]
    assert np.abs(opened.mean - np.mean(left, axis=0)).max() < 1e-4


def test_parameters_cannot_ask_for_more_neighbours_than_there_are():
    with pytest.raises(LocalError, match="9 other members"):
        replace(small_params(ROSTER), graph=Sparse(10, 2))
