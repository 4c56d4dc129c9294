"""A bound on the Jacobian norm of one residual addition from the weights and activations as they are, in float64.

x' = post(a x + b out(f(in pre(x)))) is a map of all T tokens. Norms and factors act token by token; a token's norm has
the Jacobian norm max|scale| / (what it divides that token by), `theory.normalization`. Attention, THEORY section 4, is
expanded into the paths through values, queries and keys: each is a T x T array of blocks, whose spectral norm is at
most that of the array of the blocks' norms. Weights enter by their exact spectral norms.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array

from models.parameters import Attention, Block, FeedForward, Linear, Norm, Residual
from theory import Architecture
from theory.activation import activation
from theory.attention_scheme import attention_scheme
from theory.positions import alibi_slopes, rope_angles

_ROUNDING = float(np.finfo(np.float64).eps)
Gain = Callable[[np.ndarray], np.ndarray]


def addition_bound(block: Block, x: np.ndarray, arch: Architecture, layer: int, parts: tuple[str, ...]) -> np.ndarray:
    """Bound on ||dx'/dx||_2 of the addition of those parts of a block at the stream x, float64[batch].

    block: one layer's leaves as float64 arrays. x: float64[batch, seq, d], the stream that enters. layer: counted from
    0. Holds for any weights and tokens, to the rounding of float64: a softmax whose logits are known only to within
    rounding is bounded for all probabilities that these may mean.
    """
    shortcut, own_branch, factor = arch.factors(layer)
    total, z, before = shortcut * x, x, np.ones(x.shape[:2])
    gains, post = list[tuple[Gain, np.ndarray]](), None
    for part in parts:
        residual: Residual = getattr(block, f"{part}_residual")
        if residual.pre is not None:
            z, slope = _normalize(residual.pre, x, arch)
            z, before = z * factor, slope * factor
        elif not arch.normed("pre", part):
            z, before = x * factor, np.full(x.shape[:2], factor)
        if part == "attention":
            y, gain = _attention(block.attention, z, before, arch)
        else:
            y, gain = _feed_forward(block.feed_forward, z, before, arch)
        branch = own_branch if residual.branch is None else residual.branch
        after = np.full(x.shape[:2], np.max(np.abs(branch)))
        if residual.output is not None:
            y, slope = _normalize(residual.output, y, arch)
            after = after * slope
        total = total + branch * y
        gains.append((gain, after))
        post = residual.post
    last = np.ones(x.shape[:2]) if post is None else _normalize(post, total, arch)[1]
    bound = shortcut * last.max(axis=1)
    for gain, after in gains:
        bound = bound + gain(after * last)
    return bound * (1 + 1e-9)  # the rounding of the sums and singular values above


def spectral_norm(matrix: np.ndarray | Array) -> np.ndarray:
    """Largest singular value of matrices [..., rows, columns]."""
    return np.linalg.svd(np.asarray(matrix), compute_uv=False)[..., 0]


def _normalize(norm: Norm, x: np.ndarray, arch: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """The normed tokens, and the norm of each one's Jacobian, [...] of x [..., width]."""
    y = x - x.mean(axis=-1, keepdims=True) if arch.norm == "layer_norm" else x
    divisor = np.sqrt(np.mean(y**2, axis=-1) + arch.norm_epsilon)
    z = y / divisor[..., None] * norm.scale
    return (z if norm.bias is None else z + norm.bias), np.max(np.abs(norm.scale)) / divisor


def _linear(layer: Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight if layer.bias is None else x @ layer.weight + layer.bias


def _feed_forward(
    weights: FeedForward, z: np.ndarray, before: np.ndarray, arch: Architecture
) -> tuple[np.ndarray, Gain]:
    """W_2 D W_1, D diagonal at the actual point; of a gated unit both products' diagonals."""
    function, slope = activation(arch.activation).numeric
    up = _linear(weights.up, z)
    if weights.gate is None:
        hidden = function(up)
        inside = np.max(np.abs(slope(up)), axis=-1) * spectral_norm(weights.up.weight)
    else:
        gate = _linear(weights.gate, z)
        active = function(gate)
        hidden = active * up
        inside = np.max(np.abs(slope(gate) * up), axis=-1) * spectral_norm(weights.gate.weight)
        inside = inside + np.max(np.abs(active), axis=-1) * spectral_norm(weights.up.weight)
    if weights.inner_norm is not None:
        hidden, normed = _normalize(weights.inner_norm, hidden, arch)
        inside = inside * normed
    down = spectral_norm(weights.down.weight)
    return _linear(weights.down, hidden), lambda after: down * np.max(after * inside * before, axis=1)


def _attention(weights: Attention, z: np.ndarray, before: np.ndarray, arch: Architecture) -> tuple[np.ndarray, Gain]:
    """Axes: b sequences, k key and value heads, g queries' heads of each, t and s positions, d coordinates of a head.

    A head's output is o_t = sum_s c(p_ts) v_s, c the clip, p_t the softmax of l_ts = factor_ts q_t . k_s. It moves by
    c(p_ts) dv_s, and with the logits by B_ts dl_ts, B_ts = p_ts (c'_ts v_s - sum_r p_tr c'_tr v_r).
    """
    scheme = attention_scheme(arch.attention)
    batch, seq_len, _ = z.shape

    def heads(layer: Linear, norm: Norm | None) -> tuple[np.ndarray, np.ndarray]:
        """[b, k, g or 1, t, d] and the norms of their norm's Jacobians, [b, k, g or 1, t]."""
        split = _linear(layer, z).reshape(batch, seq_len, arch.kv_heads, -1, arch.d_head).transpose(0, 2, 3, 1, 4)
        if norm is None:
            return split, np.ones(split.shape[:-1])
        return _normalize(norm, split, arch)

    query, query_slope = heads(weights.query, weights.query_norm)
    key, key_slope = heads(weights.key, weights.key_norm)
    value, value_slope = heads(weights.value, weights.value_norm)
    if arch.positions == "rope":
        query, key = _rotate(query), _rotate(key)
    scale = scheme.temperature_at(arch.d_head) / np.sqrt(arch.d_head)
    logits, factor = query @ key.mT * scale, np.full((1, 1, 1, 1, 1), scale)
    if scheme.cap is not None:
        capped = np.tanh(logits / scheme.cap)
        logits, factor = scheme.cap * capped, scale * (1 - capped**2)
    if arch.positions == "alibi":
        distance = np.arange(seq_len)[:, None] - np.arange(seq_len)
        logits = logits - alibi_slopes(arch.num_heads).reshape(arch.kv_heads, -1, 1, 1) * distance
    logits = np.where(np.tri(seq_len, dtype=bool), logits, -np.inf)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    clipped, slope, steepest = p, np.ones_like(p), 1.0
    if scheme.clip is not None:
        low, high = scheme.clip
        raw, steepest = (high - low) * p + low, high - low
        clipped = np.clip(raw, 0, 1)
        slope = steepest * (np.sign(raw) + 1) / 2 * (np.sign(1 - raw) + 1) / 2  # half at the kinks, as in JAX
    mixed = clipped @ value
    heads_out = mixed.transpose(0, 3, 1, 2, 4).reshape(batch, seq_len, -1)
    inner = np.ones((batch, seq_len))
    if weights.inner_norm is not None:
        heads_out, inner = _normalize(weights.inner_norm, heads_out, arch)

    # Within the rounding of the logits p_ts may be p_ts (1 + unsure) or, past the limit of that, anything at all.
    query_size, key_size, value_size = (np.max(_length(x), axis=-1, keepdims=True) for x in (query, key, value))
    rounding = 8 * seq_len * _ROUNDING
    unsure = np.expm1(np.minimum(8 * (arch.d_head + 8) * _ROUNDING * scale * query_size * key_size, 1)) + rounding
    known = unsure < 1  # [b, k, g, 1], as unsure

    mean_value, mean_key = (p * slope) @ value, p @ key
    spread = _spread(slope, value, mean_value)  # |c'_ts v_s - mean|, of which B_ts is p_ts times
    value_radius = np.sqrt(np.sum(p * spread**2, axis=-1))
    key_radius = np.sqrt(np.sum(p * _spread(np.ones_like(p), key, mean_key) ** 2, axis=-1))
    pulled = np.einsum("bkgts,bkxsd,bkxse->bkgtde", p * factor * slope, value, key, optimize=True)
    pulled = spectral_norm(pulled - mean_value[..., None] * ((p * factor) @ key)[..., None, :])
    worst = steepest * value_size * key_size
    by_query = np.where(known, pulled + 2 * scale * unsure * value_radius * key_radius, scale * worst)
    by_query = by_query + scale * rounding * worst
    moved = p * (1 + unsure)[..., None] * (spread + (unsure * value_radius)[..., None])
    by_key = np.where(known[..., None], moved * (factor + scale * rounding) * _length(query)[..., None], 0)
    loose = np.sqrt(seq_len) * np.where(known, rounding, 2) * steepest
    outer_norm = spectral_norm(weights.output.weight)
    norms = {name: spectral_norm(getattr(weights, name).weight) for name in ("query", "key", "value")}

    def gain(after: np.ndarray) -> np.ndarray:
        out = (after * inner)[:, None, None, :]  # [b, 1, 1, t]
        own = before[:, None, None, :]
        largest = out.max(axis=-1, keepdims=True)

        def path(blocks: np.ndarray, own: np.ndarray, rest: np.ndarray) -> np.ndarray:
            return _stacked_norm(out[..., None] * blocks * own[..., None, :]) + _grouped(
                largest * rest * own.max(axis=-1, keepdims=True)
            )

        values = path(clipped, value_slope * own, loose + np.sqrt(seq_len) * steepest * np.where(known, unsure, 0))
        queries = np.max(out * by_query * query_slope * own, axis=(1, 2, 3))
        keys = path(by_key, key_slope * own, 2 * scale * loose * value_size * query_size)
        return outer_norm * (values * norms["value"] + queries * norms["query"] + keys * norms["key"])

    return _linear(weights.output, heads_out), gain


def _length(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1)


def _spread(slope: np.ndarray, value: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """|slope_ts v_s - mean_t|, rounded up: [b, k, g, t, s]."""
    squares = slope**2 * np.sum(value**2, axis=-1)[..., None, :]
    centre = np.sum(mean**2, axis=-1)[..., None]
    rounding = 8 * value.shape[-1] * _ROUNDING * (squares + centre)
    return np.sqrt(np.maximum(squares - 2 * slope * (mean @ value.mT) + centre, 0) + rounding)


def _stacked_norm(matrices: np.ndarray) -> np.ndarray:
    """Largest over k of the norm of [b, k, g, t, s] with the heads g that read the same s one below the other, [b]."""
    batch, shared, group, rows, columns = matrices.shape
    return spectral_norm(matrices.reshape(batch, shared, group * rows, columns)).max(axis=1)


def _grouped(norms: np.ndarray) -> np.ndarray:
    """The same bound from the heads' own norms [b, k, g, 1]: [b]."""
    return np.sqrt(np.sum(norms**2, axis=(2, 3))).max(axis=1)


def _rotate(x: np.ndarray) -> np.ndarray:
    """RoPE of [..., t, d], orthogonal for every token."""
    angles = rope_angles(*x.shape[-2:])
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
