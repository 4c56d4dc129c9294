"""Causal attention at initialisation as a random matrix, drawn head by head without a model.

Given the kernel C of one network's tokens, queries, keys and values are Gaussian with C as their covariance in each of
d_head coordinates, so that A = softmax(q k^T / sqrt(d_head)) and the outputs o = A v follow. The value path carries
gradients as A^T G A; the score path is the heads' own backward pass, for gradients drawn from their kernel.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from theory.gram import Draws
from theory.positions import rope_angles


@dataclass(frozen=True)
class Heads:
    """Some heads of n networks: queries, keys and values over sqrt(d_head), [n, heads, sequences, T, d_head].

    rope: queries and keys are turned by their positions.
    """

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    rope: bool

    @staticmethod
    def draw(
        draws: Draws,
        tokens: np.ndarray,
        sequences: int,
        shape: tuple[int, int, int],
        variances: tuple[float, float],
        rope: bool,
    ) -> "Heads":
        """Heads for tokens with that root [n, S, k] of their normalised kernel.

        shape: groups, heads a group, d_head; a group has one key and one value. variances: of a coordinate of q and of
        k for a token of unit variance, d_model times the weights' variance; values have 1. A mirror image has -q, so
        that all odd orders of the logits cancel.
        """
        n, _, inner = tokens.shape
        groups, group, d_head = shape
        projected = []
        for count, variance, sign in (
            (groups * group, variances[0], draws.sign),
            (groups, variances[1], 1),
            (groups, 1, 1),
        ):
            weights = draws.shared.standard_normal((n, inner, count * d_head), dtype=np.float32)
            weights *= np.float32(sign * np.sqrt(variance / d_head))
            projected.append(_split(tokens @ weights, sequences, count))
        queries, keys, values = projected
        if rope:
            queries, keys = rotate(queries), rotate(keys)
        return Heads(queries, np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1), rope)

    def attention(self) -> np.ndarray:
        """A float32[n, heads, sequences, T, T]."""
        return causal_softmax(self.queries @ self.keys.mT * np.float32(np.sqrt(self.queries.shape[-1])))

    def score_gradients(
        self, draws: Draws, attention: np.ndarray, gradients: np.ndarray, lost: np.ndarray, num_heads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Kernels of dL/dq and dL/dk, before RoPE and in the mean over heads, float32[n, S, S] each.

        attention: A of these heads. gradients: root [n, S, k] of the kernel of dL/do. lost: [n, S], which share of its
        variance dL/do lacks along the token's own outputs, of all `num_heads` heads together. The gradient of a key
        that several heads have is the sum of theirs, and so is its kernel, as their dL/do are independent. The few
        heads of a narrow model get several draws of dL/do.
        """
        n, heads, sequences, seq_len, d_head = self.values.shape
        outputs, wanted = attention @ self.values, min(512, 2**18 // (num_heads * d_head))
        repeats = max(1, wanted // (heads * d_head))
        lost = lost.reshape(n, 1, sequences, seq_len, 1)
        inward = (1 - np.sqrt(1 - lost * np.float32(heads / num_heads))) * outputs
        inward /= (outputs**2).sum(axis=(1, 4), keepdims=True)
        stretch = np.float32(repeats * heads) ** -0.5 / np.sqrt(1 - lost / np.float32(num_heads * d_head))
        queries, keys = list[np.ndarray](), list[np.ndarray]()
        for _ in range(repeats):
            weights = draws.alone.standard_normal((n, gradients.shape[-1], heads * d_head), dtype=np.float32)
            g = _split(gradients @ weights, sequences, heads)
            g = (g - (g * outputs).sum(axis=(1, 4), keepdims=True) * inward) * stretch
            scores = attention * (g @ self.values.mT - (g * outputs).sum(axis=-1, keepdims=True))
            rows = scores @ self.keys, scores.mT @ self.queries
            for found, x in zip((queries, keys), rows, strict=True):
                found.append(flat(rotate(x, -1) if self.rope else x))
        at_queries, at_keys = (np.concatenate(rows, axis=-1) for rows in (queries, keys))
        return at_queries @ at_queries.mT, at_keys @ at_keys.mT


def flat(rows: np.ndarray) -> np.ndarray:
    """Rows of all heads side by side: [n, heads, sequences, T, k] to [n, S, heads k]."""
    n, _, sequences, seq_len, _ = rows.shape
    return np.moveaxis(rows, 1, 3).reshape(n, sequences * seq_len, -1)


def _split(rows: np.ndarray, sequences: int, heads: int) -> np.ndarray:
    """The inverse of `flat`."""
    n, tokens, width = rows.shape
    return np.moveaxis(rows.reshape(n, sequences, tokens // sequences, heads, width // heads), 3, 1)


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
    cos, sin = (part.astype(x.dtype) for part in _turns(*x.shape[-2:]))
    first, second = np.split(x, 2, axis=-1)
    sin = sin * x.dtype.type(direction)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@lru_cache(maxsize=8)
def _turns(seq_len: int, d_head: int) -> tuple[np.ndarray, np.ndarray]:
    angles = rope_angles(seq_len, d_head)
    return np.cos(angles), np.sin(angles)
