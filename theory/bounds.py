"""Upper bounds on the sub-layers' Jacobian norms at initialisation, from the derived expressions themselves.

Method "paper": arXiv 2312.16903, equations 15 and 20, with J^Z expanded and the activation's Lipschitz constant in
place. It ranks schemes and bounds a sub-layer; as a product over the depth it is far above what is measured.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import sympy as sp

from theory import attention, feed_forward
from theory import notation as s
from theory.activation import activation
from theory.architecture import Architecture

METHODS = ("paper",)
_SIZES = (s.d, s.d_ff, s.d_head, s.num_heads, s.num_kv_heads, s.T, s.epsilon)


@dataclass(frozen=True)
class Bound:
    """Bounds on the spectral norm of each sub-layer's Jacobian (shortcut included), a map of all tokens of a sequence.

    sublayer: float64[S], attention 1, feed-forward 1, attention 2, ... product: float, their product, inf where
    float64 overflows; log10_product: float, its logarithm. shortcut_std: float64[S + 1], the standard deviations of
    the stream that were used. heads: float64[num_layers], the bound on ‖J^Z‖.
    """

    sublayer: np.ndarray
    product: float
    log10_product: float
    shortcut_std: np.ndarray
    heads: np.ndarray
    method: str = "paper"


def bound(arch: Architecture, method: str = "paper", shortcut_std: np.ndarray | None = None) -> Bound:
    """Bound every sub-layer of `arch` at initialisation.

    shortcut_std: float64[S + 1], standard deviation of the stream at each place; None: `predict` gives it. Holds in
    expectation over Gaussian weights, with rows of Q, K and V of typical length and one sigma_x for all tokens.
    Raises ValueError for an unknown method, for an arrangement the paper does not bound, for a shortcut of the wrong
    shape or not positive, and for an activation without a Lipschitz constant.
    Source: arXiv 2312.16903, equations 15 and 20 [secondary].
    """
    if method not in METHODS:
        raise ValueError(f"method: unknown value {method!r}; choose one of {', '.join(METHODS)}")
    for field, covered in (("block", "pre_ln"), ("attention", "standard")):
        if getattr(arch, field) != covered:
            raise ValueError(f"{field}: the paper's bound covers {covered!r} only; got {getattr(arch, field)!r}")
    if activation(arch.activation).gated:
        raise ValueError(f"activation: the paper's bound covers ungated ones only; got {arch.activation!r}")
    std = _shortcut(arch, shortcut_std)
    sizes = (arch.d_model, arch.ff_width, arch.d_head, arch.num_heads, arch.kv_heads, arch.seq_len, arch.norm_epsilon)
    slope = feed_forward.lipschitz(arch.activation)
    stds = [
        arch.std(f"attention.{kind}") for kind in ("query", "key", "value", "output")
    ] + [arch.std(f"feed_forward.{kind}") for kind in ("up", "down")]  # fmt: skip
    heads, attention_excess, feed_forward_excess = _compiled()
    sublayer = np.empty(arch.num_sublayers)
    paths = np.empty(arch.num_layers)
    for n in range(arch.num_layers):
        q, k, v, o, up, down = (float(values[n]) for values in stds)
        paths[n] = heads(*sizes, q, k, v)
        sublayer[2 * n] = 1 + attention_excess(*sizes, q, k, v, o, std[2 * n])
        sublayer[2 * n + 1] = 1 + feed_forward_excess(*sizes, up, down, slope, std[2 * n + 1])
    log10 = float(np.log10(sublayer).sum())
    product = 10**log10 if log10 < 308 else math.inf
    return Bound(sublayer, product, log10, std, paths, method)


def _shortcut(arch: Architecture, given: np.ndarray | None) -> np.ndarray:
    if given is None:
        from theory.propagation import predict

        return predict(arch).shortcut_std
    std = np.array(given, dtype=np.float64)
    if std.shape != (arch.num_sublayers + 1,):
        raise ValueError(f"shortcut_std: must have shape ({arch.num_sublayers + 1},), got {std.shape}")
    if not np.all(np.isfinite(std) & (std > 0)):
        raise ValueError("shortcut_std: must be positive and finite at every place")
    return std


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[..., float], Callable[..., float], Callable[..., float]]:
    """‖J^Z‖, the attention excess and the feed-forward excess as functions of numbers."""
    fill = ((s.norm_P, attention.AVERAGING), (s.column_sum, attention.COLUMN_SUM), (s.sigma_S, attention.LOGIT_STD))

    def number(*arguments: sp.Symbol, of: sp.Expr) -> Callable[..., float]:
        for symbol, expression in fill:
            of = of.subs(symbol, expression)
        modules = [{"harmonic": _harmonic, "exp": _exp}, "math"]
        return sp.lambdify((*_SIZES, *arguments), of, modules, cse=True)

    projections = (s.sigma_Q, s.sigma_K, s.sigma_V)
    return (
        number(*projections, of=attention.HEADS),
        number(*projections, s.sigma_O, s.sigma_x, of=attention.EXCESS),
        number(s.sigma_1, s.sigma_2, s.lipschitz, s.sigma_y, of=feed_forward.EXCESS),
    )


def _harmonic(length: float) -> float:
    return float((1 / np.arange(1, int(length) + 1)).sum())


def _exp(exponent: float) -> float:
    """exp, kept finite: under very sharp attention the smaller branch of the minimum is meant."""
    return math.exp(min(exponent, 300.0))
