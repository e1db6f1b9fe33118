"""Numbers that people give: ranges for flags and settings, with a sentence for a number outside of them."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from drhard.errors import InputError


@dataclass(frozen=True)
class Range:
    """The numbers that make sense somewhere: ``type=COUNT`` for argparse, ``COUNT.check(name, value)`` elsewhere.

    Attributes:
        least, most: the bounds. Both belong to the range, but for ``least`` where ``above`` is set.
        whole: only whole numbers.
        above: ``least`` itself is too little.
    """

    least: float
    most: float
    whole: bool = True
    above: bool = False

    def __call__(self, text: str) -> float:
        """The number that ``text`` spells. Raises argparse's error, of which it makes a sentence."""
        try:
            number = int(text) if self.whole else float(text)
        except ValueError:  # no number, or one of 5,000 digits
            number = math.nan
        if not self._holds(number):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {self}")
        return number

    def check(self, name: str, value: float) -> None:
        """Raise InputError, naming ``name``, if ``value`` is outside."""
        if not self._holds(value):
            raise InputError(f"{name} is {str(value)[:40]}, expected {self}")

    def _holds(self, value: float) -> bool:
        if self.whole and value != value // 1:
            return False
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bounds = f"above {_plain(self.least)}, up" if self.above else f"from {_plain(self.least)}"
        return f"{kind} {bounds} to {_plain(self.most)}"


def _plain(number: float) -> str:
    return f"{number:.0f}" if number == number // 1 and abs(number) < 1e10 else f"{number:g}"


COUNT = Range(1, 2**31 - 1)  # of things, of which there must be one: queries in a batch, epochs, top k
NATURAL = Range(0, 2**31 - 1)  # of things, of which there may be none: steps of a warm-up, the number of a GPU
LENGTH = Range(2, 2**20)  # of a sequence in tokens, <s> and </s> included
SEED = Range(0, 2**32 - 1)  # what NumPy's and torch's generators take
RATE = Range(0, 1e4, whole=False)  # a learning rate, a weight decay; 0 switches it off
POSITIVE = Range(0, 1e30, whole=False, above=True)
BETA = Range(0, 0.999999, whole=False)  # of a moving average, as Adam's
EPSILON = Range(0, 1, whole=False, above=True)  # what keeps a quotient finite
NORM = Range(0, 1e12, whole=False, above=True)  # to clip a gradient at
FRACTION = Range(0, 1, whole=False)  # a share of a whole
SEARCH_GB = Range(0.5, 1e6, whole=False)  # what a pass of a search on the CPU may take
