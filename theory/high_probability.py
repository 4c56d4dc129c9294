"""A bound on every sub-layer's Jacobian at initialisation that holds for all of them at once with a given probability.

For one sequence of T tokens chosen without looking at the weights. The failure probability is shared equally by all
events (`events`), each a tail of `theory.tail_bounds`: the matrices' norms; the lengths of queries, keys, values, heads
and hidden layers; the logits; and, of every token at every place, that the stream has not become short or long.

How short a sub-layer's output or its inner rows can be, averages of tokens, has no tail here: a norm on these may
divide by as little as the root of its epsilon, and multiplies the bound by 1 / sqrt(epsilon).
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
from theory.initialization import truncated_std
from theory.stream import row_size
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


@dataclass(frozen=True)
class _Matrix:
    """What a block's matrix does to a vector z that does not depend on it.

    least, most: the standard deviation of a coordinate of W z, over |z|, lies between. norm: no larger is the matrix's.
    step: W z moves along any fixed direction as a Gaussian of this standard deviation does. tail: of its entries.
    """

    least: float
    most: float
    norm: float
    step: float
    tail: Tail

    @staticmethod
    def of(arch: Architecture, kind: str, layer: int, delta: float) -> "_Matrix":
        std, (rows, columns), tail = float(arch.std(kind)[layer]), arch.shape(kind), _tail(arch, kind, delta)
        norm = tail.matrix(std, rows, columns)
        if not attention_scheme(arch.attention).spectral:
            return _Matrix(std, std, norm, std * tail.nominal, tail)
        smallest = std * tail.shortest(rows * columns) / math.sqrt(min(rows, columns))  # ‖W‖_F <= ‖W‖ sqrt(rank)
        most = std / smallest if smallest else math.inf
        step = most * tail.nominal
        if tail.nominal == 1:  # of a whole Gaussian the direction is random, whatever the length
            step = min(1.0, most * tail.longest(columns)) / math.sqrt(columns)
        return _Matrix(std / norm, most, 1.0, min(1.0, step), tail)


def events(arch: Architecture) -> int:
    """At most this many events; each gets the same share of 1 - probability."""
    matrices = 2 * len(arch.matrices)
    heads = 3 * (arch.num_heads + 2 * arch.kv_heads) + 2 * arch.num_heads * arch.seq_len
    token = heads + 4 * arch.ff_width + 2 + 5 * len(block(arch.block).additions)
    return arch.num_layers * (matrices + arch.seq_len * token) + 5 * arch.seq_len


def high_probability_bound(arch: Architecture, probability: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sublayer float64[S], lower bounds on every token's deviation float64[S + 1], heads float64[num_layers])."""
    delta = (1 - probability) / events(arch)
    length = _embedded(arch, delta)
    sublayer, heads = np.empty(arch.num_sublayers), np.empty(arch.num_layers)
    std = np.empty(arch.num_sublayers + 1)
    place = 0
    for layer in range(arch.num_layers):
        shortcut, branch, factor = arch.factors(layer)
        for parts in block(arch.block).additions:
            std[place] = length.low / math.sqrt(arch.d_model)
            inside, step, widest = shortcut, 0.0, 1.0
            for part in parts:
                pre = arch.normed("pre", part)
                slope = factor / _divisor(arch, length.low, arch.d_model) if pre else factor
                high = factor * (math.sqrt(arch.d_model) if pre else length.high)
                if part == "attention":
                    heads[layer], own, size, last = _attention(arch, layer, slope * length.low, high, delta)
                else:
                    own, size, last = _feed_forward(arch, layer, high, delta)
                outer = 1.0
                if arch.normed("output", part):
                    outer, size = 1 / _divisor(arch, 0.0, arch.d_model), _normed_step(arch, last)
                    if len(parts) > 1 and last.nominal > 1:
                        widest = math.inf  # of the sum of two such rows nothing is known of the direction
                inside += branch * outer * slope * own
                step, widest = math.hypot(step, branch * size), max(widest, last.nominal)
            length = _moved(length, shortcut, step, arch, Tail(delta, widest))
            post = 1.0
            if block(arch.block).post_norm:
                post = 1 / _divisor(arch, length.low, arch.d_model)
                length = _Length.between(length.low * post, math.sqrt(arch.d_model))
            sublayer[place] = post * inside
            place += 1
    std[place] = length.low / math.sqrt(arch.d_model)
    return sublayer, std, heads


def _tail(arch: Architecture, kind: str, delta: float) -> Tail:
    """The tail of that matrix's entries, in units of their standard deviation."""
    cutoff = arch.truncation(kind)
    return Tail(delta) if cutoff is None else Tail(delta, 1 / float(truncated_std(cutoff)))


def _seen(arch: Architecture, width: int) -> int:
    """Directions a norm over that width sees."""
    return width - 1 if arch.norm == "layer_norm" else width


def _divisor(arch: Architecture, length: float, width: int) -> float:
    divisor = math.hypot(length / math.sqrt(width), math.sqrt(arch.norm_epsilon))
    if not divisor:
        raise ValueError("norm_epsilon: at 0 nothing keeps a norm's divisor from 0 here; choose a positive number")
    return divisor


def _normed_step(arch: Architecture, tail: Tail) -> float:
    """As `_Matrix.step`, after a norm: no longer than sqrt(d), in a random direction if the Gaussians are whole."""
    seen, size = _seen(arch, arch.d_model), math.sqrt(arch.d_model)
    least = math.sqrt(seen) if tail.nominal == 1 else tail.shortest(seen) / tail.nominal
    return size / max(least, 1.0)


def _moved(length: _Length, shortcut: float, step: float, arch: Architecture, tail: Tail) -> _Length:
    """After a x + y, where y steps as a Gaussian of at most that deviation a coordinate; tail: of y's entries."""
    anchor, walked = shortcut * length.anchor, shortcut * shortcut * length.walked + step * step
    by_angle, whole = shortcut * length.low * tail.sine(_seen(arch, arch.d_model)), Tail(tail.delta)
    low = max(by_angle, anchor - whole.t * math.sqrt(walked)) if step else shortcut * length.low
    return _Length(low, shortcut * length.high + step * whole.longest(arch.d_model), anchor, walked)


def _embedded(arch: Architecture, delta: float) -> _Length:
    d, method = arch.d_model, embedding(arch.embedding)
    row, learned = math.sqrt(row_size(arch)), float(arch.std("position")[0]) if arch.positions == "learned" else 0.0
    rows, codes = _tail(arch, "embedding", delta), _tail(arch, "position", delta)
    both = Tail(delta, max(rows.nominal, codes.nominal)) if learned else rows
    if method.layer_norm:
        shortest = row * rows.shortest(_seen(arch, d))
        low, high = shortest / _divisor(arch, shortest, d), math.sqrt(d)
        low *= both.sine(_seen(arch, d)) if arch.positions in ("learned", "sinusoidal") else 1.0
    else:
        low, high = math.hypot(row, learned) * both.shortest(_seen(arch, d)), row * rows.longest(d)
    high += learned * codes.longest(d) + (math.sqrt(d / 2) if arch.positions == "sinusoidal" else 0.0)
    return _Length.between(low, high)


def _attention(
    arch: Architecture, layer: int, low: float, high: float, delta: float
) -> tuple[float, float, float, Tail]:
    """Bounds on ‖J^Z‖, on the sub-layer's own Jacobian, and on its output's step a coordinate; W_O's tail.

    low, high: of the length of its input's tokens.
    """
    scheme, names = attention_scheme(arch.attention), ("query", "key", "value")
    query, key, value, output = (
        _Matrix.of(arch, f"attention.{name}", layer, delta) for name in (*names, "output")
    )  # fmt: skip
    length, slope = dict[str, float](), dict.fromkeys(names, 1.0)
    for name, matrix in zip(names, (query, key, value), strict=True):
        length[name] = high * min(matrix.norm, matrix.most * matrix.tail.longest(arch.d_head))
        if name in scheme.normed:
            shortest = matrix.least * low * matrix.tail.shortest(_seen(arch, arch.d_head))
            slope[name], length[name] = 1 / _divisor(arch, shortest, arch.d_head), math.sqrt(arch.d_head)
    if "query" in scheme.normed:  # of length sqrt(d_head), the direction random if the entries are whole Gaussians
        seen, of_query = _seen(arch, arch.d_head), query.tail
        least = math.sqrt(seen) if of_query.nominal == 1 else of_query.shortest(seen)
        logit = length["key"] * (min(1.0, of_query.t / least) if least else 1.0)
    else:
        across = min(length["query"], query.most * high * query.tail.t)  # the query's part along a key
        logit = across * length["key"] / math.sqrt(arch.d_head)
    temperature = scheme.temperature_at(arch.d_head)
    logit *= temperature
    if scheme.cap is not None:
        logit = scheme.cap * math.tanh(logit / scheme.cap)
    above_even = math.exp(min(2 * logit, 300.0))  # entries of P over those of the even one, or of ALiBi's own
    column = min(arch.seq_len, above_even * float((1 / np.arange(1, arch.seq_len + 1)).sum()))
    averaging = math.sqrt(column)
    if arch.positions != "alibi":
        averaging = min(averaging, 2 * above_even)
    steepness = 1.0 if scheme.clip is None else scheme.clip[1] - scheme.clip[0]
    heads = heads_bound(
        d_head=arch.d_head, h=arch.num_heads, h_kv=arch.kv_heads, tau=temperature, kappa=steepness,
        pi_P=averaging, c_P=column, nu_Q=query.norm, nu_K=key.norm, nu_V=value.norm, m_q=length["query"],
        m_k=length["key"], m_v=length["value"], s_q=slope["query"], s_k=slope["key"], s_v=slope["value"],
    )  # fmt: skip
    mixed = math.sqrt(arch.d_model)
    if "value" not in scheme.normed:
        by_row = value.most * (mixed + math.sqrt(arch.num_heads / arch.kv_heads) * value.tail.t)
        mixed = high * min(by_row, value.norm * math.sqrt(arch.num_heads))
    inner, mixed = 1.0, steepness * mixed
    if arch.normed("inner", "attention"):
        inner, mixed = 1 / _divisor(arch, 0.0, arch.d_model), math.sqrt(arch.d_model)
    return heads, output.norm * inner * heads, output.step * mixed, output.tail


def _feed_forward(arch: Architecture, layer: int, high: float, delta: float) -> tuple[float, float, Tail]:
    """Bounds on the sub-layer's own Jacobian and on its output's step a coordinate; W_2's tail.

    high: its input's length.
    """
    scheme, width = activation(arch.activation), arch.ff_width
    up, down = (_Matrix.of(arch, f"feed_forward.{name}", layer, delta) for name in ("up", "down"))
    gate = _Matrix(0.0, 0.0, 0.0, 0.0, up.tail)
    if scheme.gated:
        gate = _Matrix.of(arch, "feed_forward.gate", layer, delta)
    slope, at_zero = feed_forward.lipschitz(scheme), abs(scheme.at_zero)
    active = at_zero + slope * high * min(gate.norm, gate.most * gate.tail.t)
    inner = 1 / _divisor(arch, 0.0, width) if arch.normed("inner", "feed_forward") else 1.0
    own = feed_forward_bound_of(scheme.gated)(
        nu_1=up.norm, nu_2=down.norm, nu_g=gate.norm, Lambda_F=slope, u_max=high * min(up.norm, up.most * up.tail.t),
        F_max=active, s_inner=inner,
    )  # fmt: skip
    branch = high * min(up.norm, up.most * up.tail.longest(width))
    hidden = active * branch if scheme.gated else at_zero * math.sqrt(width) + slope * branch
    return own, down.step * (math.sqrt(width) if arch.normed("inner", "feed_forward") else hidden), down.tail
