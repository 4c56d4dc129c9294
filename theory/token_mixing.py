"""What attention with flat logits does to equally correlated tokens: four numbers of its matrix A.

Projected on the kernels (1 - rho) I + rho 11^T, K -> A K A^T needs the mean over positions of the squares of A's
entries in a row, of the squared column sums, of the squared row sums, and of all entries' sum. For uniform causal
averaging these are H_T / T, 2 - H_T / T, 1 and T. The backward map G -> A^T G A has the same eigenvalues.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sympy as sp

from theory import notation as s
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.derivation import Step, equation, topic
from theory.positions import alibi_slopes


@dataclass(frozen=True)
class TokenMixing:
    """Means over the T positions of a matrix A [T, T].

    participation: of a row's summed squares, tr A A^T / T. column_square, row_square: of the squared sum of a column,
    of a row. total_square: squared sum of all entries over T. length: T.
    """

    participation: sp.Expr
    column_square: sp.Expr
    row_square: sp.Expr
    total_square: sp.Expr
    length: int | sp.Expr

    def forward(self, rho: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        """Mean variance and mean covariance of two tokens of A x, for tokens x of variance 1 and correlation rho."""
        return self._map(rho, self.column_square, self.row_square)

    def backward(self, gamma: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        """The same of A^T g, for gradients g of variance 1 and correlation gamma."""
        return self._map(gamma, self.row_square, self.column_square)

    @property
    def kept(self) -> sp.Expr:
        """The gradients' correlation that `backward` keeps, where rows sum to 1: 1/2 for uniform causal averaging."""
        if self.column_square == self.participation:  # one token
            return sp.S.Zero
        return (1 - self.participation) / (self.column_square - self.participation)

    def _map(self, rho: sp.Expr, across: sp.Expr, along: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        own = self.participation
        pairs = max(self.length - 1, 1) if isinstance(self.length, int) else self.length - 1
        mean = own * (1 - rho) + along * rho
        return mean, ((across - own) * (1 - rho) + (self.total_square - along) * rho) / pairs


ANY_MATRIX = TokenMixing(s.participation, s.column_square, s.row_square, s.total_square, s.T)


def mixing_numbers(attention: sp.ImmutableMatrix) -> dict[sp.Basic, sp.Expr]:
    """The symbols of `ANY_MATRIX` for an explicit matrix A [T, T]."""
    length, ones = attention.rows, sp.ones(attention.rows, 1)
    squares = {
        s.participation: sum(a**2 for a in attention),
        s.column_square: sum(a**2 for a in attention.T * ones),
        s.row_square: sum(a**2 for a in attention * ones),
        s.total_square: sum(attention) ** 2,
    }
    return {symbol: square / sp.Integer(length) for symbol, square in squares.items()} | {s.T: sp.Integer(length)}


def token_mixing(arch: Architecture) -> TokenMixing:
    """Of `arch`'s attention where all logits before ALiBi's bias are 0; uniform attention's are exact."""
    length, scheme = arch.seq_len, attention_scheme(arch.attention)
    if arch.positions != "alibi" and scheme.clip is None:
        own = sp.harmonic(length) / length
        return TokenMixing(own, 2 - own, sp.S.One, sp.Integer(length), length)
    slopes = alibi_slopes(arch.num_heads) if arch.positions == "alibi" else np.zeros(1)
    distance = np.arange(length)[:, None] - np.arange(length)
    weights = np.where(distance >= 0, np.exp(-slopes[:, None, None] * distance), 0)
    weights /= weights.sum(axis=2, keepdims=True)
    if scheme.clip is not None:
        low, high = scheme.clip
        weights = np.where(distance >= 0, np.clip((high - low) * weights + low, 0, 1), 0)
    own, column, row, total = (
        sp.Rational(float(square.sum() / len(slopes) / length))
        for square in (
            weights**2, weights.sum(axis=1) ** 2, weights.sum(axis=2) ** 2, weights.sum(axis=(1, 2)) ** 2
        )
    )  # fmt: skip
    if scheme.clip is None:  # rows sum to 1
        row, total = sp.S.One, sp.Integer(length)
    return TokenMixing(own, column, row, total, length)


@topic("Uniform causal attention on equally correlated tokens")
def uniform_mixing() -> tuple[Step, ...]:
    """Row t of A has 1/t in columns 1 to t. Forward, equal tokens stay equal whatever the softmax does, as rows sum to
    1; backward, the sum of the tokens' gradients is conserved. So both maps have the eigenvalue 1, and both their other
    eigenvalue in common."""
    own, column = s.participation, s.column_square
    mixing = TokenMixing(own, column, sp.S.One, s.T, s.T)
    pairs = s.T - 1
    rho, gamma = s.correlation, s.gradient_correlation
    down = sp.Matrix([[own, 1 - own], [(column - own) / pairs, 1 - (column - own) / pairs]])
    up = sp.Matrix([[own, column - own], [(1 - own) / pairs, (s.T - column - 1 + own) / pairs]])
    z = sp.Symbol("z")
    column_value = equation(column, 2 - own)
    half = mixing.backward(sp.Rational(1, 2))[0]
    conserved = (own + (column - own) * gamma) + pairs * ((1 - own) + (s.T - column - 1 + own) * gamma) / pairs
    return (
        *_any_matrix(),
        Step(
            equation(own, sp.harmonic(s.T) / s.T),
            "the mean over t of sum_s A_ts^2 = 1 / t",
            instances=lambda statement: _sums(statement, columns=False),
        ),
        Step(
            equation(column, 2 - sp.harmonic(s.T) / s.T),
            "the mean over s of (sum_{t >= s} 1 / t)^2",
            instances=lambda statement: _sums(statement, columns=True),
        ),
        Step(
            equation(mixing.forward(rho)[0], own + (1 - own) * rho),
            "variance after averaging tokens of correlation rho; at rho = 1 it is 1",
        ),
        Step(
            equation(*(sp.Determinant(sp.ImmutableMatrix(z * sp.eye(2) - mapped)) for mapped in (down, up))),
            "(variance, covariance) forward and the same of the gradient backward: one characteristic polynomial, as "
            "the two maps are adjoint and the projection on equally correlated tokens is symmetric",
        ),
        Step(equation(down.charpoly(z).as_expr().subs(z, 1), 0), "one eigenvalue is 1 forward, of equal tokens"),
        Step(equation(up.charpoly(z).as_expr().subs(z, 1), 0), "and 1 backward"),
        Step(equation(conserved, 1 + pairs * gamma), "the summed gradient's square is conserved"),
        Step(column_value, "the first two statements together", kind="given"),
        Step(
            equation(half, 1),
            "so gradients of correlation 1/2 are the eigenvector backward, at any length: variance is kept",
            using=(column_value,),
        ),
    )


def _any_matrix() -> Iterator[Step]:
    """Variance and covariance of A x and of A^T g, for a matrix A of which nothing is assumed."""
    everything = sp.OneMatrix(s.T, s.T)
    for name, matrix, rho, found in (
        ("A x", s.A_T, s.correlation, ANY_MATRIX.forward(s.correlation)),
        ("A^T g", s.A_T.T, s.gradient_correlation, ANY_MATRIX.backward(s.gradient_correlation)),
    ):
        kernel = matrix * ((1 - rho) * sp.Identity(s.T) + rho * everything) * matrix.T
        own, total = sp.Trace(kernel), sp.Trace(kernel * everything)
        reason = f"{name} of any matrix A, tokens of variance 1 and equal correlation: mean"
        yield Step(equation(own / s.T, found[0]), f"{reason} variance", instances=_entries)
        yield Step(equation((total - own) / (s.T * (s.T - 1)), found[1]), f"{reason} covariance", instances=_entries)


def _entries(statement: sp.Eq) -> Iterator[tuple[sp.Eq, str]]:
    """The statement entry by entry, for matrices of symbols."""
    for size in (2, 3):
        entries = sp.ImmutableMatrix(size, size, sp.symbols(f"a_:{size * size}", real=True))
        values = {s.A_T: entries, sp.OneMatrix(s.T, s.T): sp.ones(size, size), sp.Identity(s.T): sp.eye(size)}
        left = statement.lhs.replace(sp.Trace, lambda product, v=values: product.xreplace(v).doit().trace())
        yield equation(*(side.subs(mixing_numbers(entries)) for side in (left, statement.rhs))), f"T = {size}"


def _sums(statement: sp.Eq, columns: bool) -> list[tuple[sp.Eq, str]]:
    """The statement's right side against the sum over the matrix's entries, at small lengths."""
    found = []
    for length in (1, 2, 5, 17):
        rows = range(1, length + 1)
        if columns:
            total = sum(sum(sp.Rational(1, t) for t in range(j, length + 1)) ** 2 for j in rows)
        else:
            total = sum(t * sp.Rational(1, t) ** 2 for t in rows)
        found.append((equation(total / length, statement.rhs.subs(s.T, length)), f"T = {length}"))
    return found
