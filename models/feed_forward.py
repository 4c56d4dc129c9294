"""The feed-forward sub-layer W_2 F(W_1 z), and the linear layer that all sub-layers share."""

import jax
import sympy as sp
from jaxtyping import Array, Float

from models.parameters import FeedForward, Linear
from theory import Activation, Architecture
from theory.activation import activation, u


def linear(layer: Linear, x: Float[Array, "batch seq fan_in"]) -> Float[Array, "batch seq fan_out"]:
    """x W + b."""
    y = jax.numpy.einsum("bti,io->bto", x, layer.weight)
    return y if layer.bias is None else y + layer.bias[None, None, :]


def activate(function: Activation, x: Float[Array, "batch seq d_ff"]) -> Float[Array, "batch seq d_ff"]:
    """F(x), compiled from the scheme's symbolic expression."""
    return sp.lambdify(u, function.function, modules=[{"erf": jax.scipy.special.erf}, "jax"])(x)


def feed_forward(
    weights: FeedForward, z: Float[Array, "batch seq d"], arch: Architecture
) -> tuple[Float[Array, "batch seq d"], dict[str, Float[Array, "batch seq _"]]]:
    """The sub-layer's output, and the output of each of its linear layers by name."""
    up = linear(weights.up, z)
    down = linear(weights.down, activate(activation(arch.activation), up))
    return down, {"up": up, "down": down}
