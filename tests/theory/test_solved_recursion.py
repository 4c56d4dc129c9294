"""The solved recursions against the recursion itself, addition by addition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import function_of
from theory.derivation import topics
from theory.solved_recursion import AFFINE_GROWTH, CONSTANT_GROWTH, SOLUTIONS

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


@pytest.mark.parametrize("kappa", [0.5, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("loss", [-0.5, 0.5, 1.0])
def test_unequal_gains_under_a_shortcut_that_forgets(kappa: float, loss: float) -> None:
    """DeepScaleLM's recursion over 100,000 blocks; what is left of the limit is of order 1 / N."""
    sigma, w, blocks = 0.6, 0.7, 100_000
    variance, log_square, alpha = sigma**2, 0.0, 1 - loss / blocks
    for _ in range(blocks):
        log_square += np.log(alpha + (1 - alpha) * kappa * w / variance)
        variance = alpha * variance + (1 - alpha) * w
    values = function_of(AFFINE_GROWTH)(beta=kappa * w, c_a=loss, sigma_0=sigma, w=w)
    assert np.exp(log_square) == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize("kappa", [0.5, 2.0])
def test_blocks_that_write_less_and_less_of_a_constant(kappa: float) -> None:
    """Block n writes w x^(-1/2) / N at x = n / N, shortcuts lose 1 / N each; the integral by a million midpoints."""
    blocks, w, sigma = 1_000_000, 0.7, 0.6
    share = np.arange(1, blocks + 1) / blocks
    written, alpha, variance, log_square = w / np.sqrt(share) / blocks, 1 - 1 / blocks, sigma**2, 0.0
    for added in written.tolist():
        log_square += np.log(alpha + kappa * added / variance)
        variance = alpha * variance + added
    roots = (np.arange(blocks) + 0.5) / blocks  # of x, so that dx / root x is twice their step
    received = np.mean(2 * w * np.exp(roots**2))
    values = function_of(CONSTANT_GROWTH)(beta=kappa, w=1, c_a=1, sigma_0=sigma, w_Sigma=received)
    assert np.exp(log_square) == pytest.approx(values, rel=5e-3)


@pytest.mark.parametrize("kappa", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("order", [1.0, 0.5])
def test_unequal_gains_follow_the_streams_power_kappa(kappa: float, order: float) -> None:
    """Block n writes w n^-order. From 1e4 to 1e6 blocks the stream grows by 1.3 and 10; its power kappa by as much."""
    w, sigma = 0.7, 0.6
    n = np.arange(1, 1_000_001)
    after = sigma**2 + np.cumsum(w / n**order)
    before = after - w / n**order
    log_square = np.cumsum(np.log1p(kappa * w / n**order / before))
    grown = np.log(after[-1] / after[10_000])
    assert grown > 0.3 and log_square[-1] - log_square[10_000] == pytest.approx(kappa * grown, rel=2e-3)


def test_a_few_blocks_that_write_most_of_a_constant_stay_below_the_power_kappa() -> None:
    """1 / n^2: with kappa = 2 the gradient grows by less than the stream's square; with kappa = 1 as it does."""
    written = 0.7 / np.arange(1, 10_001) ** 2
    before = 0.36 + np.cumsum(written) - written
    square = np.prod(1 + 2 * written / before)
    grown = 1 + written.sum() / 0.36
    values = function_of(CONSTANT_GROWTH)(beta=[1, 2], w=1, c_a=0, sigma_0=0.6, w_Sigma=written.sum())
    np.testing.assert_allclose(values, [grown, grown**2])
    assert grown < square < 0.9 * values[1]
