"""The interval of a root mean square covers as often as it says, and norms carry their own matrix's name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from theory import Architecture
from verify.measurement.compare import root_mean_square_interval
from verify.measurement.measure import matrix_norms

ARCH = Architecture(num_layers=2, d_model=8, num_heads=2, num_kv_heads=1, d_ff=6, vocab_size=7, seq_len=5)


@pytest.mark.parametrize("count", [3, 8, 32])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_covers_at_its_level(count, level):
    """5,000 repeats: the covered share has a standard error of at most 0.7 %, five of them are allowed.

    Draws are log-normal with a spread of 5 %, as gradient norms over seeds are.
    """
    repeats, spread = 5_000, 0.05
    draws = np.exp(spread * np.random.default_rng(0).standard_normal((count, repeats)))
    low, middle, high = root_mean_square_interval(draws, level)
    truth = np.exp(spread**2)  # root of E exp(2 s Z) = exp(2 s^2)
    covered = np.mean((low < truth) & (truth < high))
    assert abs(covered - level) < 5 * np.sqrt(level * (1 - level) / repeats)
    np.testing.assert_allclose(middle, np.sqrt(np.mean(draws**2, axis=0)))
    np.testing.assert_allclose(low * high, middle**2)


def test_one_seed_has_no_interval():
    low, middle, high = root_mean_square_interval(np.array([[3.0, 4.0]]))
    assert np.all(np.isnan(low)) and np.all(np.isnan(high))
    np.testing.assert_array_equal(middle, [3.0, 4.0])


def test_norms_carry_the_name_of_their_matrix_and_layer():
    """Each matrix is filled with a number of its own; the norm of a constant is that times the root of its size."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: models.init(jax.random.key(0), ARCH)))
    filled = jax.tree.unflatten(tree, [jnp.full(leaf.shape, 1.0 + index) for index, leaf in enumerate(leaves)])
    norms = matrix_norms(filled)
    assert set(norms) == {*ARCH.matrices, "embedding", "head"}
    for kind in ARCH.matrices:
        sublayer, name = kind.split(".")
        value = getattr(getattr(filled.blocks, sublayer), name).weight[0, 0, 0]
        rows, columns = ARCH.shape(kind)
        np.testing.assert_allclose(norms[kind], [value * (rows * columns) ** 0.5] * 2, rtol=1e-6)
    assert len({float(norm[0]) for norm in norms.values()}) == len(norms)
    second = jax.tree.map(lambda leaf: leaf.at[1].multiply(3), filled.blocks)
    for kind in ARCH.matrices:
        norm = matrix_norms(dataclasses.replace(filled, blocks=second))[kind]
        np.testing.assert_allclose(norm[1] / norm[0], 3, rtol=1e-6)
