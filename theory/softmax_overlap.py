"""E[p . p'] for p, p' the softmaxes of two vectors of Gaussian logits, at any vocabulary size.

The upstream gradient of a cross-entropy is softmax minus one-hot, so its kernel at initialisation needs this overlap.
For a vocabulary V that is large beside exp(2 variance) it is exp(variance x correlation) / V; for V = 256 and a
variance of 2 (He's head) that is a fifth too much where tokens are alike.
"""

from functools import lru_cache

import numpy as np

LARGEST_VARIANCE = 64.0
"""above it one logit has nearly all the probability, 1 - E sum_v p_v^2 falls as one over the standard deviation, and
the overlap is that of arg-maxima of logits plus a noise as large as Gumbel's"""
_GUMBEL_VARIANCE = np.pi**2 / 6


def softmax_overlap(covariance: np.ndarray, vocab_size: int) -> np.ndarray:
    """E[sum_v p_v p'_v] for pairs of tokens, of the shape [..., T, T] and dtype of their logits' covariance.

    The logits z_v, z'_v are independent over v. The variances may differ a little from token to token: their mean is
    taken, to four digits, and the covariances as correlations.
    """
    variances = np.einsum("...tt->...t", covariance)
    std = np.sqrt(variances)
    correlation = np.clip(covariance / (std[..., :, None] * std[..., None, :]), -1, 1)
    typical, beyond = _typical(variances), None
    if typical == LARGEST_VARIANCE:
        noisy = np.sqrt(variances + np.float32(_GUMBEL_VARIANCE))
        agreeing, largest = covariance / (noisy[..., :, None] * noisy[..., None, :]), 1 + _GUMBEL_VARIANCE / typical
        correlation = np.minimum(agreeing * np.float32(largest), 1)
        beyond = np.sqrt(np.maximum(1 - agreeing, 0) / np.float32(1 - 1 / largest))
    overlap = np.exp(np.polyval(_series(typical, vocab_size).astype(correlation.dtype), correlation))
    if beyond is not None:
        overlap = np.where(correlation < 1, overlap, 1 - (1 - overlap) * beyond)
    index = np.arange(overlap.shape[-1])
    overlap[..., index, index] = 1 - softmax_spread(variances, vocab_size)
    return overlap


def softmax_spread(variances: np.ndarray, vocab_size: int) -> np.ndarray:
    """1 - E[sum_v p_v^2] of tokens whose logits have these variances, [...], however small it is."""
    alone = float(-np.expm1(np.polyval(_series(_typical(variances), vocab_size), 1.0)))
    return (alone * np.minimum(np.sqrt(LARGEST_VARIANCE / variances), 1)).astype(variances.dtype)


@lru_cache(maxsize=64)
def probability_of_logit(variance: float, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a word with logit l among words of independent Gaussian ones: l on a grid, E[p], and E[p^2], by l.

    p = e^l / (e^l + S) and 1 / (e^l + S) = int e^{-s(e^l + S)} ds, which makes the sum S a power, as in `_overlap`.
    """
    std = np.sqrt(variance)
    x = np.linspace(-8, 8, 401)
    weight = np.exp(-(x**2) / 2)
    weight /= weight.sum()
    grid = np.linspace(-12 * std - 20, 12 * std + np.log(vocab_size) + 20, 400)
    a = np.arange(-grid[-1] - 5, -grid[0] + 5, min(0.25, 0.02 * std + 0.05))
    log_others = (vocab_size - 1) * np.log(
        np.maximum(np.exp(-np.exp(np.minimum(a[:, None] + std * x, 50))) @ weight, 1e-300)
    )
    rate = a[:, None] + grid
    density = np.exp(rate - np.exp(np.minimum(rate, 50)) + log_others[:, None]) * (a[1] - a[0])
    return grid, density.sum(axis=0), (density * np.exp(np.minimum(rate, 50))).sum(axis=0)


def _typical(variances: np.ndarray) -> float:
    return min(float(f"{variances.mean(dtype=np.float64):.4g}"), LARGEST_VARIANCE)


@lru_cache(maxsize=64)
def _series(variance: float, vocab_size: int) -> np.ndarray:
    """Polynomial of degree 8 in the correlation for the logarithm of the overlap, highest power first."""
    nodes = np.polynomial.chebyshev.chebpts1(9)
    return np.polyfit(nodes, [np.log(_overlap(variance, c, vocab_size)) for c in nodes], 8)


def _overlap(variance: float, correlation: float, vocab_size: int) -> float:
    """V E[e^{z + z'} / (S S')] with 1 / S = int e^{-sS} ds, which makes the sums over the vocabulary products.

    Trapezoids in s = e^a, s' = e^b and in the two Gaussians: all integrands are smooth and vanish at the ends.
    """
    std = np.sqrt(variance)
    step = min(0.35, 0.7 / max(std, 1e-9))
    x = np.arange(-7, 7 + step, step)
    weight = np.exp(-(x**2) / 2)
    weight /= weight.sum()
    a = np.arange(-np.log(vocab_size) - 2 * variance - 25, 8 * std + 5, 0.5)
    z = std * x
    other = correlation * z[:, None] + np.sqrt(1 - correlation**2) * z
    left = np.exp(-np.exp(a[:, None] + z)) * weight
    right = np.exp(-np.exp(a[:, None, None] + other))
    none = left @ (right @ weight).T
    both = (left * np.exp(z)) @ ((np.exp(other) * right) @ weight).T
    power = np.exp((vocab_size - 1) * np.log(np.maximum(none, 1e-300)))
    return float(vocab_size * 0.25 * (np.exp(a[:, None] + a) * both * power).sum())
