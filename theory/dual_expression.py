"""The dual activation E[F(u) F(u')] as an expression in the variance q and the correlation rho of two Gaussians.

Closed forms: identity, ReLU (Cho and Saul 2009) and erf-GELU, by Gaussian integration by parts. Any other activation:
its Hermite series in rho (Daniely et al., arXiv 1602.05897), the coefficients functions of q with numeric tables.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import sympy as sp

from theory import notation as s
from theory.activation import ACTIVATIONS, Activation, u
from theory.derivation import Step, at, equation, topic
from theory.dual_activation import dual_activation, hermite_quadrature
from theory.gaussian_moments import mean_products

TERMS = 10
_VALUE, _SLOPE, _MEAN = sp.Function("hermite_value"), sp.Function("hermite_slope"), sp.Function("mean_value")
_Q, _C = sp.Symbol("q", positive=True), sp.Symbol("c", real=True)
_GELU_DUAL = _C * (sp.Rational(1, 4) + sp.asin(_C / (1 + _Q)) / (2 * sp.pi)) + (_Q**2 + _C**2 * (1 - _Q) / (1 + _Q)) / (
    2 * sp.pi * sp.sqrt((1 + _Q) ** 2 - _C**2)
)
DUAL, SLOPE_DUAL, MEAN = (sp.Function(name) for name in ("F_2", "S_2", "F_1"))
"""E[F(u) F(u')] and E[F'(u) F'(u')] at a variance and a correlation, E[F(u)] at a variance: any activation's"""
Tables = dict[str, Callable[..., np.ndarray]]


def dual_expression(scheme: Activation, q: sp.Expr, rho: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """(E[F(u) F(u')], E[F'(u) F'(u')]) for Gaussians of mean zero, variance q and correlation rho.

    Where there is a closed form the second is the first's derivative by the covariance (Price's theorem). Otherwise
    terms hermite_value(k, q) rho^k, to which `dual_tables` gives numbers; the last holds all higher ones.
    """
    if (slopes := kinked_line(scheme)) is not None:
        return line_dual(*slopes, q, rho)
    if scheme.function != ACTIVATIONS["gelu"].function:
        return tuple(sum(f(k, q) * rho**k for k in range(TERMS + 1)) for f in (_VALUE, _SLOPE))
    put = {_Q: q, _C: q * rho}
    return _GELU_DUAL.xreplace(put), sp.diff(_GELU_DUAL, _C).xreplace(put)


def line_dual(left: sp.Expr, right: sp.Expr, q: sp.Expr, rho: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """The same of an activation with these slopes left and right of 0."""
    same_sign = (sp.pi - sp.acos(rho)) / (2 * sp.pi)
    relu = sp.sqrt(1 - rho**2) / (2 * sp.pi) + rho * same_sign
    kink = (right - left) ** 2
    return left * right * q * rho + kink * q * relu, left * right + kink * same_sign


def mean_expression(scheme: Activation, q: sp.Expr) -> sp.Expr:
    """E[F(u)] for a Gaussian of mean zero and variance q."""
    if (slopes := kinked_line(scheme)) is not None:
        return line_mean(*slopes, q)
    if scheme.function == ACTIVATIONS["gelu"].function:
        return q / sp.sqrt(2 * sp.pi * (1 + q))
    return _MEAN(q)


def line_mean(left: sp.Expr, right: sp.Expr, q: sp.Expr) -> sp.Expr:
    """The same of an activation with these slopes left and right of 0."""
    return (right - left) * sp.sqrt(q / (2 * sp.pi))


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


@topic("The Gaussian moments of an activation in closed form")
def gaussian_duals() -> tuple[Step, ...]:
    """F_2(q, rho) = E[F(u) F(u')], S_2(q, rho) = E[F'(u) F'(u')], F_1(q) = E[F(u)]: u, u' Gaussian of variance q and
    covariance c = q rho. Closed forms: a line on either side of 0 (identity, ReLU, of slopes l and r), and GELU; so of
    GEGLU. Of all others a series in rho, whose coefficients are quadratures. A closed form has E[F F]'s second
    derivative by c, which is explicit, and at c = 0, where u and u' are independent, its value and slope."""
    left, right, other = sp.Symbol("l", real=True), sp.Symbol("r_F", real=True), sp.Symbol("u'", real=True)
    q, c, rho = _Q, _C, s.correlation
    area = q**2 - c**2
    log_density = -(q * u**2 - 2 * c * u * other + q * other**2) / (2 * area) - sp.log(area) / 2 - sp.log(2 * sp.pi)
    normal, standard = (sp.exp(-(u**2) / (2 * x)) / sp.sqrt(2 * sp.pi * x) for x in (q, sp.S.One))
    line, slope = line_dual(left, right, q, c / q)
    along, across = sp.Derivative(log_density, u), sp.Derivative(log_density, other)
    mean, gelu = line_mean(left, right, q), ACTIVATIONS["gelu"]
    wider, arcsine = (1 + q) ** 2 - c**2, sp.asin(c / (1 + q))
    rise, algebraic = 1 / sp.sqrt(wider), _GELU_DUAL - c * (sp.Rational(1, 4) + arcsine / (2 * sp.pi))
    second_derivative = (2 * rise + c * sp.Derivative(rise, c)) / (2 * sp.pi) + sp.Derivative(algebraic, (c, 2))
    own, pair = sp.symbols("q_G c_G", positive=True)
    own_is, pair_is = equation(own, (q + area) / wider), equation(pair, c / wider)
    narrowed = -(own * u**2 - 2 * pair * u * other + own * other**2) / (2 * (own**2 - pair**2))
    common, first, second = (sp.Symbol(f"w_{name}", real=True) for name in ("0", "1", "2"))
    bent, bent_other = (2 - (common + w) ** 2 for w in (first, second))
    moment = mean_products([(bent, bent_other)], {common: pair, first: own - pair, second: own - pair})[0]
    gelu_mean = mean_expression(gelu, q)
    return (
        Step(
            equation(sp.Derivative(log_density, c), sp.Derivative(log_density, u, other) + along * across),
            "the density p of (u, u') has dp/dc = d^2 p / du du' (over p)",
        ),
        Step(
            equation(sp.Derivative(DUAL(q, c / q), c), SLOPE_DUAL(q, c / q)),
            "so by parts, in u and in u', covariance turns F into its derivative",
            "Price 1958",
            kind="cited",
            trial=_price,
        ),
        Step(
            equation(sp.Derivative(line, (c, 2)), (right - left) ** 2 * sp.exp(log_density.subs({u: 0, other: 0}))),
            "a line on either side: F'' is (r_F - l) delta(u), and E[F'' F''] the density at 0",
        ),
        Step(equation(sp.Derivative(line, c), slope), "its derivative is the slopes' dual"),
        Step(
            equation(sp.Integral(left * normal, (u, -sp.oo, 0)) + sp.Integral(right * normal, (u, 0, sp.oo)),
                     (left + right) / 2),
            "E[F']",
        ),
        Step(equation(at(slope, {c: 0}), ((left + right) / 2) ** 2), "its square is the slopes' dual at c = 0"),
        Step(
            equation(sp.Integral(left * u * normal, (u, -sp.oo, 0)) + sp.Integral(right * u * normal, (u, 0, sp.oo)),
                     mean),
            "E[F], F_1",
        ),
        Step(equation(at(line, {c: 0}), mean**2), "its square is the dual at c = 0"),
        Step(
            equation(DUAL(q, rho), line_dual(left, right, q, rho)[0]),
            "so this is the dual; the arc-cosine kernel of ReLU for l = 0, r_F = 1",
            "twice integrated; Cho and Saul 2009",
            kind="cited",
            trial=lambda: _integrated("relu", 2e-3),
        ),
        Step(equation(sp.Derivative(gelu.function, (u, 2)), (2 - u**2) * standard), "GELU's F''"),
        Step(own_is, "variance of Gaussians of density p times e^(-u^2/2) e^(-u'^2/2), rescaled", kind="given"),
        Step(pair_is, "and their covariance", kind="given"),
        Step(
            equation(log_density + sp.log(2 * sp.pi) + sp.log(area) / 2 - (u**2 + other**2) / 2, narrowed),
            "as the exponent says",
            using=(own_is, pair_is),
        ),
        Step(
            equation((own**2 - pair**2) / area, 1 / wider),
            "and the determinants' ratio, whose root is the factor",
            using=(own_is, pair_is),
        ),
        Step(
            equation(moment, 4 - 4 * own + own**2 + 2 * pair**2), "E[(2 - u^2)(2 - u'^2)] of these, by Wick's theorem"
        ),
        Step(
            equation(sp.Derivative(arcsine, c) ** 2, 1 / wider), "GELU's closed form has c times an arcsine"
        ),
        Step(
            equation(2 * sp.pi * sp.sqrt(wider) * second_derivative, 4 - 4 * own + own**2 + 2 * pair**2),
            "so its second derivative is E[F'' F''], the factor 1 / 2 pi being that of the two F''",
            using=(own_is, pair_is),
        ),
        Step(
            equation(sp.Derivative(gelu.function, u) + at(sp.Derivative(gelu.function, u), {u: -u}), 1),
            "F'(u) - 1/2 is odd, so E[F'] = 1/2",
        ),
        Step(
            equation(at(sp.Derivative(_GELU_DUAL, c), {c: 0}), sp.Rational(1, 4)), "whose square is its slope there"
        ),
        Step(
            equation(sp.Derivative(-q * (gelu.function / u) * normal, u),
                     gelu.function * normal - q * standard * normal),
            "by parts, E[F] is q times the mean of the standard density (Stein)",
        ),
        Step(equation(sp.Integral(q * standard * normal, (u, -sp.oo, sp.oo)), gelu_mean), "which is F_1"),
        Step(equation(at(_GELU_DUAL, {c: 0}), gelu_mean**2), "and its square the value at c = 0"),
        Step(
            equation(DUAL(q, c / q), _GELU_DUAL),
            "so this is the dual of GELU",
            "twice integrated",
            kind="cited",
            trial=lambda: _integrated("gelu", 1e-9),
        ),
        Step(
            equation(DUAL(q, rho), sp.Sum(_VALUE(s.layer, q) * rho**s.layer, (s.layer, 0, sp.oo))),
            "any other: the squared Hermite coefficients of F, by quadrature; code alone, no closed form",
            "Daniely et al., arXiv 1602.05897",
            kind="cited",
            trial=lambda: _integrated("silu", 4e-4),
        ),
    )  # fmt: skip


def _price() -> tuple[bool, str]:
    """The difference quotient of SiLU's dual by the covariance, against its slopes' dual."""
    step, silu = 1e-4, ACTIVATIONS["silu"]
    high, low, at = (dual_activation(silu, np.array([[1, c], [c, 1]])) for c in (0.5 + step, 0.5 - step, 0.5))
    found = (high[0][0, 1] - low[0][0, 1]) / (2 * step)
    return bool(abs(found - at[1][0, 1]) < 1e-6), "SiLU, c = 0.5"


def _integrated(name: str, tolerance: float) -> tuple[bool, str]:
    """The dual's expression against quadrature over both Gaussians."""
    scheme, (nodes, weights, _) = ACTIVATIONS[name], hermite_quadrature()
    function, worst = scheme.numeric[0], 0.0
    for q, rho in ((0.3, 0.2), (1.0, 0.6), (4.0, 0.9)):
        second = rho * nodes[:, None] + np.sqrt(1 - rho**2) * nodes
        wanted = weights @ (function(np.sqrt(q) * nodes)[:, None] * function(np.sqrt(q) * second)) @ weights
        expression = dual_expression(scheme, _Q, s.correlation)[0]
        found = sp.lambdify((_Q, s.correlation), expression, modules=[dual_tables(scheme), "numpy"])(q, rho)
        worst = max(worst, abs(float(found / wanted) - 1))
    return worst < tolerance, f"{name}, quadrature at 3 points (off by {worst:.0e})"
