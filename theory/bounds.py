"""Upper bounds on the sub-layers' Jacobian norms at initialisation, from the derived expressions themselves.

Method "paper": arXiv 2312.16903, equations 15 and 20, with J^Z expanded and the activation's Lipschitz constant in
place, carried over to every arrangement (`theory.block_excess`). It ranks schemes and bounds a sub-layer; as a product
over the depth it is far above what is measured. Method "high_probability" holds for all sub-layers at once with that
probability (`theory.high_probability`).
"""

import math
from dataclasses import dataclass

import numpy as np

from theory.architecture import Architecture
from theory.block_excess import paper_bound
from theory.high_probability import high_probability_bound
from theory.propagation import predict

METHODS = ("paper", "high_probability")


@dataclass(frozen=True)
class Bound:
    """Bounds on the spectral norm of each sub-layer's Jacobian (shortcut included), a map of all tokens of a sequence.

    sublayer: float64[S], by residual addition. product: float, their product, inf where float64 overflows;
    log10_product: float, its logarithm. shortcut_std: float64[S + 1], the standard deviations of the stream that were
    used; "high_probability": what no token's is below. heads: float64[num_layers], the bound on ‖J^Z‖.
    """

    sublayer: np.ndarray
    product: float
    log10_product: float
    shortcut_std: np.ndarray
    heads: np.ndarray
    method: str = "paper"


def bound(
    arch: Architecture, method: str = "paper", probability: float = 0.99, shortcut_std: np.ndarray | None = None
) -> Bound:
    """Bound every sub-layer of `arch` at initialisation.

    "paper" holds in expectation over Gaussian weights, with rows of typical length and one standard deviation for all
    tokens. "high_probability" holds jointly with that `probability`, for any one sequence chosen apart from the
    weights. shortcut_std: float64[S + 1], for "paper", the stream's standard deviation at each place; None: `predict`
    gives it. Raises ValueError for an unknown method, a probability outside (0, 1), a shortcut of the wrong shape or
    not positive, an activation without a Lipschitz constant, and under "high_probability" for an epsilon of 0 where
    nothing else keeps a norm from dividing by it. Source: arXiv 2312.16903, equations 15 and 20 [secondary].
    """
    if method not in METHODS:
        raise ValueError(f"method: unknown value {method!r}; choose one of {', '.join(METHODS)}")
    if not 0 < probability < 1:
        raise ValueError(f"probability: must lie in (0, 1), got {probability!r}")
    if method == "paper":
        std = predict(arch).shortcut_std if shortcut_std is None else _checked(arch, shortcut_std)
        sublayer, heads = paper_bound(arch, std)
    elif shortcut_std is not None:
        raise ValueError("shortcut_std: only method 'paper' takes it; 'high_probability' bounds the stream itself")
    else:
        sublayer, std, heads = high_probability_bound(arch, probability)
    log10 = float(np.log10(sublayer).sum())
    return Bound(sublayer, 10**log10 if log10 < 308 else math.inf, log10, std, heads, method)


def _checked(arch: Architecture, given: np.ndarray) -> np.ndarray:
    std = np.array(given, dtype=np.float64)
    if std.shape != (arch.num_sublayers + 1,):
        raise ValueError(f"shortcut_std: must have shape ({arch.num_sublayers + 1},), got {std.shape}")
    if not np.all(np.isfinite(std) & (std > 0)):
        raise ValueError("shortcut_std: must be positive and finite at every place")
    return std
