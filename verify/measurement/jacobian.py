"""Spectral norms of the sub-layers' Jacobians, each the map of all tokens of a sequence at once, by power iteration."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

import models
from models.factors import BlockFactors, factors_of
from models.parameters import Block, Transformer
from models.transformer import add, embed
from theory import Architecture
from theory.block import block as block_scheme


def sublayer_jacobian_norms(
    arch: Architecture, seeds: int = 2, iterations: int = 100, first_seed: int = 0, blocks: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(norms, change) float64[seeds, S]: ||d(sub-layer)/dx||_2, shortcut included, on a sequence of random tokens.

    blocks: only that many from the input. change: relative change of the norm in the last iteration; power iteration
    converges from below.
    """
    with jax.default_matmul_precision("highest"):
        draws = [
            jax.device_get(_norms(jax.random.key(seed), arch, iterations, blocks))
            for seed in range(first_seed, first_seed + seeds)
        ]
    norms = np.array(draws, dtype=np.float64)
    return norms[..., -1], np.abs(norms[..., -1] / norms[..., -2] - 1)


@partial(jax.jit, static_argnames=("arch", "iterations", "blocks"))
def _norms(key: PRNGKeyArray, arch: Architecture, iterations: int, blocks: int | None) -> Float[Array, "sublayers 2"]:
    weights_key, tokens_key, start_key = jax.random.split(key, 3)
    params = models.init(weights_key, arch)
    tokens: Int[Array, "1 seq"] = jax.random.randint(tokens_key, (1, arch.seq_len), 0, arch.vocab_size)
    start = jax.random.normal(start_key, (arch.seq_len, arch.d_model))
    return addition_norms(params, tokens, start, arch, iterations, blocks)[1][:, 0]


def addition_norms(
    params: Transformer,
    tokens: Int[Array, "batch seq"],
    start: Float[Array, "seq d"],
    arch: Architecture,
    iterations: int,
    blocks: int | None = None,
) -> tuple[Float[Array, "sublayers batch seq d"], Float[Array, "sublayers batch 2"]]:
    """The stream that enters each residual addition, and the norm of the addition's Jacobian for every sequence.

    The norm after the last two iterations of the power method from `start`. blocks: only that many from the input.
    """

    def norm(sublayer: Callable[..., Array], x: Float[Array, "seq d"]) -> Float[Array, " 2"]:
        _, forward = jax.linearize(sublayer, x)
        backward = jax.linear_transpose(forward, x)

        def iterate(direction: Float[Array, "seq d"], _: None) -> tuple[Float[Array, "seq d"], Float[Array, ""]]:
            (image,) = backward(forward(direction))
            size = jnp.linalg.norm(image.reshape(-1))
            return image / size, jnp.sqrt(size)

        _, sizes = jax.lax.scan(iterate, start / jnp.linalg.norm(start.reshape(-1)), None, length=iterations)
        return sizes[-2:]

    additions = block_scheme(arch.block).additions

    def block(
        x: Float[Array, "batch seq d"], layer: tuple[Block, BlockFactors]
    ) -> tuple[
        Float[Array, "batch seq d"], tuple[Float[Array, "additions batch seq d"], Float[Array, "additions batch 2"]]
    ]:
        weights, factors = layer
        streams, sizes = [], []
        for parts in additions:

            def addition(x: Float[Array, "seq d"], parts: tuple[str, ...] = parts) -> Float[Array, "seq d"]:
                return add(weights, x[None], arch, factors, parts)[0][0]

            streams.append(x)
            sizes.append(jax.vmap(partial(norm, addition))(x))
            x = jax.vmap(addition)(x)
        return x, (jnp.stack(streams), jnp.stack(sizes))

    first_blocks = jax.tree.map(lambda leaf: leaf[:blocks], (params.blocks, factors_of(arch, start.dtype).blocks))
    _, (streams, sizes) = jax.lax.scan(block, embed(params, tokens, arch), first_blocks)
    return streams.reshape(-1, *streams.shape[2:]), sizes.reshape(-1, *sizes.shape[2:])
