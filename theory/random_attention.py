"""Causal attention at initialisation as a random matrix: the moments that carry kernels through it, both ways.

Given the kernel C of one network's tokens, queries and keys are Gaussian with C as their covariance in each of d_head
coordinates, so the attention matrix A = softmax(q k^T / sqrt(d_head)) can be drawn head by head without a model. The
value path carries kernels as A C A^T and A^T G A; the score path is that head's own backward pass, for gradients and
values drawn from their kernels.
"""

import math

import numpy as np

from theory.positions import rope_angles


def draw_attention(
    rng: np.random.Generator,
    tokens: np.ndarray,
    d_head: int,
    query_variance: float,
    key_variance: float,
    rope: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(attention, queries, keys) of one head in each of n networks for `tokens` float32[n, ..., T, k].

    tokens: a root of the normalised tokens' kernel. attention: float32[n, ..., T, T]. queries, keys: q and k over
    sqrt(d_head), float32[n, ..., T, d_head], positions' rotation included. query_variance, key_variance: of a
    coordinate of q and k for a token of unit variance, d_model times the weights' variance. The second half of the
    networks has the first half's -q, so that all odd orders of the logits cancel. Weights are shared along the axes
    between.
    """
    n, width = len(tokens), tokens.shape[-1]
    projected = []
    for variance, sign in ((query_variance, -1), (key_variance, 1)):
        weights = rng.standard_normal((n // 2, width, d_head), dtype=np.float32) * np.float32(
            np.sqrt(variance / d_head)
        )
        weights = np.concatenate([weights, sign * weights])
        x = tokens @ weights.reshape(n, *(1,) * (tokens.ndim - 3), width, d_head)
        projected.append(rotate(x) if rope else x)
    query, key = projected
    return causal_softmax(query @ _t(key) * np.float32(np.sqrt(d_head))), query, key


def query_scores(
    rng: np.random.Generator, attention: np.ndarray, keys: np.ndarray, tokens: np.ndarray, rope: bool
) -> np.ndarray:
    """What a gradient kernel is multiplied by on its way to the queries: float32[n, S, S].

    dL/dq_t = M_t g_t for the output's gradient g_t, with M_t the covariance under row t of A between keys and values;
    this is tr(M_t M_t'^T) before RoPE, for values of unit weights' variance. attention, keys: as drawn. tokens: root
    [n, S, k] of the tokens' kernel, from which some coordinates of the values are drawn.
    """
    keys = _thinned(keys)
    n, sequences, seq_len, width = keys.shape
    count = max(1, 512 // width)
    weights = rng.standard_normal((n, tokens.shape[-1], count), dtype=np.float32)
    values = (tokens @ weights * np.float32(count**-0.5)).reshape(n, sequences, seq_len, 1, count)
    products = (keys[..., None] * values).reshape(n, sequences, seq_len, -1)
    means = [attention @ x.reshape(n, sequences, seq_len, -1) for x in (keys, values)]
    covariance = (attention @ products).reshape(n, sequences, seq_len, width, count)
    covariance -= means[0][..., None] * means[1][..., None, :]
    if rope:
        covariance = np.swapaxes(rotate(np.moveaxis(covariance, -1, -3), -1), -3, -2)
    rows = covariance.reshape(n, sequences * seq_len, -1)
    return rows @ _t(rows)


def key_gradients(
    rng: np.random.Generator,
    attention: np.ndarray,
    queries: np.ndarray,
    tokens: np.ndarray,
    gradients: np.ndarray,
    rope: bool,
) -> np.ndarray:
    """Kernel of dL/dk, before RoPE and over d_head coordinates, float32[n, S, S], for values of unit weights' variance.

    attention, queries: as drawn. tokens, gradients: roots [n, S, k] of the kernels of the tokens and of the head's
    output gradient, from which one draw of both is taken.
    """
    queries = _thinned(queries)
    n, sequences, seq_len, width = queries.shape
    g, v = (
        (x @ rng.standard_normal((n, x.shape[-1], width), dtype=np.float32)).reshape(queries.shape)
        for x in (gradients, tokens)
    )
    weighted = attention * (g @ _t(v))
    scores = weighted - attention * weighted.sum(axis=-1, keepdims=True)
    rows = _t(scores) @ queries
    rows = (rotate(rows, -1) if rope else rows).reshape(n, sequences * seq_len, width)
    return rows @ _t(rows) * np.float32(1 / width)


def _thinned(rows: np.ndarray) -> np.ndarray:
    """About 32 coordinates that stand for a wide head's [..., d_head]; RoPE's are those of a narrower head."""
    d_head = rows.shape[-1]
    stride = math.gcd(d_head // 2, max(1, d_head // 32))
    return rows[..., ::stride] * np.float32(stride**0.5)


def uniform_attention(seq_len: int) -> np.ndarray:
    """Causal averaging float64[T, T]: row t has 1/t in its first t columns."""
    return np.tril(np.ones((seq_len, seq_len))) / np.arange(1, seq_len + 1)[:, None]


def causal_softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the columns up to the diagonal."""
    masked = np.where(np.tril(np.ones(logits.shape[-2:], dtype=bool)), logits, -np.inf)
    weights = np.exp(masked - masked.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def rotate(x: np.ndarray, direction: int = 1) -> np.ndarray:
    """RoPE of [..., T, d_head]: coordinates i and i + d_head / 2 turn by position x base^(-2i / d_head).

    direction: -1 turns back.
    """
    angles = direction * rope_angles(*x.shape[-2:])
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _t(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)
