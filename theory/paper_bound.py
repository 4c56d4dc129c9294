"""The paper-style bound of every arrangement: Gaussian norms in expectation, typical sizes of stream and rows.

arXiv 2312.16903, equations 15 and 20 [secondary], carried over by `theory.addition_bound`. What a norm divides by is
the stream's standard deviation, from `predict`, or the typical size of the shortest row that it sees.
"""

import math

import numpy as np

from theory import feed_forward
from theory.activation import activation
from theory.addition_bound import attention_matrix_bounds, feed_forward_bound_of, heads_bound
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import block
from theory.dual_activation import hermite_quadrature


def paper_bound(arch: Architecture, shortcut_std: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sublayer float64[S], shortcut_std float64[S + 1], heads float64[num_layers]) as in `theory.bound`."""
    if shortcut_std is None:
        from theory.propagation import predict

        shortcut_std = predict(arch).shortcut_std
    sublayer, heads = np.empty(arch.num_sublayers), np.empty(arch.num_layers)
    place = 0
    for layer in range(arch.num_layers):
        shortcut, branch, factor = arch.factors(layer)
        for parts in block(arch.block).additions:
            std = float(shortcut_std[place])
            inside, total = shortcut, shortcut * std
            for part in parts:
                pre = arch.normed("pre", part)
                slope = factor * (_slope(arch, std) if pre else 1.0)
                size = factor * (1.0 if pre else std)
                if part == "attention":
                    heads[layer], own, added = _attention(arch, layer, size)
                else:
                    own, added = _feed_forward(arch, layer, size)
                if arch.normed("output", part):
                    after = _slope(arch, added)
                    slope, added = slope * after, added * after
                inside += branch * slope * own
                total = math.hypot(total, branch * added)
            sublayer[place] = inside * (_slope(arch, total) if block(arch.block).post_norm else 1.0)
            place += 1
    return sublayer, shortcut_std, heads


def typical_norm(arch: Architecture, kind: str, layer: int) -> float:
    """The norm that matrix acts with, in expectation: 1 where the scheme divides it by its own."""
    if attention_scheme(arch.attention).spectral:
        return 1.0
    rows, columns = arch.shape(kind)
    return float(arch.std(kind)[layer]) * (math.sqrt(rows) + math.sqrt(columns))


def _slope(arch: Architecture, std: float) -> float:
    return 1 / math.hypot(std, math.sqrt(arch.norm_epsilon))


def _attention(arch: Architecture, layer: int, size: float) -> tuple[float, float, float]:
    """Bounds on ‖J^Z‖ and on the sub-layer's own Jacobian, and the size of the shortest row it adds.

    size: of its input, a coordinate. The shortest row is the last token's, an even mean of T independent values.
    """
    scheme, d = attention_scheme(arch.attention), arch.d_model
    kinds = ("query", "key", "value", "output")
    std = {name: float(arch.effective_std(f"attention.{name}")[layer]) for name in kinds}
    norm = {name: typical_norm(arch, f"attention.{name}", layer) for name in kinds}
    entry = {name: std[name] * math.sqrt(d) * size for name in ("query", "key", "value")}
    slope = {name: _slope(arch, entry[name]) if name in scheme.normed else 1.0 for name in entry}
    entry = {name: 1.0 if name in scheme.normed else value for name, value in entry.items()}
    averaging, column = attention_matrix_bounds(arch.seq_len, scheme.temperature * entry["query"] * entry["key"])
    length = {name: math.sqrt(arch.d_head) * value for name, value in entry.items()}
    low, high = scheme.clip or (0.0, 1.0)
    heads = heads_bound(
        d_head=arch.d_head, h=arch.num_heads, h_kv=arch.kv_heads, tau=scheme.temperature, kappa=high - low,
        pi_P=averaging, c_P=column, nu_Q=norm["query"], nu_K=norm["key"], nu_V=norm["value"],
        m_q=length["query"], m_k=length["key"], m_v=length["value"],
        s_q=slope["query"], s_k=slope["key"], s_v=slope["value"],
    )  # fmt: skip
    mixed = entry["value"] * max((high - low) / arch.seq_len + low, 0.0) * math.sqrt(arch.seq_len)
    own = norm["output"] * heads
    if arch.normed("inner", "attention"):
        slope_inner = _slope(arch, mixed)
        own, mixed = own * slope_inner, mixed * slope_inner
    return heads, own, std["output"] * math.sqrt(d) * mixed


def _feed_forward(arch: Architecture, layer: int, size: float) -> tuple[float, float]:
    """A bound on the sub-layer's own Jacobian, and the size of a row it adds; size: of its input, a coordinate."""
    scheme, d, width = activation(arch.activation), arch.d_model, arch.ff_width
    kinds = ("up", "down", "gate") if scheme.gated else ("up", "down")
    std = {"gate": 0.0} | {name: float(arch.effective_std(f"feed_forward.{name}")[layer]) for name in kinds}
    norm = {"gate": 0.0} | {name: typical_norm(arch, f"feed_forward.{name}", layer) for name in kinds}
    largest = math.sqrt(2 * math.log(2 * width * arch.seq_len)) * math.sqrt(d) * size
    slope, at_zero = feed_forward.lipschitz(scheme), abs(scheme.at_zero)
    rms, hidden = hidden_size(arch, std["up"] * math.sqrt(d) * size, std["gate"] * math.sqrt(d) * size)
    inner = 1.0
    if arch.normed("inner", "feed_forward"):
        inner = _slope(arch, hidden)
        rms = hidden * inner
    own = feed_forward_bound_of(scheme.gated)(
        nu_1=norm["up"], nu_2=norm["down"], nu_g=norm["gate"], Lambda_F=slope, u_max=std["up"] * largest,
        F_max=at_zero + slope * std["gate"] * largest, s_inner=inner,
    )  # fmt: skip
    return own, std["down"] * math.sqrt(width) * rms


def hidden_size(arch: Architecture, up: float, gate: float) -> tuple[float, float]:
    """Of F(u), or of F(g) u, u and g Gaussian of these standard deviations: the root mean square, and what a norm of it
    divides by, without its epsilon."""
    scheme = activation(arch.activation)
    nodes, weights, _ = hermite_quadrature()
    values = scheme.numeric[0]((gate if scheme.gated else up) * nodes)
    square, mean = weights @ values**2, weights @ values
    rms = math.sqrt(square) * (up if scheme.gated else 1.0)
    if scheme.gated or arch.norm == "rms_norm":
        return rms, rms
    return rms, math.sqrt(max(square - mean**2, 0.0))
