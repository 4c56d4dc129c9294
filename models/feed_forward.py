"""The feed-forward sub-layer W_2 F(W_1 z) or W_2 (F(W_g z) * W_1 z)."""

import jax
import sympy as sp
from jaxtyping import Array, Float

from models.linear import linear
from models.normalization import normalize
from models.parameters import FeedForward
from theory import Activation, Architecture
from theory.activation import activation, u


def activate(function: Activation, x: Float[Array, "batch seq d_ff"]) -> Float[Array, "batch seq d_ff"]:
    """F(x), compiled from the scheme's symbolic expression."""
    return sp.lambdify(u, function.function, modules=[{"erf": jax.scipy.special.erf}, "jax"])(x)


def feed_forward(
    weights: FeedForward, z: Float[Array, "batch seq d"], arch: Architecture
) -> tuple[Float[Array, "batch seq d"], dict[str, Float[Array, "batch seq _"]]]:
    """The sub-layer's output, and the output of each of its linear layers by name."""
    outputs = {"up": linear(weights.up, z)}
    function, hidden = activation(arch.activation), outputs["up"]
    if weights.gate is None:
        hidden = activate(function, hidden)
    else:
        outputs["gate"] = linear(weights.gate, z)
        hidden = activate(function, outputs["gate"]) * hidden
    if weights.inner_norm is not None:
        hidden = normalize(weights.inner_norm, hidden, arch)
    outputs["down"] = linear(weights.down, hidden)
    return outputs["down"], outputs
