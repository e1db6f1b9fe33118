"""Ranges for the numbers in flags and settings. A number outside its range gives a one-line error."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass

from drhard.errors import InputError


@dataclass(frozen=True)
class Range:
    """A range of valid numbers. Use ``type=COUNT`` in argparse and ``COUNT.check(name, value)`` elsewhere.

    Attributes:
        least, most: the bounds, both valid themselves.
        whole: only whole numbers are valid.
        above: ``least`` itself is not valid.
        off: a number out of the bounds that is valid too: the default, which turns a flag off.
    """

    least: float
    most: float
    whole: bool = True
    above: bool = False
    off: float | None = None

    def __call__(self, text: str) -> float:
        """Parse ``text``. Raises ArgumentTypeError, which argparse reports."""
        try:
            number = int(text) if self.whole else float(text)
        except ValueError:  # not a number, or too many digits for int()
            number = math.nan
        if not self._holds(number):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {self}")
        return number

    def check(self, name: str, value: float) -> None:
        """Raise InputError, naming ``name``, if ``value`` is out of range."""
        if not self._holds(value):
            raise InputError(f"{name} is {str(value)[:40]}, expected {self}")

    def _holds(self, value: float) -> bool:
        if value == self.off:
            return True
        if self.whole and value != value // 1:
            return False
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bounds = f"above {_plain(self.least)}, up" if self.above else f"from {_plain(self.least)}"
        return f"{kind} {bounds} to {_plain(self.most)}" + ("" if self.off is None else f", or {_plain(self.off)}")


def _plain(number: float) -> str:
    return f"{number:.0f}" if number == number // 1 and abs(number) < 1e10 else f"{number:g}"


COUNT = Range(1, 2**31 - 1)  # at least one: queries in a batch, epochs, top k
NATURAL = Range(0, 2**31 - 1)  # may be zero: warm-up steps, the number of a GPU
LENGTH = Range(2, 2**20)  # tokens in a sequence, including <s> and </s>
SEED = Range(0, 2**32 - 1)  # what NumPy's and torch's generators accept
RATE = Range(0, 1e4, whole=False)  # a learning rate or weight decay; 0 turns it off
BETA = Range(0, 0.999999, whole=False)  # the decay of a moving average, as in Adam
DIM = Range(1, 2**14)  # dimensions of an embedding
EPSILON = Range(0, 1, whole=False, above=True)  # keeps a quotient finite
NORM = Range(0, 1e12, whole=False, above=True)  # the norm at which a gradient is clipped
SCALE = Range(0, 1e4, whole=False, above=True)  # a factor of scores
FRACTION = Range(0, 1, whole=False)  # a share of a whole
MARGIN = Range(0, 0.999999, whole=False)  # between a negative and a relevant passage, as a share of the latter's score
SEARCH_GB = Range(0.5, 1e6, whole=False)  # memory for one pass of a search on the CPU
PORT = Range(0, 65535)  # of TCP; 0 is any free one


@dataclass(frozen=True)
class Ranks:
    """Ranks from ``first`` to ``last``, both included, counted from 1. Use ``type=Ranks.parse`` in argparse."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Ranks:
        """Parse ``FIRST-LAST``. Raises ArgumentTypeError, which argparse reports."""
        numbers = re.fullmatch("([0-9]{1,10})-([0-9]{1,10})", text)
        if numbers:
            ranks = cls(int(numbers[1]), int(numbers[2]))
            if COUNT.least <= ranks.first <= ranks.last <= COUNT.most:
                return ranks
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a range of ranks such as 10-200, counted from 1")

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"
