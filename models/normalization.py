"""LayerNorm (Ba et al., arXiv 1607.06450) and RMSNorm (Zhang and Sennrich, arXiv 1910.07467)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.parameters import Norm
from theory import Architecture


def normalize(norm: Norm, x: Float[Array, "*tokens width"], arch: Architecture) -> Float[Array, "*tokens width"]:
    """The norm of every token, or of every token's head.

    By the variance (layer_norm) or the mean square (rms_norm) plus `arch.norm_epsilon`, in float32 or wider.
    """
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    if arch.norm == "layer_norm":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    z = wide * jax.lax.rsqrt(mean_square + arch.norm_epsilon) * jnp.broadcast_to(norm.scale, x.shape).astype(wide.dtype)
    z = z if norm.bias is None else z + jnp.broadcast_to(norm.bias, x.shape).astype(wide.dtype)
    return z.astype(x.dtype)
