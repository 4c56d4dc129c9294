"""Causal attention at initialisation as a random matrix, drawn head by head without a model.

Given the kernel C of one network's tokens, queries, keys and values are Gaussian with C as their covariance in each of
d_head coordinates, so that A = softmax(q k^T / sqrt(d_head)) and the outputs o = A v follow. The value path carries
gradients as A^T G A; the score path is the heads' own backward pass, for gradients drawn from their kernel.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from theory.attention_scheme import ATTENTIONS, AttentionScheme
from theory.gram import Draws
from theory.positions import rope_angles
from theory.stream import norm_mean, taken


@dataclass(frozen=True)
class Variant:
    """What the heads do beside softmax(q k^T / sqrt(d_head)) v.

    rope: queries and keys are turned by their positions. slopes: ALiBi's, of the heads drawn. centred, epsilon: of the
    norms that the scheme puts into the heads.
    """

    scheme: AttentionScheme = ATTENTIONS["standard"]
    rope: bool = False
    slopes: np.ndarray | None = None
    centred: bool = True
    epsilon: float = 0.0


@dataclass(frozen=True)
class Weights:
    """[n, heads, sequences, T, T]: softmax, the weights A that values get, and slope, d(logit) / d(q.k / sqrt d)."""

    softmax: np.ndarray
    attention: np.ndarray
    slope: np.ndarray


@dataclass(frozen=True)
class Heads:
    """Some heads of n networks: queries, keys and values over sqrt(d_head), [n, heads, sequences, T, d_head].

    They are as they enter the softmax. divisors: what their norms have divided them by, in that order, each
    [n, heads, sequences, T, 1] or None.
    """

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    variant: Variant
    divisors: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None] = (None, None, None)

    @staticmethod
    def draw(
        draws: Draws,
        tokens: np.ndarray,
        sequences: int,
        shape: tuple[int, int, int],
        variances: tuple[float, float, float],
        variant: Variant,
    ) -> "Heads":
        """Heads for tokens with that root [n, S, k] of their kernel.

        shape: groups, heads a group, d_head; a group has one key and one value. variances: of a coordinate of q, k and
        v for a token of unit variance, d_model times the weights' variance. A mirror image has -q.
        """
        n, _, inner = tokens.shape
        groups, group, d_head = shape
        found, divisors = list[np.ndarray](), list[np.ndarray | None]()
        for name, count, variance, draw in zip(
            ("query", "key", "value"),
            (groups * group, groups, groups),
            variances,
            (draws.odd, draws.even, draws.even),
            strict=True,
        ):
            weights = draw(n, inner, count * d_head)
            weights *= np.float32(np.sqrt(variance / d_head))
            x, divisor = _split(tokens @ weights, sequences, count), None
            if name in variant.scheme.normed:
                if variant.centred:
                    x = x - x.mean(axis=-1, keepdims=True)
                divisor = np.sqrt((x**2).sum(axis=-1, keepdims=True) + np.float32(variant.epsilon))
                x = x / divisor
            x = rotate(x) if variant.rope and name != "value" else x
            found.append(x if name == "query" else np.repeat(x, group, axis=1))
            divisors.append(divisor if divisor is None or name == "query" else np.repeat(divisor, group, axis=1))
        return Heads(found[0], found[1], found[2], variant, (divisors[0], divisors[1], divisors[2]))

    def weights(self) -> Weights:
        """Softmax and what the scheme makes of it."""
        scheme = self.variant.scheme
        width = self.queries.shape[-1]
        temperature = scheme.temperature_at(width)
        slope = np.array(temperature, np.float32)
        logits = self.queries @ self.keys.mT * np.float32(np.sqrt(width) * temperature)
        if scheme.cap is not None:
            bent = np.tanh(logits / np.float32(scheme.cap))
            logits, slope = bent * np.float32(scheme.cap), slope * (1 - bent**2)
        if self.variant.slopes is not None:
            positions = np.arange(logits.shape[-1], dtype=np.float32)
            distance = positions[:, None] - positions[None, :]
            logits = logits - self.variant.slopes.astype(np.float32)[:, None, None, None] * distance
        softmax = causal_softmax(logits)
        if scheme.clip is None:
            return Weights(softmax, softmax, slope)
        low, high = (np.float32(end) for end in scheme.clip)
        return Weights(softmax, np.clip((high - low) * softmax + low, 0, 1), slope)

    def score_gradients(
        self,
        draws: Draws,
        weights: Weights,
        gradients: np.ndarray,
        lost: np.ndarray,
        num_heads: int,
        mean: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Kernels of dL/dq and dL/dk, before norm and RoPE and in the mean over heads, float32[n, S, S] each.

        weights: of these heads. gradients: root [n, S, k] of the kernel of dL/do. lost: [n, S], which share of its
        variance dL/do lacks along the token's own outputs, of all `num_heads` heads together. The gradient of a key
        that several heads have is the sum of theirs, and so is its kernel, as their dL/do are independent. mean: B of
        dL/do = sum_u B_tu o_u / sqrt(d_head) beside this. A few networks of narrow models get several draws of dL/do.
        """
        n, heads, sequences, seq_len, d_head = self.values.shape
        outputs = weights.attention @ self.values
        lost = lost.reshape(n, 1, sequences, seq_len, 1)
        inward = taken(lost * np.float32(heads / num_heads)) * outputs
        inward /= np.maximum((outputs**2).sum(axis=(1, 4), keepdims=True), np.finfo(np.float32).tiny)
        repeats = int(np.clip(min(2**12 // n, 2**18 // (num_heads * d_head)) // (heads * d_head), 1, 8))
        share, steady = np.float32(repeats * heads) ** -0.5, 0.0 if mean is None else mean @ outputs
        at_queries, at_keys = np.zeros_like(gradients[..., :1]), np.zeros_like(gradients[..., :1])
        for _ in range(repeats):
            g = _split(gradients @ draws.own(n, gradients.shape[-1], heads * d_head), sequences, heads)
            g = (g - (g * outputs).sum(axis=(1, 4), keepdims=True) * inward + steady) * share
            scores = self._at_logits(weights, g @ self.values.mT)
            queries = flat(self._before(0, scores @ self.keys))
            keys = flat(self._before(1, scores.mT @ self.queries))
            at_queries, at_keys = at_queries + queries @ queries.mT, at_keys + keys @ keys.mT
        return at_queries, at_keys

    def along_scores(self, weights: Weights, mean: np.ndarray) -> np.ndarray:
        """dL/dq_t . q_t + dL/dk_t . k_t of dL/do = sum_u mean_tu o_u, before norm and RoPE, in the mean over heads.

        [n, 1, sequences, T, 1]. It is what a mean gradient through the scores has along the tokens, as W_Q and W_K are
        known along them.
        """
        if self.divisors[0] is not None:  # a norm hides their lengths
            return np.zeros_like(mean[..., :1])
        scores = self._at_logits(weights, mean @ (weights.attention @ self.values) @ self.values.mT)
        met = (self.queries @ self.keys.mT) * scores
        along = met.sum(axis=-1) + met.sum(axis=-2)
        return along.mean(axis=1, keepdims=True)[..., None]

    def _at_logits(self, weights: Weights, at_weights: np.ndarray) -> np.ndarray:
        """dL/d(q.k / sqrt d) from dL/dA."""
        if self.variant.scheme.clip is not None:
            low, high = self.variant.scheme.clip
            inside = (weights.attention > 0) & (weights.attention < 1)
            at_weights = at_weights * inside * np.float32(high - low)
        at_weights = at_weights - (weights.softmax * at_weights).sum(axis=-1, keepdims=True)
        return weights.softmax * at_weights * weights.slope

    def _before(self, which: int, rows: np.ndarray) -> np.ndarray:
        """dL/d(projection) from dL/dq (which = 0) or dL/dk (1) as they enter the softmax."""
        rows, divisor = rotate(rows, -1) if self.variant.rope else rows, self.divisors[which]
        if divisor is None:
            return rows
        x = (self.queries, self.keys)[which]
        x = rotate(x, -1) if self.variant.rope else x
        if self.variant.centred:
            rows = rows - rows.mean(axis=-1, keepdims=True)
        return (rows - x * (x * rows).sum(axis=-1, keepdims=True)) / divisor

    def projected_values(self) -> np.ndarray:
        """Values before their norm, or as they are."""
        divisor = self.divisors[2]
        return self.values if divisor is None else self.values * divisor

    def before_norm(self, mean: np.ndarray) -> np.ndarray:
        """A mean gradient along the values of each head, brought back before their norm; see `norm_mean`."""
        divisor = self.divisors[2]
        return mean if divisor is None else norm_mean(mean, self.values @ self.values.mT, divisor)

    def value_jacobian(self) -> np.ndarray | float:
        """What the values' norm makes of the kernel of dL/dv, in the mean over heads: a factor [n, S, S], or 1."""
        divisor = self.divisors[2]
        if divisor is None:
            return 1.0
        n, heads, _, _, d_head = self.values.shape
        values, divisor = self.values.reshape(n, heads, -1, d_head), divisor.reshape(n, heads, -1, 1)
        kernel = values @ values.mT
        retained = np.einsum("nhss->nhs", kernel)
        lost = retained[..., :, None] + retained[..., None, :] - kernel**2 + np.float32(self.variant.centred)
        return ((1 - lost / d_head) / (divisor * divisor.mT)).mean(axis=1)


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
