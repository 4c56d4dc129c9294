"""The dual activation E[F(u) F(u')] as an expression in the variance q and the correlation rho of two Gaussians.

Closed forms: identity, ReLU (Cho and Saul 2009) and erf-GELU, by Gaussian integration by parts. Any other activation:
its Hermite series in rho (Daniely et al., arXiv 1602.05897), the coefficients functions of q with numeric tables.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import sympy as sp

from theory.activation import ACTIVATIONS, Activation, u
from theory.dual_activation import hermite_quadrature

TERMS = 10
_VALUE, _SLOPE, _MEAN = sp.Function("hermite_value"), sp.Function("hermite_slope"), sp.Function("mean_value")
Tables = dict[str, Callable[..., np.ndarray]]


def dual_expression(scheme: Activation, q: sp.Expr, rho: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """(E[F(u) F(u')], E[F'(u) F'(u')]) for Gaussians of mean zero, variance q and correlation rho.

    Where there is a closed form the second is the first's derivative by the covariance (Price's theorem). Otherwise
    terms hermite_value(k, q) rho^k, to which `dual_tables` gives numbers; the last holds all higher ones.
    """
    if (slopes := kinked_line(scheme)) is not None:
        left, right = slopes
        same_sign = (sp.pi - sp.acos(rho)) / (2 * sp.pi)
        relu = sp.sqrt(1 - rho**2) / (2 * sp.pi) + rho * same_sign
        return tuple(left * right * x + (right - left) ** 2 * y for x, y in ((q * rho, q * relu), (1, same_sign)))
    if scheme.function != ACTIVATIONS["gelu"].function:
        return tuple(sum(f(k, q) * rho**k for k in range(TERMS + 1)) for f in (_VALUE, _SLOPE))
    size, c = sp.Symbol("q", positive=True), sp.Symbol("c", real=True)
    density = 1 / (2 * sp.pi * sp.sqrt((1 + size) ** 2 - c**2))
    both = sp.Rational(1, 4) + sp.asin(c / (1 + size)) / (2 * sp.pi)
    dual = c * both + density * (size**2 + c**2 * (1 - size) / (1 + size))
    put = {size: q, c: q * rho}
    return dual.xreplace(put), sp.diff(dual, c).xreplace(put)


def mean_expression(scheme: Activation, q: sp.Expr) -> sp.Expr:
    """E[F(u)] for a Gaussian of mean zero and variance q."""
    if (slopes := kinked_line(scheme)) is not None:
        return (slopes[1] - slopes[0]) * sp.sqrt(q / (2 * sp.pi))
    if scheme.function == ACTIVATIONS["gelu"].function:
        return q / sp.sqrt(2 * sp.pi * (1 + q))
    return _MEAN(q)


def kinked_line(scheme: Activation) -> tuple[sp.Expr, sp.Expr] | None:
    """Slopes left and right of 0 of an activation that is a line on either side; None for any other."""
    function = scheme.function
    left, right = -function.subs(u, -1), function.subs(u, 1)
    far = [
        function.subs(u, x) == x * (right if x > 0 else left) for x in (sp.Rational(1, 7), 3, -sp.Rational(1, 7), -3)
    ]
    return (left, right) if all(far) else None


def tangent_at_zero(scheme: Activation) -> Activation:
    """What a small input sees: the line F'(0) u."""
    return replace(scheme, name=f"{scheme.name}, small input", function=sp.simplify(scheme.derivative.subs(u, 0)) * u)


def line_at_infinity(scheme: Activation) -> Activation:
    """What a large input sees: the line lim F(u) / u on either side."""
    left, right = (sp.limit(scheme.function / u, u, end) for end in (-sp.oo, sp.oo))
    function = sp.Piecewise((left * u, u < 0), (right * u, True))
    return replace(scheme, name=f"{scheme.name}, large input", function=function)


def dual_tables(scheme: Activation) -> Tables:
    """What the series' functions mean, for `lambdify`: arrays in, arrays out, q between 1e-12 and 1e8."""
    return {
        "hermite_value": lambda k, q: _interpolated(scheme, False, int(k), q),
        "hermite_slope": lambda k, q: _interpolated(scheme, True, int(k), q),
        "mean_value": lambda q: np.interp(np.log(q), _GRID, _means(scheme)) * np.sqrt(q),
    }


_GRID = np.log(10.0) * np.linspace(-12, 8, 801)


def _interpolated(scheme: Activation, derivative: bool, power: int, q: np.ndarray) -> np.ndarray:
    scale = 1.0 if derivative else q
    return np.interp(np.log(q), _GRID, _coefficients(scheme, derivative)[power]) * scale


@lru_cache(maxsize=64)
def _coefficients(scheme: Activation, derivative: bool) -> np.ndarray:
    """Squared Hermite coefficients [TERMS + 1, grid], those of F over q; the last row is what remains."""
    nodes, weights, hermite = hermite_quadrature()
    std = np.exp(_GRID / 2)[:, None]
    values = scheme.numeric[derivative](std * nodes) / (1 if derivative else std)
    squares = (hermite[:TERMS] @ (weights * values).T) ** 2
    return np.vstack([squares, np.maximum(values**2 @ weights - squares.sum(axis=0), 0)])


@lru_cache(maxsize=64)
def _means(scheme: Activation) -> np.ndarray:
    nodes, weights, _ = hermite_quadrature()
    std = np.exp(_GRID / 2)[:, None]
    return (scheme.numeric[0](std * nodes) / std) @ weights
