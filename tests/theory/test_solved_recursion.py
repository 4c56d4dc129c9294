"""The solved recursions against the recursion itself, addition by addition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.derivation import topics
from theory.solved_recursion import SOLUTIONS

SIZES = st.floats(0.05, 4.0)


@pytest.mark.parametrize("name", SOLUTIONS)
@given(st.integers(1, 60), SIZES, st.floats(0.01, 2.0), st.floats(0.01, 2.0), st.floats(0.05, 0.95))
def test_solution_is_the_recursion(name: str, n: int, sigma: float, w: float, beta: float, alpha: float) -> None:
    solution = SOLUTIONS[name]
    assert solution.topic in topics()
    beta = w if solution.equal_gains else beta
    variance, square = sigma**2, 1.0
    for k in range(1, n + 1):
        if name == "additive":
            grown, back = variance + w, 1 + beta / variance
        elif name == "harmonic":
            grown, back = variance + w / k, 1 + beta / k / variance
        elif name == "affine":
            grown, back = alpha * variance + (1 - alpha) * w, alpha + (1 - alpha) * beta / variance
        elif name == "normed":
            grown, back = 1.0, (alpha + beta) / (alpha + w)
        else:
            grown, back = variance * (1 + w), 1 + beta
        variance, square = grown, square * back
    std, amplification = solution.numeric(n, sigma, w, beta, alpha)
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-9)
    np.testing.assert_allclose(amplification, np.sqrt(square), rtol=1e-9)


def test_arrays_of_depths() -> None:
    std, amplification = SOLUTIONS["additive"].numeric(np.array([1, 100, 10_000]), 1.0, 0.5, 0.5, 1.0)
    np.testing.assert_allclose(std, np.sqrt([1.5, 51, 5001]))
    np.testing.assert_allclose(amplification, std)
