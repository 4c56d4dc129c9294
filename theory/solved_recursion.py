"""The two-number recursion solved over N blocks, where a block's gains w (forward) and beta (backward) are constant.

Written variance adds up under a norm, so the stream is v_0 + N w, v_0 + w H_N or relaxes geometrically, and the squared
gradient is the product of 1 + beta / nu, a quotient of Gamma functions that grows like N^(beta / w). Where the two
gains differ and there is no such closed form, its limit of many blocks is derived.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sympy as sp

from theory import notation as s
from theory.derivation import Step, at, equation, topic, where
from theory.function_of import function_of

_QUARTER = sp.Rational(1, 4)
_V0, _W, _BETA, _A = s.sigma_0**2, s.forward_gain, s.backward_gain, s.shortcut_square
KAPPA = _BETA / _W
ADDITIVE = _V0 + s.N * _W
ADDITIVE_GROWTH = (
    sp.gamma(s.N + (_V0 + _BETA) / _W) * sp.gamma(_V0 / _W)
    / (sp.gamma(s.N + _V0 / _W) * sp.gamma((_V0 + _BETA) / _W))
)  # fmt: skip
HARMONIC = _V0 + _W * sp.harmonic(s.N)
AFFINE = _W + (_V0 - _W) * _A**s.N
NORMED_GROWTH = ((_A + _BETA) / (_A + _W)) ** s.N
MULTIPLICATIVE_GROWTH = (1 + _BETA) ** s.N
CONSTANT_GROWTH = sp.exp(-s.shortcut_loss) * (1 + s.written_in_all / _V0) ** KAPPA
"""squared gradient growth for N -> oo where the blocks' gains and the shortcuts' losses are of order 1 / N"""
AFFINE_WRITTEN = _W * (sp.exp(s.shortcut_loss) - 1)
AFFINE_GROWTH = CONSTANT_GROWTH.subs(s.written_in_all, AFFINE_WRITTEN)
ARGUMENTS = (s.N, s.sigma_0, _W, _BETA, _A)


@dataclass(frozen=True)
class Solution:
    """The recursion solved over N additions in N, sigma_0, w, beta and alpha, those of them it has.

    stream: variance after them. squared_growth: squared gradient norm before them over that after. equal_gains: whether
    that holds for beta = w alone. topic: the derivation that proves it.
    """

    stream: sp.Expr
    squared_growth: sp.Expr
    topic: str
    equal_gains: bool = False

    @cached_property
    def numeric(self) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
        """(stream's standard deviation, amplification) as a function of arrays N, sigma_0, w, beta, alpha."""
        logarithm = sp.expand_log(sp.log(self.squared_growth), force=True)
        logarithm = logarithm.replace(
            lambda e: e.is_Function and e.func == sp.log and e.args[0].func == sp.gamma,
            lambda e: sp.loggamma(*e.args[0].args),
        )
        std, growth = (function_of(root, *ARGUMENTS) for root in (sp.sqrt(self.stream), sp.exp(logarithm / 2)))
        return lambda *values: (std(*values), growth(*values))


SOLUTIONS = {
    "additive": Solution(ADDITIVE, ADDITIVE_GROWTH, "additive_growth"),
    "harmonic": Solution(HARMONIC, HARMONIC / _V0, "harmonic_growth", equal_gains=True),
    "affine": Solution(AFFINE, AFFINE / _V0, "affine_growth", equal_gains=True),
    "normed": Solution(sp.S.One, NORMED_GROWTH, "post_norm_growth"),
    "multiplicative": Solution(_V0 * (1 + _W) ** s.N, MULTIPLICATIVE_GROWTH, "no_norm_growth"),
}


@topic("Growth where every block writes the same variance: a power")
def additive_growth() -> tuple[Step, ...]:
    """Pre-LN without a depth factor, and norms on the output. Squared gradient growth; the amplification is its root:
    N^(kappa / 2), and exactly sqrt(1 + N w / sigma_0^2) where beta = w (identity, ReLU). Where all blocks together
    write c, it tends to (1 + c / sigma_0^2)^(kappa / 2), if each writes a share that vanishes; if a few write most of
    it, then kappa >= 1 makes that an upper bound. N stands for a real number in the limits."""
    x, more = sp.symbols("x k", positive=True)
    fading = sp.Symbol("q", positive=True)  # order in n, below 1
    slowly = _V0 + _W * s.N ** (1 - fading) / (1 - fading)
    faded = equation(
        sp.Limit(s.N * sp.log(1 + _BETA / s.N**fading / slowly), s.N, sp.oo), KAPPA * (1 - fading)
    )  # fmt: skip
    small = {_W: _W / s.N, _BETA: _BETA / s.N}
    return (
        Step(equation(ADDITIVE.subs(s.N, s.N + 1), ADDITIVE + _W), "the stream solves nu' = nu + w"),
        Step(equation(at(ADDITIVE_GROWTH, {s.N: 0}), 1), "no block, no growth"),
        Step(
            equation(ADDITIVE_GROWTH.subs(s.N, s.N + 1) / ADDITIVE_GROWTH, 1 + _BETA / ADDITIVE),
            "one more block multiplies the squared gradient by 1 + beta / nu",
        ),
        Step(
            equation(at(ADDITIVE_GROWTH, {_BETA: _W}), ADDITIVE / _V0),
            "equal gains: the product telescopes to the stream's own growth",
            "THEORY, section 3",
        ),
        Step(
            equation(sp.Limit(s.N * (sp.log(1 + s.N + x) - sp.log(s.N + x)), s.N, sp.oo), 1),
            "d log nu is dN / N in the limit, so the logarithm of the growth is kappa log N",
        ),
        Step(
            equation(sp.Limit(sp.log(ADDITIVE) / sp.log(s.N), s.N, sp.oo), 1),
            "the stream's variance is of order N: the squared gradient is of order N^kappa",
        ),
        Step(
            equation(sp.Limit(sp.log(1 + s.N * _BETA / _V0) / sp.log(s.N), s.N, sp.oo), 1),
            "equal gains: exponent 1 of the square, 1/2 of the amplification",
        ),
        Step(
            equation(sp.Limit((ADDITIVE / _V0).subs(small), s.N, sp.oo), 1 + _W / _V0),
            "a depth factor 1 / N on what is written: a constant",
        ),
        Step(
            equation(
                sp.Derivative(sp.log((_V0 + x * _W) / _V0) * KAPPA, x), _BETA / (_V0 + x * _W)
            ),
            "and with unequal gains, at x = n / N, d log g^2 = beta / nu dx integrates to kappa log(1 + w / sigma_0^2)",
        ),
        Step(
            faded,
            "block n writes of order n^-q: the stream is of order N^(1 - q), the squared gradient its power kappa",
            instances=lambda step: [(step.subs(fading, q), f"q = {q}") for q in (_QUARTER, 2 * _QUARTER)],
        ),
        Step(
            equation(sp.Derivative((1 + x) ** (1 + more) - (1 + more) * x, x), (1 + more) * ((1 + x) ** more - 1)),
            "kappa = 1 + k, x = w / nu of any size: the slope is not negative, from 1 at x = 0, so 1 + kappa x is at "
            "most (1 + x)^kappa, and the squared gradient grows by no more than the stream's power kappa",
            "Bernoulli",
        ),
    )  # fmt: skip


@topic("Growth where block n writes a variance of order 1 / n: a logarithm")
def harmonic_growth() -> tuple[Step, ...]:
    """LayerNorm scaling: the amplification is of order (log N)^(kappa / 2). A smooth activation's input shrinks with n,
    so that it acts as the line F'(0) u, whose gains agree: kappa = 1."""
    x = sp.Symbol("x", positive=True)
    return (
        Step(
            equation(HARMONIC.subs(s.N, s.N + 1).rewrite(sp.digamma), (HARMONIC + _W / (s.N + 1)).rewrite(sp.digamma)),
            "the stream solves nu' = nu + w / n",
        ),
        Step(equation(at(HARMONIC, {s.N: 0}), _V0), "it starts at sigma_0^2"),
        Step(
            equation((1 + _W / (s.N + 1) / HARMONIC) * HARMONIC, HARMONIC + _W / (s.N + 1)),
            "equal gains: the squared gradient grows as the stream does",
        ),
        Step(
            equation(sp.Limit((_V0 + _W * (sp.log(s.N) + sp.EulerGamma)) / sp.log(s.N), s.N, sp.oo), _W),
            "H_N is log N + 0.577 + O(1 / N), so the variance is of order log N",
            "Euler; DLMF 2.10.8",
        ),
        Step(
            equation(sp.Limit((x - sp.log(1 + x)) / x**2, x, 0), sp.Rational(1, 2)),
            "unequal gains, x = beta / (n nu): block n adds x to log g^2 up to order 1 / (n nu)^2, whose sum is finite",
        ),
        Step(
            equation(sp.Derivative(KAPPA * sp.log(_V0 + _W * sp.log(x)), x), _BETA / (x * (_V0 + _W * sp.log(x)))),
            "which falls with n, so that its sum is its integral kappa log nu up to a constant: g^2 is of order "
            "(log N)^kappa",
            "integral test",
        ),
    )  # fmt: skip


@topic("Growth where the shortcut forgets: a constant")
def affine_growth() -> tuple[Step, ...]:
    """nu' = alpha nu + (1 - alpha) w, DeepScaleLM. With alpha = 1 - 1 / (2N), 2N additions leave a share 1 / e. Where
    the gains differ, the limit is derived: alpha = 1 - c_a / N, block n writes f(n / N) / N, the gradient gains kappa
    times that over nu."""
    x, t = sp.symbols("x t", positive=True)
    c, write = s.shortcut_loss, sp.Function("f", positive=True)
    received = sp.Integral(write(t) * sp.exp(c * t), (t, 0, x))
    stream, growth = sp.exp(-c * x) * (_V0 + received), CONSTANT_GROWTH.subs({s.written_in_all: received, c: c * x})
    number = sp.Symbol("k", integer=True, nonnegative=True)
    factor = (_A + (1 - _A) * _BETA / AFFINE).subs(s.N, number).subs(_A, 1 - c / s.N)
    return (
        Step(
            equation(AFFINE.subs(s.N, s.N + 1), _A * AFFINE + (1 - _A) * _W),
            "the stream solves nu' = alpha nu + (1 - alpha) w",
        ),
        Step(equation(at(AFFINE, {s.N: 0}), _V0), "it starts at sigma_0^2"),
        Step(
            equation((_A + (1 - _A) * _W / AFFINE) * AFFINE, AFFINE.subs(s.N, s.N + 1)),
            "equal gains: the gradient's factor alpha + (1 - alpha) w / nu is nu' / nu, so the product is nu_N / nu_0",
        ),
        Step(
            equation(sp.Limit((1 - 1 / (2 * s.N)) ** (2 * s.N), s.N, sp.oo), sp.exp(-1)),
            "so the amplification tends to sqrt((w + (sigma_0^2 - w) / e) / sigma_0^2)",
        ),
        Step(
            equation(sp.Limit(s.N * sp.log(1 - c / s.N + _BETA / (s.N * s.variance)), s.N, sp.oo),
                     _BETA / s.variance - c),
            "unequal gains: at x = n / N, d log g^2 = (beta / nu - c_a) dx",
        ),
        Step(
            equation(sp.Derivative(stream, x), write(x) - c * stream),
            "the stream solves d nu = (f - c_a nu) dx, in units of what the shortcuts leave it only receives",
        ),
        Step(
            equation(sp.Derivative(sp.log(growth), x), KAPPA * write(x) / stream - c),
            "and this the gradient's equation, beta = kappa f, from 1 at x = 0: g^2 is "
            "exp(-c_a) (1 + w_Sigma / sigma_0^2)^kappa at x = 1, w_Sigma what it has received",
        ),
        Step(equation(sp.Integral(c * _W * sp.exp(c * t), (t, 0, 1)), AFFINE_WRITTEN), "DeepScaleLM: f = c_a w"),
        Step(
            equation(sp.Limit(sp.Product(factor, (number, 0, s.N - 1)), s.N, sp.oo), AFFINE_GROWTH),
            "so this is its squared growth: the logarithm of the product is a Riemann sum",
            "Euler's method converges",
            kind="cited",
            trial=_many_blocks,
        ),
        Step(
            equation(at(AFFINE_GROWTH, {_BETA: _W, c: 1}), (_W + (_V0 - _W) / sp.E) / _V0),
            "equal gains give back the stream's own growth",
        ),
    )  # fmt: skip


@topic("Growth under a norm after every sum: an exponential, or none")
def post_norm_growth() -> tuple[Step, ...]:
    """Post-LN and DeepNorm. Rate log((alpha + beta) / (alpha + w)) / 2 per addition: 0 for sub-layers whose gains agree
    (attention on equal tokens, ReLU), positive for GELU, whose gradient gains more than its output."""
    deep = sp.sqrt(2 * s.N)
    return (
        Step(equation(at(NORMED_GROWTH, {s.N: 0}), 1), "no addition, no growth"),
        Step(
            equation(NORMED_GROWTH.subs(s.N, s.N + 1), NORMED_GROWTH * (_A + _BETA) / (_A + _W)),
            "one more: alpha + beta through the sum, over alpha + w, which the norm divides by",
        ),
        Step(equation(at(NORMED_GROWTH, {_BETA: _W}), 1), "equal gains: no growth at all"),
        Step(
            equation(sp.Limit(s.N * ((1 + _BETA / s.N) / (1 + _W / s.N) - 1), s.N, sp.oo), _BETA - _W),
            "gains of order 1 / N (a depth factor on the outputs): a constant, exp((beta - w) / 2) for N additions",
        ),
        Step(
            equation(sp.Limit(deep * ((deep + _BETA) / (deep + _W) - 1), s.N, sp.oo), _BETA - _W),
            "DeepNorm's alpha = sqrt(2N) with gains that do not shrink: exp((beta - w) sqrt(2N) / 2) over N blocks",
            "this derivation; arXiv 2203.00555 shrinks the gains too, which leaves a constant",
        ),
    )


@topic("Growth without norms: an exponential")
def no_norm_growth() -> tuple[Step, ...]:
    """A branch of degree 1 multiplies the stream and the gradient. A branch of degree 2 (gated layers) squares."""
    squared = sp.Symbol("nu_N", positive=True)
    return (
        Step(
            equation(MULTIPLICATIVE_GROWTH.subs(s.N, s.N + 1), MULTIPLICATIVE_GROWTH * (1 + _BETA)),
            "one more block multiplies the squared gradient by 1 + beta",
        ),
        Step(
            equation(sp.log(MULTIPLICATIVE_GROWTH) / (2 * s.N), sp.log(1 + _BETA) / 2),
            "the amplification's rate per block",
        ),
        Step(
            equation(sp.Limit((1 + _BETA / s.N) ** s.N, s.N, sp.oo), sp.exp(_BETA)),
            "gains of order 1 / N: a constant",
        ),
        Step(
            equation(sp.Limit(sp.log(squared + _W * squared**2) / sp.log(squared), squared, sp.oo), 2),
            "nu' = nu + w nu^2: the logarithm doubles from block to block, once the stream is large",
        ),
    )


@topic("Gains that agree and gains that do not")
def gains() -> tuple[Step, ...]:
    """kappa = q E[F'^2] / E[F^2]: 1 for a line and for ReLU, above 1 for GELU. A gated layer F(g) u has 1 more, as g
    and u are independent: 2 for a line and for ReLU, above 2 for GELU. The closed forms of `theory.dual_expression`."""
    from theory.activation import ACTIVATIONS
    from theory.dual_expression import dual_expression

    q, rho = sp.Symbol("q", positive=True), s.correlation
    g, v = sp.symbols("g v", real=True)
    of_g, of_v = sp.symbols("q_g q_u", positive=True)
    density = sp.exp(-(g**2) / (2 * of_g) - v**2 / (2 * of_v)) / (2 * sp.pi * sp.sqrt(of_g * of_v))
    steps = []
    for name, least, part in (("identity", -sp.oo, 1), ("relu", 0, sp.Rational(1, 2))):
        function, slope = dual_expression(ACTIVATIONS[name], q, rho)
        size, back = (
            sp.Integral(square * density, (v, -sp.oo, sp.oo), (g, least, sp.oo))
            for square in ((g * v) ** 2, of_g * v**2 + of_v * g**2)
        )
        steps += [
            Step(equation(sp.Derivative(function, rho), q * slope), f"{name}: Price's theorem", "Price 1958"),
            Step(
                equation(at(function, {rho: 1}), q * where(slope, {rho: 1})),
                f"{name}: homogeneous of degree 1, so forward and backward gain agree",
                "Cho and Saul 2009",
            ),
            Step(equation(size, part * of_g * of_v), f"{name}, gated: variance of F(g) u, g and u independent"),
            Step(
                equation(back, 2 * part * of_g * of_v),
                "the squares of both slopes, F'(g) u and F(g), times the variances of g and u: twice that, kappa = 2",
            ),
        ]
    function, slope = dual_expression(ACTIVATIONS["gelu"], q, rho)
    ratio = q * slope.subs(rho, 1) / function.subs(rho, 1)
    own = function.subs(rho, 1)
    square, steep = sp.symbols("m_F m_slope", positive=True)
    return (
        *steps,
        Step(equation(sp.Limit(ratio, q, 0), 1), "GELU: a small input sees the line u / 2"),
        Step(
            equation(q * slope.subs(rho, 1) - own, q**2 / (2 * sp.pi * sp.sqrt(1 + 2 * q) ** 3)),
            "GELU: the backward gain exceeds the forward gain by this, at any q",
        ),
        Step(
            equation((of_g * steep * of_v + of_v * square) / (square * of_v), 1 + of_g * steep / square),
            "any gated layer, with m_F = E[F^2] and m_slope = E[F'^2]: kappa is 1 more than that of F",
        ),
    )


def _many_blocks() -> tuple[bool, str]:
    """The product of a million blocks' factors against its limit, at three draws of its four numbers."""
    blocks, draws = 10**6, ((1.0, 0.5, 0.8, 1.0), (0.3, 1.0, 0.6, 2.0), (2.0, 3.0, 6.0, 0.5))
    wanted = function_of(AFFINE_GROWTH, s.sigma_0, _W, _BETA, s.shortcut_loss)
    stream = function_of(AFFINE, s.N, s.sigma_0, _W, _A)
    errors = []
    for sigma, w, beta, c in draws:
        variance = stream(np.arange(blocks), sigma, w, 1 - c / blocks)
        errors.append(np.sum(np.log1p(c / blocks * (beta / variance - 1))) - np.log(wanted(sigma, w, beta, c)))
    return bool(np.max(np.abs(errors)) < 1e-5), f"N = {blocks:,}, {len(draws)} draws"
