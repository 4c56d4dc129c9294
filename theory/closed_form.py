"""Two numbers a place: variance nu and mean token correlation rho of the stream, gamma that of its gradient, as SymPy
expressions for one residual addition x' = post(a x + b out(f(in pre(x)))) of any block, and followed through N blocks.

The limit of infinite width and of flat attention logits: tokens count as equally correlated, attention averages
uniformly (ALiBi's bias and a clip of the probabilities are kept, `theory.token_mixing`). Dropped: what sets positions
apart, sharp attention and its score path, all of order 1 / d. `theory.predict` keeps these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import sympy as sp

from theory import notation as s
from theory.activation import Activation, activation
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import block
from theory.dual_expression import dual_expression, dual_tables, mean_expression
from theory.gaussian_norm import gaussian_norm
from theory.positions import sinusoids
from theory.softmax_overlap import softmax_overlap
from theory.stream import row_share
from theory.token_mixing import TokenMixing, token_mixing

ARGUMENTS = (s.variance, s.correlation, s.gradient_correlation, s.layer, s.N, s.epsilon)
Pair = tuple[sp.Expr, sp.Expr]


@dataclass(frozen=True)
class Terms:
    """What the map of an addition is put together from.

    shortcut, branch, input: the block's factors. gain: of a kind of matrix, fan_in times its entries' variance. dual:
    (E[F(u) F(u')], E[F'(u) F'(u')]) at a variance and a correlation. mean: E[F(u)] at a variance. mixing: attention's.
    """

    shortcut: sp.Expr
    branch: sp.Expr
    input: sp.Expr
    gain: Callable[[str], sp.Expr]
    dual: Callable[[sp.Expr, sp.Expr], Pair]
    mean: Callable[[sp.Expr], sp.Expr]
    mixing: TokenMixing


@dataclass(frozen=True)
class Addition:
    """One residual addition of a block, in nu, rho, gamma, n, N and epsilon.

    parts: its sub-layers. variance, correlation: of the stream after it. gradient: squared gradient norm before it over
    that after it, whose token correlation is gamma. gradient_correlation: before it. written: by part, variance and
    covariance it writes into the stream (b^2 w), and what it adds to gradient and its covariance (b^2 beta / nu).
    """

    parts: tuple[str, ...]
    variance: sp.Expr
    correlation: sp.Expr
    gradient: sp.Expr
    gradient_correlation: sp.Expr
    written: dict[str, tuple[sp.Expr, sp.Expr, sp.Expr, sp.Expr]]
    activation: Activation

    @cached_property
    def forward(self) -> Callable[..., list[np.ndarray]]:
        """(nu', rho') as a function of arrays nu, rho, gamma, n, N, epsilon."""
        return self.compiled(self.variance, self.correlation)

    @cached_property
    def backward(self) -> Callable[..., list[np.ndarray]]:
        """(gradient ratio, gamma before) as a function of the same arrays; nu and rho are those before the addition."""
        return self.compiled(self.gradient, self.gradient_correlation)

    def compiled(self, *expressions: sp.Expr) -> Callable[..., list[np.ndarray]]:
        """The expressions as one function of arrays nu, rho, gamma, n, N, epsilon."""
        function = _function(self.activation, *expressions)
        return lambda *values: [np.asarray(value, np.float64) for value in function(*map(np.float64, values))]


@lru_cache(maxsize=256)
def _function(activation: Activation, *expressions: sp.Expr) -> Callable[..., list[np.ndarray]]:
    """Made once for all depths and embeddings, which are arguments of it."""
    made: Callable[..., list[np.ndarray]] = sp.lambdify(
        ARGUMENTS, list(expressions), modules=[dual_tables(activation), "numpy"], cse=True
    )
    return made


@dataclass(frozen=True)
class ClosedForm:
    """The recursion of an architecture and what it gives, at S + 1 places.

    additions: those of one block, in order. shortcut_std: float64[S + 1]. token_correlation: float64[S + 1].
    gradient_ratio: float64[S + 1], gradient norm at each place over the last one's. gradient_correlation: float64[S +
    1]. amplification: gradient_ratio[0].
    """

    arch: Architecture
    additions: tuple[Addition, ...]
    shortcut_std: np.ndarray
    token_correlation: np.ndarray
    gradient_ratio: np.ndarray
    gradient_correlation: np.ndarray
    amplification: float


def closed_form(arch: Architecture) -> ClosedForm:
    """Follow the two-number recursion of `arch` on independent uniform tokens, one sequence of `seq_len` of them.

    Source: the two-number version of the kernel propagation of `theory.propagation`; DeepScaleLM (arXiv 2403.09635)
    has such moments for pre-LN. Numbers that leave float64 come out as inf. The head counts as untied.
    """
    steps = additions(arch)
    stream, number = [initial(arch)], len(steps)
    with np.errstate(all="ignore"):
        for place in range(arch.num_sublayers):
            variance, correlation = steps[place % number].forward(
                *stream[-1], 0.0, place // number + 1, arch.num_layers, arch.norm_epsilon
            )
            stream.append((float(variance), float(np.clip(correlation, 0.0, 1.0))))
        gamma, log_square = upstream_correlation(arch, *stream[-1]), 0.0
        gradient = [(log_square, gamma)]
        for place in reversed(range(arch.num_sublayers)):
            grown, before = steps[place % number].backward(
                *stream[place], gamma, place // number + 1, arch.num_layers, arch.norm_epsilon
            )
            gamma, log_square = float(np.clip(before, -1.0, 1.0)), log_square + float(np.log(grown))
            gradient.append((log_square, gamma))
        variances, correlations = np.array(stream).T
        logs, gammas = np.array(gradient[::-1]).T
        ratio = np.exp(logs / 2)
    return ClosedForm(arch, steps, np.sqrt(variances), correlations, ratio, gammas, float(ratio[0]))


def initial(arch: Architecture) -> tuple[float, float]:
    """Variance and mean token correlation of the stream that enters block 1; equal words have equal rows."""
    own = row_share(arch) ** 2
    variance, covariance = own, own / arch.vocab_size
    if arch.positions == "learned":
        variance += float(arch.std("position")[0]) ** 2
    if arch.positions == "sinusoidal":
        code = sinusoids(arch.seq_len, arch.d_model)
        code = code - code.mean(axis=1, keepdims=True) if arch.norm == "layer_norm" else code
        kernel, length = code @ code.T / arch.d_model, arch.seq_len
        variance += float(np.trace(kernel)) / length
        covariance += float(kernel.sum() - np.trace(kernel)) / max(length * (length - 1), 1)
    return variance, min(max(covariance / variance, 0.0), 1.0)


def upstream_correlation(arch: Architecture, variance: float, correlation: float) -> float:
    """Mean correlation of softmax minus one-hot at two tokens, whose logits are Gaussian."""
    size = variance / (variance + arch.norm_epsilon) if block(arch.block).final_norm else variance
    logits = min(arch.logit_scale**2 * arch.d_model * float(arch.std("head")[0]) ** 2 * size, 64.0)
    if not np.isfinite(logits):
        return 0.0
    overlap = softmax_overlap(logits * np.array([[1.0, correlation], [correlation, 1.0]]), arch.vocab_size)
    error = overlap - 2 / arch.vocab_size + np.array([[1.0, 1 / arch.vocab_size], [1 / arch.vocab_size, 1.0]])
    return float(np.clip(error[0, 1] / error[0, 0], 0.0, 1.0))


def gain(arch: Architecture, kind: str) -> sp.Expr:
    """fan_in times the variance of that matrix's entries, exact in n and N at the size of `arch`.

    Of matrices that act as W / ‖W‖ it is a number, whatever they were drawn from.
    """
    fan_in, fan_out = arch.shape(kind)
    rule = arch.rule(kind).subs({s.fan_in: fan_in, s.fan_out: fan_out, s.d: arch.d_model, s.V: arch.vocab_size})
    if attention_scheme(arch.attention).spectral:
        rule = sp.Float(1 / gaussian_norm(fan_in, fan_out))
    number, rest = sp.simplify(fan_in * rule**2).as_independent(s.N, s.layer, as_Add=False)
    return rest * (number if number.is_algebraic else sp.Rational(float(number)).limit_denominator(10**12))


@lru_cache(maxsize=256)
def additions(arch: Architecture) -> tuple[Addition, ...]:
    """The residual additions of one block of `arch` as expressions."""
    terms = terms_of(arch)
    return tuple(addition(arch, parts, terms) for parts in block(arch.block).additions)


def terms_of(arch: Architecture) -> Terms:
    """What `additions` puts its expressions together from."""
    scheme, function = block(arch.block), activation(arch.activation)
    return Terms(
        scheme.shortcut,
        scheme.branch,
        scheme.input,
        lambda kind: gain(arch, kind),
        lambda q, rho: dual_expression(function, q, rho),
        lambda q: mean_expression(function, q),
        token_mixing(arch),
    )


def addition(arch: Architecture, parts: tuple[str, ...], terms: Terms) -> Addition:
    """The addition of those parts, with `arch`'s norms and these terms. `theory.two_number_map` proves it."""
    nu, rho, gamma = s.variance, s.correlation, s.gradient_correlation
    total, shared = terms.shortcut**2 * nu, terms.shortcut**2 * nu * rho
    gradient, common = terms.shortcut**2, terms.shortcut**2 * gamma
    written = {}
    for part in parts:
        q, scale = terms.input**2 * nu, terms.input**2
        if arch.normed("pre", part):
            q, scale = q / (nu + s.epsilon), scale / (nu + s.epsilon)
        if part == "attention":
            (size, pair), (own, across) = _attention(arch, q, terms)
        else:
            (size, pair), (own, across) = _feed_forward(arch, q, terms)
        own, across = scale * own, scale * across
        if arch.normed("output", part):
            divisor = size + s.epsilon
            size, pair, own, across = (term / divisor for term in (size, pair, own, across))
        written[part] = tuple(terms.branch**2 * term for term in (size, pair, own, across))
        size, pair, own, across = written[part]
        total, shared, gradient, common = total + size, shared + pair, gradient + own, common + across
    correlation, before = shared / total, common / gradient
    if arch.normed("post", parts[0]):
        total, gradient = total / (total + s.epsilon), gradient / (total + s.epsilon)
    return Addition(parts, total, correlation, gradient, before, written, activation(arch.activation))


def _attention(arch: Architecture, q: sp.Expr, terms: Terms) -> tuple[Pair, Pair]:
    """Variance and covariance that attention writes for input of variance q, and gains of gradient and covariance."""
    value, output = terms.gain("attention.value"), terms.gain("attention.output")
    if attention_scheme(arch.attention).qkv_norm:
        divisor = value * q + s.epsilon
        q, value, back = value * q / divisor, sp.S.One, value / divisor
    else:
        back = value
    size, pair = (value * q * term for term in terms.mixing.forward(s.correlation))
    if arch.normed("inner", "attention"):
        divisor = size + s.epsilon
        size, pair, back = size / divisor, pair / divisor, back / divisor
    own, across = (output * back * term for term in terms.mixing.backward(s.gradient_correlation))
    return (output * size, output * pair), (own, across)


def _feed_forward(arch: Architecture, q: sp.Expr, terms: Terms) -> tuple[Pair, Pair]:
    """The same of the feed-forward."""
    gated = activation(arch.activation).gated
    up, down = terms.gain("feed_forward.up"), terms.gain("feed_forward.down")
    gate = terms.gain("feed_forward.gate") if gated else up
    moments, backs = [], []
    for rho in (sp.S.One, s.correlation):
        function, slope = terms.dual(gate * q, rho)
        if gated:
            moments.append(function * up * q * rho)
            backs.append(up * function + gate * slope * up * q * rho)
        else:
            moments.append(function)
            backs.append(up * slope)
    if arch.normed("inner", "feed_forward"):
        if arch.norm == "layer_norm" and not gated:
            mean = terms.mean(gate * q) ** 2
            moments = [moment - mean for moment in moments]
        divisor = moments[0] + s.epsilon
        moments, backs = [m / divisor for m in moments], [b / divisor for b in backs]
    size, pair = (down * moment for moment in moments)
    return (size, pair), (down * backs[0], down * backs[1] * s.gradient_correlation)
