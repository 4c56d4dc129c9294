"""A probe reads the gradient that passes a place of the network, without hooks and without a second pass.

`probe(x, reading)` is the identity on x; the cotangent of the scalar `reading` is the squared Frobenius norm of the
cotangent of x. Differentiating the loss by all readings at once gives ||dL/dx||^2 at every place in one backward pass.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def probe(x: Float[Array, "*shape"], reading: Float[Array, ""]) -> Float[Array, "*shape"]:
    """x itself; d(loss)/d(reading) is ||d(loss)/dx||_F^2."""
    return x


def _forward(x: Float[Array, "*shape"], reading: Float[Array, ""]) -> tuple[Float[Array, "*shape"], None]:
    return x, None


def _backward(_: None, gradient: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, ""]]:
    return gradient, jnp.sum(jnp.square(gradient.astype(jnp.float32)))


probe.defvjp(_forward, _backward)
