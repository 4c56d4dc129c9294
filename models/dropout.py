"""Dropout (Srivastava et al. 2014): what stays is scaled up, so that nothing is to be done when it is off."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def dropout(key: PRNGKeyArray | None, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Each entry 0 with probability `rate`, else x / (1 - rate); x itself without a key or a rate."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))
