"""Corrections of p-values where many claims are tested at once."""

import numpy as np
from scipy import stats


def holm(p_values: np.ndarray) -> np.ndarray:
    """[claims] p-values such that the chance of one false alarm among all claims stays below the level (Holm 1979).

    Valid whatever the dependence between claims. Raises ValueError where one is not between 0 and 1.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if not np.all((p_values >= 0) & (p_values <= 1)):
        raise ValueError(f"p_values: all must lie between 0 and 1, got {p_values}")
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(scaled)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """[claims] p-values such that the expected share of false alarms among the alarms stays below the level.

    Benjamini and Hochberg 1995; for independent or positively dependent claims. Raises ValueError where one is not
    between 0 and 1.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    return np.asarray(stats.false_discovery_control(p_values, method="bh")) if p_values.size else p_values
