"""Stream and gradient at every place of a model of one's own, whose loss says where they are: x = place(x).

`place` is the identity on x; the cotangent of the numbers it is given beside x is what it reads there, so that a model
may be mapped over its batch, rematerialised and compiled as its author likes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from verify.measurement.measure import QUICK, Measurement

Place = Callable[[Any], Any]


@jax.custom_vjp
def _read(x: Float[Array, "*shape"], reading: Float[Array, " 4"]) -> Float[Array, "*shape"]:
    """x itself; d(loss)/d(reading) is the sum of squares of d(loss)/dx and of x, the sum of x, and its entries."""
    return x


def _forward(x: Float[Array, "*shape"], reading: Float[Array, " 4"]) -> tuple[Any, Any]:
    return x, x


def _backward(x: Float[Array, "*shape"], gradient: Float[Array, "*shape"]) -> tuple[Any, Any]:
    squares = (jnp.sum(jnp.square(each.astype(jnp.float32))) for each in (gradient, x))
    return gradient, jnp.stack([*squares, jnp.sum(x.astype(jnp.float32)), jnp.float32(x.size)])


_read.defvjp(_forward, _backward)


def measure_places(loss: Callable[[PRNGKeyArray, Place], Any], seeds: int, first_seed: int = 0) -> Measurement:
    """As `measure`, of a loss that draws its own weights and tokens from a key; no gradients of parameters.

    It calls x = place(x) on the residual stream, first on what enters the first block, then after every addition.
    Raises ValueError where it marks fewer than two places, or one in the body of `jax.lax.scan`, which stands for many.
    """
    places = 0

    def counted(x: Any) -> Any:
        nonlocal places
        places += 1
        return x

    jax.eval_shape(lambda key: loss(key, counted), jax.random.key(0))
    if places < 2:
        raise ValueError(
            f"place: the loss marks {places} place{'s' * (places != 1)} of the stream; expected x = place(x) on what "
            "enters the first block and after every addition"
        )

    def marked(readings: Float[Array, "places 4"], key: PRNGKeyArray) -> Any:
        number = -1

        def place(x: Any) -> Any:
            nonlocal number
            number += 1
            return _read(x, readings[min(number, places - 1)])

        return loss(key, place)

    draw = jax.jit(jax.value_and_grad(marked), compiler_options=QUICK)
    zeros = jnp.zeros((places, 4), jnp.float32)
    with jax.default_matmul_precision("highest"):
        draws = [jax.device_get(draw(zeros, jax.random.key(seed))) for seed in range(first_seed, first_seed + seeds)]
    read = np.stack([reading for _, reading in draws]).astype(np.float64)
    gradient, square, total, entries = np.moveaxis(read, -1, 0)
    if np.ptp(entries) > 0:
        raise ValueError(
            f"place: the loss marks places of {entries.min():.0f} to {entries.max():.0f} numbers; expected the whole "
            "stream at each: not in the body of jax.lax.scan, but in a Python loop over the blocks"
        )
    norm = np.sqrt(gradient)
    std = np.sqrt(np.maximum(square / entries - (total / entries) ** 2, 0))
    return Measurement(std, norm, norm[:, 0] / norm[:, -1], {}, np.array([value for value, _ in draws]))
