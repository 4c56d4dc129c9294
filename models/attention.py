"""Multi-head causal attention with grouped or shared keys and values (Ainslie et al., arXiv 2305.13245) and RoPE.

Variants by `theory.attention_scheme`, ALiBi by Press et al., arXiv 2108.12409.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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


def attend(
    weights: Attention, z: Float[Array, "batch seq d"], arch: Architecture
) -> tuple[Float[Array, "batch seq d"], dict[str, Float[Array, "batch seq _"]], Float[Array, ""]]:
    """Attention's output, the output of each of its linear layers by name, and the largest logit that is not masked."""
    batch, seq_len, _ = z.shape
    scheme = attention_scheme(arch.attention)
    outputs = {name: linear(getattr(weights, name), z) for name in ("query", "key", "value")}

    def heads(name: str, norm: Norm | None) -> Float[Array, "batch seq heads d_head"]:
        split = outputs[name].reshape(batch, seq_len, -1, arch.d_head)
        return split if norm is None else normalize(norm, split, arch)

    query, key = heads("query", weights.query_norm), heads("key", weights.key_norm)
    value = heads("value", weights.value_norm)
    if arch.positions == "rope":
        query, key = rotate(query), rotate(key)
    query = query.reshape(batch, seq_len, arch.kv_heads, arch.num_heads // arch.kv_heads, arch.d_head)
    logits = jnp.einsum("btkgd,bskd->bkgts", query, key) * (scheme.temperature / np.sqrt(arch.d_head)).astype(z.dtype)
    if scheme.cap is not None:
        logits = scheme.cap * jnp.tanh(logits / scheme.cap)
    if arch.positions == "alibi":
        logits = logits + _alibi(arch, seq_len).astype(z.dtype)
    allowed = jnp.tril(jnp.ones((seq_len, seq_len), dtype=bool))[None, None, None]
    allowed = jnp.broadcast_to(allowed, logits.shape)
    masked = jnp.where(allowed, logits, -jnp.inf)
    probabilities = jax.nn.softmax(masked, axis=-1)
    if scheme.clip is not None:
        low, high = scheme.clip
        probabilities = jnp.clip((high - low) * probabilities + low, 0, 1)
    mixed = jnp.einsum("bkgts,bskd->btkgd", probabilities, value).reshape(batch, seq_len, -1)
    if weights.inner_norm is not None:
        mixed = normalize(weights.inner_norm, mixed, arch)
    outputs["output"] = linear(weights.output, mixed)
    return outputs["output"], outputs, jnp.max(masked)


def _alibi(arch: Architecture, seq_len: int) -> Float[Array, "1 kv_heads group seq seq"]:
    """Logit biases -slope x distance, key and value heads by queries of each."""
    distance = np.arange(seq_len)[:, None] - np.arange(seq_len)[None, :]
    bias = -alibi_slopes(arch.num_heads)[:, None, None] * distance
    return jnp.asarray(bias.reshape(1, arch.kv_heads, -1, seq_len, seq_len), jnp.float32)
