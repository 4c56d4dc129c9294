"""The parameter tree: nested frozen dataclasses, each a JAX pytree; a block's leaves are stacked over the layers."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm; `bias` only where the architecture has biases and the norm is a LayerNorm."""

    scale: Float[Array, "*layers width"]
    bias: Float[Array, "*layers width"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linear:
    """y = x weight + bias; with a `gain`, y = x (gain weight / ‖weight‖) + bias (sigma-reparametrisation)."""

    weight: Float[Array, "*layers fan_in fan_out"]
    bias: Float[Array, "*layers fan_out"] | None
    gain: Float[Array, "*layers"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """Query, key, value and output projections; heads lie one after the other in the output of the first three.

    query_norm, key_norm, value_norm: shared by the heads, d_head wide. inner_norm: before the output projection.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    value_norm: Norm | None
    inner_norm: Norm | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeedForward:
    """W_1 (up), W_2 (down), W_g (gate) of a gated unit; inner_norm: before W_2, d_ff wide."""

    up: Linear
    down: Linear
    gate: Linear | None
    inner_norm: Norm | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Residual:
    """How one sub-layer is added to the stream: the norms it has (`theory.block`), and its factor where it is learned.

    The sub-layers of a parallel block read the first one's `pre`.
    """

    pre: Norm | None
    output: Norm | None
    post: Norm | None
    branch: Float[Array, "*layers d_model_or_1"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """Two sub-layers and how each is added."""

    attention: Attention
    attention_residual: Residual
    feed_forward: FeedForward
    feed_forward_residual: Residual

    @property
    def matrices(self) -> dict[str, Float[Array, "*layers fan_in fan_out"]]:
        """Every weight matrix by its kind, in the order of `Architecture.matrices`."""
        parts = {"attention": self.attention, "feed_forward": self.feed_forward}
        return {
            f"{part}.{name}": value.weight
            for part, weights in parts.items()
            for name, value in vars(weights).items()
            if isinstance(value, Linear)
        }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transformer:
    """A decoder.

    `head` is None where the head is the embedding table, `position` where positions are not learned, `final_norm` where
    the arrangement has none.
    """

    embedding: Float[Array, "vocab d_model"]
    embedding_norm: Norm | None
    position: Float[Array, "seq d_model"] | None
    blocks: Block
    final_norm: Norm | None
    head: Linear | None

    @property
    def matrices(self) -> dict[str, Float[Array, "layers rows columns"]]:
        """Every weight matrix by its kind: a block's for all layers, tables and head as one layer."""
        tables = {
            "embedding": self.embedding,
            "position": self.position,
            "head": None if self.head is None else self.head.weight,
        }
        return self.blocks.matrices | {kind: table[None] for kind, table in tables.items() if table is not None}
