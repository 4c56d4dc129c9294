"""Second moments of an activation under a pair of correlated Gaussians: the dual activation E[F(u) F(u')].

After a norm every token has the same variance, so the dual is a function of the correlation alone: a power series
whose coefficients are the squared Hermite coefficients of F (Daniely et al., arXiv 1602.05897), and for ReLU the
arc-cosine kernels (Cho and Saul 2009).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

from theory.activation import ACTIVATIONS, Activation

_TERMS = 64
_TAIL = 1e-9
_ALIKE = 1.1


@lru_cache(maxsize=1)
def hermite_quadrature() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights of a standard Gaussian, and normalised Hermite polynomials float64[terms, nodes]."""
    nodes, weights = hermegauss(200)
    hermite = np.empty((_TERMS, len(nodes)))
    hermite[0], hermite[1] = 1.0, nodes
    for n in range(2, _TERMS):
        hermite[n] = (nodes * hermite[n - 1] - np.sqrt(n - 1) * hermite[n - 2]) / np.sqrt(n)
    return nodes, weights / np.sqrt(2 * np.pi), hermite


def dual_activation(activation: Activation, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E[F(u) F(u')], E[F'(u) F'(u')]) for Gaussians u of mean zero with that covariance: float[..., T, T].

    Of the covariance's dtype. Where the standard deviations differ by less than a tenth, the series is taken at their
    root mean square, to three digits, and scaled to each token's own second moment, so that the diagonal is exact;
    else each token has coefficients of its own.
    """
    std = np.sqrt(np.einsum("...tt->...t", covariance))
    sizes = std[..., :, None] * std[..., None, :]
    correlation = np.clip(covariance / sizes, -1, 1)
    if activation == ACTIVATIONS["relu"]:
        same_sign = (np.pi - np.arccos(correlation)) / (2 * np.pi)
        return sizes * (np.sqrt(1 - correlation**2) / (2 * np.pi) + correlation * same_sign), same_sign
    if std.max() > _ALIKE * std.min():
        function, slope = (_coefficients(activation, kind, std) for kind in ("function", "slope"))
        return _product(function, function, correlation), _product(slope, slope, correlation)
    typical = _typical(std)
    return _by_series(activation, False, typical, std, correlation), _by_series(
        activation, True, typical, std, correlation
    )


def sampled(activation: Activation, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F(u) and F'(u), read off between 2^12 points, float32."""
    largest = max(float(np.abs(u).max()), 1e-30)
    values, spacing = _points(activation, int(np.ceil(2 * np.log2(1.001 * largest))))
    place = u * np.float32(1 / spacing) + np.float32(values.shape[-1] // 2)
    low = place.astype(np.int32)
    place -= low
    function, function_rise, slope, slope_rise = values
    return function[low] + place * function_rise[low], slope[low] + place * slope_rise[low]


@lru_cache(maxsize=64)
def _points(activation: Activation, size: int) -> tuple[np.ndarray, float]:
    """F, its rise to the next point, F' and its rise, at points from -2^(size / 2) to 2^(size / 2); their spacing."""
    points = np.linspace(-(2 ** (size / 2)), 2 ** (size / 2), 2**12 + 1)
    found = [_function(activation, derivative)(points) for derivative in (False, True)]
    rows = [row for values in found for row in (values[:-1], np.diff(values))]
    return np.array(rows, np.float32), float(points[1] - points[0])


def growth_moment(activation: Activation, covariance: np.ndarray) -> np.ndarray:
    """E[u F'(u) F(u')] for the same Gaussians, float[..., T, T]; F itself where F(c u) = c F(u)."""
    if activation == ACTIVATIONS["relu"]:
        return dual_activation(activation, covariance)[0]
    std = np.sqrt(np.einsum("...tt->...t", covariance))
    correlation = np.clip(covariance / (std[..., :, None] * std[..., None, :]), -1, 1)
    if std.max() > _ALIKE * std.min():
        growth, function = (_coefficients(activation, kind, std) for kind in ("growth", "function"))
        return _product(growth[..., :_TERMS], function[..., :_TERMS], correlation)
    typical = _typical(std)
    share = np.sqrt(_second_moment(activation, std, False) / _second_moment(activation, np.array(typical), False))
    return _sum(_growth_series(activation, typical), share, correlation)


def mean_activation(activation: Activation, covariance: np.ndarray) -> np.ndarray:
    """E[F(u)] of every token, [..., T], for the same Gaussians."""
    std = np.sqrt(np.einsum("...tt->...t", covariance))
    return np.interp(np.log(std), *_mean_table(activation)).astype(covariance.dtype) * std


def _typical(std: np.ndarray) -> float:
    return float(f"{np.sqrt(np.mean(std**2)):.3g}")


def _by_series(
    activation: Activation, derivative: bool, typical: float, std: np.ndarray, correlation: np.ndarray
) -> np.ndarray:
    coefficients = _series(activation, typical, derivative)
    return _sum(coefficients, np.sqrt(_second_moment(activation, std, derivative) / coefficients.sum()), correlation)


def _coefficients(activation: Activation, kind: str, std: np.ndarray) -> np.ndarray:
    """Hermite coefficients [..., T, terms + 1] of F(s x), F'(s x) or s x F'(s x) at each token's standard deviation.

    The last one makes up for the terms left out.
    """
    place = np.clip((np.log(std) - _LEAST_LOG_STD) / _SPACING, 0, _MOST_POINTS)
    low = place.astype(int)
    first, last = int(low.min()) // _POINTS * _POINTS, int(low.max()) // _POINTS * _POINTS + _POINTS
    table = _coefficient_table(activation, kind, first, last)
    part, low = (place - low)[..., None], low - first
    scale = 1 if kind == "slope" else std[..., None]
    return (((1 - part) * table[low] + part * table[low + 1]) * scale).astype(std.dtype)


_LEAST_LOG_STD, _SPACING, _MOST_POINTS = np.log(1e-6), 0.02, 2800
"""of the standard deviations at which coefficients are tabulated, up to 2e18"""
_POINTS = 50
"""as many as are tabulated at a time"""


@lru_cache(maxsize=64)
def _coefficient_table(activation: Activation, kind: str, first: int, last: int) -> np.ndarray:
    """The coefficients at these points, both ends included; those of F and x F' over the standard deviation."""
    nodes, weights, hermite = hermite_quadrature()
    std = np.exp(_LEAST_LOG_STD + _SPACING * np.arange(first, last + 1))[:, None]
    x = std * nodes
    values = _function(activation, kind != "function")(x) * (x if kind == "growth" else 1)
    weighted = values * weights
    table = weighted @ hermite.T
    rest = np.maximum((values * weighted).sum(axis=1) - (table**2).sum(axis=1), 0)
    table = np.column_stack([table, np.sqrt(rest)])
    return table if kind == "slope" else table / std


def _product(first: np.ndarray, second: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """sum_n first_tn second_t'n correlation_tt'^n."""
    size = np.abs(first * second).reshape(-1, first.shape[-1])
    beyond = np.cumsum(size[:, ::-1], axis=1)[:, ::-1]  # of all terms from this one on
    kept = max(1, int(np.any(beyond > _TAIL * beyond[:, :1], axis=0).sum()))
    total = first[..., kept - 1, None] * second[..., None, :, kept - 1]
    for n in range(kept - 2, -1, -1):
        total = total * correlation + first[..., n, None] * second[..., None, :, n]
    return total


def _sum(coefficients: np.ndarray, share: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """The series at these correlations, scaled to each token's own size."""
    share = share.astype(correlation.dtype)
    powers = np.polyval(coefficients[::-1].astype(correlation.dtype), correlation)
    return powers * share[..., :, None] * share[..., None, :]


def _log_std() -> np.ndarray:
    """The tables' grid: fine where functions bend, coarse on either side, where the logarithms lie on a line."""
    ends = np.log([1e-6, 1e-2, 1e2, 1e3, 1e18])
    pieces = (
        np.linspace(a, b, n, endpoint=False) for a, b, n in zip(ends[:-1], ends[1:], (32, 460, 16, 16), strict=True)
    )
    return np.append(np.concatenate(list(pieces)), ends[-1])


def _function(activation: Activation, derivative: bool) -> Callable[[np.ndarray], np.ndarray]:
    return activation.numeric[derivative]


@lru_cache(maxsize=1024)
def _series(activation: Activation, std: float, derivative: bool) -> np.ndarray:
    """Coefficients by power of the correlation; what lies beyond the last one is put on the next power."""
    nodes, weights, hermite = hermite_quadrature()
    values = _function(activation, derivative)(std * nodes)
    coefficients = (hermite @ (weights * values)) ** 2
    total = float(weights @ values**2)
    kept = int(np.searchsorted(np.cumsum(coefficients), total * (1 - _TAIL))) + 1
    coefficients = coefficients[:kept]
    return np.append(coefficients, max(total - coefficients.sum(), 0.0))


@lru_cache(maxsize=1024)
def _growth_series(activation: Activation, std: float) -> np.ndarray:
    """Coefficients of E[u F'(u) F(u')] by power of the correlation."""
    nodes, weights, hermite = hermite_quadrature()
    function, slope = (_function(activation, derivative)(std * nodes) for derivative in (False, True))
    return (hermite @ (weights * std * nodes * slope)) * (hermite @ (weights * function))


def _second_moment(activation: Activation, std: np.ndarray, derivative: bool) -> np.ndarray:
    """E[F^2] or E[F'^2] at each standard deviation."""
    return np.exp(np.interp(np.log(std), *_moment_table(activation, derivative)))


@lru_cache(maxsize=64)
def _moment_table(activation: Activation, derivative: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the standard deviation and of the second moment; linear in between errs by less than 1e-4."""
    nodes, weights, _ = hermite_quadrature()
    grid = _log_std()
    values = _function(activation, derivative)(np.exp(grid)[:, None] * nodes[None, :])
    return grid, np.log(values**2 @ weights)


@lru_cache(maxsize=64)
def _mean_table(activation: Activation) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the standard deviation, and the mean over the standard deviation."""
    nodes, weights, _ = hermite_quadrature()
    grid = _log_std()
    std = np.exp(grid)[:, None]
    return grid, (_function(activation, False)(std * nodes[None, :]) / std) @ weights
