"""A run's cost before it is started, against what XLA says of the compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from theory import Architecture
from verify.sweeps.cost import cost, free_bytes, lanes_that_fit
from verify.training.loop import Run, _start, advance

SMALL = Architecture(num_layers=2, d_model=32, num_heads=2, seq_len=16)


@pytest.mark.parametrize(
    "run",
    [
        Run(dataclasses.replace(SMALL, d_model=8, vocab_size=2048), batch_size=2),
        Run(dataclasses.replace(SMALL, seq_len=96, activation="swiglu", block="sandwich"), batch_size=4),
    ],
)
def test_a_lane_takes_no_more_memory_than_it_is_said_to_and_half_of_it_at_least(run, monkeypatch):
    lanes, steps = 2, 5
    states = _start(jax.random.split(jax.random.key(0), lanes), run)
    tokens = jax.ShapeDtypeStruct((lanes, steps, run.batch_size, run.arch.seq_len + 1), jnp.int32)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # lowering builds a State of no arrays
    compiled = advance.lower(states, jax.ShapeDtypeStruct((lanes,), jnp.float32), tokens, run).compile()
    used = compiled.memory_analysis()
    size = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes
    assert size / lanes <= cost(run).lane_bytes <= 2 * size / lanes


def test_the_arithmetic_by_hand():
    """4 d^2 in attention and 8 d^2 in the feed-forward, d V in the head; 300 steps of 8 sequences of 16 tokens."""
    found = cost(Run(dataclasses.replace(SMALL, norm="rms_norm", positions="none")))
    tokens, matrices = 300 * 8 * 16, 2 * 12 * 32**2 + 32 * 256
    assert found.tokens == tokens
    norms = 5 * 32
    assert found.parameters == matrices + 32 * 256 + norms
    assert found.flops == (6 * (matrices + norms) + 12 * 2 * 32 * 16) * tokens


def test_lanes_fill_the_memory_and_no_more():
    runs = [Run(SMALL, seed=seed) for seed in range(5)]
    one = cost(runs[0]).lane_bytes
    for most, free, lanes in ((8, 3 * one + 1, 3), (2, 100 * one, 2), (8, 100 * one, 5), (8, 0, 1)):
        assert lanes_that_fit(runs, most, free) == lanes


def test_some_memory_is_free():
    assert 2**20 < free_bytes() < 2**50
