"""Weights sampled from the symbolic rules of `theory.initialization`: independent, mean zero, Gaussian or cut off."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from models.parameters import Attention, Block, FeedForward, Linear, Norm, Residual, Transformer
from theory import Architecture
from theory.activation import activation
from theory.attention_scheme import attention_scheme
from theory.block import block
from theory.embedding import embedding
from theory.initialization import MATRIX_KINDS, truncated_std

Stds = dict[str, Float[Array, "*parts layers"]]
"""By kind of matrix, the standard deviation in every layer; a table has one."""


def stds_of(arch: Architecture, dtype: DTypeLike = jnp.float32) -> Stds:
    """Those of an architecture."""
    return {kind: jnp.asarray(arch.std(kind), dtype) for kind in MATRIX_KINDS}


def init(
    key: PRNGKeyArray, arch: Architecture, dtype: DTypeLike = jnp.float32, stds: Stds | None = None
) -> Transformer:
    """Parameters of `arch`. Each kind of matrix has a key of its own, so switching one off leaves the others' draws.

    Norm scales start at 1, biases at 0, learned factors of the branches where the block says. stds: in place of the
    architecture's own.
    """
    stds = stds_of(arch, dtype) if stds is None else stds

    def sample(kind: str) -> Float[Array, "..."]:
        std = stds[kind]
        kind_key = jax.random.fold_in(key, MATRIX_KINDS.index(kind))
        shape: tuple[int, ...] = arch.shape(kind)
        std = std[:, None, None] if "." in kind else std[0]
        if "." in kind:
            shape = (arch.num_layers, *shape)
        cutoff = arch.truncation(kind)
        if cutoff is None:
            return jax.random.normal(kind_key, shape, dtype) * std
        nominal = std / float(truncated_std(cutoff))
        return jax.random.truncated_normal(kind_key, -cutoff, cutoff, shape, dtype) * nominal

    return assemble(arch, sample, dtype)


def assemble(
    arch: Architecture, matrix: Callable[[str], Float[Array, "..."]], dtype: DTypeLike = jnp.float32
) -> Transformer:
    """Parameters of `arch` whose matrices are `matrix(kind)`, all else as `init` has it.

    matrix: of a kind within a block, all layers' [num_layers, fan_in, fan_out]; of a table or the head, one.
    """

    def linear(kind: str) -> Linear:
        weight = matrix(kind)
        bias = jnp.zeros(weight.shape[:-2] + weight.shape[-1:], dtype) if arch.bias else None
        return Linear(weight, bias, jnp.ones(weight.shape[:-2], dtype) if scheme.spectral else None)

    def norm(*shape: int) -> Norm:
        has_bias = arch.bias and arch.norm == "layer_norm"
        return Norm(jnp.ones(shape, dtype), jnp.zeros(shape, dtype) if has_bias else None)

    def norms(there: bool, width: int) -> Norm | None:
        return norm(arch.num_layers, width) if there else None

    arrangement, scheme = block(arch.block), attention_scheme(arch.attention)

    def residual(part: str) -> Residual:
        pre, output, post = (arch.normed(where, part) for where in ("pre", "output", "post"))
        shares = arrangement.parallel and part == "feed_forward" and arch.normed("pre", "attention")
        branch = None
        if arrangement.learned is not None:
            width = 1 if arrangement.learned == "scalar" else arch.d_model
            branch = jnp.asarray(arch.factor("branch"), dtype)[:, None] * jnp.ones((1, width), dtype)
        return Residual(
            pre=norms(pre and not shares, arch.d_model),
            output=norms(output, arch.d_model),
            post=norms(post, arch.d_model),
            branch=branch,
        )

    blocks = Block(
        attention=Attention(
            query=linear("attention.query"),
            key=linear("attention.key"),
            value=linear("attention.value"),
            output=linear("attention.output"),
            query_norm=norms("query" in scheme.normed, arch.d_head),
            key_norm=norms("key" in scheme.normed, arch.d_head),
            value_norm=norms("value" in scheme.normed, arch.d_head),
            inner_norm=norms(arrangement.inner_norm, arch.d_model),
        ),
        attention_residual=residual("attention"),
        feed_forward=FeedForward(
            up=linear("feed_forward.up"),
            down=linear("feed_forward.down"),
            gate=linear("feed_forward.gate") if activation(arch.activation).gated else None,
            inner_norm=norms(arrangement.inner_norm, arch.ff_width),
        ),
        feed_forward_residual=residual("feed_forward"),
    )
    return Transformer(
        embedding=matrix("embedding"),
        embedding_norm=norm(arch.d_model) if embedding(arch.embedding).layer_norm else None,
        position=matrix("position") if arch.positions == "learned" else None,
        blocks=blocks,
        final_norm=norm(arch.d_model) if arrangement.final_norm else None,
        head=None if arch.tied else Linear(matrix("head"), None),
    )
