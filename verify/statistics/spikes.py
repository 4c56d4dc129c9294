"""Spike metrics of a training run's series (loss in nats, or gradient norm before clipping): pure NumPy and pandas.

Four detectors, each with the window it looks at: OLMo 2's (`spike_steps`, the previous 1,000 values), ZClip's
(`zclip_steps`, a moving average of about 33), SPAM's (`spam_steps`, the whole run) and the rolling median's
(`rolling_median_steps`, 201 values). `spike_events` gathers what any of them flags into events. docs/statistics.md says
when each one misleads.

Excess over the running minimum punishes the scheme that learns more, because its minimum is lower: read it beside
`relative_excess`, which counts in units of the series' own noise, compare schemes at matched loss (`matched_floor`),
and look at the final loss apart. Values that are not finite (a diverged run's) count as spikes where a metric counts,
and are left out where it averages.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd


def spike_steps(series: np.ndarray, window: int = 1000, deviations: float = 7.0, warm_up: int = 50) -> np.ndarray:
    """bool[steps]: values at least `deviations` standard deviations away from the mean of the previous `window`.

    OLMo 2 (arXiv 2501.00656, section 3.2) uses 1,000 and 7, on the loss and on the gradient norm, and counts both
    directions. Near the start the window is as long as the run so far; the first `warm_up` values are never spikes. A
    value that is not finite is one wherever it stands. After a constant stretch any other value is a spike.

    Raises ValueError for a window below 2.
    """
    series = _one_run(series)
    if window < 2:
        raise ValueError(f"window: must be at least 2, got {window}")
    spikes = ~np.isfinite(series)
    mean, deviation = _mean_and_deviation_before(series, min(window, len(series)))
    away = np.abs(series - mean)
    away[: max(warm_up, 2)] = np.nan
    return spikes | ((away >= deviations * deviation) & (away > 0))


_Moments = tuple[np.ndarray, np.ndarray, np.ndarray]  # count, mean, sum of squared differences from the mean


def _mean_and_deviation_before(series: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """[steps] each, of the finite ones among the `window` values before each step; nan where there are fewer than two.

    Two neighbouring windows make one of twice the length, and the window is a sum of such powers of two. Nothing is
    ever subtracted, so a spike leaves no rounding behind once the window has passed it, as running sums would.
    """
    known = np.isfinite(series)
    piece = (known.astype(np.float64), np.where(known, series, 0.0), np.zeros(len(series)))
    total = (np.zeros(len(series)), np.zeros(len(series)), np.zeros(len(series)))
    covered, length = 1, 1  # the first step back is the one before; piece: moments of the `length` values up to a step
    while length <= window:
        if window & length:
            total = _together(total, _delayed(piece, covered))
            covered += length
        piece = _together(piece, _delayed(piece, length))
        length *= 2
    count, mean, squares = total
    count = np.where(count < 2, np.nan, count)
    return np.where(np.isnan(count), np.nan, mean), np.sqrt(squares / count)


def _together(first: _Moments, second: _Moments) -> _Moments:
    """Moments of two samples' union (Chan, Golub, LeVeque 1983)."""
    count = first[0] + second[0]
    weight = second[0] / np.maximum(count, 1)
    apart = second[1] - first[1]
    return count, first[1] + weight * apart, first[2] + second[2] + first[0] * weight * apart**2


def _delayed(moments: _Moments, steps: int) -> _Moments:
    count, mean, squares = (np.r_[np.zeros(min(steps, len(of))), of[: max(len(of) - steps, 0)]] for of in moments)
    return count, mean, squares


def spike_score(series: np.ndarray, window: int = 1000, deviations: float = 7.0, warm_up: int = 50) -> float:
    """OLMo 2's spike score: the share of the run's values that are spikes, between 0 and 1; nan for an empty run.

    Of the loss or of the gradient norm before clipping: `spike_steps` says how.
    """
    spikes = spike_steps(series, window, deviations, warm_up)
    return float(spikes.mean()) if len(spikes) else np.nan


def zclip_steps(
    gradient_norm: np.ndarray, alpha: float = 0.97, threshold: float = 2.5, warm_up: int = 25, epsilon: float = 1e-6
) -> np.ndarray:
    """bool[steps]: what ZClip's online detector (arXiv 2504.02507) flags in a gradient norm, upwards only.

    mu and s^2 start as mean and population variance of the first `warm_up` values. From then on z = (g - mu) / (s +
    epsilon); z > threshold is a spike and is fed on as g* = mu + threshold^2 / z s; then mu <- alpha mu + (1 - alpha)
    g*, and with the new mu, s^2 <- alpha s^2 + (1 - alpha) (g* - mu)^2. So in the authors' code (bluorion-com/ZClip,
    commit 1acb085), whose additional fixed clip is left out. epsilon is in the norm's unit.

    Here the norms are those of a run that was not clipped this way, and a value that is not finite is a spike and is
    not fed on.
    """
    norms = _one_run(gradient_norm)
    spikes = ~np.isfinite(norms)
    finite = np.flatnonzero(~spikes)
    if len(finite) <= warm_up:
        return spikes
    known = norms[finite[:warm_up]]
    mean, variance = float(known.mean()), float(known.var())
    for step in finite[warm_up:]:
        norm, deviation = float(norms[step]), math.sqrt(variance)
        z = (norm - mean) / (deviation + epsilon)
        if z > threshold:
            spikes[step] = True
            norm = mean + threshold**2 / z * deviation
        mean = alpha * mean + (1 - alpha) * norm
        variance = alpha * variance + (1 - alpha) * (norm - mean) ** 2
    return spikes


def spam_steps(magnitudes: np.ndarray, threshold: float = 50.0) -> np.ndarray:
    """bool[steps, ...]: magnitudes more than `threshold` times their mean over all steps of the run, later ones too.

    SPAM's gradient spike score (arXiv 2501.06842) is |g_i| / mean_t |g_i| of one coordinate i. A run records norms per
    matrix, not coordinates: on those it is blind to few coordinates among many. No value exceeds the number of steps
    times the mean, so a run of 50 steps has no spike. What is not finite is a spike and is left out of the mean.
    """
    magnitudes = np.abs(np.asarray(magnitudes, dtype=np.float64))
    known = np.isfinite(magnitudes)
    mean = np.where(known, magnitudes, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return ~known | (magnitudes > threshold * mean)


def rolling_median_steps(
    loss: np.ndarray, length: int = 201, excess: float = 0.1, centred: bool = False, warm_up: int = 50
) -> np.ndarray:
    """bool[steps]: losses more than `excess` nats above the median of `length` steps, of which they are one.

    Of the last ones, or centred: half of them later. At the ends of the run the window holds what there is; the first
    `warm_up` values are never spikes but where they are not finite. Source: a rule of thumb [S in PAPERS.md]. Raises
    ValueError for a centred window of even length.
    """
    series = _one_run(loss)
    if centred and length % 2 == 0:
        raise ValueError(f"length: a centred window has an odd one, got {length}")
    infinite = ~np.isfinite(series)
    known = pd.Series(np.where(infinite, np.nan, series))
    median = known.rolling(length, min_periods=1, center=centred).median().to_numpy()
    spikes = series > median + excess
    spikes[:warm_up] = False
    return spikes | infinite


def spike_count(spikes: np.ndarray, apart: int = 10) -> int:
    """Number of events: spikes less than `apart` steps from the one before belong to it."""
    return len(event_bounds(spikes, apart))


def event_bounds(spikes: np.ndarray, apart: int = 10) -> np.ndarray:
    """int[events, 2]: first and last spike of each event; spikes less than `apart` steps apart are one."""
    steps = np.flatnonzero(spikes)
    breaks = np.flatnonzero(np.diff(steps) >= apart)
    if not steps.size:
        return np.empty((0, 2), dtype=np.intp)
    return np.stack([np.r_[steps[0], steps[breaks + 1]], np.r_[steps[breaks], steps[-1]]], axis=1)


def spike_events(
    series: np.ndarray, spikes: np.ndarray, apart: int = 10, before: int = 50, margin: float = 1.0
) -> pd.DataFrame:
    """One row an event of `spikes` (bool[steps], of any detector), `spike_count` of them; steps count from 0.

    start, end: first and last flagged step. level: median of the `before` steps before start, in the series' unit; nan
    for an event at step 0. height: largest value from start until recovery or the next event, less level; negative for
    a dip, inf where the series is not finite. recovery: steps from start to the first step from `end` on that is back
    under level + margin x noise (the same steps' median absolute deviation / 0.6745); nan if none is. diverged: it
    never recovers. steps_left: in the run, from start on; an event with few may have been cut off.

    Raises ValueError where the two lengths differ.
    """
    series = _one_run(series)
    if len(spikes) != len(series):
        raise ValueError(f"spikes: {len(spikes)} steps, the series has {len(series)}")
    bounds = event_bounds(spikes, apart)
    following = np.r_[bounds[:, 0], len(series)][1:]
    rows = []
    for (start, end), next_start in zip(bounds, following, strict=True):
        known = series[max(start - before, 0) : start]
        known = known[np.isfinite(known)]
        level = float(np.median(known)) if known.size else np.nan
        noise = float(np.median(np.abs(known - level))) / 0.6745 if known.size else np.nan
        back = np.flatnonzero(series[end:] <= level + margin * noise)
        recovery = float(end + back[0] - start) if back.size else np.nan
        stop = next_start if np.isnan(recovery) else min(max(start + int(recovery), end + 1), next_start)
        stretch = series[start:stop]
        height = float(stretch.max()) - level if np.all(np.isfinite(stretch)) else np.inf
        rows.append((start, end, level, height, recovery, np.isnan(recovery), len(series) - start))
    columns = {"start": int, "end": int, "level": float, "height": float, "recovery": float}
    columns |= {"diverged": bool, "steps_left": int}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


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


def _one_run(series: np.ndarray) -> np.ndarray:
    series = np.asarray(series, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"series: one value a step, got shape {series.shape}")
    return series
