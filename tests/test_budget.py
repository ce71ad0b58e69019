from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.system.errors import UsageError
from zoo.system.units import format_count, format_share, format_size, parse_count, parse_share, parse_size

UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("15M", 15_000_000),
        ("1.2G", 1_200_000_000),
        ("300k", 300_000),
        ("300K", 300_000),
        (" 15 M ", 15_000_000),
        ("15e6", 15_000_000),
        ("0.3T", 300_000_000_000),
        (".5M", 500_000),
        (15e6, 15_000_000),
        (15_000_000, 15_000_000),
        ("1.2345678k", 1234),
        (0, 0),
    ],
)
def test_budgets_are_read_as_people_write_them(text, count):
    assert parse_count(text) == count


TEXTS = ["", "M", "15m", "15 MB", "-3", "-3M", "nan", "inf", "1,000", "0x10", "1e9999", "1.2.3", "\u0661M", "15MM"]


@pytest.mark.parametrize("junk", [*TEXTS, "1e400", "9" * 400, -1, -0.5, math.nan, math.inf, 10**400, True])
def test_junk_is_refused_by_name(junk):
    with pytest.raises(UsageError, match="is not a count"):
        parse_count(junk)


@given(st.integers(0, 10**15), st.sampled_from(sorted(UNITS)))
def test_a_unit_multiplies_exactly(number, unit):
    assert parse_count(f"{number}{unit}") == number * UNITS[unit]


@given(st.text(max_size=12))
def test_any_text_is_a_count_or_a_usage_error(text):
    with contextlib.suppress(UsageError):
        assert parse_count(text) >= 0


@given(st.integers(0, 10**15))
def test_a_formatted_count_reads_back_within_its_last_digit(count):
    text = format_count(count)
    assert abs(parse_count(text) - count) <= max(0.051 * UNITS[text[-1]] if text[-1] in UNITS else 0, 0)
    assert len(text) <= 7


@pytest.mark.parametrize(
    ("count", "text"),
    [(15_000_000, "15.0M"), (999, "999"), (999_949, "999.9k"), (999_960, "1.0M"), (470_000, "470.0k"), (0, "0")],
)
def test_counts_are_shown_with_one_decimal_and_a_unit(count, text):
    assert format_count(count) == text


def test_sizes_may_leave_out_the_b():
    assert parse_size("1.9MB") == parse_size("1.9M") == parse_size(1_900_000) == 1_900_000
    assert format_size(1_900_000) == "1.9MB"
    with pytest.raises(UsageError, match="is not a size"):
        parse_size("1.9MiB")


@given(st.floats(0, 1))
def test_a_share_reads_the_same_as_a_number_and_as_a_percentage(share):
    assert parse_share(share) == parse_share(str(share)) == share
    assert parse_share(f"{100 * share!r}%") == pytest.approx(share)


@pytest.mark.parametrize("junk", ["45", 45, "-0.1", "101%", "nan", "much", ""])
def test_a_share_beyond_one_is_refused_rather_than_guessed(junk):
    with pytest.raises(UsageError, match=r"write it as 0\.45 or 45%"):
        parse_share(junk)


def test_shares_are_shown_as_percentages():
    assert format_share(0.4513) == "45.1%"
