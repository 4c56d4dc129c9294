"""Intervals, effect sizes and tests over seeds, from SciPy; every generator is fixed.

One-sided tests ask whether `first` is larger. A diverged run has no loss to average: count divergences (`fisher_p`,
`difference_of_proportions`), or rank the runs with its loss as inf (`common_language_effect`). Correct the p-values of
several claims with `verify.statistics.corrections`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

_RESAMPLES = 20_000


@dataclass(frozen=True)
class Estimate:
    """A quantity and its interval, in one unit; low and high are nan where the data give none."""

    value: float
    low: float
    high: float


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
    """Interval of a proportion: Clopper-Pearson's ("exact", covers at least `level`) or Wilson's (about `level`).

    (0, 1) without a trial.
    """
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(level, method)
    return float(interval.low), float(interval.high)


def difference_of_means(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> Estimate:
    """Mean of `first` less mean of `second`, two independent samples of seeds, in their unit: Welch's t interval.

    Of normal values it covers 96 % at 3 seeds against 3, where a percentile bootstrap covers 79. No interval where a
    sample has fewer than 2 values; two constant samples have one of no width. Raises ValueError where a value is not
    finite or a sample is empty.
    """
    first, second = _finite(first), _finite(second)
    value = float(np.mean(first) - np.mean(second))
    if min(len(first), len(second)) < 2:
        return Estimate(value, np.nan, np.nan)
    if np.ptp(first) == np.ptp(second) == 0:
        return Estimate(value, value, value)
    # `stats.ttest_ind` has the same, but warns where one sample is constant, as spike counts often are
    squares = np.array([first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)])
    freedom = squares.sum() ** 2 / np.sum(squares**2 / [len(first) - 1, len(second) - 1])
    low, high = stats.t.interval(level, freedom, loc=value, scale=np.sqrt(squares.sum()))
    return Estimate(value, float(low), float(high))


def difference_of_proportions(
    first_successes: int, first_trials: int, second_successes: int, second_trials: int, level: float = 0.95
) -> Estimate:
    """First proportion less the second, by Newcombe's score interval (1998, his method 10), from Wilson's of each.

    Raises ValueError where a group has no trial.
    """
    if min(first_trials, second_trials) < 1:
        raise ValueError(f"trials: each group needs one, got {first_trials} and {second_trials}")
    first, second = first_successes / first_trials, second_successes / second_trials
    first_low, first_high = proportion_interval(first_successes, first_trials, level, "wilson")
    second_low, second_high = proportion_interval(second_successes, second_trials, level, "wilson")
    down = np.hypot(first - first_low, second_high - second)
    up = np.hypot(first_high - first, second - second_low)
    return Estimate(first - second, float(first - second - down), float(first - second + up))


def ratio_of_rates(
    first_events: np.ndarray, first_exposure: np.ndarray, second_events: np.ndarray, second_exposure: np.ndarray,
    level: float = 0.95,
) -> Estimate:  # fmt: skip
    """Events per exposure (steps in some state, say) of `first` over those of `second`; an entry is one run's.

    Sums over sums, so that a run without exposure says nothing; percentile bootstrap over runs, as the events of one
    run need not be independent. inf for a rate over one of 0. No interval where a sample has fewer than 2 runs or
    some resample leaves no ratio, 0 over 0.
    Two rates are shown to be the same within a factor f, at an error of 5 %, where the interval of level 0.9 lies
    between 1/f and f (two one-sided tests). Raises ValueError where the lengths of a sample differ, one of its values
    is negative or not finite, or it has no exposure at all.
    """
    samples = [(_finite(first_events), _finite(first_exposure)), (_finite(second_events), _finite(second_exposure))]
    for events, exposure in samples:
        if len(events) != len(exposure) or min(events.min(), exposure.min()) < 0 or not exposure.sum():
            raise ValueError(f"events, exposure: one each a run, not negative, some exposure; got {events}, {exposure}")
    rng = np.random.default_rng(0)
    rates, resampled = [], []
    with np.errstate(divide="ignore", invalid="ignore"):
        for events, exposure in samples:
            drawn = rng.integers(len(events), size=(_RESAMPLES, len(events)))
            rates.append(events.sum() / exposure.sum())
            resampled.append(events[drawn].sum(axis=1) / exposure[drawn].sum(axis=1))
        value, ratios = float(rates[0] / rates[1]), resampled[0] / resampled[1]
    if min(len(events) for events, _ in samples) < 2 or np.any(np.isnan(ratios)):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Estimate(value, float(low), float(high))


def common_language_effect(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> Estimate:
    """Chance that a value of `first` exceeds one of `second`, ties half: Mann-Whitney's U / (n m), the AUC.

    Percentile bootstrap over seeds; no interval where a sample has fewer than 2 values. A diverged run's loss is inf.
    Samples without overlap give 0 or 1 and an interval of no width: read `permutation_p` there. Raises ValueError for
    nan and for an empty sample.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if np.any(np.isnan(np.r_[first, second])) or not min(len(first), len(second)):
        raise ValueError("values: none may be nan, and each sample needs one")
    if min(len(first), len(second)) < 2:
        return Estimate(float(_exceedance(first, second)), np.nan, np.nan)
    low, high = stats.bootstrap(
        (first, second), _exceedance, confidence_level=level, method="percentile", batch=1000, vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Estimate(float(_exceedance(first, second)), float(low), float(high))


def _mean_difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(np.mean(first, axis=axis) - np.mean(second, axis=axis))


def _exceedance(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    first, second = np.moveaxis(first, axis, -1)[..., :, None], np.moveaxis(second, axis, -1)[..., None, :]
    return np.asarray(np.mean((first > second) + 0.5 * (first == second), axis=(-2, -1)))


def permutation_p(first: np.ndarray, second: np.ndarray) -> float:
    """One-sided p-value that `first` is larger than `second`, by permutation of the difference of means.

    Exact where there are at most 20,000 ways to split the values, otherwise 20,000 of them from a fixed generator.
    Raises ValueError where a value is not finite or a sample has fewer than 2.
    """
    first, second = _finite(first), _finite(second)
    result = stats.permutation_test(
        (first, second),
        _mean_difference,
        alternative="greater",
        n_resamples=_RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def paired_permutation_p(first: np.ndarray, second: np.ndarray) -> float:
    """One-sided p-value that `first` is larger than `second` where both ran the same seeds, in the same order.

    By flipping the signs of the differences: exact up to 14 seeds (2^n <= 20,000), otherwise 20,000 flips from a fixed
    generator. n seeds reach 2^-n at best. Raises ValueError where the lengths differ, a value is not finite or
    there are fewer than 2.
    """
    first, second = _finite(first), _finite(second)
    if len(first) != len(second):
        raise ValueError(f"first, second: one value a seed, got {len(first)} and {len(second)}")
    result = stats.permutation_test(
        (first - second,),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=_RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def fisher_p(first_successes: int, first_trials: int, second_successes: int, second_trials: int) -> float:
    """One-sided p-value that the first proportion (of diverged runs, say) is the larger one: Fisher's exact test.

    1 where a group has no trial. Raises ValueError where a count is negative or exceeds its trials.
    """
    first = [first_successes, first_trials - first_successes]
    second = [second_successes, second_trials - second_successes]
    return float(stats.fisher_exact(np.array([first, second]), alternative="greater").pvalue)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not values.size or not np.all(np.isfinite(values)):
        raise ValueError("values: at least one, and all finite; count diverged runs apart, or rank them")
    return values
