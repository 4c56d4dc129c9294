"""The softmaxes' overlap against what is known exactly, and against draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from theory.softmax_overlap import probability_of_logit, radial_share, softmax_overlap, softmax_spread

variances = st.floats(1e-3, 20.0)
sizes = st.integers(1, 200_000)


def overlap(variance, correlation, vocab_size):
    """Of two tokens."""
    return softmax_overlap(variance * np.array([[1, correlation], [correlation, 1]]), vocab_size)[0, 1]


@given(variances, sizes)
def test_independent_softmaxes_overlap_by_chance(variance, vocab_size):
    np.testing.assert_allclose(overlap(variance, 0, vocab_size), 1 / vocab_size, rtol=2e-3)


@given(variances, st.floats(-1, 1))
def test_a_single_token_has_all(variance, correlation):
    np.testing.assert_allclose(overlap(variance, correlation, 1), 1, rtol=1e-3)


@given(st.floats(1e-3, 0.5), st.floats(-1, 1))
def test_a_large_vocabulary_has_the_exponential(variance, correlation):
    np.testing.assert_allclose(overlap(variance, correlation, 10**6), np.exp(variance * correlation) / 10**6, rtol=1e-3)


@pytest.mark.parametrize("vocab_size", [2, 7, 256])
@pytest.mark.parametrize(("variance", "correlation"), [(0.3, 1.0), (2.0, 0.9), (2.0, -0.5), (9.0, 1.0), (30.0, 0.7)])
def test_drawn_softmaxes_overlap_as_much(vocab_size, variance, correlation):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 2**21 // vocab_size, vocab_size))
    logits = np.sqrt(variance) * np.stack([z[0], correlation * z[0] + np.sqrt(1 - correlation**2) * z[1]])
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    each = (p[0] * p[1]).sum(axis=-1)
    error = 5 * each.std() / np.sqrt(len(each)) + 2e-3 * each.mean()
    assert abs(overlap(variance, correlation, vocab_size) - each.mean()) < error


@pytest.mark.parametrize("vocab_size", [2, 256])
def test_what_softmaxes_draw_from_the_heads_rows_along_the_token(vocab_size):
    """Twice as much as along another direction at a variance of 2, a quarter of it where one word has all; 3 % left by
    the draws."""
    for variance in (0.01, 2.0, 25.0, 64.0):
        u = np.random.default_rng(0).standard_normal((2**22 // vocab_size, vocab_size))
        p = special.softmax(np.sqrt(variance) * u, axis=1)
        expected = (p * u).sum(axis=1).var() / (p**2).sum(axis=1).mean()
        np.testing.assert_allclose(radial_share(np.full(3, variance), vocab_size), expected, rtol=0.03)


def test_tokens_of_unequal_length():
    """Each has its own variance: the mean over them would give the first one four times too much."""
    std, correlation = np.array([0.5, 2.0, 4.0]), np.array([[1, 0.9, 0.7], [0.9, 1, 0.8], [0.7, 0.8, 1]])
    covariance = correlation * np.outer(std, std)
    rng, root = np.random.default_rng(0), np.linalg.cholesky(covariance)
    p = special.softmax(rng.standard_normal((20000, 40, 3)) @ root.T, axis=1)
    expected, found = np.einsum("nvt,nvu->tu", p, p) / len(p), softmax_overlap(covariance, 40)
    np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=0.03)
    np.testing.assert_allclose(found, expected, rtol=0.2)
    np.testing.assert_allclose(found, found.T)


@pytest.mark.parametrize("variance", [64.0, 900.0, 1e6])
def test_what_a_sharp_softmax_lacks_falls_as_one_over_the_standard_deviation(variance):
    """1 - E sum p^2, whose product with the variance is the gradient along the logits themselves; 5 % from draws."""
    rng = np.random.default_rng(0)
    logits = np.sqrt(variance) * rng.standard_normal((200_000, 40))
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    lacking = 1 - np.mean(np.sum(p**2, axis=-1) / np.sum(p, axis=-1) ** 2)
    got = 1 - softmax_overlap(variance * np.eye(2), 40)[0, 0]
    np.testing.assert_allclose(got, lacking, rtol=0.05)


@pytest.mark.parametrize(("variance", "correlation"), [(900.0, 0.6), (900.0, 0.999), (1e4, 0.98), (1e4, 0.99999)])
def test_sharp_softmaxes_of_tokens_that_nearly_agree(variance, correlation):
    """They share their arg-maximum more often the sharper they are; 3 % of the probability, from draws."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 100_000, 40))
    logits = np.sqrt(variance) * np.stack([z[0], correlation * z[0] + np.sqrt(1 - correlation**2) * z[1]])
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    assert abs(overlap(variance, correlation, 40) - (p[0] * p[1]).sum(axis=-1).mean()) < 0.03


def test_the_spread_is_not_lost_to_rounding():
    """1 - E sum p^2 at a variance where float32 knows no number between this probability and 1."""
    small, large = softmax_spread(np.array([[100.0, 1e24]], np.float32), 40)[0]
    np.testing.assert_allclose(large, small * 1e-11, rtol=1e-3)


@pytest.mark.parametrize(("variance", "vocab_size"), [(0.04, 40), (1.0, 2), (36.0, 40), (900.0, 400)])
def test_probability_of_a_word_whose_logit_is_known(variance, vocab_size):
    """E[p] and E[p^2] against drawn logits of the others, from half their log-sum to a little above it."""
    others = np.sqrt(variance) * np.random.default_rng(0).standard_normal((50_000, vocab_size - 1))
    largest = others.max(axis=1)
    total = largest + np.log(np.exp(others - largest[:, None]).sum(axis=1))
    grid, first, second = probability_of_logit(variance, vocab_size)
    for logit in (total.mean() / 2, total.mean(), total.mean() + 1):
        p = 1 / (1 + np.exp(np.clip(total - logit, -700, 700)))
        for moment, drawn in ((first, p), (second, p**2)):
            error = 5 * drawn.std() / np.sqrt(len(p)) + 3e-3 * drawn.mean() + 1e-4
            assert abs(np.interp(logit, grid, moment) - drawn.mean()) < error


def test_extremes_stay_probabilities():
    for variance in (1e-12, 1.0, 1e4):
        correlation = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0000001], [0.0, 1.0000001, 1.0]], np.float32)
        got = softmax_overlap(np.float32(variance) * correlation, 50_257)
        assert got.dtype == np.float32
        assert np.all((got > 0) & (got <= 1.001))
