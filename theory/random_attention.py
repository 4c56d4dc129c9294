"""Causal attention at initialisation as a random matrix: the moments that carry kernels through it, both ways.

Given the tokens' kernel C, queries and keys are Gaussian with C as their covariance in each of d_head coordinates, so
the attention matrix A = softmax(q k^T / sqrt(d_head)) can be drawn head by head without a model. Each draw takes a C of
its own as well: d_model coordinates give it Wishart fluctuations of order 1 / sqrt(d_model), which enter the score path
squared. Draws come in pairs (q, -q), in which all odd orders of the logits cancel, from a generator with a fixed
seed: the same input gives the same output.
"""

from dataclasses import dataclass

import numpy as np

from theory.positions import rope_angles


@dataclass(frozen=True)
class AttentionDraws:
    """Draws of one layer's attention for R sequences of T tokens, n draws each, float32.

    matrix: A [n, R, T, T]. kernel: C as drawn [n, R, T, T], z's covariance per coordinate. mixed: A C. queries, keys:
    q q^T / d_head and k k^T / d_head [n, R, T, T], positions' rotation included. score_control: factor [R, 1, 1] on
    score moments.
    """

    matrix: np.ndarray
    kernel: np.ndarray
    mixed: np.ndarray
    queries: np.ndarray
    keys: np.ndarray
    score_control: np.ndarray

    def forward(self, expected: np.ndarray) -> np.ndarray:
        """E[A C A^T] float64[R, T, T] for E[C] = `expected`, exact for the part of uniform attention."""
        uniform = uniform_attention(expected.shape[-1])
        drawn = (self.mixed @ _t(self.matrix)).mean(axis=0, dtype=np.float64)
        return drawn + uniform @ (expected - self.kernel.mean(axis=0, dtype=np.float64)) @ uniform.T

    def forward_variance(self, about: np.ndarray) -> np.ndarray:
        """Variance from head to head of M_tt' - about (M_tt + M_t't') / 2, M = A C A^T.

        about: float64[R, T, T], which is the shape of the result; [1, T, T] pools the draws of all sequences.
        """
        mixed = self.mixed @ _t(self.matrix)
        own = np.einsum("...tt->...t", mixed)
        moved = mixed - about * (own[..., :, None] + own[..., None, :]) / 2
        return moved.reshape(-1, *about.shape).var(axis=0, dtype=np.float64)

    def mean(self) -> np.ndarray:
        """E[A] float64[R, T, T]."""
        return self.matrix.mean(axis=0, dtype=np.float64)

    def value_backward(self, gradient: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E[A^T G A] of a gradient kernel G float64[R, T, T], and E[A^T G A o C]."""
        scale, unit = _unit(gradient)
        uniform = uniform_attention(expected.shape[-1])
        carried = _t(self.matrix) @ unit @ self.matrix
        product = scale * (carried * self.kernel).mean(axis=0, dtype=np.float64)
        control = uniform.T @ gradient @ uniform * (expected - self.kernel.mean(axis=0, dtype=np.float64))
        return scale * carried.mean(axis=0, dtype=np.float64), product + control

    def query_score(self) -> tuple[np.ndarray, np.ndarray]:
        """E[X] and E[X o C] of X = tr(J_t C J_t' k k^T / d_head), J_t = diag(a) - a a^T of row a of A."""
        a, k = self.matrix, self.keys
        ca, ka = _t(self.mixed), k @ _t(a)
        crossed = a @ (ca * ka)
        return self._moments(a @ (self.kernel * k) @ _t(a) - crossed - _t(crossed) + (a @ ca) * (a @ ka), 1.0)

    def key_score(self, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E[X] and E[X o C] of X = sum_tt' G_tt' (q_t . q_t' / d_head) J_t C J_t', over key positions."""
        scale, unit = _unit(gradient)
        a, c, mixed = self.matrix, self.kernel, self.mixed
        weighted = unit * self.queries
        first = _t(a) @ weighted
        crossed = (first * _t(mixed)) @ a
        total = (first @ a) * c - crossed - _t(crossed) + _t(a) @ (weighted * (mixed @ _t(a))) @ a
        return self._moments(total, scale)

    def _moments(self, drawn: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
        factor = scale * self.score_control
        return (
            factor * drawn.mean(axis=0, dtype=np.float64),
            factor * (drawn * self.kernel).mean(axis=0, dtype=np.float64),
        )


def draw_attention(
    rng: np.random.Generator,
    kernels: np.ndarray,
    degrees: float,
    d_head: int,
    query_variance: float,
    key_variance: float,
    rope: bool,
) -> AttentionDraws:
    """Draw attention for kernels float64[n, R, T, T], one pair (q, -q) for each of the n.

    kernels: covariance of the normalised tokens z per coordinate. degrees: of the Wishart distribution of a draw's own
    kernel, d_model where only the last layer's weights matter. query_variance, key_variance: of a coordinate of
    q and k for a token of unit variance, d_model times the weights' variance.
    """
    tokens = _wishart_root(rng, kernels, degrees)
    kernel = tokens @ _t(tokens)
    projected = []
    for variance in (query_variance, key_variance):
        weights = rng.standard_normal((*tokens.shape[:-2], tokens.shape[-1], d_head), dtype=np.float32)
        x = np.float32(np.sqrt(variance)) * (tokens @ weights)
        projected.append(rotate(x) if rope else x)
    query, key = projected
    logits = query @ _t(key) / np.float32(np.sqrt(d_head))
    matrix = np.concatenate([causal_softmax(logits), causal_softmax(-logits)])
    queries, keys = (np.tile(x @ _t(x) / np.float32(d_head), (2, 1, 1, 1)) for x in (query, key))
    control = _score_control(kernel, kernels.mean(axis=0), degrees)
    kernel = np.tile(kernel, (2, 1, 1, 1))
    return AttentionDraws(matrix, kernel, matrix @ kernel, queries, keys, control)


def _score_control(drawn: np.ndarray, expected: np.ndarray, degrees: float) -> np.ndarray:
    """What the score moments would have to be multiplied by were the drawn tokens as unlike each other as expected.

    They are of second order in how far tokens differ, sum_t |z_t - mean z|^2, whose mean is known: a control variate
    that takes out most of the noise of a few draws.
    """
    own = np.einsum("...tt->...t", expected)
    root = np.sqrt(own[..., :, None] * own[..., None, :])
    correlation = expected / root
    shrunk = root * correlation * (1 - (1 - correlation**2) / (2 * degrees))
    differ = [np.trace(c, axis1=-2, axis2=-1) - c.mean(axis=-1).sum(axis=-1) for c in (shrunk, drawn)]
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(differ[0] > 0, differ[1].mean(axis=0) / differ[0] - 1, 0.0)
    return np.clip(1 - 2 * excess, 0.25, 4.0)[:, None, None]


def score_between(
    a: np.ndarray, b: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, query_variance: float, key_variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """(query, key) score moments between the tokens of two sequences, from their mean attention a and b [..., T, T]."""
    keys, weighted = key_variance * kernel, query_variance * kernel * gradient
    left, right = a @ kernel, kernel @ _t(b)
    query = (
        a @ (kernel * keys) @ _t(b)
        - a @ (right * (keys @ _t(b)))
        - (left * (a @ keys)) @ _t(b)
        + (left @ _t(b)) * (a @ keys @ _t(b))
    )
    carried = _t(a) @ weighted
    key = (
        (carried @ b) * kernel
        - (carried * right) @ b
        - _t(a) @ ((weighted @ b) * left)
        + _t(a) @ (weighted * (left @ _t(b))) @ b
    )
    return query * gradient, key


def uniform_attention(seq_len: int) -> np.ndarray:
    """Causal averaging float64[T, T]: row t has 1/t in its first t columns."""
    return np.tril(np.ones((seq_len, seq_len))) / np.arange(1, seq_len + 1)[:, None]


def causal_softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the columns up to the diagonal."""
    masked = np.where(np.tril(np.ones(logits.shape[-2:], dtype=bool)), logits, -np.inf)
    weights = np.exp(masked - masked.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def rotate(x: np.ndarray) -> np.ndarray:
    """RoPE of [..., T, d_head]: coordinates i and i + d_head / 2 turn by position x base^(-2i / d_head)."""
    angles = rope_angles(*x.shape[-2:])
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _wishart_root(rng: np.random.Generator, kernels: np.ndarray, degrees: float) -> np.ndarray:
    """float32 roots Z, [n, R, T, k]: Z Z^T is a Wishart draw of that many degrees around C, with C's own diagonal."""
    seq_len = kernels.shape[-1]
    diagonal = np.sqrt(np.einsum("...tt->...t", kernels))
    if degrees >= seq_len:
        factor = np.tril(rng.standard_normal(kernels.shape), -1)
        own = degrees - np.arange(seq_len)
        factor[..., np.arange(seq_len), np.arange(seq_len)] = np.sqrt(rng.chisquare(own, kernels.shape[:-1]))
    else:
        factor = rng.standard_normal((*kernels.shape[:-1], max(round(degrees), 1)))
    tokens = _root(kernels + 1e-4 * np.eye(seq_len)) @ factor
    return (tokens * (diagonal / np.linalg.norm(tokens, axis=-1))[..., None]).astype(np.float32)


def _root(kernels: np.ndarray) -> np.ndarray:
    """A matrix root; noise in the kernel can push an eigenvalue of nearly equal tokens below 0, where it is clipped."""
    try:
        return np.linalg.cholesky(kernels)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(kernels)
        return vectors * np.sqrt(np.maximum(values, 0))[..., None, :]


def _t(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


def _unit(gradient: np.ndarray) -> tuple[float, np.ndarray]:
    """A gradient kernel as a scale and float32 entries of order one, which cannot underflow."""
    scale = float(np.abs(gradient).max()) or 1.0
    return scale, (gradient / scale).astype(np.float32)
