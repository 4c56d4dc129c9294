"""The linear layer that all sub-layers share, and the matrix it acts with."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.parameters import Linear

Tree = TypeVar("Tree")
POWER_ITERATIONS = 64


def linear(layer: Linear, x: Float[Array, "batch seq fan_in"]) -> Float[Array, "batch seq fan_out"]:
    """x W + b."""
    y = product(x, matrix(layer))
    return y if layer.bias is None else y + layer.bias[None, None, :]


def product(
    x: Float[Array, "batch seq fan_in"], weight: Float[Array, "fan_in fan_out"]
) -> Float[Array, "batch seq fan_out"]:
    """x W, all sequences' tokens as rows of one matrix, so that XLA needs no transposed copies for W's gradient.

    On a CPU a step of a narrow model takes a quarter less time than with the sequences as an axis of their own.
    """
    batch, seq_len, fan_in = x.shape
    return (x.reshape(batch * seq_len, fan_in) @ weight).reshape(batch, seq_len, -1)


def matrix(layer: Linear) -> Float[Array, "fan_in fan_out"]:
    """The matrix that inputs are multiplied by: the weight, or under sigma-reparametrisation gain weight / ‖weight‖.

    ‖weight‖ = u . weight v, u and v its first singular vectors, found anew by power iteration and held constant for the
    gradient (Zhai et al., arXiv 2303.06296, who keep u and v from step to step and iterate once). Of Gaussian matrices
    of up to 512 rows the norm comes out 0.3 % low on average.
    """
    if layer.gain is None:
        return layer.weight
    norm = _spectral_norm(layer.weight.astype(np.promote_types(layer.weight.dtype, np.float32)))
    return layer.weight * (layer.gain / norm.astype(layer.gain.dtype))


def _spectral_norm(weight: Float[Array, "fan_in fan_out"]) -> Float[Array, ""]:
    fixed = jax.lax.stop_gradient(weight)
    start = jax.random.normal(jax.random.key(0), fixed.shape[1:], fixed.dtype)

    def unit(x: Float[Array, " size"]) -> Float[Array, " size"]:
        return x / jnp.linalg.norm(x)

    right = jax.lax.fori_loop(0, POWER_ITERATIONS, lambda _, v: unit(fixed.T @ unit(fixed @ v)), unit(start))
    return unit(fixed @ right) @ (weight @ right)


def as_matrices(params: Tree) -> Tree:
    """Parameters of the same function with every block's matrices written out, none divided by its norm any more."""

    def written_out(node: Linear | Array) -> Linear | Array:
        if not isinstance(node, Linear) or node.gain is None:
            return node
        return Linear(jax.vmap(matrix)(node), node.bias)

    return jax.tree.map(written_out, params, is_leaf=lambda node: isinstance(node, Linear))
