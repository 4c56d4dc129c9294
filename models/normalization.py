"""LayerNorm (Ba et al., arXiv 1607.06450) and RMSNorm (Zhang and Sennrich, arXiv 1910.07467)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.parameters import Norm
from theory import Architecture


def normalize(norm: Norm, x: Float[Array, "*tokens width"], arch: Architecture) -> Float[Array, "*tokens width"]:
    """The norm of every token, or of every token's head.

    By the variance (layer_norm) or the mean square (rms_norm) plus `arch.norm_epsilon`.
    """
    if arch.norm == "layer_norm":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    z = x * jax.lax.rsqrt(mean_square + arch.norm_epsilon) * jnp.broadcast_to(norm.scale, x.shape)
    return z if norm.bias is None else z + jnp.broadcast_to(norm.bias, x.shape)
