"""Stream and gradient of a model of one's own, against gradients by what is added to the stream, taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verify.measurement.places import measure_places


def drawn(key, depth, width, tokens):
    x, *weights = (
        jax.random.normal(each, (tokens if number == 0 else width, width))
        for number, each in enumerate(jax.random.split(key, depth + 1))
    )
    return x, weights


def blocks(x, weights, place):
    x = place(x)
    for weight in weights:
        x = place(x + jnp.tanh(x @ weight))
    return x


@settings(max_examples=12)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_every_place_is_read(depth, width, tokens, seed):
    def loss(key, place):
        return jnp.mean(blocks(*drawn(key, depth, width, tokens), place) ** 2)

    found = measure_places(loss, seeds=2, first_seed=seed)
    for row, key in enumerate((jax.random.key(seed), jax.random.key(seed + 1))):
        x, weights = drawn(key, depth, width, tokens)
        for place in range(depth + 1):
            after, gradient = weights[place:], jax.grad(lambda x, rest: jnp.mean(blocks(x, rest, lambda x: x) ** 2))
            np.testing.assert_allclose(found.gradient_norm[row, place], np.linalg.norm(gradient(x, after)), rtol=2e-4)
            np.testing.assert_allclose(found.shortcut_std[row, place], np.std(x), rtol=1e-3, atol=1e-4)
            x = x if place == depth else x + jnp.tanh(x @ weights[place])
        np.testing.assert_allclose(found.loss[row], np.mean(np.square(x)), rtol=1e-4)
    np.testing.assert_allclose(found.amplification, found.gradient_norm[:, 0] / found.gradient_norm[:, -1])


def plain(x, weights, place):
    return jnp.mean(jnp.mean(blocks(x, weights, place) ** 2, axis=-1))


def mapped(x, weights, place):
    return jnp.mean(jax.vmap(lambda row: jnp.mean(blocks(row, weights, place) ** 2))(x))


def rematerialised(x, weights, place):
    x = place(x)
    for weight in weights:
        x = jax.checkpoint(lambda x, weight=weight: place(x + jnp.tanh(x @ weight)))(x)
    return jnp.mean(x**2)


def compiled(x, weights, place):
    return jax.jit(lambda x: plain(x, weights, place))(x)


@pytest.mark.parametrize("loss", [mapped, rematerialised, compiled])
def test_how_the_model_is_run_does_not_matter(loss):
    wanted, found = (
        measure_places(lambda key, place, each=each: each(*drawn(key, 3, 5, 4), place), seeds=2)
        for each in (plain, loss)
    )
    np.testing.assert_allclose(found.gradient_norm, wanted.gradient_norm, rtol=1e-5)
    np.testing.assert_allclose(found.shortcut_std, wanted.shortcut_std, rtol=1e-5)


def test_a_place_in_the_body_of_a_scan_is_refused():
    def loss(key, place):
        x, weights = drawn(key, 3, 4, 4)
        x, _ = jax.lax.scan(lambda x, weight: (place(x + jnp.tanh(x @ weight)), None), place(x), jnp.stack(weights))
        return jnp.mean(x**2)

    with pytest.raises(
        ValueError, match=r"places of 16 to 48 numbers; .*not in the body of jax.lax.scan, but in a Pyth"
    ):
        measure_places(loss, seeds=1)


@pytest.mark.parametrize(("marks", "said"), [(0, "0 places"), (1, "1 place ")])
def test_a_stream_of_fewer_than_two_places_is_refused(marks, said):
    with pytest.raises(ValueError, match=f"place: the loss marks {said}"):
        measure_places(lambda key, place: jnp.sum(place(jnp.ones(3)) if marks else jnp.ones(3)), seeds=1)
