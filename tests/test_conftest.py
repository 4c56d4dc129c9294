"""That the suite is as strict as it says: each of these would pass silently without `conftest`."""

import os
import warnings

import hypothesis
import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import models
from models.linear import linear
from models.parameters import Linear
from theory import Architecture

ARCH = Architecture(num_layers=1, d_model=4, num_heads=1, vocab_size=3, seq_len=2)
LINEAR = Linear(jnp.ones((4, 3)), None)


def test_shapes_are_checked():
    assert linear(LINEAR, jnp.ones((1, 2, 4))).shape == (1, 2, 3)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'x'"):
        linear(LINEAR, jnp.ones((2, 4)))


def test_dtypes_are_checked_also_while_tracing():
    params = models.init(jax.random.key(0), ARCH)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'tokens'"):
        jax.jit(models.apply, static_argnames="arch")(params, jnp.zeros((1, 2)), arch=ARCH)


def test_names_of_axes_are_checked():
    params = models.init(jax.random.key(0), ARCH)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'tokens'"):
        models.loss(params, jnp.zeros((3,), jnp.int32), ARCH)


def test_promotion_is_strict():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.int32) + jnp.ones(2, jnp.float32)
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 2)) + jnp.ones(2)


def test_warnings_are_errors():
    with pytest.raises(UserWarning, match="a warning"):
        warnings.warn("a warning", UserWarning, stacklevel=1)


def test_hypothesis_has_no_deadline_and_ci_draws_the_same_examples():
    assert hypothesis.settings.default.deadline is None  # the first example of a shape compiles
    assert hypothesis.settings.get_profile("ci").derandomize
    profile = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    assert hypothesis.settings.default.max_examples == hypothesis.settings.get_profile(profile).max_examples
