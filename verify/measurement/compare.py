"""Prediction and measurement side by side, one row for every quantity and place."""

import numpy as np
import pandas as pd

from theory import Prediction
from verify.measurement.measure import Measurement

QUANTITIES = ("shortcut_std", "gradient_norm")


def compare(predicted: Prediction, measured: Measurement) -> pd.DataFrame:
    """One row per quantity and place: quantity, place, predicted, measured, low, high, relative_error.

    measured is the root mean square over seeds, which is what `predict` predicts; low and high are its 95 % interval
    from the seeds' own spread (log-normal, Student's t). relative_error is predicted / measured - 1, and 0 where both
    are 0. A parameter gradient's quantity is `parameter_gradient_norm/KIND`, its place the block's index.
    """
    rows = [(name, getattr(predicted, name), getattr(measured, name)) for name in QUANTITIES]
    rows += [
        (f"parameter_gradient_norm/{kind}", norm, measured.parameter_gradient_norm[kind])
        for kind, norm in predicted.parameter_gradient_norm.items()
    ]
    return pd.concat([_table(*row) for row in rows], ignore_index=True)


def _table(quantity: str, predicted: np.ndarray, draws: np.ndarray) -> pd.DataFrame:
    low, measured, high = root_mean_square_interval(draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(predicted == measured, 0.0, predicted / measured - 1)
    return pd.DataFrame(
        {
            "quantity": quantity,
            "place": np.arange(len(predicted)),
            "predicted": predicted,
            "measured": measured,
            "low": low,
            "high": high,
            "relative_error": error,
        }
    )


def root_mean_square_interval(draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, root mean square, high) over the first axis; the interval is nan for a single draw."""
    from scipy import stats

    middle = np.sqrt(np.square(draws).mean(axis=0))
    if len(draws) < 2:
        return np.full_like(middle, np.nan), middle, np.full_like(middle, np.nan)
    reach = np.exp(stats.t.ppf((1 + level) / 2, len(draws) - 1) * relative_standard_error(draws))
    return middle / reach, middle, middle * reach


def relative_standard_error(draws: np.ndarray) -> np.ndarray:
    """Of the root mean square over the first axis, from the draws' own spread; 0 where all draws are 0."""
    squares = np.square(draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = squares.std(axis=0, ddof=1) / squares.mean(axis=0) / np.sqrt(len(draws)) / 2
    return np.where(squares.max(axis=0) == 0, 0.0, error)
