"""Test whether two runs differ: paired tests over queries, and Holm's correction for several tests."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 100_000  # of the randomization test; p is accurate to 0.002 at 0.05
SEED = 42
POWER = 0.8  # with which a difference should be found
BATCH_SIGNS = 4_000_000  # signs drawn at a time: each takes 62 bytes


class Comparison(NamedTuple):
    """The comparison of two series of per-query values, a and b."""

    difference: float  # mean of a - b
    low: float  # bounds of the 95 % interval of the difference, by Student's t
    high: float
    t_test: float  # p, two-sided
    randomization: float  # p, two-sided
    error: float  # the standard error of the difference; NaN for one query


def compare(a: np.ndarray, b: np.ndarray) -> Comparison:
    """Compare two series by a paired two-sided t-test and a randomization test.

    The randomization test flips the signs of the differences. It is exact up to 16 queries and draws 100,000 samples
    for more (Smucker, Allan and Carterette, CIKM 2007).

    Args:
        a, b: (Q,) values of the same queries in the same order.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean = float(difference.mean())
    if len(difference) == 1:  # one query says nothing about others
        return Comparison(mean, float("nan"), float("nan"), 1.0, 1.0, float("nan"))
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max():  # all differences are equal, so t divides by 0
        certain = 1.0 if mean == 0 else 0.0
        randomization = _randomization(difference)
        return Comparison(mean, mean, mean, certain, randomization, 0.0)
    test = stats.ttest_1samp(difference, 0)
    low, high = test.confidence_interval(0.95)
    error = float(stats.sem(difference))
    return Comparison(mean, float(low), float(high), float(test.pvalue), _randomization(difference), error)


def least_found(error: float, queries: int, level: float) -> float:
    """Return the smallest true difference that a two-sided paired t-test finds with the probability :data:`POWER`.

    It is ``(t(1 - level / 2) + t(POWER)) * error`` with the quantiles of Student's t, which is close for 30 queries and
    more (Cohen, Statistical Power Analysis, 1988).

    Args:
        error: the standard error of the difference.
        level: of the test.
    """
    if queries < 2:
        return float("nan")
    return float((stats.t.ppf(1 - level / 2, queries - 1) + stats.t.ppf(POWER, queries - 1)) * error)


def _randomization(difference: np.ndarray) -> float:
    changed = difference[difference != 0]  # a sign does not change the others
    if len(changed) < 2:  # either sign gives the same distance from 0
        return 1.0
    return float(
        stats.permutation_test(
            (changed,),
            np.sum,
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, min(2000, BATCH_SIGNS // len(changed))),
            rng=np.random.default_rng(SEED),
        ).pvalue
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction. Read each as if its test were the only one."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of a few values (seeds) and the half width of its 95 % interval by Student's t, NaN for one."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(half)
