"""Key words: the rule of the list, and that a misheard word never passes."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.party import CertificateError
from certs.words import WORDS, compare_words, words_of

fingerprints = st.binary(min_size=32, max_size=32)


def differ_by_one_letter(a: str, b: str) -> bool:
    if abs(len(a) - len(b)) > 1:
        return False
    short, long = sorted((a, b), key=len)
    if len(short) == len(long):
        return sum(x != y for x, y in zip(short, long, strict=True)) == 1
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def test_the_list_has_a_word_for_every_byte_and_keeps_its_rule() -> None:
    assert len(set(WORDS)) == 256
    assert all(4 <= len(word) <= 8 and word.isascii() and word.isalpha() and word.islower() for word in WORDS)
    assert len({word[:3] for word in WORDS}) == 256
    assert [(a, b) for a, b in combinations(WORDS, 2) if differ_by_one_letter(a, b)] == []


def test_the_rule_can_be_broken() -> None:
    assert differ_by_one_letter("donkey", "monkey")
    assert differ_by_one_letter("canoe", "cane")
    assert not differ_by_one_letter("maple", "orbit")


def test_known_answer_pins_the_list() -> None:
    assert words_of(bytes([0, 1, 16, 100, 128, 200, 254, 255]) + bytes(24)) == (
        "acorn-airport-avenue-funnel-jelly-pyramid-zipper-zone"
    )


@given(fingerprints)
def test_spoken_words_match_in_any_spelling(fingerprint: bytes) -> None:
    words = words_of(fingerprint)
    compare_words(words, fingerprint, "st-anna")
    compare_words(f"  {words.replace('-', ' ').upper()} ", fingerprint, "st-anna")


@given(fingerprints, st.integers(0, 7), st.integers(1, 255))
def test_one_other_byte_is_refused_by_its_place(fingerprint: bytes, place: int, change: int) -> None:
    other = bytearray(fingerprint)
    other[place] ^= change
    with pytest.raises(CertificateError, match=f"word {place + 1} does not match"):
        compare_words(words_of(bytes(other)), fingerprint, "st-anna")


def test_missing_and_unknown_words_are_named() -> None:
    fingerprint = bytes(32)
    with pytest.raises(CertificateError, match="0 words were given"):
        compare_words("", fingerprint, "st-anna")
    with pytest.raises(CertificateError, match="7 words were given"):
        compare_words("acorn-" * 7, fingerprint, "st-anna")
    with pytest.raises(CertificateError, match="word 3, 'monkey', is not on the word list"):
        compare_words("acorn acorn monkey acorn acorn acorn acorn acorn", fingerprint, "st-anna")
    with pytest.raises(CertificateError, match="this one has 4"):
        words_of(bytes(4))
