"""One residual addition of a few tokens and coordinates, entry by entry, and its exact moments over Gaussian weights.

What `theory.closed_form.addition` must agree with, and shares no formula with: products of matrices of symbols,
SymPy's own derivatives back, `theory.gaussian_moments`. Assumed as in the map: a norm divides by the root
of the mean square that all tokens have together, and an activation's slopes are independent of the matrices about it.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import sympy as sp

from theory import notation as s
from theory.activation import activation
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.dual_expression import DUAL, MEAN, SLOPE_DUAL
from theory.gaussian_moments import mean_products

GAINS = {
    "attention.value": s.value_gain,
    "attention.output": s.output_gain,
    "feed_forward.up": s.up_gain,
    "feed_forward.gate": s.gate_gain,
    "feed_forward.down": s.down_gain,
}


class _Slope(sp.Function):
    """F'(u)."""

    nargs = 1


class _Function(sp.Function):
    """F(u), of which all that is known is that its derivative is F'(u)."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return _Slope(self.args[0])


@dataclass(frozen=True)
class _Draws:
    """Gaussian symbols with their variances, names for other numbers, and what stands for tokens and activations."""

    variances: dict[sp.Symbol, sp.Expr] = field(default_factory=dict)
    named: dict[sp.Symbol, sp.Expr] = field(default_factory=dict)
    stand_ins: dict[sp.Expr, sp.Expr] = field(default_factory=dict)

    def gaussian(self, variance: sp.Expr) -> sp.Symbol:
        drawn = sp.Symbol(f"w_{len(self.variances)}", real=True)
        self.variances[drawn] = variance
        return drawn

    def name(self, value: sp.Expr) -> sp.Symbol:
        """A symbol, as polynomials have no roots or functions."""
        symbol = sp.Symbol(f"i_{len(self.named)}", positive=True)
        self.named[symbol] = value
        return symbol

    def weights(self, kind: str, rows: int, columns: int) -> sp.Matrix:
        """Of the kind's gain, to multiply rows from the right."""
        return sp.Matrix(rows, columns, lambda i, j: self.gaussian(GAINS[kind] / rows))

    def alike(self, tokens: int, columns: int, own: sp.Expr, pair: sp.Expr) -> sp.Matrix:
        """Rows of independent coordinates of variance `own` and, between two rows, of covariance `pair`."""
        common = [self.gaussian(pair) for _ in range(columns)]
        return sp.Matrix(tokens, columns, lambda t, j: common[j] + self.gaussian(own - pair))

    def moments(self, rows: sp.Matrix) -> tuple[sp.Expr, sp.Expr]:
        """Mean square of the rows' coordinates and, between two rows, their mean product."""
        rows, tokens = rows.xreplace(self.stand_ins), range(rows.rows)
        entries = [(t, u, j) for t in tokens for u in range(t + 1) for j in range(rows.cols)]
        products = mean_products([(rows[t, j], rows[u, j]) for t, u, j in entries], self.variances)
        own = sum(product for (t, u, _), product in zip(entries, products, strict=True) if t == u)
        pair = sum(products) - own
        pair *= sp.Rational(2, rows.rows - 1)
        for symbol, value in reversed(self.named.items()):
            own, pair = own.subs(symbol, value), pair.subs(symbol, value)
        return sp.factor(own / (rows.rows * rows.cols)), sp.factor(pair / (rows.rows * rows.cols))

    def normed(self, rows: sp.Matrix) -> sp.Matrix:
        """Over the root of their mean square and epsilon."""
        return rows * self.name(1 / sp.sqrt(self.moments(rows)[0] + s.epsilon))


@lru_cache(maxsize=512)
def explicit_addition(
    arch: Architecture, parts: tuple[str, ...], factors: tuple[sp.Expr, ...], attention: sp.ImmutableMatrix, width: int
) -> tuple[sp.Expr, sp.Expr, sp.Expr, sp.Expr]:
    """Moments of x' = post(a x + b out(f(c pre(x)))), `arch`'s norms being there or not, and of the gradient at x.

    Mean square and mean product of two tokens of x', then of dL/dx for dL/dx' of mean square 1 and product gamma.
    factors: a, b, c. attention: A [T, T], T at least 2. width: coordinates of a token, one less than a hidden layer's.
    """
    draws, (shortcut, branch, factor), length = _Draws(), factors, attention.rows
    stream = sp.Matrix(length, width, lambda t, j: sp.Symbol(f"x_{t}_{j}", real=True))
    tokens = draws.alike(length, width, s.variance, s.variance * s.correlation)
    draws.stand_ins.update(zip(stream, tokens, strict=True))
    total = shortcut * stream
    for part in parts:
        read = factor * (draws.normed(stream) if arch.normed("pre", part) else stream)
        hidden = _mixed(arch, read, attention, draws) if part == "attention" else _activated(arch, read, draws)
        last = "attention.output" if part == "attention" else "feed_forward.down"
        written = hidden * draws.weights(last, hidden.cols, width)
        total += branch * (draws.normed(written) if arch.normed("output", part) else written)
    if arch.normed("post", parts[0]):
        total = draws.normed(total)
    arriving = draws.alike(length, width, sp.S.One, s.gradient_correlation)
    loss = sum(g * x for g, x in zip(arriving, total, strict=True))
    returned = stream.applyfunc(lambda x: sp.diff(loss, x))
    return (*draws.moments(total), *draws.moments(returned))


def _mixed(arch: Architecture, read: sp.Matrix, attention: sp.ImmutableMatrix, draws: _Draws) -> sp.Matrix:
    values = read * draws.weights("attention.value", read.cols, read.cols)
    values = draws.normed(values) if attention_scheme(arch.attention).qkv_norm else values
    mixed = attention * values
    return draws.normed(mixed) if arch.normed("inner", "attention") else mixed


def _activated(arch: Architecture, read: sp.Matrix, draws: _Draws) -> sp.Matrix:
    gated, width, length = activation(arch.activation).gated, read.cols + 1, read.rows
    up = read * draws.weights("feed_forward.up", read.cols, width)
    entry = read * draws.weights("feed_forward.gate", read.cols, width) if gated else up
    q, product = draws.moments(entry)
    mean, correlations = draws.name(MEAN(q)), (sp.S.One, sp.cancel(product / q))
    centred = draws.alike(length, width, *(DUAL(q, rho) - MEAN(q) ** 2 for rho in correlations))
    slopes = draws.alike(length, width, *(SLOPE_DUAL(q, rho) for rho in correlations))
    for u, about, slope in zip(entry, centred, slopes, strict=True):
        draws.stand_ins[_Function(u)], draws.stand_ins[_Slope(u)] = mean + about, slope
    hidden = entry.applyfunc(_Function)
    if gated:
        hidden = hidden.multiply_elementwise(up)
    if arch.normed("inner", "feed_forward"):
        if arch.norm == "layer_norm" and not gated:
            hidden = hidden - mean * sp.ones(length, width)
        hidden = draws.normed(hidden)
    return hidden
