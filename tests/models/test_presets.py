"""Recipes scaled down build and run, and the count of parameters is the number that `init` makes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from theory import Architecture
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.parameter_count import num_parameters
from theory.presets import PRESETS, preset

# one of each recipe; the sizes of a family differ in what is replaced below
FAMILIES = ("gpt2-xl", "gpt3-13b", "palm-540b", "llama-65b", "chinchilla-70b", "galactica-120b", "opt-175b",
            "bloom-176b", "glm-130b", "gpt-neox-20b", "olmo2-7b", "snm-13b", "snm-13b-scaled", "ssp-4.8b",
            "mis-830m")  # fmt: skip


def made(arch: Architecture) -> int:
    shapes = jax.eval_shape(lambda: models.init(jax.random.key(0), arch))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_version_runs(name):
    arch = dataclasses.replace(
        preset(name).arch, num_layers=2, d_model=16, num_heads=4, d_ff=24, vocab_size=11, seq_len=5
    )
    params = models.init(jax.random.key(0), arch)
    tokens = jnp.asarray(np.random.default_rng(0).integers(11, size=(2, 6)), jnp.int32)
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: models.loss(p, tokens, arch)[0]))(params)
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == num_parameters(arch)


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_is_what_init_makes_at_full_size(name):
    assert made(preset(name).arch) == num_parameters(preset(name).arch)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("block", BLOCKS)
def test_the_count_is_what_init_makes_in_every_arrangement(block, attention):
    for norm, bias, tied, activation, embedding in (
        ("layer_norm", True, False, "swiglu", "layer_norm"), ("rms_norm", True, True, "gelu", "scaled"),
    ):  # fmt: skip
        arch = Architecture(
            num_layers=3, d_model=12, num_heads=3, num_kv_heads=1, d_ff=7, vocab_size=5, seq_len=4, block=block,
            attention=attention, norm=norm, bias=bias, tied=tied, activation=activation, embedding=embedding,
            positions="learned",
        )  # fmt: skip
        assert made(arch) == num_parameters(arch)
        tables = 5 * 12 + 4 * 12 + (0 if tied else 12 * 5) + (24 if embedding == "layer_norm" else 0)
        assert num_parameters(arch, embeddings=False) == num_parameters(arch) - tables
