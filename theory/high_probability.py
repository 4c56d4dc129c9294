"""A bound on every sub-layer's Jacobian at initialisation that holds for all of them at once with a given probability.

For one sequence of T tokens chosen without looking at the weights. The failure probability is shared equally by all
events (`events`), each a tail of `theory.tail_bounds`: the matrices' norms; the lengths of queries, keys, values, heads
and hidden layers; the logits; and, of every token at every place, that the stream has not become short or long.
"""

import math
from dataclasses import dataclass

import numpy as np

from theory import feed_forward
from theory.activation import activation
from theory.addition_bound import feed_forward_bound_of, heads_bound
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import block
from theory.embedding import embedding
from theory.tail_bounds import Tail


@dataclass(frozen=True)
class _Length:
    """Of every token: `low` bounds it from below (its part that a norm sees), `high` from above.

    Or from below by `anchor` - t sqrt(walked): what it was at the last norm or the table, and the steps since.
    """

    low: float
    high: float
    anchor: float
    walked: float = 0.0

    @staticmethod
    def between(low: float, high: float) -> "_Length":
        return _Length(low, high, low)


def events(arch: Architecture) -> int:
    """At most this many events; each gets the same share of 1 - probability."""
    matrices = len(arch.matrices)
    heads = 3 * (arch.num_heads + 2 * arch.kv_heads) + 2 * arch.num_heads * arch.seq_len
    token = heads + 4 * arch.ff_width + 2 + 3 * len(block(arch.block).additions)
    return arch.num_layers * (matrices + arch.seq_len * token) + 5 * arch.seq_len


def high_probability_bound(arch: Architecture, probability: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sublayer float64[S], lower bounds on every token's deviation float64[S + 1], heads float64[num_layers])."""
    for part in ("attention", "feed_forward"):
        for where, field in (("output", "output"), ("inner", "inner")):
            if arch.normed(where, part):
                raise ValueError(
                    f"block: {arch.block!r} with attention {arch.attention!r} has a norm on the {part} sub-layer's "
                    f"{field} rows; how short these can be, averages of tokens, has no bound with the tail needed; "
                    "choose method='paper', or certify the weights"
                )
    tail = Tail((1 - probability) / events(arch))
    length = _embedded(arch, tail)
    sublayer, heads = np.empty(arch.num_sublayers), np.empty(arch.num_layers)
    std = np.empty(arch.num_sublayers + 1)
    place = 0
    for layer in range(arch.num_layers):
        shortcut, branch, factor = (float(arch.factor(name)[layer]) for name in ("shortcut", "branch", "input"))
        for parts in block(arch.block).additions:
            std[place] = length.low / math.sqrt(arch.d_model)
            inside, step = shortcut, 0.0
            for part in parts:
                pre = arch.normed("pre", part)
                slope = factor / _divisor(arch, length.low, arch.d_model) if pre else factor
                high = factor * (math.sqrt(arch.d_model) if pre else length.high)
                low = slope * length.low
                if part == "attention":
                    heads[layer], own, size = _attention(arch, layer, low, high, tail)
                else:
                    own, size = _feed_forward(arch, layer, high, tail)
                inside += branch * slope * own
                step += (branch * size) ** 2
            length = _moved(length, shortcut, math.sqrt(step), arch, tail)
            post = 1.0
            if block(arch.block).post_norm:
                post = 1 / _divisor(arch, length.low, arch.d_model)
                length = _Length.between(length.low * post, math.sqrt(arch.d_model))
            sublayer[place] = post * inside
            place += 1
    std[place] = length.low / math.sqrt(arch.d_model)
    return sublayer, std, heads


def _seen(arch: Architecture, width: int) -> int:
    """Directions a norm over that width sees."""
    return width - 1 if arch.norm == "layer_norm" else width


def _divisor(arch: Architecture, length: float, width: int) -> float:
    return math.sqrt(length**2 / width + arch.norm_epsilon)


def _moved(length: _Length, shortcut: float, step: float, arch: Architecture, tail: Tail) -> _Length:
    """After a x + y, y Gaussian with at most that standard deviation a coordinate."""
    anchor, walked = shortcut * length.anchor, shortcut**2 * length.walked + step**2
    by_angle = shortcut * length.low * tail.sine(_seen(arch, arch.d_model))
    low = max(by_angle, anchor - tail.t * math.sqrt(walked)) if step else shortcut * length.low
    return _Length(low, shortcut * length.high + step * tail.longest(arch.d_model), anchor, walked)


def _embedded(arch: Architecture, tail: Tail) -> _Length:
    d, method = arch.d_model, embedding(arch.embedding)
    row = float(arch.std("embedding")[0] * arch.evaluate(method.multiplier))
    learned = float(arch.std("position")[0]) if arch.positions == "learned" else 0.0
    shortest = tail.shortest(_seen(arch, d))
    if method.layer_norm:
        low, high = row * shortest / _divisor(arch, row * shortest, d), math.sqrt(d)
        low *= tail.sine(_seen(arch, d)) if arch.positions in ("learned", "sinusoidal") else 1.0
    else:
        low, high = math.hypot(row, learned) * shortest, row * tail.longest(d)
    high += learned * tail.longest(d) + (math.sqrt(d / 2) if arch.positions == "sinusoidal" else 0.0)
    return _Length.between(low, high)


def _attention(arch: Architecture, layer: int, low: float, high: float, tail: Tail) -> tuple[float, float, float]:
    """Bounds on ‖J^Z‖, on the sub-layer's own Jacobian, and on its output's standard deviation a coordinate.

    low, high: of the length of its input's tokens.
    """
    scheme, d, narrow = attention_scheme(arch.attention), arch.d_model, arch.kv_heads * arch.d_head
    std = {name: float(arch.std(f"attention.{name}")[layer]) for name in ("query", "key", "value", "output")}
    length = {name: std[name] * high * tail.longest(arch.d_head) for name in ("query", "key", "value")}
    slope = dict.fromkeys(length, 1.0)
    for name in scheme.normed:
        shortest = std[name] * low * tail.shortest(_seen(arch, arch.d_head))
        slope[name], length[name] = 1 / _divisor(arch, shortest, arch.d_head), math.sqrt(arch.d_head)
    if "query" in scheme.normed:  # a random direction of length sqrt(d_head)
        logit = min(length["key"], length["key"] * tail.t / math.sqrt(_seen(arch, arch.d_head)))
    else:
        logit = std["query"] * high * length["key"] * tail.t / math.sqrt(arch.d_head)
    logit = min(scheme.temperature * logit, math.inf if scheme.cap is None else scheme.cap)
    above_even = math.exp(min(2 * logit, 300.0))  # entries of P over those of the even one, or of ALiBi's own
    column = min(arch.seq_len, above_even * float((1 / np.arange(1, arch.seq_len + 1)).sum()))
    averaging = math.sqrt(column)
    if arch.positions != "alibi":
        averaging = min(averaging, 2 * above_even)
    steepness = 1.0 if scheme.clip is None else scheme.clip[1] - scheme.clip[0]
    heads = heads_bound()(
        d_head=arch.d_head, h=arch.num_heads, h_kv=arch.kv_heads, tau=scheme.temperature, kappa=steepness,
        pi_P=averaging, c_P=column, nu_Q=tail.matrix(std["query"], d, d), nu_K=tail.matrix(std["key"], d, narrow),
        nu_V=tail.matrix(std["value"], d, narrow), m_q=length["query"], m_k=length["key"], m_v=length["value"],
        s_q=slope["query"], s_k=slope["key"], s_v=slope["value"],
    )  # fmt: skip
    if "value" in scheme.normed:
        mixed = math.sqrt(d)
    else:
        mixed = std["value"] * high * (math.sqrt(d) + math.sqrt(arch.num_heads / arch.kv_heads) * tail.t)
    return heads, tail.matrix(std["output"], d, d) * heads, std["output"] * steepness * mixed


def _feed_forward(arch: Architecture, layer: int, high: float, tail: Tail) -> tuple[float, float]:
    """Bounds on the sub-layer's own Jacobian and on its output's standard deviation a coordinate."""
    scheme, d, width = activation(arch.activation), arch.d_model, arch.ff_width
    up, down = (float(arch.std(f"feed_forward.{name}")[layer]) for name in ("up", "down"))
    gate = float(arch.std("feed_forward.gate")[layer]) if scheme.gated else 0.0
    slope, at_zero = feed_forward.lipschitz(scheme), abs(float(scheme.numeric[0](np.zeros(1))[0]))
    active = at_zero + slope * gate * high * tail.t
    own = feed_forward_bound_of(scheme.gated)(
        nu_1=tail.matrix(up, d, width), nu_2=tail.matrix(down, d, width), nu_g=tail.matrix(gate, d, width),
        Lambda_F=slope, u_max=up * high * tail.t, F_max=active, s_inner=1.0,
    )  # fmt: skip
    branch = up * high * tail.longest(width)
    hidden = active * branch if scheme.gated else at_zero * math.sqrt(width) + slope * branch
    return own, down * hidden
