"""Ranges of numbers, for flags and settings."""

import argparse
import math
import re

from drhard.errors import InputError
from drhard.numbers import COUNT, FRACTION, LENGTH, MARGIN, NATURAL, NORM, RATE, SEED, Ranks

import pytest


@pytest.mark.parametrize(
    ("numbers", "text", "value"),
    [(COUNT, "1", 1), (NATURAL, "0", 0), (SEED, "4294967295", 2**32 - 1), (RATE, "5e-6", 5e-6), (FRACTION, "1", 1.0)],
)
def test_a_number_inside(numbers, text: str, value: float) -> None:
    assert numbers(text) == value
    assert type(numbers(text)) is type(value)
    numbers.check("name", value)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (COUNT, "0"),
        (COUNT, "-1"),
        (COUNT, "1.5"),
        (COUNT, "x"),
        (COUNT, "9" * 5000),
        (COUNT, "1e3"),
        (NATURAL, "-1"),
        (SEED, str(2**32)),
        (LENGTH, "1"),
        (RATE, "nan"),
        (RATE, "inf"),
        (RATE, "-1e-9"),
        (NORM, "0"),
        (NORM, "nan"),
        (FRACTION, "1.01"),
        (MARGIN, "1"),
        (MARGIN, "-0.05"),
        (MARGIN, "nan"),
    ],
)
def test_a_number_outside_is_one_sentence(numbers, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f" is not {numbers}")):
        numbers(text)


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, math.inf, 10**30])
def test_a_setting_outside_is_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match="^top k is .*, expected a whole number from 1 to 2147483647$"):
        COUNT.check("top k", value)


@pytest.mark.parametrize(
    ("text", "first", "last"), [("10-200", 10, 200), ("1-1", 1, 1), ("1-2147483647", 1, 2**31 - 1)]
)
def test_ranks_both_included(text: str, first: int, last: int) -> None:
    assert Ranks.parse(text) == Ranks(first, last)
    assert str(Ranks(first, last)) == text


@pytest.mark.parametrize(
    "text",
    ["", "10", "0-5", "9-3", "a-b", "1-", "-5", "-1-5", "1-2-3", "1 - 5", "1.5-3", "1-2147483648", "1-1e3", "١-٥"]
    + [f"1-{'9' * 5000}"],
)
def test_what_are_no_ranks_is_one_sentence(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        Ranks.parse(text)
    assert str(error.value) == f"{text[:40]!r} is not a range of ranks such as 10-200, counted from 1"
