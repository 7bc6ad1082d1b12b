"""Session parameters: the overflow proof at its edge, the order of members, and a context that binds every field."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_round import NAMES, Federation, small_params

from secagg import LocalError, Quantizer, Sparse, collusion_bound
from secagg.encoding import digest, encode, encode_list
from secagg.noise_shares import SharedNoise
from secagg.params import half_range, plan_half_steps, rounding_error

LANES = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 10, 12, 16])


@given(LANES, st.lists(st.integers(1, 1 << 20), min_size=2, max_size=64))
def test_no_cohort_can_overflow_a_lane_and_no_larger_range_would_fit(lanes, weights):
    quantizer = Quantizer(1.0, lanes)
    try:
        half_steps = plan_half_steps(quantizer, tuple(weights))
    except LocalError:
        return  # the next test shows when
    total = sum(weights)
    largest_sum = sum(2 * half_range(half_steps, weight, total) for weight in weights)
    assert largest_sum <= 2**quantizer.lane_bits - 1
    assert sum(-(-2 * half_steps * weight // total) for weight in weights) <= largest_sum
    assert sum(2 * half_range(half_steps + 1, weight, total) for weight in weights) > 2**quantizer.lane_bits - 1
    assert half_steps >= 1


@pytest.mark.parametrize(("lanes", "members"), [(16, 7), (8, 127), (10, 31)])
def test_the_last_cohort_that_fits(lanes, members):
    assert plan_half_steps(Quantizer(1.0, lanes), (1,) * members) == members
    with pytest.raises(LocalError, match="fewer lanes"):
        plan_half_steps(Quantizer(1.0, lanes), (1,) * (members + 1))


def test_a_weight_below_one_step_has_a_range_of_its_own():
    assert plan_half_steps(Quantizer(1.0, 16), (53, 35, 27, 16)) == 4
    assert half_range(4, 16, 131) == 1
    assert rounding_error(4, 4) == 0.25


def test_members_are_ordered_and_aligned_fields_follow():
    params = small_params(
        ("c", "a", "b"), weights=(3, 1, 2), public_keys=(b"kc", b"ka", b"kb"), base_digests=(b"c" * 32, b"a" * 32, b"b" * 32)
    )
    assert params.participants == ("a", "b", "c")
    assert params.weights == (1, 2, 3)
    assert params.public_keys == (b"ka", b"kb", b"kc")
    assert [item[:1] for item in params.base_digests] == [b"a", b"b", b"c"]
    assert params == small_params(
        ("a", "b", "c"), weights=(1, 2, 3), public_keys=(b"ka", b"kb", b"kc"), base_digests=params.base_digests
    )
    assert params.weight("c") == 3
    assert params.place("b") == 1


BAD = {
    "session": bytes(15),
    "participants": ("anna", "anna", "bern", "chur"),
    "threshold": 5,
    "length": 0,
    "public_keys": (b"1", b"1", b"2", b"3"),
    "weights": (1, 1, 0, 1),
    "base_digests": (bytes(32),) * 3,
    "plan_digest": b"",
    "round": -1,
    "layout_digest": bytes(31),
    "protocol_version": 1 << 32,
    "max_colluders": -1,
    "minimum_cohort": 1,
    "graph": Sparse(degree=4, neighbour_threshold=2),
}


def test_each_aligned_entry_is_checked():
    with pytest.raises(LocalError, match="32 bytes"):
        small_params(base_digests=(bytes(32),) * 3 + (b"short",))


@pytest.mark.parametrize("field", BAD)
def test_parameters_that_cannot_work_do_not_exist(field):
    with pytest.raises(LocalError):
        replace(small_params(), **{field: BAD[field]})


@pytest.mark.parametrize("names", [("a", "b", ""), ("a", "b", "x" * 513), ("a", "b", "c\n"), ("a",)])
def test_names_are_printable_and_short(names):
    with pytest.raises(LocalError):
        small_params(names, threshold=1)


@pytest.mark.parametrize(
    ("clip", "lanes"), [(0.0, 3), (-1.0, 3), (float("nan"), 3), (float("inf"), 3), (1e30, 3), (1.0, 1), (1.0, 17)]
)
def test_quantizers_that_cannot_work_do_not_exist(clip, lanes):
    with pytest.raises(LocalError):
        Quantizer(clip, lanes)


@pytest.mark.parametrize("keep", [0.0, -0.5, 2**-11, 1.0001, float("nan")])
def test_shares_of_coordinates_outside_their_range_are_refused(keep):
    with pytest.raises(LocalError, match="kept coordinates"):
        Quantizer(1.0, 8, keep=keep)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"tensor_clips": ((4, 1.0),)}, "cover 4 values"),
        ({"tensor_clips": ((11, 1.0), (0, 1.0))}, "cover 11 values"),
        ({"tensor_clips": ((4, 0.0), (6, 1.0))}, "between"),
        ({"extra_clips": (float("inf"),)}, "between"),
        ({"extra_clips": (1.0,) * 4097}, "at most 4096"),
        ({"extra_clips": (1.0,), "base_digests": (bytes(32),) * 3 + (b"x" * 32,)}, "one base model"),
    ],
)
def test_clips_that_cannot_be_used_are_refused(fields, match):
    with pytest.raises(LocalError, match=match):
        small_params(**fields)


CHANGES = {
    "session": bytes(16),
    "participants": ("anna", "bern", "chur", "dubai"),
    "threshold": 4,
    "length": 11,
    "quantizer": Quantizer(clip=1.0, lanes=4),
    "public_keys": (b"1", b"2", b"3", b"5"),
    "weights": (1, 1, 1, 2),
    "base_digests": (bytes(32),) * 3 + (b"x" * 32,),
    "plan_digest": b"p" * 32,
    "round": 1,
    "noise_mode": "central",
    "layout_digest": b"l" * 32,
    "log_head": b"h" * 32,
    "protocol_version": 2,
    "max_colluders": 1,
    "minimum_cohort": 4,
    "graph": Sparse(degree=2, neighbour_threshold=2),
    "tensor_clips": ((4, 1.0), (6, 1.0)),
    "extra_clips": (1.0,),
}


@pytest.mark.parametrize("field", CHANGES)
def test_the_context_binds_every_field(field):
    params = small_params(public_keys=(b"1", b"2", b"3", b"4"))
    assert replace(params, **{field: CHANGES[field]}).context() != params.context()


def test_the_context_binds_the_clip_and_covers_all_fields():
    params = small_params(public_keys=(b"1", b"2", b"3", b"4"))
    assert replace(params, quantizer=Quantizer(clip=1.0 + 2**-52, lanes=3)).context() != params.context()
    codings = [Quantizer(1.0, 3, rotate=True), Quantizer(1.0, 3, keep=0.5), Quantizer(1.0, 3, keep=0.6), Quantizer(1.0, 3)]
    assert len({replace(params, quantizer=coding).context() for coding in codings}) == len(codings)
    clips = [((4, 1.0), (6, 1.0)), ((6, 1.0), (4, 1.0)), ((4, 1.0), (6, 2.0)), ()]
    assert len({replace(params, tensor_clips=each).context() for each in clips}) == len(clips)
    sparse = replace(params, graph=Sparse(3, 2))
    assert (
        len({sparse.context(), replace(params, graph=Sparse(2, 2)).context(), replace(params, graph=Sparse(3, 3)).context()})
        == 3
    )
    assert {name for name in params.__dataclass_fields__ if not name.startswith("_")} - {"half_steps", "shared"} == set(CHANGES)


SHARED = SharedNoise(Fraction(50**2), may_drop=1, may_collude=1, largest_sum=400)


@pytest.mark.parametrize(
    "fields", [{"variance": Fraction(2501)}, {"variance": Fraction(2500, 3)}, {"may_drop": 0}, {"largest_sum": 401}]
)
def test_the_context_binds_the_shares_of_the_noise(fields):
    shared = small_params(public_keys=(b"1", b"2", b"3", b"4"), noise_mode="shared", max_colluders=1, shared=SHARED)
    assert replace(shared, shared=replace(SHARED, **fields)).context() != shared.context()
    assert replace(shared, shared=None, noise_mode="local").context() != shared.context()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"noise_mode": "local"}, "go together"),
        ({"shared": None}, "go together"),
        ({"weights": (1, 1, 1, 2)}, "equal weights"),
        ({"base_digests": (bytes(32),) * 3 + (b"x" * 32,)}, "one base model"),
        ({"quantizer": Quantizer(1.0, 3, rotate=True)}, "without rotation"),
        ({"quantizer": Quantizer(1.0, 3, keep=0.5)}, "whole vectors"),
        ({"tensor_clips": ((10, 1.0),)}, "tensor clips"),
        ({"max_colluders": 0}, "raise the latter"),
        ({"shared": replace(SHARED, may_drop=3), "threshold": 1}, "nobody honest"),
        ({"shared": replace(SHARED, may_drop=2)}, "the threshold of 3 does not"),
        ({"shared": replace(SHARED, may_collude=2)}, "raise the latter"),
        ({"shared": replace(SHARED, largest_sum=1 << 19)}, "cannot hold 4 members' integers"),
        ({"quantizer": Quantizer(1.0, 8)}, "cannot hold"),
    ],
)
def test_shared_noise_that_cannot_be_accounted_for_or_would_overflow_is_refused(fields, match):
    good = {"noise_mode": "shared", "max_colluders": 1, "shared": SHARED}
    small_params(**good)
    with pytest.raises(LocalError, match=match):
        small_params(**(good | fields))


def test_there_is_no_context_without_keys():
    with pytest.raises(LocalError, match="public_keys"):
        small_params().context()
    assert len(Federation(small_params()).params.context()) == 32


def test_strangers_have_no_place():
    with pytest.raises(LocalError, match="not a member"):
        small_params().weight("zug")
    assert not small_params().is_member("zug")
    assert small_params().participants == NAMES


@pytest.mark.parametrize(
    ("members", "threshold", "colluders"), [(4, 3, 1), (10, 7, 3), (20, 14, 7), (3, 3, 1), (5, 4, 2), (4, 2, -1), (3, 2, 0)]
)
def test_bounds_of_the_threat_model(members, threshold, colluders):
    assert collusion_bound(members, threshold) == colluders


@given(
    st.lists(st.one_of(st.binary(max_size=3), st.text("ab", max_size=3)), max_size=4),
    st.lists(st.one_of(st.binary(max_size=3), st.text("ab", max_size=3)), max_size=4),
)
def test_different_fields_never_encode_alike(one, other):
    def plain(fields):
        return [field.encode() if isinstance(field, str) else field for field in fields]

    assert (encode(*one) == encode(*other)) == (plain(one) == plain(other))
    assert (encode_list(one) == encode_list(other)) == (plain(one) == plain(other))


def test_encoding_and_digest_by_hand():
    assert encode(1, "a", b"") == bytes.fromhex("00000008 0000000000000001 00000001 61 00000000")
    assert digest("a", 1) != digest("a", 2)
