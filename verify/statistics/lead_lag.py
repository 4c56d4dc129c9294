"""Does the gradient norm grow before the loss spikes, and by how many steps (claim SNM-11)?

Two answers. `gradient_lead` looks before every loss spike for the gradient norm's first excursion, and asks how often
one is found where no spike follows. `cross_correlation` looks at all steps. Loss and gradient norm of one step come
from the same weights and the same batch: a lead of 0 is no warning. OLMo 2 (arXiv 2501.00656, section 3) reports that
spikes of the gradient norm often preceded those of the loss, without a number of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verify.statistics.intervals import fisher_p, proportion_interval
from verify.statistics.spikes import event_bounds


@dataclass(frozen=True)
class LeadLag:
    """Leads in steps, [events] and [controls]: positive where the gradient norm came first, nan where it never came.

    share: of the events with a positive lead; low and high: its exact binomial interval. control_share: of the
    controls. p: Fisher's, one-sided, that the events' share is the larger. left_out: events too early in their run.
    Shares and p are nan where there is no event, or no control.
    """

    leads: np.ndarray
    control_leads: np.ndarray
    share: float
    low: float
    high: float
    control_share: float
    p: float
    left_out: int


def gradient_lead(
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
    window: int = 20,
    history: int = 100,
    factor: float = 2.0,
    level: float = 0.95,
    seed: int = 0,
) -> LeadLag:
    """Pool the loss-spike events of runs: (loss spikes bool[steps], gradient norm before clipping [steps]) of each.

    Spikes less than `window` steps after the last belong to its event, so that no event's window holds another event.
    The norm's threshold at an event is `factor` times its median over the `history` steps before the window. The lead
    is start less the first step from start - window on at which the norm exceeds the threshold or is not finite; where
    none does before start, the first of the `window` steps from start on (0 or negative).

    Controls are steps at least two windows away from every loss spike, treated as if an event started there: drawn at
    random (`seed`) so that no two of their windows overlap, as many as are found. Fisher's test takes the windows as
    independent. Raises ValueError where a run's two lengths differ, or window or history is below 1.
    """
    if min(window, history) < 1:
        raise ValueError(f"window, history: must be at least 1, got {window} and {history}")
    rng = np.random.default_rng(seed)
    leads: list[float] = []
    control_leads: list[float] = []
    left_out = 0
    for loss_spikes, gradient_norm in runs:
        spikes, norm = np.asarray(loss_spikes, dtype=bool), np.asarray(gradient_norm, dtype=np.float64)
        if spikes.shape != norm.shape:
            raise ValueError(f"runs: {spikes.shape} loss spikes, {norm.shape} gradient norms")
        starts = event_bounds(spikes, apart=window)[:, 0]
        known = starts[starts >= window + history]
        left_out += len(starts) - len(known)
        leads += [_lead(norm, int(start), window, history, factor) for start in known]
        controls = _controls(spikes, window, history, rng)
        control_leads += [_lead(norm, start, window, history, factor) for start in controls]
    events, chance = np.array(leads), np.array(control_leads)
    found, found_by_chance = int(np.sum(events > 0)), int(np.sum(chance > 0))
    low, high = proportion_interval(found, len(events), level) if leads else (np.nan, np.nan)
    return LeadLag(
        leads=events,
        control_leads=chance,
        share=found / len(events) if leads else np.nan,
        low=low,
        high=high,
        control_share=found_by_chance / len(chance) if control_leads else np.nan,
        p=fisher_p(found, len(events), found_by_chance, len(chance)) if leads and control_leads else np.nan,
        left_out=left_out,
    )


def _lead(norm: np.ndarray, start: int, window: int, history: int, factor: float) -> float:
    known = norm[start - window - history : start - window]
    known = known[np.isfinite(known)]
    if not known.size:
        return np.nan
    threshold = factor * np.median(known)
    around = norm[start - window : start + window]
    above = np.flatnonzero((around > threshold) | ~np.isfinite(around))
    return float(window - above[0]) if above.size else np.nan


def _controls(spikes: np.ndarray, window: int, history: int, rng: np.random.Generator) -> list[int]:
    free = np.ones(len(spikes), dtype=bool)
    free[: window + history] = False
    for step in np.flatnonzero(spikes):
        free[max(step - 2 * window + 1, 0) : step + 2 * window] = False
    chosen = []
    for step in rng.permutation(np.flatnonzero(free)):
        if free[step]:
            chosen.append(int(step))
            free[max(step - window + 1, 0) : step + window] = False
    return chosen


@dataclass(frozen=True)
class CrossCorrelation:
    """lags: int[2 max_lag + 1], positive where the gradient norm comes first. correlation: at each of them.

    low, high: pointwise band of no relation. peak_lag: of the largest absolute correlation. p: of that peak, over all
    lags together.
    """

    lags: np.ndarray
    correlation: np.ndarray
    low: float
    high: float
    peak_lag: int
    p: float


def cross_correlation(
    gradient_norm: np.ndarray, loss: np.ndarray, max_lag: int = 20, level: float = 0.95
) -> CrossCorrelation:
    """Correlation of the steps of log gradient norm and log loss, the loss `lag` steps later; both [steps], one run.

    Steps up to the first at which either is not finite and positive. The correlation is circular (the end of the run
    is joined to its start), so that turning the loss by s steps moves it by s lags: the null is the same pair at every
    turn that keeps the lags apart from those looked at, which leaves each series' own autocorrelation as it is. One
    large spike can decide it. All is nan (peak_lag 0) where a series is constant or grows by one factor.

    Raises ValueError where the lengths differ, or fewer than 4 max_lag + 21 steps are left.
    """
    series = np.stack([np.asarray(gradient_norm, dtype=np.float64), np.asarray(loss, dtype=np.float64)])
    bad = np.flatnonzero(~np.all(np.isfinite(series) & (series > 0), axis=0))
    series = series[:, : bad[0]] if bad.size else series
    length = series.shape[1] - 1
    if length < 4 * max_lag + 20:
        raise ValueError(f"max_lag: {max_lag} needs {4 * max_lag + 21} steps, got {length + 1}")
    lags = np.arange(-max_lag, max_lag + 1)
    steps = np.diff(np.log(series), axis=1)
    steps -= steps.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.prod(np.square(steps).sum(axis=1)))
    if np.any(np.ptp(steps, axis=1) <= 1e-12 * np.abs(np.log(series)).max(axis=1)):
        return CrossCorrelation(lags, np.full(len(lags), np.nan), np.nan, np.nan, 0, np.nan)
    first, second = np.fft.rfft(steps, axis=1)
    circular = np.fft.irfft(first.conj() * second, length) / scale
    correlation = circular[lags]
    far = circular[max_lag + 1 : length - max_lag]
    peaks = np.lib.stride_tricks.sliding_window_view(np.abs(far), len(lags)).max(axis=1)
    peak = int(np.argmax(np.abs(correlation)))
    low, high = np.quantile(far, [(1 - level) / 2, (1 + level) / 2])
    p = (1 + np.sum(peaks >= np.abs(correlation[peak]))) / (1 + len(peaks))
    return CrossCorrelation(lags, correlation, float(low), float(high), int(lags[peak]), float(p))
