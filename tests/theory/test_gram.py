"""Random Gram matrices against the moments of Wishart matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.gram import Draws, enlarged, random_rows, root, wishart_root

DRAWS = 4000


def draws():
    return Draws.of(np.random.SeedSequence(0))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100), st.sampled_from([np.float32, np.float64]))
def test_root_squares_to_the_kernel_of_any_rank(size, rank, seed, dtype):
    rows = np.random.default_rng(seed).standard_normal((2, size, rank)).astype(dtype)
    kernel = rows @ np.swapaxes(rows, -1, -2)
    factor = root(kernel)
    assert factor.dtype == dtype
    tolerance = 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(factor @ np.swapaxes(factor, -1, -2), kernel, atol=tolerance * kernel.max())


@pytest.mark.parametrize("corner", [0.615, 0.2])
def test_root_of_a_kernel_not_quite_positive_keeps_its_diagonal(corner):
    """Correlations 0.9, 0.9 force the third to at least 0.62: what is below that by delta is moved by about delta."""
    kernel = np.array([[1, 0.9, corner], [0.9, 1, 0.9], [corner, 0.9, 1]]) * np.outer([1, 2, 3], [1, 2, 3])
    factor = root(kernel)
    near = factor @ factor.T
    np.testing.assert_allclose(np.diag(near), np.diag(kernel), rtol=1e-6)
    np.testing.assert_allclose(near, kernel, rtol=0.62 - corner + 0.05 if corner < 0.5 else 0.03)


@pytest.mark.parametrize(("size", "degrees"), [(1, 1), (3, 2), (3, 3), (3, 50)])
def test_wishart_root_has_the_mean_and_the_spread(size, degrees):
    """W = B B^T: E W = I, Var W_tt = 2 / degrees, Var W_ts = 1 / degrees."""
    b = wishart_root(draws(), DRAWS, size, degrees)
    w = b @ np.swapaxes(b, -1, -2)
    error = 5 * np.sqrt(2 / degrees / DRAWS)
    np.testing.assert_allclose(w.mean(axis=0), np.eye(size), atol=error)
    spread = w.var(axis=0) * degrees
    np.testing.assert_allclose(spread, np.eye(size) + 1, rtol=0.25)


@pytest.mark.parametrize("features", [None, 7, 300])
@pytest.mark.parametrize(("d_model", "span"), [(6, 6), (40, 6), (40, 40), (7, 6)])
def test_rows_have_the_kernel_and_the_spread_of_their_width(d_model, span, features):
    """Var of a row's square = c^2 (2/d + 2/f + 4/(d f)), whatever part of it lies along the frame."""
    kernel, source = np.array([[2.0, 0.5], [0.5, 1.0]], np.float32), draws()
    rows = np.broadcast_to(np.linalg.cholesky(kernel), (DRAWS, 2, 2))
    if features is not None:
        rows = rows @ wishart_root(source, DRAWS, 2, features)
    along, beside = random_rows(source, rows, d_model, span)
    assert along.shape == (DRAWS, 2, span)
    gram = along @ np.swapaxes(along, -1, -2) + beside @ np.swapaxes(beside, -1, -2)
    np.testing.assert_allclose(gram.mean(axis=0), kernel, atol=0.08)
    own = 2 / d_model + (0 if features is None else 2 / features + 4 / (d_model * features))
    np.testing.assert_allclose(gram[:, 0, 0].var() / kernel[0, 0] ** 2, own, rtol=0.2)
    np.testing.assert_allclose((along**2).sum(axis=(1, 2)).mean(), 3 * span / d_model, rtol=0.05)


def test_a_mirror_image_has_the_opposite_rows_the_same_gram_and_numbers_of_its_own():
    rows = np.broadcast_to(np.eye(3, dtype=np.float32), (10, 3, 3))
    along, beside = random_rows(draws(), rows, 8, 4)
    np.testing.assert_array_equal(along[:5], -along[5:])
    np.testing.assert_array_equal(beside[:5], beside[5:])
    assert len(np.unique(along[:5, 0, 0])) == 5
    one, other = draws().own(2, 2000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_root_of_nothing_is_nothing():
    np.testing.assert_array_equal(root(np.zeros((2, 3, 3), np.float32)), 0)


@pytest.mark.parametrize(("drawn", "width"), [(1, 1), (3, 3), (5, 40), (16, 1000)])
def test_few_units_vary_as_all_of_them_do(drawn, width):
    """ReLU units of two tokens: E F^2 = 1/2, E F^4 = 3/2, so that the width's mean square has the variance 5/4 / width,
    where a Gaussian's would have 1/2 / width."""
    correlation = 0.6
    root_of = np.linalg.cholesky([[1, correlation], [correlation, 1]])
    units = np.maximum(root_of @ np.random.default_rng(0).standard_normal((40_000, 2, drawn)), 0)
    angle = np.arccos(correlation)
    across = (np.sin(angle) + (np.pi - angle) * correlation) / (2 * np.pi)
    mean = np.array([[0.5, across], [across, 0.5]])
    gram = enlarged(units, np.broadcast_to(mean, (len(units), 2, 2)), width)
    assert np.linalg.eigvalsh(gram).min() > -1e-12
    np.testing.assert_allclose(gram.mean(axis=0), mean, atol=5 * np.sqrt(1.25 / width / len(units)))
    np.testing.assert_allclose(gram.var(axis=0)[[0, 1], [0, 1]] * width, 1.25, rtol=0.06)
    product = (units[..., 0] ** 2).prod(axis=1).mean() - 0.25
    assert np.cov(gram[:, 0, 0], gram[:, 1, 1])[0, 1] * width == pytest.approx(product, rel=0.1)
