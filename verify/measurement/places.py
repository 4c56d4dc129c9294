"""Stream and gradient at every place of a model of one's own, whose loss says where they are: x = place(x).

`place` is the identity on x; the cotangent of the numbers it is given beside x is what it reads there, so that a model
may be mapped over its batch, rematerialised and compiled as its author likes, as long as every place is run once.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from verify.measurement.measure import QUICK, Measurement

Place = Callable[[Any], Any]
_NAME = "place {} of the stream"


class PlaceError(ValueError):
    """A loss does not mark the places of its stream once each."""


@jax.custom_vjp
def _tap(x: Float[Array, "*shape"], reading: Float[Array, " 4"]) -> Float[Array, "*shape"]:
    """x itself; d(loss)/d(reading) is the sum of squares of d(loss)/dx and of x, the sum of x, and its entries."""
    return x


def _forward(x: Float[Array, "*shape"], reading: Float[Array, " 4"]) -> tuple[Any, Any]:
    return x, x


def _backward(x: Float[Array, "*shape"], gradient: Float[Array, "*shape"]) -> tuple[Any, Any]:
    squares = (jnp.sum(jnp.square(each.astype(jnp.float32))) for each in (gradient, x))
    return gradient, jnp.stack([*squares, jnp.sum(x.astype(jnp.float32)), jnp.float32(x.size)])


_tap.defvjp(_forward, _backward)


def measure_places(loss: Callable[[PRNGKeyArray, Place], Any], seeds: int, first_seed: int = 0) -> Measurement:
    """As `measure`, of a loss that draws its own weights and tokens from a key; no gradients of parameters.

    It calls x = place(x) on the residual stream, first on what enters the first block, then after every addition.
    Raises PlaceError where it marks fewer than two places, one that stands for several (in a loop of JAX's, or in a
    block that is compiled once and called again), one whose result it does not use, or one of another size.
    """
    marked = 0

    def naming(x: Any) -> Any:
        nonlocal marked
        marked += 1
        return checkpoint_name(x, _NAME.format(marked - 1))

    runs = Counter(_named(jax.make_jaxpr(lambda key: loss(key, naming))(jax.random.key(0)).jaxpr))
    if marked < 2:
        raise PlaceError(
            f"place: the loss marks {marked} place{'s' * (marked != 1)} of the stream; expected x = place(x) on what "
            "enters the first block and after every addition"
        )
    for name in map(_NAME.format, range(marked)):
        if runs[name] != 1:
            raise PlaceError(
                f"place: {name} stands for {runs[name]}; write the blocks as a Python loop, not in jax.lax.scan and "
                "the like, and compile or rematerialise each anew, if at all, not one function for all"
            )

    def read(readings: Float[Array, "places 4"], key: PRNGKeyArray) -> Any:
        left = iter(readings)
        return loss(key, lambda x: _tap(x, next(left)))

    draw = jax.jit(jax.value_and_grad(read), compiler_options=QUICK)
    zeros = jnp.zeros((marked, 4), jnp.float32)
    with jax.default_matmul_precision("highest"):
        draws = [jax.device_get(draw(zeros, jax.random.key(seed))) for seed in range(first_seed, first_seed + seeds)]
    found = np.stack([reading for _, reading in draws]).astype(np.float64)
    gradient, square, total, entries = np.moveaxis(found, -1, 0)
    for number, size in enumerate(entries[0]):
        if size != entries[0, 0] or not size:
            unused = "; its result is not used: write x = place(x)" if not size else ""
            raise PlaceError(
                f"place: {_NAME.format(number)} has {size:.0f} numbers, the first {entries[0, 0]:.0f}{unused}"
            )
    norm = np.sqrt(gradient)
    std = np.sqrt(np.maximum(square / entries - (total / entries) ** 2, 0))
    return Measurement(std, norm, norm[:, 0] / norm[:, -1], {}, np.array([value for value, _ in draws]))


def _named(jaxpr: Any, times: int = 1) -> Iterator[str]:
    """The names in a program, each as often as it is run."""
    for equation in jaxpr.eqns:
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "name":
            yield from [equation.params["name"]] * times
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from _named(inner, times * turns)
