"""Spike metrics of a training run's series (loss, or gradient norm before clipping): pure NumPy.

Excess over the running minimum punishes the scheme that learns more, because its minimum is lower: read it beside
`relative_excess`, which counts in units of the series' own noise, compare schemes at matched loss (`matched_floor`),
and look at the final loss apart. Values that are not finite (a diverged run's) count as spikes where a metric counts,
and are left out where it averages.
"""

from collections.abc import Sequence

import numpy as np


def spike_steps(series: np.ndarray, window: int = 1000, deviations: float = 7.0, warm_up: int = 50) -> np.ndarray:
    """bool[steps]: values at least `deviations` standard deviations away from the mean of the previous `window`.

    OLMo 2 (arXiv 2501.00656) uses 1,000 and 7. Near the start the window is as long as the run so far; the first
    `warm_up` values are never spikes. A value that is not finite is one wherever it stands.
    """
    series = np.asarray(series, dtype=np.float64)
    spikes = ~np.isfinite(series)
    for step in range(max(warm_up, 2), len(series)):
        before = series[max(step - window, 0) : step]
        before = before[np.isfinite(before)]
        if not spikes[step] and len(before) > 1:
            away = abs(series[step] - before.mean())
            spikes[step] = away >= deviations * before.std() and away > 0
    return spikes


def spike_score(series: np.ndarray, window: int = 1000, deviations: float = 7.0, warm_up: int = 50) -> float:
    """Share of the run's values that are spikes, between 0 and 1 (OLMo 2's spike score)."""
    return float(spike_steps(series, window, deviations, warm_up).mean())


def spike_count(spikes: np.ndarray, apart: int = 10) -> int:
    """Number of events: spikes less than `apart` steps from the one before belong to it."""
    steps = np.flatnonzero(spikes)
    return int(len(steps) > 0) + int(np.sum(np.diff(steps) >= apart))


def largest_excess(series: np.ndarray, smoothing: int = 10, after: int = 0, floor: float = -np.inf) -> float:
    """Largest excess of the `smoothing`-step mean over its running minimum, in the series' unit; inf once diverged.

    after: steps at the start that are left out. A run shorter than one mean has 0. floor: the running minimum counts as
    at least this, so that runs compared at one floor (`matched_floor`) are judged over the same stretch of loss.
    """
    series = np.asarray(series, dtype=np.float64)[after:]
    if not np.all(np.isfinite(series)):
        return np.inf
    if len(series) < smoothing:
        return 0.0
    smooth = _running_mean(series, smoothing)
    excess = smooth - np.maximum(np.minimum.accumulate(smooth), floor)
    return float(max(np.max(excess), 0.0))


def matched_floor(runs: Sequence[np.ndarray], smoothing: int = 10, after: int = 0) -> float:
    """The lowest `smoothing`-step mean that every one of the runs reached while finite; -inf where one has none.

    With it as `floor` in `largest_excess`, what a run does below the loss of its weakest rival does not count.
    """
    minima = []
    for series in runs:
        kept = np.asarray(series, dtype=np.float64)[after:]
        stop = np.flatnonzero(~np.isfinite(kept))
        kept = kept[: stop[0]] if stop.size else kept
        minima.append(_running_mean(kept, smoothing).min() if len(kept) >= smoothing else -np.inf)
    return float(-np.inf if -np.inf in minima else max(minima))


def _running_mean(series: np.ndarray, length: int) -> np.ndarray:
    return np.convolve(series, np.full(length, 1 / length), mode="valid")


def relative_excess(series: np.ndarray, smoothing: int = 10, after: int = 0) -> float:
    """`largest_excess` in units of the noise of that mean, taken from the differences of neighbouring values."""
    kept = np.asarray(series, dtype=np.float64)[after:]
    if len(kept) < 2 or not np.all(np.isfinite(kept)):
        return largest_excess(series, smoothing, after)
    noise = np.median(np.abs(np.diff(kept))) / (0.6745 * np.sqrt(2) * np.sqrt(smoothing))
    excess = largest_excess(series, smoothing, after)
    return excess / noise if noise > 0 else (np.inf if excess > 0 else 0.0)


def gradient_norm_ratio(gradient_norm: np.ndarray, after: int = 0) -> float:
    """Largest gradient norm over the median one, from step `after` on; inf once diverged."""
    kept = np.asarray(gradient_norm, dtype=np.float64)[after:]
    if not np.all(np.isfinite(kept)):
        return np.inf
    return float(kept.max() / np.median(kept))
