"""Sharing: any t shares give the secret, fewer give nothing, and surplus shares correct wrong ones."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_round import Drbg

from secagg import LocalError, shamir
from secagg.shamir import Combiner, P

SECRET = bytes(range(32))


def shares_of(threshold, count, secret=SECRET):
    return shamir.split(secret, threshold, range(1, count + 1), Drbg("shamir"))


def spoil(shares, *points):
    return {x: ((int.from_bytes(s, "big") + x**5 + 7) % P).to_bytes(33, "big") if x in points else s for x, s in shares.items()}


def test_the_field_is_the_smallest_prime_above_every_secret():
    def is_prime(n):  # Miller and Rabin with 40 bases
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in range(2, 42):
            value = pow(base, odd, n)
            if value in (1, n - 1):
                continue
            if not any((value := value * value % n) == n - 1 for _ in range(twos - 1)):
                return False
        return True

    assert is_prime(P)
    assert not any(is_prime(n) for n in range(2**256, P))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4), st.randoms())
@settings(max_examples=40)
def test_any_threshold_of_shares_gives_the_secret(secret, threshold, surplus, chance):
    shares = shares_of(threshold, threshold + surplus, secret)
    points = chance.sample(sorted(shares), threshold)
    assert Combiner(points).combine(shares) == secret


@given(
    st.lists(st.sets(st.integers(1, 1 << 31), min_size=5, max_size=5).map(tuple), min_size=1, max_size=8),
    st.binary(min_size=32, max_size=32),
)
@settings(max_examples=40)
def test_many_sets_at_once_are_combined_as_each_alone(sets, secret):
    for points, combiner in shamir.combiners(sets).items():
        shares = shamir.split(secret, 5, points, Drbg("sets"))
        assert combiner.combine(shares) == secret == Combiner(points).combine(shares)
        assert [shamir._lagrange(points, point, 0) for point in points] == [
            combiner._top * one % P for one in combiner._inverses
        ]


def test_more_sets_than_one_batch_holds():
    sets = list(combinations(range(1, 13), 3)) + [(x, x + 1, x + 2) for x in range(13, 100)]
    assert len(sets) > shamir.BATCH_SETS
    shares = shares_of(3, 110)
    assert all(combiner.combine(shares) == SECRET for combiner in shamir.combiners(sets).values())
    assert shamir.combiners(()) == {}


@pytest.mark.parametrize("points", [(0, 1), (1, (1 << 31) + 1)])
def test_points_that_cannot_be_combined_are_refused(points):
    with pytest.raises(LocalError, match="points to be combined"):
        Combiner(points)


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_every_32_byte_value_fits(secret):
    assert Combiner((1, 3, 4)).combine(shares_of(3, 4, secret)) == secret


def test_fewer_shares_are_consistent_with_every_secret():
    """For t - 1 shares and any other secret there is a polynomial through both: the shares tell nothing."""
    shares = shares_of(3, 5)
    for other in (bytes(32), b"\xff" * 32):
        values = {0: int.from_bytes(other, "big"), 1: int.from_bytes(shares[1], "big"), 2: int.from_bytes(shares[2], "big")}
        forged = sum(shamir._lagrange((0, 1, 2), x, 3) * y for x, y in values.items()) % P
        assert Combiner((1, 2, 3)).combine({**shares, 3: forged.to_bytes(33, "big")}) == other


def test_shares_of_one_secret_differ_by_randomness():
    one, other = (shamir.split(SECRET, 3, (1, 2, 3), Drbg(seed)) for seed in "ab")
    assert all(one[x] != other[x] for x in one)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(bytes(31), 2, (1, 2)), (SECRET, 3, (1, 2)), (SECRET, 0, (1, 2)), (SECRET, 2, (0, 1)), (SECRET, 2, (1, 1))],
)
def test_impossible_splits_are_refused(secret, threshold, points):
    with pytest.raises(LocalError):
        shamir.split(secret, threshold, points, Drbg("x"))


def test_shares_are_canonical_field_elements():
    assert all(shamir.is_share(share) for share in shares_of(2, 3).values())
    assert shamir.is_share((P - 1).to_bytes(33, "big"))
    for bad in (P.to_bytes(33, "big"), bytes(32), bytes(34), b""):
        assert not shamir.is_share(bad)
        assert not shamir.are_shares([bytes(33), bad, bytes(33)])
    assert shamir.are_shares([bytes(33), (P - 1).to_bytes(33, "big"), *shares_of(2, 3).values()])
    assert shamir.are_shares([])


@pytest.mark.parametrize("wrong", [(1,), (2, 5), (7, 8), (4,), ()])
def test_half_the_surplus_is_corrected_without_trying_subsets(monkeypatch, wrong):
    monkeypatch.setattr(shamir, "MAX_SUBSETS", 0)
    shares = spoil(shares_of(4, 8), *wrong)
    (good,) = shamir.likely_good(shares, 4)
    assert Combiner(good).combine(shares) == SECRET
    assert shamir.off_polynomial(good, shares) == wrong


@pytest.mark.parametrize("wrong", list(combinations(range(1, 6), 2)))
def test_small_sets_are_corrected_up_to_the_whole_surplus(wrong):
    shares = spoil(shares_of(3, 5), *wrong)
    found = [good for good in shamir.likely_good(shares, 3) if Combiner(good).combine(shares) == SECRET]
    assert found
    assert shamir.off_polynomial(found[0], shares) == wrong


def test_decoding_says_so_when_more_than_half_the_surplus_is_wrong(monkeypatch):
    monkeypatch.setattr(shamir, "MAX_SUBSETS", 0)
    shares = spoil(shares_of(4, 9), 1, 2, 3, 4)
    assert list(shamir.likely_good(shares, 4)) == []


def test_one_surplus_share_corrects_one():
    shares = spoil(shares_of(3, 4), 2)
    assert [good for good in shamir.likely_good(shares, 3) if Combiner(good).combine(shares) == SECRET] == [(1, 3, 4)]


def test_too_many_wrong_shares_are_not_corrected():
    shares = spoil(shares_of(3, 5), 1, 2, 3)
    assert all(Combiner(good).combine(shares) != SECRET for good in shamir.likely_good(shares, 3))


def test_a_value_outside_the_secrets_is_no_secret():
    assert Combiner((1,)).combine({1: (2**256 + 1).to_bytes(33, "big")}) is None
