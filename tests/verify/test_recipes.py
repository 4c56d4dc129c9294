"""Recipes: every preset's training, scaled to a small run, is the one that its paper gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory.presets import PRESETS, preset
from verify.training import step
from verify.training.compiled import programs
from verify.training.recipes import recipe, small, trained_as
from verify.training.run import Run, lanes_of


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_take_a_step_at_a_small_size(name):
    """Traced, not compiled: shapes and dtypes of model, optimizer and telemetry go together."""
    run = trained_as(name, Run(small(name), batch_size=8, steps=100))
    program, lanes, last = run.program(), lanes_of([run]), list(run.chunks())[-1]
    states = jax.eval_shape(lambda: step.begin(lanes, run.untrained()))
    tokens = jax.ShapeDtypeStruct((1, 2, last.batch_size, 65), jnp.int32)
    after, seen = programs(run).advance.eval_shape(states, lanes, tokens, np.int32(2), program)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), states
    )
    assert seen["loss"].shape == (1, 2)
    assert last.batch_size == 8 and recipe(name).source


def test_palm_scaled_down():
    """Of 510 steps 20 at the peak, the batch doubled at 100 and 230; steps relative to the weights keep their rate."""
    run = trained_as("palm-540b", Run(small("palm-540b"), batch_size=16, steps=510))
    assert (run.optimizer.method, run.optimizer.schedule, run.optimizer.decay) == (
        "adafactor", "inverse_sqrt", "rate_squared"
    )  # fmt: skip
    assert run.optimizer.learning_rate == 1e-2 and (run.optimizer.warmup_steps, run.optimizer.hold_steps) == (0, 20)
    assert run.batch_ramp == ((0, 4), (100, 8), (230, 16)) and run.z_loss == 1e-4 and run.dropout == 0
    assert run.arch.num_kv_heads == 1 and run.arch.logit_scale == pytest.approx(1 / 8)


def test_rates_go_with_the_width_and_warm_up_with_the_steps():
    run = trained_as("llama-7b", Run(small("llama-7b"), steps=1000))
    assert run.optimizer.learning_rate == pytest.approx(3e-4 * 4096 / 64) and run.optimizer.warmup_steps == 8
    assert run.arch.d_ff == 172 and run.arch.activation == "swiglu"
    wide = dataclasses.replace(small("llama-65b"), d_model=128)
    assert trained_as("llama-65b", Run(wide)).optimizer.learning_rate == pytest.approx(1.5e-4 * 8192 / 128)
    assert not trained_as("olmo2-7b", Run(small("olmo2-7b"))).optimizer.decay_embeddings


def test_at_its_own_size_a_recipe_is_as_published():
    run = trained_as("ssp-19m", Run(preset("ssp-19m").arch, steps=100_000, batch_size=256))
    assert run.optimizer == recipe("ssp-19m").optimizer and run.batch_ramp == ()


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset: unknown value 'gpt5'; choose one of gpt2-small"):
        recipe("gpt5")
