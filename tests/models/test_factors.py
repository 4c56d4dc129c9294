"""Weights and losses from a network's structure and its numbers are those from the whole architecture."""

import dataclasses
from functools import partial
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.factors import factors_of, structure
from models.initialization import stds_of
from theory import Architecture, Embedding
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS
from theory.notation import d
from verify.measurement.measure import QUICK

ARCH = Architecture(num_layers=2, d_model=8, num_heads=2, vocab_size=5, seq_len=4, positions="learned")
OWN = Embedding("mine", multiplier=d / 3, gradient_share=0.3, table_std=2 / d)
TOKENS = jnp.asarray([[0, 1, 2, 3, 4], [4, 4, 0, 1, 0]], jnp.int32)


@partial(jax.jit, static_argnames="arch", compiler_options=QUICK)
def drawn(arch, stds=None):
    return models.init(jax.random.key(3), arch, stds=stds)


@partial(jax.jit, static_argnames="arch", compiler_options=QUICK)
def judged(params, arch, factors=None):
    return jax.value_and_grad(lambda params: models.loss(params, TOKENS, arch, factors=factors)[0])(params)


@pytest.mark.parametrize(
    ("initialization", "embedding"), list(zip(INITIALIZATIONS, cycle([*EMBEDDINGS, 0.37, OWN]), strict=False))
)
def test_structure_and_numbers_are_the_network(initialization, embedding):
    arch = dataclasses.replace(ARCH, initialization=initialization, embedding=embedding, logit_scale=0.7)
    same, params = structure(arch), drawn(arch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), drawn(same, stds_of(arch)), params)
    (loss, gradient), (whole, whole_gradient) = judged(params, same, factors_of(arch)), judged(params, arch)
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), gradient, whole_gradient)


def test_what_a_structure_keeps():
    """One for all numbers; another where there is a norm more, a cut-off, or any other field."""
    plain = structure(dataclasses.replace(ARCH, initialization="he", embedding="vanilla"))
    for change in ({"embedding": "scaled"}, {"embedding": OWN}, {"initialization": "xavier"}, {"logit_scale": 0.1}):
        assert structure(dataclasses.replace(ARCH, **({"initialization": "he"} | change))) == plain
    for change in ({"embedding": "layer_norm"}, {"initialization": "olmo2"}, {"block": "deepnorm"}, {"tied": True}):
        assert structure(dataclasses.replace(ARCH, **({"initialization": "he"} | change))) != plain
    assert structure(plain) == plain and hash(structure(plain)) == hash(plain)
