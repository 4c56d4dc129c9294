"""Stream and gradient of a model of one's own, against gradients by what is added to the stream, taken by hand."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verify.measurement.places import PlaceError, measure_places


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
            # float32 leaves 1e-7 of the mean square where the mean is taken out
            assert abs(found.shortcut_std[row, place] - np.std(x)) < 5e-4 * np.sqrt(np.mean(np.square(x)))
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


def scanned(x, weights, place):
    def body(x, weight):
        x = place(x)
        return place(x + jnp.tanh(x @ weight)), None

    return jnp.mean(jax.lax.scan(body, x, jnp.stack(weights))[0] ** 2)


def looped(x, weights, place):
    return jnp.mean(jax.lax.fori_loop(0, 3, lambda _, x: place(x + jnp.tanh(x @ weights[0])), place(x)) ** 2)


def compiled_once(x, weights, place):
    block = jax.jit(lambda x, weight: place(x + jnp.tanh(x @ weight)))
    return jnp.mean(reduce(block, weights, place(x)) ** 2)


def rematerialised_once(x, weights, place):
    block = jax.checkpoint(lambda x, weight: place(x + jnp.tanh(x @ weight)))
    return jnp.mean(reduce(block, weights, place(x)) ** 2)


def unassigned(x, weights, place):
    place(x)
    return plain(x, weights, lambda x: x) + 0 * jnp.sum(place(x))


def growing(x, weights, place):
    return jnp.mean(place(jnp.concatenate([place(x), x])) ** 2)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (scanned, "place 0 of the stream stands for 3; write the blocks as a Python loop"),
        (looped, "place 1 of the stream stands for 3; write the b"),
        (compiled_once, "place 1 of the stream stands for 3; write the blocks as a Python loop, .* each anew"),
        (rematerialised_once, "place 1 of the stream stands for 3; write"),
        (unassigned, r"place 0 of the stream has 0 numbers, the first 0; its result is not used: write x = place\(x\)"),
        (growing, "place 1 of the stream has 40 numbers, the first 20$"),
    ],
)
def test_places_that_are_not_one_each_are_refused(loss, said):
    with pytest.raises(PlaceError, match=f"place: {said}"):
        measure_places(lambda key, place: loss(*drawn(key, 3, 5, 4), place), seeds=1)


@pytest.mark.parametrize(("marks", "said"), [(0, "0 places"), (1, "1 place ")])
def test_a_stream_of_fewer_than_two_places_is_refused(marks, said):
    with pytest.raises(PlaceError, match=f"place: the loss marks {said}"):
        measure_places(lambda key, place: jnp.sum(place(jnp.ones(3)) if marks else jnp.ones(3)), seeds=1)
