"""Numbers in words: units, ages, and an epsilon that is never rounded down and never infinite."""

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.plan import DECLINE_CODES
from ui import words

NOW = datetime(2026, 11, 21, 13, 32, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (185_000, "185 kB"),
        (9_640_000, "9.6 MB"),
        (2_300_000_000, "2.3 GB"),
    ],
)
def test_sizes_have_decimal_units(count, shown):
    assert words.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.11, "110 ms"),
        (1.25, "1.2 s"),
        (42.4, "42 s"),
        (59.7, "60 s"),
        (130, "2 min 10 s"),
        (120, "2 min"),
        (7_320, "2 h 2 min"),
    ],
)
def test_durations(seconds, shown):
    assert words.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "just now"),
        (4, "just now"),
        (27, "20 s ago"),
        (130, "2 min ago"),
        (7_300, "2 h ago"),
        (90_000, "1 day ago"),
        (200_000, "2 days ago"),
    ],
)
def test_ages_are_coarse(seconds, shown):
    assert words.age(NOW - timedelta(seconds=seconds), NOW) == shown


@given(st.floats(min_value=0, max_value=1e4))
def test_an_epsilon_is_rounded_up(value):
    shown = float(words.epsilon(value))
    assert value - 1e-6 <= shown <= value + 0.0100001


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_guarantee_is_said_in_words(value):
    assert words.epsilon(value) == "no guarantee"


def test_moments_are_on_the_readers_clock():
    assert words.moment(NOW, ZoneInfo("Europe/Berlin")) == "21 Nov 2026 14:32"
    assert words.clock(NOW, UTC) == "13:32:00"


def test_parameters_have_no_padding():
    assert [words.plain(value) for value in (8.0, 1.1, 1e-5, 0.25, 100.0)] == ["8", "1.1", "1e-5", "0.25", "100"]


def test_lists_and_counts():
    assert words.listing([]) == ""
    assert words.listing(["a"]) == "a"
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.counted(1, "round") == "1 round"
    assert words.counted(2_000, "round") == "2,000 rounds"
    assert words.counted(2, "entry", "entries") == "2 entries"


def test_a_small_share_is_not_shown_as_nothing():
    assert [words.percent(share) for share in (0.0, 0.004, 0.34, 1.0)] == ["0 %", "0.4 %", "34 %", "100 %"]


def test_every_reason_to_decline_has_words():
    assert words.decline("budget-exhausted") == DECLINE_CODES["budget-exhausted"]
    assert words.decline("something-new") == "something-new"
