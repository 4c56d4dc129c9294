"""The paper-style bound of every arrangement: Gaussian norms in expectation, typical sizes of stream and rows.

arXiv 2312.16903, equations 15 and 20 [secondary], carried over by `theory.addition_bound`. What the norms divide by
comes from `predict`: the stream's standard deviation, and the size of each sub-layer's output.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

from theory import attention, feed_forward
from theory import notation as s
from theory.activation import activation
from theory.addition_bound import feed_forward_bound_of, heads_bound
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import block


def paper_bound(arch: Architecture, shortcut_std: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sublayer float64[S], shortcut_std float64[S + 1], heads float64[num_layers]) as in `theory.bound`."""
    normed_later = any(
        arch.normed(where, part) for where in ("output", "post") for part in ("attention", "feed_forward")
    )
    rms = {part: np.ones(arch.num_layers) for part in ("attention", "feed_forward")}
    std = shortcut_std
    if std is None or normed_later:
        from theory.propagation import predict

        # The stream does not depend on the head, so a tied one is predicted as if untied.
        predicted = predict(replace(arch, tied=False))
        rms, std = predicted.branch_rms, predicted.shortcut_std if std is None else std
    sublayer, heads = np.empty(arch.num_sublayers), np.empty(arch.num_layers)
    place = 0
    for layer in range(arch.num_layers):
        shortcut, branch, factor = (float(arch.factor(name)[layer]) for name in ("shortcut", "branch", "input"))
        for parts in block(arch.block).additions:
            sigma, inside = float(std[place]), shortcut
            total = (shortcut * sigma) ** 2
            for part in parts:
                pre = arch.normed("pre", part)
                slope = factor * (_slope(arch, sigma) if pre else 1.0)
                size = factor * (1.0 if pre else sigma)  # of the sub-layer's input, a coordinate
                if part == "attention":
                    heads[layer], own = _attention(arch, layer, size)
                else:
                    own = _feed_forward(arch, layer, size)
                added = float(rms[part][layer])
                if arch.normed("output", part):
                    slope, added = slope * _slope(arch, added), added * _slope(arch, added)
                inside += branch * slope * own
                total += (branch * added) ** 2
            post = _slope(arch, math.sqrt(total)) if block(arch.block).post_norm else 1.0
            sublayer[place] = post * inside
            place += 1
    return sublayer, std, heads


def _slope(arch: Architecture, std: float) -> float:
    return 1 / math.sqrt(std**2 + arch.norm_epsilon)


def _attention(arch: Architecture, layer: int, size: float) -> tuple[float, float]:
    """Bounds on ‖J^Z‖ and on the sub-layer's own Jacobian, its input of that size."""
    scheme, d, narrow = attention_scheme(arch.attention), arch.d_model, arch.kv_heads * arch.d_head
    std = {name: float(arch.std(f"attention.{name}")[layer]) for name in ("query", "key", "value", "output")}
    entry = {name: std[name] * math.sqrt(d) * size for name in ("query", "key", "value")}
    slope = {name: _slope(arch, entry[name]) if name in scheme.normed else 1.0 for name in entry}
    entry = {name: 1.0 if name in scheme.normed else value for name, value in entry.items()}
    numbers = {s.T: arch.seq_len, s.sigma_S: min(scheme.temperature * entry["query"] * entry["key"], 25.0)}
    numbers[s.column_sum] = float(attention.COLUMN_SUM.subs(numbers).evalf())
    length = {name: math.sqrt(arch.d_head) * value for name, value in entry.items()}
    heads = heads_bound()(
        d_head=arch.d_head, h=arch.num_heads, h_kv=arch.kv_heads, tau=scheme.temperature,
        kappa=1.0 if scheme.clip is None else scheme.clip[1] - scheme.clip[0],
        pi_P=float(attention.AVERAGING.subs(numbers).evalf()), c_P=numbers[s.column_sum],
        nu_Q=std["query"] * 2 * math.sqrt(d), nu_K=std["key"] * (math.sqrt(d) + math.sqrt(narrow)),
        nu_V=std["value"] * (math.sqrt(d) + math.sqrt(narrow)), m_q=length["query"], m_k=length["key"],
        m_v=length["value"], s_q=slope["query"], s_k=slope["key"], s_v=slope["value"],
    )  # fmt: skip
    own = std["output"] * 2 * math.sqrt(d) * heads
    if arch.normed("inner", "attention"):  # the smallest row: an even mean of T independent values
        own *= _slope(arch, entry["value"] / math.sqrt(arch.seq_len))
    return heads, own


def _feed_forward(arch: Architecture, layer: int, size: float) -> float:
    scheme, d, width = activation(arch.activation), arch.d_model, arch.ff_width
    std = {
        name: float(arch.std(f"feed_forward.{name}")[layer]) if f"feed_forward.{name}" in arch.matrices else 0.0
        for name in ("up", "down", "gate")
    }
    largest = math.sqrt(2 * math.log(2 * width * arch.seq_len)) * math.sqrt(d) * size
    slope, at_zero = feed_forward.lipschitz(scheme), abs(float(scheme.numeric[0](np.zeros(1))[0]))
    inner = 1.0
    if arch.normed("inner", "feed_forward"):
        inner = _slope(arch, _hidden_std(arch, std["up"] * math.sqrt(d) * size, std["gate"] * math.sqrt(d) * size))
    spread = math.sqrt(d) + math.sqrt(width)
    return feed_forward_bound_of(scheme.gated)(
        nu_1=std["up"] * spread, nu_2=std["down"] * spread, nu_g=std["gate"] * spread, Lambda_F=slope,
        u_max=std["up"] * largest, F_max=at_zero + slope * std["gate"] * largest, s_inner=inner,
    )  # fmt: skip


def _hidden_std(arch: Architecture, up: float, gate: float) -> float:
    """What the norm before W_2 divides by, without its epsilon: of F(u), or of F(g) u."""
    scheme = activation(arch.activation)
    nodes, weights = hermegauss(200)
    values = scheme.numeric[0]((gate if scheme.gated else up) * nodes)
    square, mean = weights @ values**2 / weights.sum(), weights @ values / weights.sum()
    if scheme.gated:
        return math.sqrt(square) * up
    return math.sqrt(square - mean**2 if arch.norm == "layer_norm" else square)
