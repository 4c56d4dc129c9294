"""Why `theory.closed_form.addition` is right: nu' = a^2 nu + b^2 w for any block, and w of every sub-layer it can have.

The same expressions that `closed_form` turns into numbers, with symbols for gains and for the activation's moments, are
compared with the exact moments of explicit small networks (`theory.explicit_addition`), and every registered block's
with the general ones. The activation's moments in closed form: the topic `gaussian_duals`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial, reduce

import sympy as sp

from theory import notation as s
from theory.activation import activation
from theory.architecture import Architecture
from theory.block import BLOCKS, PARTS, Block, block
from theory.closed_form import Addition, Pair, Terms, addition, terms_of
from theory.derivation import Step, equation, topic, where
from theory.dual_expression import DUAL, MEAN, SLOPE_DUAL
from theory.explicit_addition import GAINS, explicit_addition
from theory.gaussian_moments import mean_products
from theory.matrix_algebra import words
from theory.token_mixing import ANY_MATRIX, mixing_numbers

_NU, _RHO, _GAMMA = s.variance, s.correlation, s.gradient_correlation
_A, _B = s.shortcut_factor, s.branch_factor
_Q = sp.Symbol("q", positive=True)
_WRITTEN = sp.ImmutableMatrix([s.forward_gain, s.forward_shared, s.backward_gain / _NU, s.backward_shared / _NU])
_MAP = sp.ImmutableMatrix([s.variance_after, s.correlation_after, s.gradient_ratio, s.gradient_correlation_before])
_ROWS_SUM_TO_ONE = {s.row_square: 1, s.total_square: s.T}
_MEASURED = "measured: docs/growth.md, benchmarks/closed_form.py; kept by `predict`: docs/prediction.md"

_UNEVEN = sp.ImmutableMatrix([[sp.Rational(1, 2), 0], [sp.Rational(1, 3), sp.Rational(5, 7)]])
_UNIFORM = sp.ImmutableMatrix(3, 3, lambda t, u: sp.Rational(1, t + 1) if u <= t else 0)


_E = sp.Function("E")
"""mean over the Gaussian matrices"""


def _dual(q: sp.Expr, rho: sp.Expr) -> Pair:
    return DUAL(q, rho), SLOPE_DUAL(q, rho)


SYMBOLIC = Terms(_A, _B, s.input_factor, GAINS.__getitem__, _dual, MEAN, ANY_MATRIX)


def sub_layer(arch: Architecture, part: str) -> sp.ImmutableMatrix:
    """[w, w_rho, beta / nu, beta_gamma / nu] of that part of `arch`, of any gains, activation and attention matrix."""
    made = addition(arch, (part,), replace(SYMBOLIC, branch=sp.S.One))
    return sp.ImmutableMatrix(made.written[part])


def of_activation(
    expression: sp.Basic, dual: Callable[[sp.Expr, sp.Expr], Pair], mean: Callable[[sp.Expr], sp.Expr]
) -> sp.Basic:
    """The same with an activation's E[F F'] and E[F' F'], by variance and correlation, and E[F], by variance."""
    found = expression.replace(DUAL, lambda q, rho: dual(q, rho)[0])
    return found.replace(SLOPE_DUAL, lambda q, rho: dual(q, rho)[1]).replace(MEAN, mean)


def four(made: Addition) -> sp.ImmutableMatrix:
    """[nu_next, rho_next, r, gamma_before]."""
    return sp.ImmutableMatrix([made.variance, made.correlation, made.gradient, made.gradient_correlation])


@topic("The two-number map of one residual addition")
def two_number_map() -> tuple[Step, ...]:
    """(nu, rho) of the stream to (nu_next, rho_next) after x' = post(a x + b out(f(c pre(x)))), each of the norms there
    or not, and back for the gradient: r is its squared norm before over after, gamma and gamma_before the
    gradients' token correlation after and before. What a sub-layer writes, b = 1, is w and w_rho; what it adds to the
    gradient, beta / nu and beta_gamma / nu; of a parallel block they add up. F_2(q, rho), S_2(q, rho) and F_1(q) are
    E[F(u) F(u')], E[F'(u) F'(u')] and E[F(u)] of Gaussians of variance q and correlation rho. Numbers come from the
    same expressions, `theory.closed_form.additions(arch)`. Exact are all moments over the Gaussian matrices; the given
    steps are what the limit of infinite width and flat logits leaves out."""
    total = _A**2 * _NU + _B**2 * s.forward_gain
    back = _A**2 + _B**2 * s.backward_gain / _NU
    general = sp.ImmutableMatrix(
        [
            total / s.sum_divisor,
            (_A**2 * _NU * _RHO + _B**2 * s.forward_shared) / total,
            back / s.sum_divisor,
            (_A**2 * _GAMMA + _B**2 * s.backward_shared / _NU) / back,
        ]
    )
    rank = equation(sp.Trace(s.Q), s.d - 2)
    steps = [
        *_gaussian_matrices(),
        Step(rank, "a norm's Jacobian times what it divides by: a projector", "layer_norm_jacobian", kind="lemma"),
        Step(
            equation(sp.Limit(rank.rhs / s.d, s.d, sp.oo), 1),
            "so of a gradient in a random direction, of which it keeps its trace over d, it keeps all in the limit",
        ),
        Step(
            equation(s.sigma**2, _NU + s.epsilon),
            "every token's length is that of all together, and its coordinates' mean is 0 (in a hidden layer F_1): a "
            f"norm divides by one number and keeps correlations. Wrong by 1 / d and by positions; {_MEASURED}",
            kind="given",
        ),
        Step(
            equation(s.sigma_S, 0),
            "attention's logits are flat, so that A is uniform (or ALiBi's, or a clipped one) and no gradient takes "
            f"the score path. Wrong where logits grow; {_MEASURED}; growing_logits",
            kind="given",
        ),
        Step(
            equation(s.K, _NU * (1 - _RHO) * sp.Identity(s.T) + _NU * _RHO * sp.OneMatrix(s.T, s.T)),
            "all tokens have the variance nu and any two the correlation rho: the mean over positions, taken after "
            f"every addition. Wrong at the first positions; {_MEASURED}",
            kind="given",
        ),
        Step(
            equation(_E(sp.Trace(s.W_1.T * s.D_F**2 * s.W_1)), s.d * s.sigma_1**2 * _E(sp.Trace(s.D_F**2))),
            "the gradient that arrives and the activation's slopes are independent of the matrices they return "
            f"through. Wrong by 1 / d; {_MEASURED}",
            kind="given",
        ),
        Step(
            equation(_MAP, general),
            "what the outer matrix writes has mean 0 given the stream, so that squares add up, forward and back; p is "
            "1, or with a norm on the sum a^2 nu + b^2 w + epsilon. Exact moments at the sizes named; and of every "
            "registered block, any activation, gated or not, what `closed_form` evaluates",
            instances=_general_instances,
        ),
    ]
    for part, arch, names in _sub_layers():
        steps.append(
            Step(
                equation(_WRITTEN, sub_layer(arch, part)),
                f"{_what(part, arch)}: {', '.join(names)}",
                instances=partial(_explicit, part=part, arch=arch),
            )
        )
    for part in PARTS:
        size, pair, *_ = sub_layer(Architecture(activation="relu"), part)
        steps.append(
            Step(
                equation(*(where(moment, _ROWS_SUM_TO_ONE | {_RHO: 1}) for moment in (pair, size))),
                f"{part.replace('_', '-')}: equal tokens stay equal, rho = 1 is a fixed point (rows of A sum to 1)",
            )
        )
    return (*steps, *_equal_gains())


def _gaussian_matrices() -> tuple[Step, ...]:
    """W z, W^T v and x . (W z) in the mean over Gaussian matrices."""
    forward, outer, product = s.W_1 * s.z * s.v.T * s.W_1.T, s.W_2.T * s.v * s.x.T * s.W_2, s.W_2 * s.W_1 * s.z * s.x.T
    return (
        Step(
            equation(_E(sp.Trace(forward)) / s.d_ff, s.d * s.sigma_1**2 * sp.Trace(s.z * s.v.T) / s.d),
            "a Gaussian matrix: mean squares and mean products of coordinates (v: another token) are multiplied by its "
            "gain, fan_in sigma_W^2",
            instances=_matrix_instances,
        ),
        Step(
            equation(_E(sp.Trace(outer)), s.d_ff * s.sigma_2**2 * sp.Trace(s.v * s.x.T)),
            "and back, squared norms and products of gradients (v, x) by the same number",
            instances=_matrix_instances,
        ),
        Step(
            equation(_E(sp.Trace(product)), 0),
            "what the outer matrix writes has nothing in common with the stream, in the mean",
            instances=_matrix_instances,
        ),
    )


def _matrix_instances(statement: sp.Eq) -> Iterator[tuple[sp.Eq, str]]:
    """The expectation entry by entry, at small sizes."""
    for d, d_ff in ((1, 2), (2, 1), (2, 3)):
        values = {s.d: sp.Integer(d), s.d_ff: sp.Integer(d_ff)}
        for vector in (s.x, s.z, s.v):
            values[vector] = sp.Matrix(sp.symbols(f"{vector}_1:{d + 1}", real=True))
        variances: dict[sp.Symbol, sp.Expr] = {}
        for matrix, std, shape in ((s.W_1, s.sigma_1, (d_ff, d)), (s.W_2, s.sigma_2, (d, d_ff))):
            values[matrix] = sp.Matrix(*shape, lambda i, j, w=matrix: sp.Symbol(f"{w}_{i}_{j}", real=True))
            variances |= dict.fromkeys(values[matrix], std**2)
        sides = []
        for side in statement.args:
            traces = {trace: sp.expand(_explicit_trace(trace, values)) for trace in side.atoms(sp.Trace)}
            side = side.xreplace(traces).replace(_E, lambda mean, w=variances: mean_products([(mean, sp.S.One)], w)[0])
            sides.append(side.subs({s.d: d, s.d_ff: d_ff}))
        yield equation(*sides), f"d = {d}, d_ff = {d_ff}"


def _explicit_trace(trace: sp.Trace, values: dict[sp.Basic, sp.Basic]) -> sp.Expr:
    (word,) = words(trace.arg)
    factors = [sp.Matrix(values[f.arg]).T if isinstance(f, sp.Transpose) else values[f] for f in word]
    return reduce(sp.Matrix.multiply, factors).trace()


def _general_instances(statement: sp.Eq) -> Iterator[tuple[sp.Eq, str]]:
    """Explicit sums of a stream and two branches, and the additions of every registered block."""
    for post in (False, True):
        arch = Architecture(block=Block("sum", pre_norm=False, parallel=True, post_norm=post), activation="relu")
        own, pair, gradient, product = explicit_addition(arch, PARTS, (_A, _B, s.input_factor), _UNEVEN, 1)
        found = sp.ImmutableMatrix([own, pair / own, gradient, product / gradient])
        branches = [sub_layer(arch, part) for part in PARTS]
        yield equation(found, _put(statement.rhs, branches, post).subs(mixing_numbers(_UNEVEN))), _size(_UNEVEN, 1)
    for name, scheme in BLOCKS.items():
        plain = replace(scheme, name="any factors", shortcut=1, branch=1, input=1, learned=None, source="")
        yield equation(*_composed(statement.rhs, plain)), name


@lru_cache(maxsize=64)
def _composed(general: sp.ImmutableMatrix, scheme: Block) -> tuple[sp.ImmutableMatrix, sp.ImmutableMatrix]:
    """What `addition` makes of a block with that block's norms, and the general map of its sub-layers."""
    found, wanted = [], []
    for function in ("relu", "swiglu"):
        arch = Architecture(block=scheme, activation=function)
        for parts in scheme.additions:
            found.append(four(addition(arch, parts, SYMBOLIC)))
            wanted.append(_put(general, [sub_layer(arch, part) for part in parts], scheme.post_norm))
    return sp.ImmutableMatrix.vstack(*found), sp.ImmutableMatrix.vstack(*wanted)


def _put(general: sp.ImmutableMatrix, branches: list[sp.ImmutableMatrix], post: bool) -> sp.ImmutableMatrix:
    """The general map with what the branches write in place."""
    divisor = _A**2 * _NU + _B**2 * s.forward_gain + s.epsilon if post else sp.S.One
    written = {_B**2 * term: sum(_B**2 * branch[i] for branch in branches) for i, term in enumerate(_WRITTEN)}
    return general.subs(s.sum_divisor, divisor).subs(written)


def _sub_layers() -> Iterator[tuple[str, Architecture, list[str]]]:
    """Every sub-layer that a registered block has: part, an architecture with it, and the blocks' names."""
    found: dict[tuple, tuple[Architecture, list[str]]] = {}
    for name in BLOCKS:
        for part, function in (("attention", "relu"), ("feed_forward", "relu"), ("feed_forward", "swiglu")):
            arch = Architecture(block=name, activation=function)
            norms = tuple(arch.normed(where, part) for where in ("pre", "inner", "output"))
            found.setdefault((part, function, norms), (arch, []))[1].append(name)
    for (part, _, _), (arch, names) in found.items():
        yield part, arch, names
    yield "feed_forward", Architecture(block="sub_ln", norm="rms_norm", activation="relu"), ["sub_ln with RMSNorm"]
    yield "attention", Architecture(attention="qkv_norm"), ["any block with qkv_norm"]


def _what(part: str, arch: Architecture) -> str:
    kind = "gated feed-forward" if activation(arch.activation).gated else "feed-forward"
    norms = [where for where in ("pre", "inner", "output") if arch.normed(where, part)]
    return f"{'attention' if part == 'attention' else kind}, {' and '.join(norms) or 'no'} norm"


def _explicit(statement: sp.Eq, part: str, arch: Architecture) -> Iterator[tuple[sp.Eq, str]]:
    """The statement's right side against an explicit sub-layer, at small sizes."""
    scheme = replace(block(arch.block), name="one part", post_norm=False, parallel=False)
    sizes = [(_UNEVEN, 1 if activation(arch.activation).gated else 2), (_UNIFORM, 1)]
    for attention, width in sizes[: 2 if part == "attention" else 1]:
        factors = (sp.S.Zero, sp.S.One, s.input_factor)
        found = explicit_addition(replace(arch, block=scheme), (part,), factors, attention, width)
        wanted = statement.rhs.subs(mixing_numbers(attention))
        yield equation(sp.ImmutableMatrix(found), wanted), _size(attention, width)


def _size(attention: sp.ImmutableMatrix, width: int) -> str:
    return f"T = {attention.rows}, d = {width}"


def _equal_gains() -> Iterator[Step]:
    """Attention, and activations that are a line on either side."""
    size, _, back, _ = sub_layer(Architecture(activation="relu"), "attention")
    uniform = _ROWS_SUM_TO_ONE | {s.column_square: 2 - s.participation, _RHO: 1, _GAMMA: sp.Rational(1, 2)}
    reason = "there the gains agree, w = beta"
    yield Step(equation(where(back * _NU, uniform), where(size, uniform)), f"attention: {reason}, at gamma = 1/2")
    size, _, back, _ = sub_layer(Architecture(activation="relu"), "feed_forward")
    for name in ("identity", "relu"):
        moments = terms_of(Architecture(activation=name)).dual(_Q, _RHO)
        sides = (of_activation(side, partial(_kept, moments), MEAN) for side in (back * _NU, size))
        yield Step(equation(*sides), f"feed-forward, {name}: {reason}")


def _kept(moments: Pair, q: sp.Expr, rho: sp.Expr) -> Pair:
    """The two moments at this variance and correlation, as they are written."""
    return where(moments[0], {_Q: q, _RHO: rho}), where(moments[1], {_Q: q, _RHO: rho})
