"""Whole rounds: for random cohorts, thresholds, lanes, weights, lengths and dropouts at every phase, the opened sum is the
plain integer sum exactly, or the round ends with the reason that an independent count predicts."""

import os
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_bounds import privacy
from plain_reference import Session, decode, quantize, rounding_bits
from secagg_round import Drbg, Federation, small_params

from proto import wire
from secagg import (
    Complete,
    LocalError,
    Quantizer,
    RemoteError,
    RoundParams,
    Sparse,
    TooFewSurvivors,
    bounds,
    identity,
    keys,
    sizes,
)
from secagg.graph import draw_neighbours
from secagg.messages import NO_DIGESTS
from secagg.rehearse import PHASES, run_round
from secagg.upload import PIECE_BYTES


@pytest.fixture(autouse=True)
def _every_signature_is_checked_once(monkeypatch):
    """Verification is a function of its arguments, and each member of a rehearsal asks for the same ones."""
    monkeypatch.setattr(identity, "verify", lru_cache(maxsize=None)(identity.verify))


@st.composite
def rounds(draw, sizes):
    count = draw(sizes)
    names = tuple(f"h{i:02d}" for i in range(count))
    threshold = draw(st.integers(count // 2 + 1, count))
    degree = draw(st.sampled_from([None, count - 1, 3 * count // 4, count // 2]))
    return {
        "names": names,
        "threshold": threshold,
        "length": draw(st.integers(1, 40)),
        "lanes": draw(st.sampled_from([2, 3, 4, 5, 6])),
        "weights": draw(st.one_of(st.just((1,) * count), st.tuples(*[st.integers(1, 9)] * count))),
        "max_colluders": draw(st.integers(0, 2)),
        "minimum_cohort": draw(st.integers(2, 4)),
        "clip": draw(st.sampled_from([1.0, 0.25, 3.0])),
        "graph": Sparse(degree, draw(st.integers(2, degree))) if degree is not None and degree >= 2 else Complete(),
        "drop": draw(st.dictionaries(st.sampled_from(names), st.sampled_from(PHASES), max_size=max(1, count // 2))),
    }


def params_of(case):
    fields = {name: case[name] for name in ("length", "weights", "max_colluders", "minimum_cohort", "graph")}
    return small_params(case["names"], case["threshold"], quantizer=Quantizer(case["clip"], case["lanes"]), **fields)


def effective(weights, colluders):
    """The least effective cohort, over every removal or, where those are too many, over runs of the sorted weights."""
    kept = max(0, len(weights) - colluders)
    rests = combinations(weights, kept) if len(weights) < 13 else runs_removed(sorted(weights), colluders)
    return min((sum(rest) ** 2 / sum(w * w for w in rest) if rest else 0 for rest in rests), default=0)


def runs_removed(weights, colluders):
    return [weights[:start] + weights[start + colluders :] for start in range(len(weights) - colluders + 1)]


def predicted(case, drawn):
    """Why the round must fail, by counting: an error's type and phase, or None. `drawn` is None in the complete graph."""
    weight = dict(zip(case["names"], case["weights"], strict=True))
    n, c, t, rule = len(case["names"]), case["max_colluders"], case["threshold"], case["graph"]

    def poor(cohort):
        floor = max(2, case["minimum_cohort"] - c)
        too_small = len(cohort) < max(t, case["minimum_cohort"])
        return too_small or effective([weight[p] for p in cohort], c) < floor

    def lonely(parties, present, own=0):
        return drawn is not None and any(
            own * (p in present) + len(drawn[p] & {*present}) < rule.neighbour_threshold for p in parties
        )

    gone = {p: PHASES.index(phase) for p, phase in case["drop"].items()}
    alive = {phase: [p for p in case["names"] if gone.get(p, len(PHASES)) > i] for i, phase in enumerate(PHASES)}
    if alive["advertise"] and not (c < 2 * t - n and t - c >= 2):
        return RemoteError, None
    if (
        alive["advertise"]
        and drawn is not None
        and privacy(n, t, c, rule.degree, rule.neighbour_threshold) > Fraction(1, 2**50)
    ):
        return RemoteError, None
    if alive["advertise"] and poor(case["names"]):
        return TooFewSurvivors, "advertise"
    for phase, counted, after in (("advertise",) * 2 + ("share",), ("share",) * 2 + ("mask",), ("mask", "share", "confirm")):
        if poor(alive[phase]) or lonely(alive[counted], alive[phase]):
            return TooFewSurvivors, after
    if len(alive["confirm"]) < t:
        return TooFewSurvivors, "reveal"
    if lonely(alive["share"], alive["reveal"], own=1) if drawn is not None else len(alive["reveal"]) < t:
        return TooFewSurvivors, "open"
    return None


def plain_mean(federation, updates, survivors):
    """The mean from plain integers: each survivor quantized by the other implementation, added, decoded."""
    params = federation.params
    session = Session(
        session=params.session,
        members=list(params.participants),
        threshold=params.threshold,
        length=params.length,
        clip=params.quantizer.clip,
        lanes=params.quantizer.lanes,
        weights=list(params.weights),
    )
    steps = session.half_steps()  # once: the plain way is long
    session.half_steps = lambda: steps
    columns = [
        quantize(session, params.place(p), [float(v) for v in updates[p]], rounding_bits(federation.rounding[p], params.words))
        for p in survivors
    ]
    sums = [sum(column) for column in zip(*columns, strict=True)]
    assert max(sums) <= params.quantizer.lane_max
    return np.array(decode(session, sums, survivors), "<f4")


def neighbours_of(case, params):
    """Names that each member will draw, which decides who is left alone; None in the complete graph."""
    if case["graph"] == Complete():
        return None
    rand, places = Drbg("round"), range(len(case["names"]))
    for _ in places:
        rand(48)
    drawn = {}
    for place, party in enumerate(case["names"]):
        if case["drop"].get(party) != "advertise":
            for _ in range(4):
                rand(32)
            drawn[party] = {case["names"][at] for at in draw_neighbours(params.graph, place, len(places), rand)}
    return drawn


def check_round(case):
    params = params_of(case)
    reason = predicted(case, neighbours_of(case, params))
    rng = np.random.default_rng(len(case["names"]))
    updates = {p: rng.normal(0, case["clip"] / 2, params.length).astype(np.float32) for p in case["names"]}
    if reason is not None:
        with pytest.raises(reason[0]) as caught:
            run_round(params, updates, case["drop"], rand=Drbg("round"))
        assert getattr(caught.value, "phase", None) == reason[1]
        return
    result = run_round(params, updates, case["drop"], rand=Drbg("round"))
    federation = Federation(params, seed="round")
    federation.play(updates, case["drop"])
    alive = [p for p in case["names"] if case["drop"].get(p) not in ("advertise", "share", "mask")]
    assert result.survivors == tuple(alive)
    assert result.mean.tobytes() == plain_mean(federation, updates, alive).tobytes()
    assert result.weight == sum(params.weight(p) for p in alive)


@given(rounds(st.integers(3, 12)))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_opened_sum_is_the_plain_integer_sum_or_there_is_a_reason(case):
    check_round(case)


@given(rounds(st.integers(13, 64)))
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_so_it_is_in_larger_cohorts(case):
    check_round(case)


@pytest.mark.slow
@given(rounds(st.integers(3, 64)))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_so_it_is_in_many_cohorts(case):
    check_round(case)


@pytest.mark.parametrize("phase", PHASES)
def test_one_member_vanishes_before_each_phase(phase):
    names = [f"hospital-{i}" for i in range(1, 12)]  # not in the order of names
    params = RoundParams(
        session=os.urandom(16), participants=tuple(names), threshold=8, length=1000, quantizer=Quantizer(clip=1.0, lanes=3)
    )
    updates = {name: np.full(1000, i / 20, np.float32) for i, name in enumerate(names)}
    result = run_round(params, updates, drop={"hospital-7": phase}, rand=os.urandom)
    left = [name for name in names if name != "hospital-7" or phase in ("confirm", "reveal")]
    assert result.survivors == tuple(sorted(left))
    assert np.abs(result.mean - np.mean([updates[name] for name in left], axis=0)).max() < 1e-4
    sent = result.upload_bytes["hospital-7"]
    vector = params.upload_bytes
    assert (sent == 0) if phase == "advertise" else (sent > 0)
    assert (sent > vector) == (phase in ("confirm", "reveal"))
    assert all(vector < count < vector + 4000 for name, count in result.upload_bytes.items() if name != "hospital-7")


def test_forty_hospitals_in_one_round():
    names = tuple(f"h{i:02d}" for i in range(40))
    params = small_params(names, length=33, quantizer=Quantizer(1.0, 2))
    updates = {name: np.full(33, i / 40, np.float32) for i, name in enumerate(names)}
    result = run_round(params, updates, dict.fromkeys(names[:9], "mask"), rand=Drbg("40"))
    assert np.abs(result.mean - np.mean([i / 40 for i in range(9, 40)])).max() < 1e-6


class Remembering(Drbg):
    """Keeps what members draw in step 1.2, of which the fourth draw seeds the rounding bits."""

    def __init__(self, label):
        super().__init__(label)
        self.drawn = []

    def __call__(self, size):
        data = super().__call__(size)
        if size == 32:
            self.drawn.append(data)
        return data


def lossy_round(members, length, graph, threshold):
    """A tenth of the members that are left vanishes before each phase; the sum is the plain integer sum."""
    names = tuple(f"h{i:04d}" for i in range(members))
    params = small_params(
        names, threshold, length=length, graph=graph, max_colluders=members // 10, minimum_cohort=members // 3
    )
    updates = dict(zip(names, np.random.default_rng(7).normal(0, 0.4, (members, length)).astype(np.float32), strict=True))
    drop, left, rand = {}, list(names), Remembering("lossy")
    for phase in PHASES:
        gone = left[:: len(left) // (len(left) // 10)]
        drop |= dict.fromkeys(gone, phase)
        left = [name for name in left if name not in gone]
    result = run_round(params, updates, drop, rand=rand)
    arrived = [name for name in names if drop.get(name) not in ("advertise", "share", "mask")]
    assert result.survivors == tuple(arrived)
    federation = Federation(params, seed="lossy")
    advertised = [name for name in names if drop.get(name) != "advertise"]
    for name, seed in zip(advertised, rand.drawn[3::4], strict=True):
        federation.rounding[name] = keys.rounding_key(federation.params, seed, name)
    assert result.mean.tobytes() == plain_mean(federation, updates, arrived).tobytes()


def test_two_hundred_hospitals_on_a_sparse_graph_lose_a_tenth_before_every_phase():
    graph = bounds.choose(200, 0.1, 0.41, threshold=111)
    lossy_round(200, 500, graph, 111)


@pytest.mark.slow
def test_three_hundred_hospitals_on_a_sparse_graph_lose_a_tenth_before_every_phase():
    """A thousand of them are a row of benchmarks/masking.py: their signatures alone take two minutes."""
    graph = bounds.choose(300, 0.1, 0.41, threshold=166)
    lossy_round(300, 500, graph, 166)


def test_rehearsals_refuse_what_cannot_be_rehearsed():
    params, updates = small_params(), {p: np.zeros(10, np.float32) for p in small_params().participants}
    for wrong in ({"zug": "mask"}, {"anna": "lunch"}):
        with pytest.raises(LocalError):
            run_round(params, updates, wrong, rand=Drbg("x"))
    with pytest.raises(LocalError, match="no update is given for anna"):
        run_round(params, {p: u for p, u in updates.items() if p != "anna"}, rand=Drbg("x"))
    run_round(params, {p: u for p, u in updates.items() if p != "anna"}, {"anna": "share"}, rand=Drbg("x"))
    with pytest.raises(LocalError, match="signing_keys"):
        run_round(Federation(params).params, updates, rand=Drbg("x"))
    with pytest.raises(LocalError, match="not finite"):
        run_round(params, updates | {"bern": np.full(10, np.nan, np.float32)}, rand=Drbg("x"))


def test_given_identities_are_used():
    federation = Federation(small_params())
    updates = federation.updates()
    result = run_round(federation.params, updates, rand=Drbg("x"), signing_keys=federation.keys)
    assert np.abs(result.mean - np.mean([updates[p] for p in federation.params.participants], axis=0)).max() < 1e-4


# --- bytes on the wire --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [Complete(), Sparse(4, 3)])
def test_sizes_are_those_of_the_wire(graph):
    """`sizes` imports no protobuf; here it is held against the real messages."""
    names = tuple(f"secagg://s/hospital/{name}" for name in "abcdefg")
    federation = Federation(small_params(names, 5, graph=graph)).until("reveal")
    party = federation.params.participants[0]
    view, session = federation.view, federation.params.session
    sent = view.share_sets[party]
    bare = replace(sent, digests=NO_DIGESTS)
    pb = wire.pb

    def framed(**answer):
        return wire.framed_bytes(pb.PhaseAnswer(session=session, **answer))

    assert sizes.advert_bytes(view.adverts[party]) == framed(advert=wire.to_advert(view.adverts[party]))
    for share_set in (bare, *view.sets_for(party)):
        assert sizes.share_set_bytes(share_set) == framed(shares=wire.to_share_set(share_set))
    assert sizes.confirmation_bytes(view.confirmations[party]) == framed(
        confirmation=wire.to_confirmation(view.confirmations[party])
    )
    assert sizes.revealed_bytes(view.revealed[party]) == framed(revealed=wire.to_revealed(view.revealed[party]))
    for size in (8, 8_000, 3 << 20):
        pieces = [bytes(min(PIECE_BYTES, size - at)) for at in range(0, size, PIECE_BYTES)]
        parts = [*wire.upload_messages(session, size, bytes(32), pieces)]
        seal = federation.seals[party]
        parts.append(wire.upload_trailer(seal.digest, seal.signature))
        assert sizes.upload_bytes(size, seal) == sum(wire.framed_bytes(part) for part in parts)


@pytest.mark.parametrize(("count", "length", "lanes", "limit"), [(10, 300_000, 3, 0.69), (5, 1_000_000, 8, 0.26)])
def test_uploads_stay_below_the_float32_line(count, length, lanes, limit):
    names = tuple(f"secagg://study/hospital/h{i:02d}" for i in range(count))
    params = small_params(names, length=length, quantizer=Quantizer(1.0, lanes))
    updates = dict.fromkeys(names, np.zeros(length, np.float32))
    result = run_round(params, updates, rand=Drbg("x"))
    assert max(result.upload_bytes.values()) / (4 * length) <= limit
    assert np.abs(result.mean).max() == 0
