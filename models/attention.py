"""Multi-head causal attention with grouped or shared keys and values (Ainslie et al., arXiv 2305.13245) and RoPE.

Variants by `theory.attention_scheme`, ALiBi by Press et al., arXiv 2108.12409.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from models.dropout import dropout
from models.linear import linear
from models.normalization import normalize
from models.parameters import Attention, Norm
from theory import Architecture
from theory.attention_scheme import attention_scheme
from theory.positions import alibi_slopes, rope_angles


def rotate(x: Float[Array, "batch seq heads d_head"]) -> Float[Array, "batch seq heads d_head"]:
    """RoPE (Su et al., arXiv 2104.09864): coordinates i and i + d_head / 2 turn by position x base^(-2i / d_head)."""
    seq_len, half = x.shape[1], x.shape[3] // 2
    angles = rope_angles(seq_len, x.shape[3])
    cos = jnp.asarray(np.cos(angles)[None, :, None, :], dtype=x.dtype)
    sin = jnp.asarray(np.sin(angles)[None, :, None, :], dtype=x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionSeen:
    """What attention saw, by head where there is an axis; without gradients.

    largest_logit: over unmasked pairs, before the softmax. entropy: of a query's softmax in nats, mean over queries.
    query_norm, key_norm: root mean square length of a head's vector, as it enters the logits.
    """

    largest_logit: Float[Array, "*layers heads"]
    entropy: Float[Array, "*layers heads"]
    query_norm: Float[Array, "*layers"]
    key_norm: Float[Array, "*layers"]


def attend(
    weights: Attention,
    z: Float[Array, "batch seq d"],
    arch: Architecture,
    forced_logit: float | Float[Array, ""] | None = None,
    rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "batch seq d"], dict[str, Float[Array, "batch seq _"]], AttentionSeen]:
    """Attention's output, the output of each of its linear layers by name, and what it saw.

    forced_logit: every head's logits are scaled, by a factor that takes no gradient, so that the largest absolute one
    is that (Wortsman et al., arXiv 2309.14322, figure 10 [M]). rate, key: of dropout on the softmax's probabilities.
    """
    batch, seq_len, _ = z.shape
    scheme = attention_scheme(arch.attention)
    outputs = {name: linear(getattr(weights, name), z) for name in ("query", "key", "value")}

    def heads(name: str, norm: Norm | None) -> Float[Array, "batch seq heads d_head"]:
        split = outputs[name].reshape(batch, seq_len, -1, arch.d_head)
        return split if norm is None else normalize(norm, split, arch)

    query, keys = heads("query", weights.query_norm), heads("key", weights.key_norm)
    value = heads("value", weights.value_norm)
    if arch.positions == "rope":
        query, keys = rotate(query), rotate(keys)
    lengths = _length(query), _length(keys)
    query = query.reshape(batch, seq_len, arch.kv_heads, arch.num_heads // arch.kv_heads, arch.d_head)
    logits = jnp.einsum("btkgd,bskd->bkgts", query, keys) * (
        scheme.temperature_at(arch.d_head) / np.sqrt(arch.d_head)
    ).astype(z.dtype)
    logits = logits.astype(np.promote_types(z.dtype, np.float32))
    if scheme.cap is not None:
        logits = scheme.cap * jnp.tanh(logits / scheme.cap)
    if arch.positions == "alibi":
        logits = logits + _alibi(arch, seq_len).astype(logits.dtype)
    allowed = jnp.tril(jnp.ones((seq_len, seq_len), dtype=bool))[None, None, None]
    allowed = jnp.broadcast_to(allowed, logits.shape)
    if forced_logit is not None:
        largest = jnp.max(jnp.where(allowed, jnp.abs(logits), 0), axis=(0, 3, 4), keepdims=True)
        logits = logits * jax.lax.stop_gradient(jnp.asarray(forced_logit, logits.dtype) / jnp.maximum(largest, 1e-30))
    masked = jnp.where(allowed, logits, -jnp.inf)
    probabilities = jax.nn.softmax(masked, axis=-1)
    seen = AttentionSeen(jnp.max(masked, axis=(0, 3, 4)).reshape(-1), _entropy(masked, probabilities), *lengths)
    if scheme.clip is not None:
        low, high = scheme.clip
        probabilities = jnp.clip((high - low) * probabilities + low, 0, 1)
    probabilities = dropout(key, probabilities.astype(z.dtype), rate)
    mixed = jnp.einsum("bkgts,bskd->btkgd", probabilities, value).reshape(batch, seq_len, -1)
    if weights.inner_norm is not None:
        mixed = normalize(weights.inner_norm, mixed, arch)
    outputs["output"] = linear(weights.output, mixed)
    return outputs["output"], outputs, jax.lax.stop_gradient(seen)


def _length(x: Float[Array, "batch seq heads d_head"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)))


def _entropy(
    masked: Float[Array, "batch kv_heads group seq seq"], probabilities: Float[Array, "batch kv_heads group seq seq"]
) -> Float[Array, " heads"]:
    """log Z less the mean logit; what is masked has no probability."""
    mean_logit = jnp.sum(jnp.where(probabilities > 0, probabilities * masked, 0), axis=-1)
    return jnp.mean(jax.nn.logsumexp(masked, axis=-1) - mean_logit, axis=(0, 3)).reshape(-1)


def _alibi(arch: Architecture, seq_len: int) -> Float[Array, "1 kv_heads group seq seq"]:
    """Logit biases -slope x distance, key and value heads by queries of each."""
    distance = np.arange(seq_len)[:, None] - np.arange(seq_len)[None, :]
    bias = -alibi_slopes(arch.num_heads)[:, None, None] * distance
    return jnp.asarray(bias.reshape(1, arch.kv_heads, -1, seq_len, seq_len), jnp.float32)
