"""The norm that sigma-reparametrisation divides by, as found in the 64 iterations that training uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.linear import as_matrices, matrix
from models.parameters import Linear


@pytest.mark.parametrize("shape", [(1, 7), (16, 16), (128, 512), (512, 128), (384, 384)])
@pytest.mark.parametrize("gain", [1.0, -0.3])
def test_a_gaussian_matrix_gets_the_norm_of_its_gain(shape, gain):
    weight = jax.random.normal(jax.random.key(3), shape) * 5
    acting = np.asarray(matrix(Linear(weight, None, jnp.float32(gain))))
    norm = np.linalg.norm(acting, 2)
    assert abs(gain) * 0.9999 < norm < abs(gain) * 1.01  # power iteration approaches the norm from below
    np.testing.assert_allclose(acting / acting[0, 0], weight / weight[0, 0], rtol=1e-4)


def test_the_scale_of_the_weights_does_not_matter_and_its_gradient_is_none():
    weight = jax.random.normal(jax.random.key(0), (6, 4))
    other = jax.random.normal(jax.random.key(1), (6, 4))

    def value(weight):
        return jnp.vdot(matrix(Linear(weight, None, jnp.float32(1))), other)

    np.testing.assert_allclose(value(weight), value(1e3 * weight), rtol=1e-5)
    gradient = jax.grad(value)(weight)
    assert abs(jnp.vdot(gradient, weight)) < 1e-5 * jnp.linalg.norm(gradient) * jnp.linalg.norm(weight)


def test_matrices_written_out_are_those_that_act():
    layers = Linear(jax.random.normal(jax.random.key(0), (3, 5, 4)), jnp.ones((3, 4)), jnp.arange(1.0, 4.0))
    written = as_matrices(layers)
    assert written.gain is None
    for n in range(3):
        one = jax.tree.map(lambda leaf, n=n: leaf[n], layers)
        np.testing.assert_allclose(written.weight[n], matrix(one), rtol=1e-6)
