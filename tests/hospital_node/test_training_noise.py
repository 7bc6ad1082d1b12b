"""The secret randomness: normals that are normal, coins that are fair, and choices that belong to one patient."""

import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from training_world import replayed

from hospital_node.noise import BLOCK_VALUES, DIGEST_RANGE, NormalStream, StepCoins

COUNT = 400_000


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return NormalStream(replayed(b"sample")).draw(COUNT)


def erf(values: np.ndarray) -> np.ndarray:
    import torch

    return torch.erf(torch.from_numpy(values)).numpy()


def test_moments_are_those_of_the_normal(sample):
    # five standard errors each: 1/sqrt(n), sqrt(2/n), sqrt(6/n), sqrt(24/n)
    assert abs(sample.mean()) < 5 / COUNT**0.5
    assert abs(sample.var() - 1) < 5 * (2 / COUNT) ** 0.5
    assert abs((sample**3).mean()) < 5 * (15 / COUNT) ** 0.5
    assert abs((sample**4).mean() - 3) < 5 * (96 / COUNT) ** 0.5


def test_distribution_is_normal_by_kolmogorov_smirnov(sample):
    ordered = np.sort(sample)
    expected = 0.5 * (1 + erf(ordered / 2**0.5))
    distance = np.abs(expected - (np.arange(COUNT) + 0.5) / COUNT).max()
    assert distance < 2.2 / COUNT**0.5  # exceeded by chance once in 8,000


def test_tail_reaches_as_far_as_it_should(sample):
    beyond = int((np.abs(sample) > 4).sum())
    assert 8 <= beyond <= 48  # 25 expected
    assert np.abs(sample).max() < 8.6


@pytest.mark.parametrize("lag", [1, 2, BLOCK_VALUES // 2, BLOCK_VALUES])
def test_values_are_uncorrelated_also_in_square(sample, lag):
    # Half a block apart lie the cosine and the sine of one pair, which share their radius.
    limit = 5 / (COUNT - lag) ** 0.5
    assert abs(np.mean(sample[:-lag] * sample[lag:])) < limit
    assert abs(np.mean((sample[:-lag] ** 2 - 1) * (sample[lag:] ** 2 - 1)) / 2) < limit


def test_first_values_follow_from_aes_and_box_muller():
    key = bytes(range(32))
    words = np.frombuffer(Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(16)), "<u8")
    radius = np.sqrt(-2 * np.log((int(words[0]) // 2048 + 1) / 2**53))
    angle = 2 * np.pi * (int(words[1]) // 2048) / 2**53
    assert NormalStream(lambda _: key).draw(2) == pytest.approx([radius * np.cos(angle), radius * np.sin(angle)], rel=1e-12)


@given(st.integers(0, 3 * BLOCK_VALUES))
def test_any_count_is_served(count):
    values = NormalStream(replayed(b"count")).draw(count)
    assert values.shape == (count,)
    assert np.isfinite(values).all()


def test_a_stream_never_repeats_and_another_key_gives_another_stream():
    stream = NormalStream(replayed(b"x"))
    first, second = stream.draw(1000), stream.draw(1000)
    assert not np.intersect1d(first, second).size
    assert not np.intersect1d(first, NormalStream(replayed(b"y")).draw(1000)).size


def test_a_short_random_source_is_refused():
    with pytest.raises(ValueError, match="gave 16 of 32 bytes"):
        NormalStream(lambda _: bytes(16))


@pytest.mark.parametrize("inverse_rate", [1, 2, 3, 7, 10])
def test_coins_fall_once_in_k(inverse_rate):
    rand, trials = replayed(b"coins"), 20_000
    hits = sum(StepCoins.fresh(rand).drawn("p", inverse_rate) for _ in range(trials))
    rate = 1 / inverse_rate
    assert abs(hits - trials * rate) <= 4.5 * (trials * rate * (1 - rate)) ** 0.5


def test_coins_of_two_patients_are_independent():
    rand, trials = replayed(b"pairs"), 8_000
    steps = [StepCoins.fresh(rand) for _ in range(trials)]
    both = sum(coins.drawn("a", 2) and coins.drawn("b", 2) for coins in steps)
    assert abs(both - trials / 4) < 4.5 * (trials * 3 / 16) ** 0.5


def test_values_past_the_last_whole_multiple_are_drawn_again(monkeypatch):
    digests = {"draw 0": DIGEST_RANGE - 1, "draw 1": 3}  # 2**64 - 1 is 0 modulo 3, and must not count as a hit

    def digest(_self, purpose, _patient):
        return digests[purpose].to_bytes(8, "little")

    monkeypatch.setattr(StepCoins, "_digest", digest)
    assert StepCoins(bytes(32)).drawn("p", 3)
    digests["draw 1"] = 4
    assert not StepCoins(bytes(32)).drawn("p", 3)


def test_generators_differ_by_patient_and_by_step_and_from_the_coin():
    rand = replayed(b"generators")
    one, two = StepCoins.fresh(rand), StepCoins.fresh(rand)
    values = {coins.generator(name).integers(2**63) for coins in (one, two) for name in ("a", "b")}
    assert len(values) == 4
    assert one.generator("a").integers(2**63) == one.generator("a").integers(2**63)


def test_the_key_is_not_shown():
    assert "7f7f" not in repr(StepCoins(b"\x7f" * 32))
    assert repr(StepCoins(b"\x7f" * 32)) == "StepCoins()"


def test_digest_names_its_purpose_before_the_patient():
    key = b"k" * 32
    expected = hmac.new(key, b"hospital-secagg patches\nann", hashlib.sha256).digest()
    expected_first = np.random.Generator(np.random.PCG64(int.from_bytes(expected, "little"))).integers(2**63)
    assert StepCoins(key).generator("ann").integers(2**63) == expected_first
