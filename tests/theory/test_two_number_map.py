"""The proven map against what `theory.closed_form` evaluates, and against wide random networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from scipy import integrate, stats

from theory import Architecture
from theory import notation as s
from theory.activation import activation
from theory.attention_scheme import attention_scheme
from theory.block import BLOCKS, block
from theory.closed_form import addition, additions
from theory.derivation import derive
from theory.dual_activation import dual_activation
from theory.dual_expression import DUAL, MEAN, SLOPE_DUAL
from theory.explicit_addition import explicit_addition
from theory.gaussian_moments import mean_products
from theory.token_mixing import mixing_numbers
from theory.two_number_map import SYMBOLIC, four

_NU, _RHO, _GAMMA, _EPSILON, _LAYER = 0.7, 0.3, 0.2, 1e-3, 2


def _proven(arch: Architecture, parts: tuple[str, ...]) -> sp.Matrix:
    """[nu_next, rho_next, r, gamma_before] put together from the topic's steps, found by their reasons."""
    steps = {step.reason: step.statement for step in derive("two_number_map").steps if step.kind == "proven"}
    (general,) = (e.rhs for e in steps.values() if e.lhs.is_Matrix and s.variance_after in e.lhs)
    total = sp.zeros(4, 1)
    for part in parts:
        what = f"{'gated ' * activation(arch.activation).gated}feed-forward" if part == "feed_forward" else "attention"
        name = f"{arch.block} with RMSNorm" if part == "feed_forward" and arch.norm == "rms_norm" else arch.block
        if part == "attention" and attention_scheme(arch.attention).qkv_norm:
            name = "any block with qkv_norm"
        (rhs,) = (
            e.rhs
            for reason, e in steps.items()
            if reason.startswith(f"{what}, ") and name in reason.split(": ")[-1].split(", ")
        )
        total += rhs
    size, shared, gradient, product = total
    written = {s.forward_gain: size, s.forward_shared: shared}
    written |= {s.backward_gain: gradient * s.variance, s.backward_shared: product * s.variance}
    divisor = s.shortcut_factor**2 * s.variance + s.branch_factor**2 * s.forward_gain + s.epsilon
    return general.subs(s.sum_divisor, divisor if block(arch.block).post_norm else 1).subs(written)


def _numbers(expressions: sp.Matrix, arch: Architecture) -> np.ndarray:
    """Their values at the sizes of `arch`: gains from its matrices, the dual by quadrature."""
    shortcut, branch, factor = arch.factors(_LAYER - 1)
    kinds = {
        s.value_gain: "attention.value", s.output_gain: "attention.output", s.up_gain: "feed_forward.up",
        s.gate_gain: "feed_forward.gate", s.down_gain: "feed_forward.down",
    }  # fmt: skip
    length = arch.seq_len
    uniform = sp.ImmutableMatrix(length, length, lambda t, u: sp.Rational(1, t + 1) if u <= t else 0)
    values = {s.shortcut_factor: shortcut, s.branch_factor: branch, s.input_factor: factor, s.epsilon: _EPSILON}
    values |= {s.variance: _NU, s.correlation: _RHO, s.gradient_correlation: _GAMMA}
    values |= {symbol: float(number) for symbol, number in mixing_numbers(uniform).items()}
    for symbol, kind in kinds.items():
        if kind in arch.matrices:
            values[symbol] = arch.shape(kind)[0] * float(arch.effective_std(kind)[_LAYER - 1]) ** 2
    scheme = activation(arch.activation)

    def dual(q: float, rho: float) -> np.ndarray:
        covariance = float(q) * np.array([[1, float(rho)], [float(rho), 1]])
        return np.array([moment[0, 1] for moment in dual_activation(scheme, covariance)])

    def mean(q: float) -> float:
        density = stats.norm(scale=q**0.5).pdf
        return integrate.quad(lambda u: float(scheme.numeric[0](np.array(u))) * density(u), -10, 10, points=[0])[0]

    found = expressions.subs(values)
    found = found.replace(DUAL, lambda q, rho: sp.Float(dual(q, rho)[0]))
    found = found.replace(SLOPE_DUAL, lambda q, rho: sp.Float(dual(q, rho)[1]))
    found = found.replace(MEAN, lambda q: sp.Float(mean(float(q))))
    return np.array(found, np.float64).ravel()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("function", ["relu", "gelu", "silu", "geglu"])
def test_the_numbers_are_those_of_the_proven_steps(name: str, function: str) -> None:
    """4e-4: SiLU's expression is a series of ten terms, the quadrature's tables are interpolated."""
    arch = Architecture(
        num_layers=6, d_model=32, seq_len=8, block=name, activation=function, norm_epsilon=_EPSILON,
        initialization="xavier",
    )  # fmt: skip
    for made in additions(arch):
        at = (_NU, _RHO, _GAMMA, _LAYER, arch.num_layers, _EPSILON)
        found = [*made.forward(*at), *made.backward(*at)]
        np.testing.assert_allclose(found, _numbers(_proven(arch, made.parts), arch), rtol=4e-4)


@pytest.mark.parametrize(
    "variant", [{"attention": "qkv_norm"}, {"block": "sub_ln", "norm": "rms_norm"}, {"attention": "sigma_reparam"}]
)
def test_and_so_with_norms_elsewhere(variant: dict[str, str]) -> None:
    arch = Architecture(**{
        "num_layers": 6, "d_model": 32, "seq_len": 8, "activation": "relu", "norm_epsilon": _EPSILON, "block": "pre_ln",
        **variant,
    })  # fmt: skip
    for made in additions(arch):
        at = (_NU, _RHO, _GAMMA, _LAYER, arch.num_layers, _EPSILON)
        found = [*made.forward(*at), *made.backward(*at)]
        np.testing.assert_allclose(found, _numbers(_proven(arch, made.parts), arch), rtol=1e-6)


@pytest.mark.parametrize("name", ["post_ln", "parallel", "sandwich"])
def test_a_whole_addition_has_the_moments_of_an_explicit_one(name: str) -> None:
    """Sum, norms and branches at once, with the block's own norms, at two tokens of one coordinate and numbers."""
    arch = Architecture(block=name, activation="relu")
    attention = sp.ImmutableMatrix([[1, 0], [sp.Rational(1, 2), sp.Rational(1, 2)]])
    factors = tuple(map(sp.Rational, ("1.3", "0.6", "0.8")))
    for parts in block(name).additions:
        own, pair, gradient, product = explicit_addition(arch, parts, factors, attention, 1)
        terms = replace(SYMBOLIC, **dict(zip(("shortcut", "branch", "input"), factors, strict=True)))
        wanted = four(addition(arch, parts, terms)).subs(mixing_numbers(attention))
        found = sp.Matrix([own, pair / own, gradient, product / gradient])
        np.testing.assert_allclose(_numbers(found, arch), _numbers(wanted, arch), rtol=1e-9)


def test_mean_products_by_hand() -> None:
    a, b, k = sp.symbols("a b k")
    moments = mean_products([(k * a**2 + b, a**2 + 3 * b), (a, b), (a**3, a)], {a: sp.Integer(2), b: k})
    assert [sp.expand(m) for m in moments] == [12 * k + 3 * k, 0, 12]
    with pytest.raises(ValueError, match="polynomial"):
        mean_products([(1 / a, a)], {a: sp.S.One})


def _drawn(arch: Architecture, parts: tuple[str, ...], seed: int) -> np.ndarray:
    """[nu_next, rho_next, r, gamma_before] of one random addition with flat attention; the gradient by autodiff."""
    draw = np.random.default_rng([seed, *map(ord, arch.block)])
    shortcut, branch, factor = arch.factors(_LAYER - 1)
    length, width = arch.seq_len, arch.d_model
    weights = {
        kind: jnp.asarray(draw.normal(size=arch.shape(kind)) * arch.std(kind)[_LAYER - 1], jnp.float32)
        for kind in arch.matrices
    }
    mean = jnp.asarray(np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None], jnp.float32)
    function = {"relu": jax.nn.relu, "gelu": lambda u: jax.nn.gelu(u, approximate=False)}[arch.activation]

    def normed(where: str, part: str, rows: jax.Array) -> jax.Array:
        if not arch.normed(where, part):
            return rows
        rows = rows - rows.mean(axis=1, keepdims=True)
        return rows / jnp.sqrt((rows**2).mean(axis=1, keepdims=True) + arch.norm_epsilon)

    def after(stream: jax.Array) -> jax.Array:
        total = shortcut * stream
        for part in parts:
            read = factor * normed("pre", part, stream)
            if part == "attention":
                hidden, last = mean @ (read @ weights["attention.value"]), weights["attention.output"]
            else:
                hidden, last = function(read @ weights["feed_forward.up"]), weights["feed_forward.down"]
            total = total + branch * normed("output", part, normed("inner", part, hidden) @ last)
        return normed("post", parts[0], total)

    def alike(variance: float, correlation: float) -> jax.Array:
        """Rows of exactly these moments and of mean 0, in a random direction."""
        drawn = draw.normal(size=(width, length + 1))
        axes = np.linalg.qr(drawn - drawn.mean(axis=0)).Q.T * np.sqrt(variance * width)
        return jnp.asarray(np.sqrt(correlation) * axes[:1] + np.sqrt(1 - correlation) * axes[1:], jnp.float32)

    written, back = jax.vjp(after, alike(_NU, _RHO))
    rows = written, back(alike(1.0, _GAMMA))[0]
    (own, pair), (gradient, product) = (_moments(np.asarray(r, np.float64)) for r in rows)
    return np.array([own, pair / own, gradient, product / gradient])


def _moments(rows: np.ndarray) -> tuple[float, float]:
    gram, length = rows @ rows.T / rows.shape[1], len(rows)
    return float(np.trace(gram)) / length, float(gram.sum() - np.trace(gram)) / (length * (length - 1))


@pytest.mark.parametrize("name", ["pre_ln", "post_ln", "parallel", "output_norm", "deepnorm", "sub_ln", "no_norm"])
@pytest.mark.parametrize("function", ["relu", "gelu"])
def test_wide_random_networks(name: str, function: str) -> None:
    """5 standard errors of 8 networks, and 1.5 % for what is of order 1 / d (a norm's Jacobian alone loses 2 / d).

    A norm on what attention writes sees first positions, which average over fewer tokens: the map gives all the same.
    """
    arch = Architecture(
        num_layers=6, d_model=512, num_heads=8, seq_len=8, block=name, activation=function, initialization="lecun",
        norm_epsilon=_EPSILON,
    )  # fmt: skip
    for made in additions(arch):
        drawn = np.array([_drawn(arch, made.parts, seed) for seed in range(8)])
        at = (_NU, _RHO, _GAMMA, _LAYER, arch.num_layers, _EPSILON)
        wanted = np.array([*made.forward(*at), *made.backward(*at)])
        error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
        uneven = made.parts == ("attention",) and any(arch.normed(w, "attention") for w in ("inner", "output"))
        assert np.all(np.abs(drawn.mean(axis=0) - wanted) < 5 * error + (0.15 if uneven else 0.015) * wanted)
