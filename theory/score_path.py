"""The gradient through attention's logits where these grow without limit: rare near-ties, each worth much.

A block whose queries and keys see the stream itself, which grows, has logits that grow with it. The softmax then picks
one token, and its derivative is 0 but where two logits nearly tie. Their share falls as the derivative's square grows.
"""

import numpy as np
import sympy as sp
from scipy.integrate import quad

from theory import notation as s
from theory.derivation import Step, equation, topic

_P, _X = sp.Symbol("p", positive=True), sp.Symbol("x", real=True)
_TIE = 1 / (6 * sp.sqrt(2 * sp.pi))
GAP_SQUARE = 2 * s.query_gain * s.key_gain * s.variance**2 * (1 - s.correlation)
QUERY_GAIN = sp.sqrt(s.query_gain * s.key_gain) * (1 - s.correlation) ** sp.Rational(3, 2) / (3 * sp.sqrt(sp.pi))


@topic("Logits that grow with the stream: the score path does not fade with depth")
def growing_logits() -> tuple[Step, ...]:
    """OLMo 2's norm on the output without its QK norm, and stacks without norms. One query, two keys, a gap of two
    logits that is Gaussian, an output norm. The mean square gain of the score path is a constant where the value path's
    is of order 1 / nu: while tokens differ, the mean square of the gradient grows faster than any power of the depth.
    But it is made by ever rarer events, and 1 - rho falls with depth, so that a typical network's class is not derived
    here. With QK norm the gap keeps its size and the gain is of order (1 - rho) / nu: a vanishing addition to the value
    path's, which leaves its exponent."""
    logistic = 1 / (1 + sp.exp(-_X))
    size = s.logit_gap
    density = sp.exp(-(_X**2) / (2 * size**2)) / (size * sp.sqrt(2 * sp.pi))
    tie = equation(sp.Limit(size * sp.Integral(density * (logistic * (1 - logistic)) ** 2, (_X, -sp.oo, sp.oo)),
                            size, sp.oo), _TIE)  # fmt: skip
    over_value = QUERY_GAIN / (s.backward_gain / s.variance)
    share = _TIE / sp.sqrt(GAP_SQUARE)
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
            equation(share * (GAP_SQUARE / s.variance) * 2 * (1 - s.correlation), QUERY_GAIN),
            "mean square slope, times |d gap / d x_t|^2 = s^2 / nu, times the values' difference after the output "
            "norm, 2 (1 - rho): free of nu",
        ),
        Step(
            equation(s.variance * sp.Derivative(over_value, s.variance), over_value),
            "over the value path's gain beta / nu it grows like nu",
        ),
        Step(
            equation(sp.Limit(size**2 / s.variance * 2 * (1 - s.correlation), s.variance, sp.oo), 0),
            "a gap of fixed size, under QK norm: the gain falls like the value path's, and as tokens become alike",
        ),
    )


def _ties() -> tuple[bool, str]:
    """The mean square slope of a softmax of two, times s, at s = 1000, against its limit."""
    gap = 1000.0
    found = quad(lambda x: np.exp(-(x**2) / (2 * gap**2)) / (2 * np.cosh(x / 2)) ** 4, -60, 60)[0]
    return bool(abs(found / np.sqrt(2 * np.pi) - float(_TIE)) < 1e-6), f"s = {gap:g}"
