"""The gradient through attention's logits where these grow without limit: rare near-ties, each worth much.

A block whose queries and keys see the stream itself, which grows, has logits that grow with it. The softmax then picks
one token, and its derivative is 0 but where two logits nearly tie. Their share falls as the derivative's square grows.
"""

import numpy as np
import sympy as sp
from scipy.integrate import quad

from theory import notation as s
from theory.activation import ACTIVATIONS
from theory.derivation import Step, at, equation, topic
from theory.dual_expression import dual_expression
from theory.solved_recursion import ADDITIVE, ADDITIVE_GROWTH

_P, _X = sp.Symbol("p", positive=True), sp.Symbol("x", real=True)
_TIE = 1 / (6 * sp.sqrt(2 * sp.pi))
_ALIKE = 1 - s.correlation
_PRODUCT = s.query_gain * s.key_gain
GAP_SQUARE = 2 * _PRODUCT * s.variance**2 * _ALIKE
KEY_GAIN = sp.sqrt(_PRODUCT) * sp.sqrt(_ALIKE) / (3 * sp.sqrt(sp.pi))
QUERY_GAIN = KEY_GAIN * _ALIKE
_TURNED_ALIKE = 1 - s.correlation * (1 - s.turned)
TURNED_GAP_SQUARE = GAP_SQUARE / _ALIKE * _TURNED_ALIKE
TURNED_KEY_GAIN = KEY_GAIN * sp.sqrt(_ALIKE) / sp.sqrt(_TURNED_ALIKE)
KEPT = sp.Rational(1, 2)
"""share of two tokens' difference that attention keeps where it picks one token each"""

KEPT_UNDER_CAP = KEPT**2
"""and where it averages evenly, as under a cap on the logits of like tokens"""
_Y = sp.Symbol("y", real=True)
_OTHER = 1 / (1 + sp.exp(s.cap * (1 - _Y)))
TIE_UNDER_CAP = s.cap * sp.Integral((_OTHER * (1 - _OTHER)) ** 2 * (1 - _Y**2), (_Y, -1, 1))
KEY_GAIN_UNDER_CAP = 4 * sp.sqrt(_PRODUCT) * _ALIKE * TIE_UNDER_CAP / sp.sqrt(2 * sp.pi)


@topic("Logits that grow with the stream: the score path does not fade with depth")
def growing_logits() -> tuple[Step, ...]:
    """OLMo 2's norm on the output without its QK norm, and stacks without norms. One query, two keys, the gap of their
    logits Gaussian, an output norm; what it adds to the squared gradient, in the mean over initialisations. Near-ties
    become ever rarer and worth ever more. A key's gradient is the query's times x_t, which is long; a query's is the
    keys' difference, which is short. With QK norm the gap keeps its size and both are a vanishing addition to the value
    path's gain, which leaves its exponent."""
    logistic = 1 / (1 + sp.exp(-_X))
    size = s.logit_gap
    density = sp.exp(-(_X**2) / (2 * size**2)) / (size * sp.sqrt(2 * sp.pi))
    tie = equation(sp.Limit(size * sp.Integral(density * (logistic * (1 - logistic)) ** 2, (_X, -sp.oo, sp.oo)),
                            size, sp.oo), _TIE)  # fmt: skip
    over_value = KEY_GAIN / (s.backward_gain / s.variance)
    share, values, by_keys = _TIE / sp.sqrt(GAP_SQUARE), 2 * _ALIKE, 2 * _PRODUCT * s.variance
    turned = _TIE / sp.sqrt(TURNED_GAP_SQUARE)
    return (
        Step(equation(sp.Derivative(logistic, _X), logistic * (1 - logistic)), "the softmax of a gap x of two logits"),
        Step(
            equation(sp.Integral(_P * (1 - _P), (_P, 0, 1)), sp.Rational(1, 6)),
            "so its squared slope integrates, over all gaps, to 1/6",
        ),
        Step(
            equation(sp.Limit(size * density, size, sp.oo), 1 / sp.sqrt(2 * sp.pi)),
            "a wide Gaussian is flat where the slope is",
        ),
        Step(tie, "so the mean square slope is of order 1 / s", "dominated convergence", kind="cited", trial=_ties),
        Step(
            equation(size**2, GAP_SQUARE),
            "variance of x_t^T M (x_1 - x_2), M = W_Q^T W_K / sqrt d_head: it grows with the stream's square",
            kind="given",
        ),
        Step(
            equation(share * by_keys * values, KEY_GAIN),
            "through the keys: mean square slope, times |d gap / d x_1|^2 + |d gap / d x_2|^2 = 2 g_Q g_K nu, times "
            "the values' difference after the output norm, 2 (1 - rho): free of nu",
        ),
        Step(
            equation(share * (GAP_SQUARE / s.variance) * values, QUERY_GAIN),
            "through the query, |d gap / d x_t|^2 = s^2 / nu: the same times 1 - rho",
        ),
        Step(
            equation(s.variance * sp.Derivative(over_value, s.variance), over_value),
            "over the value path's gain beta / nu it grows like nu",
        ),
        Step(
            equation(turned * by_keys * values, TURNED_KEY_GAIN),
            "under RoPE the keys are turned apart, their correlation is rho (1 - u_c)",
        ),
        Step(
            equation(sp.Limit(TURNED_KEY_GAIN.subs(s.correlation, 1 - _P) / _P, _P, 0, "+"),
                     sp.sqrt(_PRODUCT) / (3 * sp.sqrt(sp.pi) * sp.sqrt(s.turned))),
            "so that it falls like 1 - rho there, and not like its root",
        ),
        Step(
            equation(sp.Limit(size**2 / s.variance * values, s.variance, sp.oo), 0),
            "a gap of fixed size, under QK norm: the gain falls like the value path's, and as tokens become alike",
        ),
    )  # fmt: skip


@topic("Growth where logits grow with the stream: stretched exponentials, and a compressed one without norms")
def near_tie_growth() -> tuple[Step, ...]:
    """Attention picks one token; how fast that makes tokens alike, and what it leaves of the gains of `growing_logits`.
    Of the root of the mean square over initialisations. c depends on the blocks before the limit, but for stacks
    without norms. A network with h heads follows it while its h T queries of a block have near-ties, one of order
    1 / (g nu sqrt(1 - rho)); deeper, it grows more slowly than the mean square, which others make: without norms the
    sum of all these shares is finite, so that a typical network keeps the value path's exponential."""
    t, u = (sp.Symbol(name, integer=True, positive=True) for name in "tu")
    size = s.logit_gap
    density = sp.exp(-(_X**2) / (2 * size**2)) / (size * sp.sqrt(2 * sp.pi))
    stream = {s.forward_gain: 2, s.backward_gain: KEPT + 1}
    one_more = (ADDITIVE_GROWTH.subs(s.N, s.N + 1) / ADDITIVE_GROWTH).subs(stream)
    apart, size_now = s.backward_gain, ADDITIVE.subs(stream)
    relative = s.N * (sp.log(1 + apart / size_now) - sp.log(1 + 2 / size_now))
    function = dual_expression(ACTIVATIONS["relu"], sp.S.One, s.correlation)[0]
    lost = (1 - function / function.subs(s.correlation, 1)).subs(s.correlation, 1 - _P)
    stretch = sp.log((1 + s.forward_gain) * (1 + s.backward_gain)) / 2
    return (
        Step(
            equation(sp.Integral(density, (_X, 0, sp.oo)), KEPT),
            "the second token attends to itself in half of the heads, the first always: half of their mean square "
            "difference is kept. No later token attends to itself more often, so all differences fall as this one does",
        ),
        Step(
            equation(sp.Sum(sp.Sum(1 - t / u, (t, 1, u - 1)), (u, 2, s.T)) / (s.T * (s.T - 1) / 2), KEPT),
            "and so do two tokens on average, at any length, where all before one are equally likely: t < u attend to "
            "the same with probability t / u",
        ),
        Step(
            equation(sp.Limit(lost / _P, _P, 0, "+"), 1),
            "the feed-forward keeps all of a small difference: ReLU, which GELU and SiLU are for large input; a line",
        ),
        Step(
            equation(sp.gammasimp(one_more), 1 + (KEPT + 1) / ADDITIVE.subs(stream)),
            "under output norms a block adds 2 to nu and 1/2 + 1 of the difference over nu: D of additive_growth",
        ),
        Step(
            equation(sp.Limit(relative.subs(apart, KEPT + 1), s.N, sp.oo), -sp.Rational(1, 4)),
            "so 1 - rho = D / nu falls like n^(-1/4)",
        ),
        Step(
            equation(sp.Integral(_X ** sp.Rational(-1, 8), (_X, 0, s.N)), sp.Rational(8, 7) * s.N ** sp.Rational(7, 8)),
            "gains like sqrt(1 - rho) add up to this in the log of the squared gradient, the value path's to log N",
        ),
        Step(
            equation(sp.Integral(_X ** sp.Rational(-1, 4), (_X, 0, s.N)), sp.Rational(4, 3) * s.N ** sp.Rational(3, 4)),
            "and those like 1 - rho, under RoPE, to this",
        ),
        Step(
            equation(sp.Limit(relative.subs(apart, KEPT + 2), s.N, sp.oo), sp.Rational(1, 4)),
            "a product of two lines (gated layers) doubles a small difference: tokens do not become alike, and gains "
            "that do not fall make an exponential",
        ),
        Step(
            equation(sp.Sum(s.layer * stretch, (s.layer, 1, s.N)) / 2, stretch * s.N * (s.N + 1) / 4),
            "without norms no division by nu: the gain is of order nu sqrt(1 - rho) = sqrt(nu D), where a block "
            "multiplies nu by 1 + w and D by 1 + beta. Half the sum of its logarithms",
        ),
        Step(
            equation(sp.Limit(stretch * s.N * (s.N + 1) / 4 / s.N**2, s.N, sp.oo), stretch / 4),
            "is exp(c N^2), c = log((1 + w)(1 + beta)) / 8; under RoPE nu (1 - rho) = D makes it log(1 + beta) / 4",
        ),
    )  # fmt: skip


@topic("Growth where logits grow with the stream and are capped: a weaker stretched exponential")
def capped_growth() -> tuple[Step, ...]:
    """A soft cap on logits of any size. One query, two keys, positions that do not turn keys and have no bias. Logits
    are at one of the two ends of the cap but for those near 0, whose share falls like 1 / nu; like tokens are at the
    same end, so attention averages evenly. Where tokens stay apart (gated layers) they are not, and RoPE sets an angle
    between equal keys: neither is derived."""
    logit, ratio = sp.Symbol("l", positive=True), 1 - _Y**2
    bent = s.cap * sp.tanh(logit / s.cap)
    stream = {s.forward_gain: 2, s.backward_gain: KEPT_UNDER_CAP + 1}
    size, apart = ADDITIVE.subs(stream), stream[s.backward_gain]
    relative = s.N * (sp.log(1 + apart / size) - sp.log(1 + 2 / size))
    slope = sp.Derivative(bent, logit)
    near = 1 / sp.sqrt(2 * sp.pi * _PRODUCT * s.variance**2)
    by_key, values = _PRODUCT * s.variance, 2 * _ALIKE
    tie, position = sp.symbols("I_cap t", positive=True)
    return (
        Step(equation(sp.Limit(bent, logit, sp.oo), s.cap), "a large logit is at an end of the cap"),
        Step(
            equation(sp.Limit(sp.acos(s.correlation) / sp.pi, s.correlation, 1, "-"), 0),
            "the logits of two keys with correlation rho have different signs with this probability (Sheppard 1899): "
            "none, for like tokens",
        ),
        Step(
            equation(at(position**-2, {position: 2}), KEPT_UNDER_CAP),
            "so attention averages evenly. Differences from the first token are mapped by a triangular matrix with "
            "1 / t on its diagonal, the second token's the largest: 1/4 of a mean square difference is kept",
        ),
        Step(
            equation(sp.Limit(relative, s.N, sp.oo), -sp.Rational(3, 8)),
            "output norms: a block adds 2 to nu and 1/4 + 1 of the difference over nu, 1 - rho falls like n^(-3/8)",
        ),
        Step(
            equation(slope, ratio.subs(_Y, bent / s.cap)),
            "the cap's slope, with y = tanh(l / c_cap) for what is left of a logit",
        ),
        Step(
            equation(sp.Derivative(s.cap * sp.atanh(_Y), _Y), s.cap / ratio),
            "a logit is Gaussian of standard deviation g nu, so near 0 y has the density 1 / (sqrt(2 pi) g nu) times "
            "this",
        ),
        Step(
            equation(tie, TIE_UNDER_CAP),
            "over which the squares of both slopes, softmax's and cap's, are integrated, the other logit at an end",
            kind="given",
        ),
        Step(
            equation(2 * near * tie * by_key * values, KEY_GAIN_UNDER_CAP.subs(TIE_UNDER_CAP, tie)),
            "for each of two keys that, times |d l / d x_i|^2 = g_Q g_K nu and the values' difference: of order "
            "1 - rho, free of nu, and as much again through the query",
        ),
        Step(
            equation(sp.Integral(_X ** sp.Rational(-3, 8), (_X, 0, s.N)), sp.Rational(8, 5) * s.N ** sp.Rational(5, 8)),
            "which adds up to this in the log of the squared gradient. Without norms: nu (1 - rho) = D, as under RoPE",
        ),
    )  # fmt: skip


def _ties() -> tuple[bool, str]:
    """The mean square slope of a softmax of two, times s, at s = 1000, against its limit."""
    gap = 1000.0
    found = quad(lambda x: np.exp(-(x**2) / (2 * gap**2)) / (2 * np.cosh(x / 2)) ** 4, -60, 60)[0]
    return bool(abs(found / np.sqrt(2 * np.pi) - float(_TIE)) < 1e-6), f"s = {gap:g}"
