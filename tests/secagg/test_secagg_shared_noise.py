"""Whole sessions with shared noise: what is opened is the sum with the promised noise in it, bit for bit, or nothing."""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_round import Federation, small_params

from secagg import LocalError, Quantizer, RemoteError, Sparse, TooFewSurvivors, node
from secagg.coordinate import open_sum
from secagg.discrete_gaussian import NoiseStream
from secagg.identity import Purpose, sign
from secagg.messages import Revealed, RevealedShare, ShareKind
from secagg.noise_shares import SharedNoise
from secagg.statements import advert_statement

SEVEN = ("anna", "bern", "chur", "davos", "ems", "flims", "genf")
NOISE = SharedNoise(Fraction(30**2), may_drop=2, may_collude=1, largest_sum=500)


def shared_params(names=SEVEN, noise=NOISE, length=40, lanes=3, **fields):
    clip = float(noise.offset(len(names)))  # a step is worth one: what is decoded are steps
    defaults = {"threshold": (len(names) + 3) // 2, "length": length, "quantizer": Quantizer(clip, lanes), "minimum_cohort": 3}
    return small_params(names, noise_mode="shared", shared=noise, max_colluders=1, **(defaults | fields))


def sums_of(params, seed=1, largest=500):
    draw = np.random.default_rng(seed)
    return {party: draw.integers(-largest, largest + 1, params.length, dtype=np.int64) for party in params.participants}


def masked(params, sums, lost=()):
    """A session up to the uploads, without those of lost members; and the keys of everybody's noise."""
    federation = Federation(params).advertise().share().ready()
    keys = {party: federation.states[party].noise for party in params.participants}
    return federation.mask(sums, [party for party in params.participants if party not in lost]), keys


def steps(opened, survivors):
    return np.rint(opened.mean.astype(np.float64) * survivors).astype(np.int64)


def drawn(params, key, number):
    return NoiseStream(key, params.shared.shares(len(params.participants)).components()[number]).values(params.length)


def expected(params, sums, keys, survivors):
    """The plain sum and, drawn again one by one, the components that stay."""
    largest, kept = params.shared.largest_sum, len(params.participants) - len(survivors) + 1
    noise = [drawn(params, keys[party][number], number) for party in survivors for number in range(kept)]
    return sum([np.clip(sums[party], -largest, largest) for party in survivors] + noise)


@pytest.mark.parametrize("lost", [gone for count in range(3) for gone in combinations(SEVEN, count)])
def test_what_is_opened_is_the_sum_and_the_noise_that_stays_whoever_is_lost(lost):
    params = shared_params()
    sums = sums_of(params)
    federation, keys = masked(params, sums, lost)
    federation.confirm().reveal()
    survivors = federation.view.survivors
    opened = open_sum(federation.view, federation.total)
    assert np.array_equal(steps(opened, len(survivors)), expected(params, sums, keys, survivors))
    assert opened.wrong_shares == ()


@given(
    members=st.integers(3, 7),
    length=st.integers(1, 70),
    lanes=st.sampled_from([2, 3]),
    seed=st.integers(0, 10),
    data=st.data(),
)
def test_any_cohort_with_up_to_d_lost_gives_the_same_as_plain_integers(members, length, lanes, seed, data):
    names = tuple(f"h{number}" for number in range(members))
    may_drop = data.draw(st.integers(0, members - max(3, (members + 3) // 2)))
    noise = SharedNoise(Fraction(data.draw(st.integers(50, 3000))), may_drop, 1, 300)
    params = shared_params(names, noise, length, lanes)
    lost = data.draw(st.sets(st.sampled_from(names), max_size=may_drop))
    sums = sums_of(params, seed, 400)
    federation, keys = masked(params, sums, lost)
    federation.confirm().reveal()
    survivors = federation.view.survivors
    opened = open_sum(federation.view, federation.total, threads=2)
    assert np.array_equal(steps(opened, len(survivors)), expected(params, sums, keys, survivors))


def test_members_lost_after_they_were_listed_leave_no_surplus_behind():
    """Their secrets come back from the others' shares: the noise is the promised one, not theirs on top."""
    params = shared_params()
    sums = sums_of(params)
    federation, keys = masked(params, sums)
    federation.confirm().reveal(SEVEN[:5])
    opened = open_sum(federation.view, federation.total)
    assert np.array_equal(steps(opened, 7), expected(params, sums, keys, SEVEN))


def test_the_variance_that_is_left_is_the_promised_one_within_a_percent():
    params = shared_params(noise=replace(NOISE, variance=Fraction(200**2)), length=600_000, lanes=2)
    sums = {party: np.zeros(params.length, dtype=np.int64) for party in SEVEN}
    for lost in ((), ("anna",), ("anna", "chur")):
        federation, _ = masked(params, sums, lost)
        federation.confirm().reveal()
        opened = open_sum(federation.view, federation.total)
        promised = float(params.shared.shares(7).remaining(len(lost), 0))
        assert abs(float(np.var(steps(opened, 7 - len(lost)))) / promised - 1) < 0.01, "more than five standard errors"
    exact = [float(params.shared.shares(7).remaining(lost, 1)) for lost in range(3)]
    assert exact == [200.0**2] * 3, "against the one colluder that the plan names: the target, never below it"


def test_fewer_survivors_than_planned_are_not_confirmed_by_anybody():
    params = shared_params(noise=replace(NOISE, may_drop=1), minimum_cohort=2)
    federation, _ = masked(params, sums_of(params), ("anna", "bern"))
    survivors = tuple(federation.uploads)
    with pytest.raises(TooFewSurvivors, match="2 of 7 members are lost"):
        federation.view.close(survivors)
    with pytest.raises(TooFewSurvivors, match="the noise allows 1"):
        node.confirm(federation.states["chur"], survivors)


def test_with_more_missing_than_the_noise_allows_nobody_shares_and_nobody_gets_to_its_charge():
    params = shared_params(noise=replace(NOISE, may_drop=1), minimum_cohort=2)
    few = Federation(params).advertise(SEVEN[:5])
    with pytest.raises(TooFewSurvivors, match="the noise allows 1"):
        node.share(few.states["anna"], few.adverts, few.rand)
    whole = Federation(params).advertise()
    made = {party: node.share(whole.states[party], whole.adverts, whole.rand) for party in SEVEN}
    sets = [made[party][1].with_digests().for_receiver("anna") for party in SEVEN]
    with pytest.raises(TooFewSurvivors, match="2 of 7 members are lost"):
        node.ready_to_mask(made["anna"][0], sets[:5])
    node.ready_to_mask(made["anna"][0], sets[:6])


def test_sums_beyond_the_largest_are_cut_and_counted_and_noise_is_not():
    params = shared_params(noise=replace(NOISE, largest_sum=1), lanes=3)
    sums = {party: np.full(params.length, 40, dtype=np.int64) for party in SEVEN}
    federation = Federation(params).advertise().share().ready()
    keys = {party: federation.states[party].noise for party in SEVEN}
    state, upload = node.mask(federation.states["anna"], sums["anna"])
    assert upload.clipped == params.length
    assert state.seat.me == "anna"
    assert max(np.abs(drawn(params, keys["anna"][0], 0))) > 1
    assert sums["anna"][0] == 40, "the member's own sums are left as they were"


@pytest.mark.parametrize(
    "bad", [np.zeros(40, dtype=np.float32), np.zeros(39, dtype=np.int64), np.zeros((40, 1), dtype=np.int64)]
)
def test_only_whole_vectors_of_integers_are_masked(bad):
    federation = Federation(shared_params()).advertise().share().ready()
    with pytest.raises(LocalError, match="int64"):
        node.mask(federation.states["anna"], bad)


def test_a_second_vector_is_refused_and_the_same_one_is_made_again_to_the_byte():
    params = shared_params()
    sums = sums_of(params)
    federation = Federation(params).advertise().share().ready()
    state = federation.states["anna"]
    _, upload = node.mask(state, sums["anna"])
    first = b"".join(upload.pieces())
    assert b"".join(node.mask(state, sums["anna"])[1].pieces()) == first
    with pytest.raises(LocalError, match="already used"):
        node.mask(state, sums["anna"].copy())


def test_extra_coordinates_ride_behind_the_integers():
    params = shared_params(extra_clips=(2.0, 1.0), length=41)
    sums = sums_of(params)
    federation = Federation(params).advertise().share().ready()
    keys = {party: federation.states[party].noise for party in SEVEN}
    federation.mask(sums, extras=dict.fromkeys(SEVEN, (1.5, -0.25))).confirm().reveal()
    opened = open_sum(federation.view, federation.total)
    assert opened.extras == pytest.approx((10.5, -1.75), abs=1e-6)
    assert np.array_equal(steps(opened, 7), expected(params, sums, keys, SEVEN))


def test_sparse_sessions_take_the_surplus_out_too():
    names = tuple(f"h{number}" for number in range(8))
    params = shared_params(names, graph=Sparse(degree=6, neighbour_threshold=5), threshold=6)
    sums = sums_of(params)
    federation, keys = masked(params, sums, ("h3",))
    federation.confirm().reveal()
    opened = open_sum(federation.view, federation.total)
    survivors = federation.view.survivors
    assert np.array_equal(steps(opened, 7), expected(params, sums, keys, survivors))


def test_a_noise_secret_before_the_surplus_is_never_revealed():
    """One is lost: shares of secret 2 leave, those of secret 1, which would open a component that stays, do not."""
    params = shared_params()
    federation, _ = masked(params, sums_of(params), ("genf",))
    held = {party: federation.states[party].sharing.held for party in SEVEN[:6]}
    federation.confirm().reveal()
    for reader in SEVEN[:6]:
        left = {item.peer: item for item in federation.view.revealed[reader].shares}
        for peer in SEVEN[:6]:
            assert left[peer].noise == held[reader][peer].noise[1]
        assert left["genf"].noise == b""
        assert left["genf"].kind is ShareKind.MASK_KEY


def test_no_surplus_no_shares_of_it():
    params = shared_params()
    federation, _ = masked(params, sums_of(params), ("anna", "ems"))
    federation.confirm().reveal()
    assert all(not item.noise for revealed in federation.view.revealed.values() for item in revealed.shares)


def revealed_with(federation, party, change):
    state, revealed = node.reveal(federation.states[party], federation.confirmations)
    federation.states[party] = state
    return Revealed(tuple(change(item) for item in revealed.shares))


def test_revealed_shares_without_the_noise_that_is_due_are_refused_by_name():
    federation, _ = masked(shared_params(), sums_of(shared_params()))
    federation.confirm()
    short = revealed_with(federation, "bern", lambda item: replace(item, noise=b""))
    with pytest.raises(RemoteError, match="bern") as refused:
        federation.view.add_revealed("bern", short)
    assert refused.value.code == "wrong-shares"
    assert refused.value.party == "bern"


@pytest.mark.parametrize("noise", [b"\xff" * 33, b"short"])
def test_something_that_is_no_share_is_refused(noise):
    federation, _ = masked(shared_params(), sums_of(shared_params()))
    federation.confirm()
    bad = revealed_with(federation, "bern", lambda item: replace(item, noise=noise))
    with pytest.raises(RemoteError) as refused:
        federation.view.add_revealed("bern", bad)
    assert refused.value.code == "malformed"


def test_a_wrong_share_of_the_noise_is_corrected_and_its_sender_named():
    params = shared_params()
    sums = sums_of(params)
    federation, keys = masked(params, sums)
    federation.confirm()
    bad = revealed_with(federation, "anna", lambda item: replace(item, noise=bytes(32) + b"\x07"))
    federation.view.add_revealed("anna", bad)
    federation.reveal(SEVEN[1:])
    opened = open_sum(federation.view, federation.total)
    assert opened.wrong_shares == ("anna",)
    assert np.array_equal(steps(opened, 7), expected(params, sums, keys, SEVEN))


def test_a_commitment_to_another_secret_is_found_when_it_is_opened():
    """A member that commits to noise that it does not add would leave it in the sum; the coordinator cannot take it out."""
    params = shared_params()
    federation = Federation(params).advertise(SEVEN[1:])
    state, advert = node.advertise(
        federation.params, "anna", federation.keys["anna"], federation.policy("anna"), federation.rand
    )
    other = (b"\x01" * 32, b"\x02" * 32)
    public = (advert.seal_key, advert.mask_key, advert.seed_commitment)
    statement = advert_statement("anna", *public, (), other)
    signature = sign(federation.keys["anna"], Purpose.ADVERT, federation.params.context(), statement)
    lie = replace(advert, noise_commitments=other, signature=signature)
    federation.states["anna"] = replace(state, advert=lie)
    federation.view.add_advert(lie)
    federation.share().ready().mask(sums_of(params)).confirm().reveal()
    with pytest.raises(RemoteError, match="anna") as refused:
        open_sum(federation.view, federation.total)
    assert refused.value.code == "unrecoverable"


def test_adverts_name_as_many_commitments_as_the_session_has():
    federation = Federation(shared_params()).advertise(SEVEN[1:])
    state, advert = node.advertise(
        federation.params, "anna", federation.keys["anna"], federation.policy("anna"), federation.rand
    )
    assert len(advert.noise_commitments) == 2
    public = (advert.seal_key, advert.mask_key, advert.seed_commitment)
    for commitments in ((), advert.noise_commitments[:1]):
        statement = advert_statement("anna", *public, (), commitments)
        signature = sign(federation.keys["anna"], Purpose.ADVERT, federation.params.context(), statement)
        with pytest.raises(RemoteError, match="commits to") as refused:
            federation.view.add_advert(replace(advert, noise_commitments=commitments, signature=signature))
        assert refused.value.party == "anna"
    assert state.advert == advert


def test_two_members_with_one_commitment_are_told_apart_by_nobody_and_refused():
    federation = Federation(shared_params()).advertise(SEVEN[1:])
    copied = federation.view.adverts["bern"].noise_commitments
    _, advert = node.advertise(federation.params, "anna", federation.keys["anna"], federation.policy("anna"), federation.rand)
    public = (advert.seal_key, advert.mask_key, advert.seed_commitment)
    signature = sign(
        federation.keys["anna"], Purpose.ADVERT, federation.params.context(), advert_statement("anna", *public, (), copied)
    )
    with pytest.raises(RemoteError) as refused:
        federation.view.add_advert(replace(advert, noise_commitments=copied, signature=signature))
    assert refused.value.code == "repeated-key"


def test_a_lost_member_has_no_noise_to_reveal():
    with pytest.raises(RemoteError, match="not in the sum"):
        RevealedShare("anna", ShareKind.MASK_KEY, bytes(33), bytes(33))


def test_local_sessions_carry_nothing_of_it():
    federation = Federation(small_params()).until("reveal")
    assert all(not advert.noise_commitments for advert in federation.adverts)
    assert all(not item.noise for revealed in federation.view.revealed.values() for item in revealed.shares)
