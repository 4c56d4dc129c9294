"""The compiled activations against JAX's own, and where float32 could fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from models.feed_forward import activate
from theory import Activation
from theory.activation import ACTIVATIONS, u

_OURS_TO_JAX = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "swiglu": jax.nn.silu,
    "geglu": lambda x: jax.nn.gelu(x, approximate=False),
}
_POINTS = jnp.asarray(np.r_[np.linspace(-8, 8, 81) + 0.013, -1e4, -100, 100, 1e4].reshape(1, 1, -1), jnp.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_gradient_equal_jaxs(name):
    for order in (lambda f: f, lambda f: jax.grad(lambda x: jnp.sum(f(x)))):
        ours = order(lambda x: activate(ACTIVATIONS[name], x))(_POINTS)
        theirs = order(_OURS_TO_JAX[name])(_POINTS)
        assert np.all(np.isfinite(ours))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_symbolic_derivative_is_the_gradient(name):
    """In float64: 1 - tanh^2 is nothing but rounding where float32 knows no number between tanh and 1."""
    with jax.enable_x64(True):
        points = jnp.asarray(_POINTS[..., :-4], jnp.float64)
        gradient = jax.grad(lambda x: jnp.sum(activate(ACTIVATIONS[name], x)))(points)
    np.testing.assert_allclose(ACTIVATIONS[name].numeric[1](np.asarray(points)), gradient, rtol=1e-9, atol=1e-12)


def test_a_function_of_ones_own():
    mine = Activation("mine", sp.tanh(u) ** 2, "a test")
    np.testing.assert_allclose(activate(mine, _POINTS), np.tanh(np.asarray(_POINTS)) ** 2, rtol=1e-5)
