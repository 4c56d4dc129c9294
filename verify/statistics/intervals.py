"""Intervals and tests over seeds, from SciPy."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy import stats


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[..., Any] = np.mean, level: float = 0.95
) -> tuple[float, float]:
    """(low, high) of a statistic over seeds, BCa bootstrap with a fixed generator; (nan, nan) for fewer than 2 values.

    Values that are equal but for rounding give their range.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return np.nan, np.nan
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        return float(values.min()), float(values.max())
    method: Literal["BCa", "percentile"] = "BCa" if len(values) > 2 else "percentile"
    result = stats.bootstrap((values,), statistic, confidence_level=level, method=method, rng=np.random.default_rng(0))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def proportion_interval(
    successes: int, trials: int, level: float = 0.95, method: Literal["exact", "wilson"] = "exact"
) -> tuple[float, float]:
    """Interval of a proportion: Clopper-Pearson's ("exact", covers at least `level`) or Wilson's (about `level`)."""
    interval = stats.binomtest(successes, trials).proportion_ci(level, method)
    return float(interval.low), float(interval.high)


def permutation_p(first: np.ndarray, second: np.ndarray) -> float:
    """One-sided p-value that `first` is larger than `second`, by permutation of the difference of means.

    Exact where there are at most 20,000 ways to split the values, otherwise 20,000 of them from a fixed generator.
    """
    result = stats.permutation_test(
        (np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        alternative="greater",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
