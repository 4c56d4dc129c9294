"""Weights sampled from the symbolic rules of `theory.initialization`: Gaussian, independent, mean zero."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from models.parameters import Attention, Block, FeedForward, Linear, Norm, Transformer
from theory import Architecture
from theory.architecture import BLOCK_MATRICES
from theory.embedding import embedding
from theory.initialization import MATRIX_KINDS


def init(key: PRNGKeyArray, arch: Architecture, dtype: DTypeLike = jnp.float32) -> Transformer:
    """Parameters of `arch`. Each kind of matrix has a key of its own, so switching one off leaves the others' draws.

    Norm scales start at 1, biases at 0.
    """

    def sample(kind: str) -> Float[Array, "..."]:
        std = jnp.asarray(arch.std(kind), dtype)
        kind_key = jax.random.fold_in(key, MATRIX_KINDS.index(kind))
        if kind in BLOCK_MATRICES:
            return jax.random.normal(kind_key, (arch.num_layers, *arch.shape(kind)), dtype) * std[:, None, None]
        return jax.random.normal(kind_key, arch.shape(kind), dtype) * std[0]

    def linear(kind: str) -> Linear:
        weight = sample(kind)
        return Linear(weight, jnp.zeros(weight.shape[:-2] + weight.shape[-1:], dtype) if arch.bias else None)

    def norm(*layers: int) -> Norm:
        shape = (*layers, arch.d_model)
        has_bias = arch.bias and arch.norm == "layer_norm"
        return Norm(jnp.ones(shape, dtype), jnp.zeros(shape, dtype) if has_bias else None)

    blocks = Block(
        attention_norm=norm(arch.num_layers),
        attention=Attention(*(linear(f"attention.{name}") for name in ("query", "key", "value", "output"))),
        feed_forward_norm=norm(arch.num_layers),
        feed_forward=FeedForward(*(linear(f"feed_forward.{name}") for name in ("up", "down"))),
    )
    return Transformer(
        embedding=sample("embedding"),
        embedding_norm=norm() if embedding(arch.embedding).layer_norm else None,
        position=sample("position") if arch.positions == "learned" else None,
        blocks=blocks,
        final_norm=norm(),
        head=None if arch.tied else Linear(sample("head"), None),
    )
