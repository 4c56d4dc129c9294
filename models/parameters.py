"""The parameter tree: nested frozen dataclasses, each a JAX pytree; a block's leaves are stacked over the layers."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm; `bias` only where the architecture has biases and the norm is a LayerNorm."""

    scale: Float[Array, "*layers d_model"]
    bias: Float[Array, "*layers d_model"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linear:
    """y = x weight + bias."""

    weight: Float[Array, "*layers fan_in fan_out"]
    bias: Float[Array, "*layers fan_out"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """Query, key, value and output projections; heads lie one after the other in the output of the first three."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeedForward:
    """W_1 (up) and W_2 (down)."""

    up: Linear
    down: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """One pre-LN block: two norms, two sub-layers."""

    attention_norm: Norm
    attention: Attention
    feed_forward_norm: Norm
    feed_forward: FeedForward


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transformer:
    """A decoder. `head` is None where the head is the embedding table, `position` where positions are not learned."""

    embedding: Float[Array, "vocab d_model"]
    embedding_norm: Norm | None
    position: Float[Array, "seq d_model"] | None
    blocks: Block
    final_norm: Norm
    head: Linear | None
