"""E[p . p'] for p, p' the softmaxes of two vectors of Gaussian logits, at any vocabulary size.

The upstream gradient of a cross-entropy is softmax minus one-hot, so its kernel at initialisation needs this overlap.
For a vocabulary V that is large beside exp(2 variance) it is exp(variance x correlation) / V; for V = 256 and a
variance of 2 (He's head) that is a fifth too much where tokens are alike.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

LARGEST_VARIANCE = 64.0
"""above it one logit has nearly all the probability, 1 - E sum_v p_v^2 falls as one over the standard deviation, and
the overlap is that of arg-maxima of logits plus a noise as large as Gumbel's"""
_GUMBEL_VARIANCE = np.pi**2 / 6
_STEP = 1.3


def softmax_overlap(covariance: np.ndarray, vocab_size: int) -> np.ndarray:
    """E[sum_v p_v p'_v] for pairs of tokens, of the shape [..., T, T] and dtype of their logits' covariance.

    The logits z_v, z'_v are independent over v. A pair of unequal variances counts as one of their mean and of the
    same covariance, up to a fifth off where they are far apart; one of sharp softmaxes by its correlation.
    """
    variances = np.einsum("...tt->...t", covariance)
    std = np.sqrt(variances)
    sizes = (variances[..., :, None] + variances[..., None, :]) / 2
    correlation, points = np.clip(covariance / sizes, -1, 1), _points(variances)
    sharp = std[..., :, None] * std[..., None, :] > LARGEST_VARIANCE
    if len(points) == 1:
        sharp[...] = points[0] == LARGEST_VARIANCE
    if sharp.any():
        noisy = np.sqrt(variances + np.float32(_GUMBEL_VARIANCE))
        agreeing = covariance / (noisy[..., :, None] * noisy[..., None, :])
        largest = 1 + _GUMBEL_VARIANCE / LARGEST_VARIANCE
        correlation = np.where(sharp, np.minimum(agreeing * np.float32(largest), 1), correlation)
        beyond = np.sqrt(np.maximum(1 - agreeing, 0) / np.float32(1 - 1 / largest))
    logarithm = np.zeros_like(correlation)
    for point, weight in _weights(points, sizes):
        logarithm += weight * np.polyval(_series(point, vocab_size).astype(correlation.dtype), correlation)
    overlap = np.exp(logarithm)
    if sharp.any():
        overlap = np.where(sharp & (correlation == 1), 1 - (1 - overlap) * beyond, overlap)
    index = np.arange(overlap.shape[-1])
    overlap[..., index, index] = 1 - softmax_spread(variances, vocab_size)
    return overlap


def softmax_spread(variances: np.ndarray, vocab_size: int) -> np.ndarray:
    """1 - E[sum_v p_v^2] of tokens whose logits have these variances, [...], however small it is."""
    alone = _interpolated(lambda point: -np.expm1(np.polyval(_series(point, vocab_size), 1.0)), variances)
    return (alone * np.minimum(np.sqrt(LARGEST_VARIANCE / variances), 1)).astype(variances.dtype)


def radial_share(variances: np.ndarray, vocab_size: int) -> np.ndarray:
    """Of softmaxes p of independent Gaussian logits of these variances, [...]: Var(sum_v p_v u_v) / E[sum_v p_v^2].

    u: the logits over their standard deviation. sum_v p_v w_v, w the head's rows, has this variance along the token
    whose logits they are, in units of that along a random direction: 1 of flat softmaxes, that of a largest logit of
    sharp ones.
    """
    return _interpolated(lambda point: _radial_share(point, vocab_size), variances).astype(variances.dtype)


@lru_cache(maxsize=256)
def _radial_share(variance: float, vocab_size: int) -> float:
    """With 1 / S^2 = int s e^{-sS} ds, which makes the sums S a power, as in `_overlap`."""
    std = np.sqrt(variance)
    u = np.linspace(-9, 9, 721)
    weight = np.exp(-(u**2) / 2)
    weight /= weight.sum()
    log_s = np.arange(-np.log(vocab_size) - 2 * variance - 25, 9 * std + 5, 0.1)
    kernel = np.exp(-np.exp(log_s[:, None] + std * u)) * weight
    alone, first, square, size = (
        kernel @ moment for moment in (u**0, u * np.exp(std * u), (u * np.exp(std * u)) ** 2, np.exp(2 * std * u))
    )
    s, log_alone = np.exp(log_s) * 0.1, np.log(np.maximum(alone, 1e-300))
    others = np.exp((vocab_size - 1) * log_alone)
    pairs = np.exp((vocab_size - 2) * log_alone) * (vocab_size - 1) * first**2
    twice = np.exp(log_s) * s * vocab_size
    mean = (s * vocab_size * first * others).sum()
    return float(((twice * (square * others + pairs)).sum() - mean**2) / (twice * size * others).sum())


def _interpolated(value: Callable[[float], float | np.ndarray], variances: np.ndarray) -> np.ndarray:
    """A function of the logits' variance at these."""
    total = np.zeros(variances.shape)
    for point, weight in _weights(_points(variances), variances):
        total += weight * value(point)
    return total


def _points(variances: np.ndarray) -> list[float]:
    """Variances at which to know the series: the mean, to four digits, of some that are alike, else a grid over all."""
    low, high = (min(float(end), LARGEST_VARIANCE) for end in (variances.min(), variances.max()))
    if high <= 1.5 * max(low, 1e-6):
        return [min(float(f"{variances.mean(dtype=np.float64):.4g}"), LARGEST_VARIANCE)]
    ends = np.log([max(low, 1e-4), max(high, 2e-4)]) / np.log(_STEP)
    grid = [float(f"{_STEP**power:.6g}") for power in range(int(np.floor(ends[0])), int(np.ceil(ends[1])) + 1)]
    return [point for point in grid if point < LARGEST_VARIANCE] + [LARGEST_VARIANCE] * (grid[-1] >= LARGEST_VARIANCE)


def _weights(points: list[float], variances: np.ndarray) -> Iterator[tuple[float, np.ndarray | float]]:
    """Points with their weights in linear interpolation at the variances, constant beyond the ends."""
    if len(points) == 1:
        yield points[0], 1.0
        return
    for place, point in enumerate(points):
        weight = np.interp(variances, points, np.eye(len(points))[place])
        if weight.any():
            yield point, weight.astype(variances.dtype)


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


@lru_cache(maxsize=256)
def _series(variance: float, vocab_size: int) -> np.ndarray:
    """Polynomial of degree 8 in the correlation for the logarithm of the overlap, highest power first."""
    nodes = np.polynomial.chebyshev.chebpts1(9)
    return np.polyfit(nodes, [np.log(_overlap(variance, c, vocab_size)) for c in nodes], 8)


def _overlap(variance: float, correlation: float, vocab_size: int) -> float:
    """V E[e^{z + z'} / (S S')] with 1 / S = int e^{-sS} ds, which makes the sums over the vocabulary products.

    Trapezoids in s = e^a, s' = e^b and in the two Gaussians: all integrands are smooth and vanish at the ends. The
    Gaussians' steps are no wider than their joint density, |correlation| < 1.
    """
    std = np.sqrt(variance)
    step = min(0.35, 0.7 / max(std, 1e-9), 0.7 * np.sqrt(1 - correlation**2))
    x = np.arange(-9, 9 + step, step)
    square = x[:, None] ** 2 - 2 * correlation * x[:, None] * x + x**2
    weight = np.exp(-square / (2 * (1 - correlation**2)))
    weight /= weight.sum()
    a = np.arange(-np.log(vocab_size) - 2 * variance - 25, 8 * std + 5, 0.5)
    kernel = np.exp(-np.exp(a[:, None] + std * x))
    raised = kernel * np.exp(std * x)
    none, both = kernel @ weight @ kernel.T, raised @ weight @ raised.T
    power = np.exp((vocab_size - 1) * np.log(np.maximum(none, 1e-300)))
    return float(vocab_size * 0.25 * (np.exp(a[:, None] + a) * both * power).sum())
