"""Multi-head causal attention with grouped or shared keys and values (Ainslie et al., arXiv 2305.13245) and RoPE."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.feed_forward import linear
from models.parameters import Attention
from theory import Architecture
from theory.positions import rope_angles


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
    outputs = {name: linear(getattr(weights, name), z) for name in ("query", "key", "value")}
    query = outputs["query"].reshape(batch, seq_len, arch.num_heads, arch.d_head)
    key = outputs["key"].reshape(batch, seq_len, arch.kv_heads, arch.d_head)
    value = outputs["value"].reshape(batch, seq_len, arch.kv_heads, arch.d_head)
    if arch.positions == "rope":
        query, key = rotate(query), rotate(key)
    query = query.reshape(batch, seq_len, arch.kv_heads, arch.num_heads // arch.kv_heads, arch.d_head)
    logits = jnp.einsum("btkgd,bskd->bkgts", query, key) / np.sqrt(arch.d_head).astype(z.dtype)
    allowed = jnp.tril(jnp.ones((seq_len, seq_len), dtype=bool))[None, None, None]
    allowed = jnp.broadcast_to(allowed, logits.shape)
    masked = jnp.where(allowed, logits, -jnp.inf)
    probabilities = jax.nn.softmax(masked, axis=-1)
    heads = jnp.einsum("bkgts,bskd->btkgd", probabilities, value).reshape(batch, seq_len, -1)
    outputs["output"] = linear(weights.output, heads)
    return outputs["output"], outputs, jnp.max(masked)
