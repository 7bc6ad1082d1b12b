"""Whole rounds: for random cohorts, thresholds, lanes, weights, lengths and dropouts at every phase, the opened sum is the
plain integer sum exactly, or the round ends with the reason that an independent count predicts."""

import os
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_reference import Session, decode, quantize, rounding_bits
from secagg_round import Drbg, Federation, small_params

from proto import wire
from secagg import LocalError, Quantizer, RemoteError, RoundParams, TooFewSurvivors, sizes
from secagg.rehearse import PHASES, run_round


@st.composite
def rounds(draw):
    count = draw(st.integers(3, 12))
    names = tuple("abcdefghijkl"[:count])
    threshold = draw(st.integers(count // 2 + 1, count))
    return {
        "names": names,
        "threshold": threshold,
        "length": draw(st.integers(1, 40)),
        "lanes": draw(st.sampled_from([2, 3, 4, 5, 6])),
        "weights": draw(st.one_of(st.just((1,) * count), st.tuples(*[st.integers(1, 9)] * count))),
        "colluders": draw(st.integers(0, 2)),
        "minimum_cohort": draw(st.integers(2, 4)),
        "clip": draw(st.sampled_from([1.0, 0.25, 3.0])),
        "drop": draw(st.dictionaries(st.sampled_from(names), st.sampled_from(PHASES), max_size=max(1, count // 2))),
    }


def predicted(case):
    """Why the round must fail, by counting: an error's type and phase, or None."""
    weight = dict(zip(case["names"], case["weights"], strict=True))
    c, t = case["colluders"], case["threshold"]

    def poor(cohort):
        rest = [[weight[p] for p in kept] for kept in combinations(cohort, max(0, len(cohort) - c))]
        floor = max(2, case["minimum_cohort"] - c)
        even = min((sum(w) ** 2 / sum(x * x for x in w) if w else 0 for w in rest), default=0)
        return len(cohort) < max(t, case["minimum_cohort"]) or even < floor

    gone = {p: PHASES.index(phase) for p, phase in case["drop"].items()}
    alive = {phase: [p for p in case["names"] if gone.get(p, len(PHASES)) > i] for i, phase in enumerate(PHASES)}
    if alive["advertise"] and not (c < 2 * t - len(case["names"]) and t - c >= 2):
        return RemoteError, None
    if alive["advertise"] and poor(case["names"]):
        return TooFewSurvivors, "advertise"
    for phase, after in (("advertise", "share"), ("share", "mask"), ("mask", "confirm")):
        if poor(alive[phase]):
            return TooFewSurvivors, after
    for phase, after in (("confirm", "reveal"), ("reveal", "open")):
        if len(alive[phase]) < t:
            return TooFewSurvivors, after
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
    columns = [
        quantize(session, params.place(p), [float(v) for v in updates[p]], rounding_bits(federation.rounding[p], params.words))
        for p in survivors
    ]
    sums = [sum(column) for column in zip(*columns, strict=True)]
    assert max(sums) <= params.quantizer.lane_max
    return np.array(decode(session, sums, survivors), "<f4")


@given(rounds())
@settings(max_examples=60)
def test_the_opened_sum_is_the_plain_integer_sum_or_there_is_a_reason(case):
    params = small_params(
        case["names"],
        case["threshold"],
        length=case["length"],
        quantizer=Quantizer(case["clip"], case["lanes"]),
        weights=case["weights"],
        max_colluders=case["colluders"],
        minimum_cohort=case["minimum_cohort"],
    )
    reason = predicted(case)
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


def test_sizes_are_those_of_the_wire():
    """`sizes` imports no protobuf; here it is held against the real messages."""
    federation = Federation(small_params(("secagg://s/hospital/a", "secagg://s/hospital/b", "secagg://s/hospital/c"))).until(
        "reveal"
    )
    party = federation.params.participants[0]
    view, session = federation.view, federation.params.session
    sent = view.share_sets[party]
    bare = type(sent)(sent.party, sent.boxes, (), sent.signature)
    pb = wire.pb

    def framed(**answer):
        return wire.framed_bytes(pb.PhaseAnswer(session=session, **answer))

    assert sizes.advert_bytes(view.adverts[party]) == framed(advert=wire.to_advert(view.adverts[party]))
    assert sizes.share_set_bytes(bare) == framed(shares=wire.to_share_set(bare))
    assert sizes.confirmation_bytes(view.confirmations[party]) == framed(
        confirmation=wire.to_confirmation(view.confirmations[party])
    )
    assert sizes.revealed_bytes(view.revealed[party]) == framed(revealed=wire.to_revealed(view.revealed[party]))
    for size in (8, 8_000, 3 << 20):
        parts = [*wire.upload_messages(session, size, bytes(32), [bytes(size)])]
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
