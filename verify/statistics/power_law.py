"""The exponent of a quantity over a ladder of sizes, seed by seed, and whether it counts as zero."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from verify.statistics.intervals import Estimate

Trend = Literal["constant", "grows", "shrinks", "undecided"]


@dataclass(frozen=True)
class PowerLaw:
    """value ~ size^slope: the slope over the whole ladder, and at its largest size, from a parabola in the logarithms.

    end is nan where there are fewer than 3 sizes.
    """

    slope: Estimate
    end: Estimate


def power_law(sizes: np.ndarray, values: np.ndarray, level: float = 0.95) -> PowerLaw:
    """Fit log value against log size, one least-squares fit a seed: the mean over seeds, with Student's t.

    sizes: [sizes], at least 2 different positive ones. values: [seeds, sizes], positive and finite. The interval is of
    the seeds' own spread, so a smooth bend does not widen it: look at `end`. It is nan for one seed. Raises ValueError
    for anything else.
    """
    sizes, values = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    if sizes.ndim != 1 or not np.all(sizes > 0) or len(set(sizes.tolist())) < 2:
        raise ValueError(f"sizes: must be at least 2 different positive numbers, got {sizes}")
    if values.shape != (len(values), len(sizes)) or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(f"values: must be positive and finite, [seeds, {len(sizes)}], got {values}")
    logs, targets = np.log(sizes / sizes.max()), np.log(values).T
    slopes = np.polyfit(logs, targets, 1)[0]
    bends = len(set(sizes.tolist())) > 2
    ends = np.polyfit(logs, targets, 2)[1] if bends else np.full(len(values), np.nan)
    return PowerLaw(_mean(slopes, level), _mean(ends, level))


def judge(law: PowerLaw, tolerance: float) -> Trend:
    """Whether the slope's interval lies above, below or within +-tolerance; "undecided" where it holds a border.

    A ladder that is level as a whole but at whose end the interval lies outside is undecided too: it bends.
    """
    low, high = law.slope.low, law.slope.high
    if low > tolerance:
        return "grows"
    if high < -tolerance:
        return "shrinks"
    level = -tolerance <= low and high <= tolerance  # false for nan
    bends = law.end.low > tolerance or law.end.high < -tolerance
    return "constant" if level and not bends else "undecided"


def _mean(values: np.ndarray, level: float) -> Estimate:
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, np.nan, np.nan)
    reach = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - reach, mean + reach)
