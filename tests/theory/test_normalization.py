"""The norms' Jacobians against finite differences in plain NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def _normalise(x: np.ndarray, epsilon: float, centred: bool) -> np.ndarray:
    y = x - x.mean() if centred else x
    return y / np.sqrt((y**2).mean() + epsilon)


@pytest.mark.parametrize("centred", [True, False])
@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(3, 24), epsilon=st.sampled_from([0.0, 1e-5, 0.3]))
def test_norm_is_one_over_sigma(centred: bool, seed: int, width: int, epsilon: float) -> None:
    x = np.random.default_rng(seed).normal(size=width)
    y = x - x.mean() if centred else x
    sigma = np.sqrt((y**2).mean() + epsilon)
    step = 1e-5 * sigma
    columns = [
        (_normalise(x + step * e, epsilon, centred) - _normalise(x - step * e, epsilon, centred)) / (2 * step)
        for e in np.eye(width)
    ]
    # Central differences: error of order step^2 / sigma^2 and of rounding 1e-16 / 1e-5.
    assert np.linalg.norm(np.array(columns).T, 2) * sigma == pytest.approx(1, abs=1e-7)
