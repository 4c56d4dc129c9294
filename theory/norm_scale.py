"""What a norm makes of the stream's scale: its epsilon where the stream is small, weak gradients where it is large.

A norm divides by sqrt(sigma_x^2 + epsilon), forward and backward. Small streams (an embedding of standard deviation
0.006) are those of which epsilon takes a share. Large streams (late in training) get back a gradient that is smaller by
their own size, down to where Adam's epsilon is larger than it: claim SSP-9 of Wortsman et al., arXiv 2309.14322.
"""

from dataclasses import dataclass

import sympy as sp

from theory import notation as s
from theory.block import block
from theory.conditions import embedding_std
from theory.derivation import Step, at, equation, topic
from theory.embedding import embedding
from theory.function_of import function_of
from theory.initialization import INITIALIZATIONS, Initialization
from theory.matrix_algebra import Norm
from theory.normalization import LAYER_NORM, RMS_NORM
from theory.presets import PRESETS

SSP = "Wortsman et al., arXiv 2309.14322 [P]"
ROOT = sp.sqrt(s.sigma_x**2 + s.epsilon)
KEPT_VARIANCE = s.sigma_x**2 / (s.sigma_x**2 + s.epsilon)
KEPT_GAIN = s.sigma_x / ROOT
GRADIENT, RMS_GRADIENT = (
    s.gradient_above / ROOT * sp.sqrt((s.d - lost + (s.epsilon / ROOT**2) ** 2) / s.d) for lost in (2, 1)
)
ADAM_STEP = s.gradient_rms / (s.gradient_rms + s.adam_epsilon)
SMALLEST_STD = sp.sqrt(s.epsilon * (1 - s.tolerance) / s.tolerance)
_LEMMA = "layer_norm_jacobian"


@topic("Where a norm's epsilon matters: small embeddings")
def norm_epsilon() -> tuple[Step, ...]:
    """A norm of a token of standard deviation sigma_x returns sigma_x^2 / (sigma_x^2 + epsilon) of the variance 1, and
    passes the gradient on times 1 / sqrt(sigma_x^2 + epsilon). Both are within the share tau < 1 of their limits at
    epsilon = 0 where the stream is at least a multiple of sqrt(epsilon): 9.95 times for 1 %, 3 times for 10 %."""
    share = s.epsilon / s.sigma**2
    length = equation(s.z.T * s.z, s.d * (1 - share) * sp.Identity(1))
    total = equation(s.sigma, ROOT)
    norm = equation(Norm(s.J_norm), 1 / s.sigma)
    gain = equation(Norm(s.J_norm), 1 / ROOT)
    smaller = sp.sqrt(s.epsilon) * (1 - s.tolerance) / sp.sqrt(s.tolerance * (2 - s.tolerance))
    width = 2 * s.tolerance / (5 * s.epsilon * (1 - s.tolerance))
    small_init = KEPT_VARIANCE.subs(s.sigma_x, sp.sqrt(2 / (5 * s.d)))
    return (
        Step(length, "the length of a normed token", _LEMMA, kind="lemma"),
        Step(total, "sigma_x is the stream's standard deviation, to which the norm adds epsilon", _LEMMA, kind="lemma"),
        Step(norm, "what the norm multiplies a gradient by at most, and all but two directions exactly", _LEMMA,
             kind="lemma"),
        Step(equation(1 - share, KEPT_VARIANCE), "so this is a normed token's variance", using=(total,)),
        Step(gain, "and this the gradient's gain", using=(norm, total)),
        Step(
            equation(s.sigma_x * Norm(s.J_norm), sp.sqrt(KEPT_VARIANCE)),
            "over 1 / sigma_x, its limit at epsilon = 0, the gain is the root of the normed token's variance",
            using=(gain,),
        ),
        Step(sp.Ge(sp.Derivative(KEPT_VARIANCE, s.sigma_x), 0), "both grow with the stream"),
        Step(
            equation(at(KEPT_VARIANCE, {s.sigma_x: SMALLEST_STD}), 1 - s.tolerance),
            "so from this standard deviation on the variance is within tau of 1",
        ),
        Step(
            equation(at(KEPT_VARIANCE, {s.sigma_x: smaller}), (1 - s.tolerance) ** 2),
            "and from this one on the gain is within tau of its limit",
        ),
        Step(
            equation(sp.Limit(1 / ROOT, s.sigma_x, 0), 1 / sp.sqrt(s.epsilon)),
            "no norm amplifies a gradient by more than this, however small the stream: 316 at epsilon = 1e-5",
        ),
        Step(
            equation(at(small_init, {s.d: width}), 1 - s.tolerance),
            "an embedding of standard deviation sqrt(2 / (5 d)) is within tau up to this width: 404 for 1 % and 4,444 "
            "for 10 % at epsilon = 1e-5, ten times as wide at 1e-6",
        ),
    )  # fmt: skip


@topic("A large stream has small gradients, down to Adam's epsilon (SSP-9)")
def last_norm_gradient() -> tuple[Step, ...]:
    """The gradient behind the last norm is the one before it over the stream's size, and so is every block's, as all of
    them are that gradient times what the blocks make of it. As the stream grows in training (with size and learning
    rate, as the paper observes) gradients fall as 1 / sigma_x, until they are no longer large against Adam's epsilon:
    then updates shrink with them, and a smaller epsilon restores them. That the stream grows is observed, not proven
    here."""
    share = s.epsilon / s.sigma**2
    one = sp.Identity(1)
    ones = equation(s.e.T * s.e, s.d * one)
    centering = equation(s.C, sp.Identity(s.d) - s.e * s.e.T / s.d)
    length = equation(s.z.T * s.z, s.d * (1 - share) * one)
    mean = equation(s.e.T * s.z, sp.ZeroMatrix(1, 1))
    scaled = equation(s.P, s.sigma * LAYER_NORM)
    total = equation(s.sigma, ROOT)
    trace = equation(sp.Trace(s.P.T * s.P), s.d - 2 + share**2)
    returned = equation(s.gradient_rms, s.gradient_above / s.sigma * sp.sqrt(sp.Trace(s.P.T * s.P) / s.d))
    of_rms = s.sigma * RMS_NORM
    rms_trace = equation(sp.Trace(of_rms.T * of_rms), s.d - 1 + share**2)
    rms_returned = equation(s.gradient_rms, s.gradient_above / s.sigma * sp.sqrt(rms_trace.lhs / s.d))
    at_unit = sp.Symbol("g_1", positive=True)
    step = ADAM_STEP.subs(s.gradient_rms, at_unit / s.sigma_x)
    return (
        Step(ones, "e is the vector of d ones", _LEMMA, kind="lemma"),
        Step(centering, "C takes the mean off", _LEMMA, kind="lemma"),
        Step(length, "the length of a normed token", _LEMMA, kind="lemma"),
        Step(mean, "z has mean 0", _LEMMA, kind="lemma"),
        Step(scaled, "R is sigma times the Jacobian", _LEMMA, kind="lemma"),
        Step(total, "sigma_x is the stream's standard deviation", _LEMMA, kind="lemma"),
        Step(
            trace,
            "what R leaves of a random direction: all but mean and length, and epsilon's share of the length",
            using=(ones, centering, length, mean, scaled),
        ),
        Step(
            returned,
            "a gradient of d independent coordinates of root mean square g_u comes back through the norm as this: the "
            "mean of |R^T u|^2 is g_u^2 tr(R R^T)",
            "second moment of a quadratic form",
            kind="given",
        ),
        Step(equation(s.gradient_rms, GRADIENT), "in the stream's own size", using=(returned, trace, total)),
        Step(
            equation(sp.Limit(s.sigma_x * GRADIENT, s.sigma_x, sp.oo), s.gradient_above * sp.sqrt((s.d - 2) / s.d)),
            "so a large stream's gradient falls as 1 / sigma_x",
            SSP + ", the mechanism of SSP-9",
        ),
        Step(
            rms_trace,
            "RMSNorm takes no mean off: all of a random direction is left but the length, and epsilon's share of that",
            using=(length,),
        ),
        Step(rms_returned, "a gradient behind it, likewise", "second moment of a quadratic form", kind="given"),
        Step(equation(s.gradient_rms, RMS_GRADIENT), "so with d - 1", using=(rms_returned, rms_trace, total)),
        Step(
            sp.Le(s.gradient_above / ROOT, s.gradient_above / sp.sqrt(s.epsilon)),
            "and a small one's stays below this",
        ),
        Step(
            equation(at(ADAM_STEP, {s.gradient_rms: s.adam_epsilon}), sp.Rational(1, 2)),
            "Adam's step g / (|g| + epsilon_A), in units of the learning rate, for a gradient that keeps its size and "
            "sign: at g = epsilon_A it is halved",
            "Kingma and Ba, arXiv 1412.6980",
        ),
        Step(
            equation(sp.Limit(ADAM_STEP / s.gradient_rms, s.gradient_rms, 0), 1 / s.adam_epsilon),
            "far below epsilon_A it is a plain gradient step of rate 1 / epsilon_A, and vanishes with the gradient",
        ),
        Step(
            equation(step, 1 / (1 + s.adam_epsilon * s.sigma_x / at_unit)),
            "with g = g_1 / sigma_x, g_1 the gradient at a stream of size 1: the step is halved at sigma_x = "
            "g_1 / epsilon_A",
        ),
        Step(sp.Le(sp.Derivative(step, s.sigma_x), 0), "a larger stream makes it smaller"),
        Step(sp.Le(sp.Derivative(step, s.adam_epsilon), 0), "and a smaller epsilon_A larger", SSP + ", SSP-9"),
    )


normed_variance = function_of(KEPT_VARIANCE, s.sigma_x, s.epsilon)
"""Variance of a token of standard deviation sigma_x after a norm; 1 where epsilon takes nothing."""
kept_gain = function_of(KEPT_GAIN, s.sigma_x, s.epsilon)
"""The norm's gain on gradients, 1 / sqrt(sigma_x^2 + epsilon), over its limit 1 / sigma_x."""
stream_gradient = function_of(GRADIENT, s.gradient_above, s.sigma_x, s.epsilon, s.d)
"""Root mean square of the gradient in a stream of standard deviation sigma_x below a LayerNorm; g_u: above it."""
rms_stream_gradient = function_of(RMS_GRADIENT, s.gradient_above, s.sigma_x, s.epsilon, s.d)
"""The same below an RMSNorm. Without a last norm it is g_u."""
adam_step = function_of(ADAM_STEP, s.gradient_rms, s.adam_epsilon)
"""Size of Adam's step over the learning rate for a gradient of constant size and sign: 1 far above epsilon."""


@dataclass(frozen=True)
class EpsilonEffect:
    """What a norm's epsilon takes of one embedding, right where it enters block 1.

    std: of the embedding. lost_variance: of the normed token. lost_gain: of the norm's gain on gradients. Both are
    shares of their limits at epsilon = 0.
    """

    name: str
    d_model: int
    std: float
    epsilon: float
    lost_variance: float
    lost_gain: float

    @staticmethod
    def of(name: str, d_model: int, std: float, epsilon: float) -> "EpsilonEffect":
        lost = (1 - float(kept(std, epsilon)) for kept in (normed_variance, kept_gain))
        return EpsilonEffect(name, d_model, std, epsilon, *lost)

    @property
    def within(self) -> str:
        """The larger loss: within "1 %", within "10 %", or "beyond"."""
        lost = max(self.lost_variance, self.lost_gain)
        return "1 %" if lost <= 0.01 else "10 %" if lost <= 0.1 else "beyond"


def epsilon_table(
    schemes: tuple[str | Initialization, ...] = tuple(INITIALIZATIONS),
    widths: tuple[int, ...] = (128, 768, 2048, 5120, 12288),
    epsilons: tuple[float, ...] = (1e-5, 1e-6),
    method: str = "vanilla",
    num_layers: int = 24,
    vocab_size: int = 50257,
) -> tuple[EpsilonEffect, ...]:
    """The effect for every initialisation's table under one embedding method, at every width and epsilon."""
    found = []
    for scheme in schemes:
        rule = embedding_std(scheme, method)
        for width in widths:
            sizes = {s.d: width, s.V: vocab_size, s.N: num_layers, s.fan_in: vocab_size, s.fan_out: width}
            name = scheme if isinstance(scheme, str) else scheme.name
            found += [EpsilonEffect.of(name, width, float(rule.subs(sizes)), epsilon) for epsilon in epsilons]
    return tuple(found)


def preset_table() -> tuple[EpsilonEffect, ...]:
    """The effect for every published recipe whose first norm reads the embedding, at its width and with its epsilon."""
    found = []
    for recipe in PRESETS.values():
        arch = recipe.arch
        rule = embedding_std(arch.initialization, arch.embedding)
        if block(arch.block).pre_norm and not embedding(arch.embedding).layer_norm:
            std = arch.evaluate(rule)
            found.append(EpsilonEffect.of(recipe.name, arch.d_model, std, arch.norm_epsilon))
    return tuple(found)
