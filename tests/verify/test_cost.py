"""A run's cost before it is started, against what XLA says of the compiled step."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from theory import Architecture
from verify.sweeps import cost as module
from verify.sweeps.cost import cost, device_bytes, lanes_that_fit, mesh_bytes, threads_that_fit
from verify.training.compiled import programs
from verify.training.mesh import MeshShape
from verify.training.run import Run, lanes_of

SMALL = Architecture(num_layers=2, d_model=32, num_heads=2, seq_len=16)


@pytest.mark.parametrize(
    "run",
    [
        Run(dataclasses.replace(SMALL, d_model=8, vocab_size=2048), batch_size=2),
        Run(dataclasses.replace(SMALL, seq_len=96, activation="swiglu", block="sandwich"), batch_size=4),
        Run(dataclasses.replace(SMALL, num_layers=6, seq_len=64), batch_size=4, recompute=True),
    ],
)
def test_a_lane_takes_no_more_memory_than_it_is_said_to_and_half_of_it_at_least(run, monkeypatch):
    lanes, steps = 2, 5
    numbers = lanes_of([run] * lanes)
    states = programs(run).begin(numbers, run.untrained())
    tokens = jax.ShapeDtypeStruct((lanes, steps, run.batch_size, run.arch.seq_len + 1), jnp.int32)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # lowering builds a State of no arrays
    compiled = programs(run).advance.lower(states, numbers, tokens, np.int32(steps), run.program()).compile()
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


def test_a_mesh_cuts_what_it_says():
    """Only fsdp cuts both weights and activations; all of them together a fraction each."""
    run = Run(dataclasses.replace(SMALL, d_model=8, vocab_size=2048), batch_size=8)
    whole, halves = (
        mesh_bytes(run, MeshShape()),
        [mesh_bytes(run, MeshShape(*shape)) for shape in [(2, 1, 1), (1, 2, 1), (1, 1, 2)]],
    )
    assert whole == cost(run).lane_bytes
    weights = 6 * 4 * cost(run).parameters * 1.25
    np.testing.assert_allclose(halves, [(whole + weights) / 2, whole / 2, whole - weights / 2], atol=2)


def test_computing_again_trades_memory_for_a_third_more_arithmetic_in_the_blocks():
    run = Run(dataclasses.replace(SMALL, num_layers=12, seq_len=64))
    kept, again = cost(run), cost(dataclasses.replace(run, recompute=True))
    head = 6 * SMALL.d_model * SMALL.vocab_size * kept.tokens
    assert again.flops - head == pytest.approx((kept.flops - head) * 4 / 3)
    assert again.lane_bytes < kept.lane_bytes / 3


@pytest.mark.parametrize(
    ("backend", "cores", "room", "runs", "threads", "lanes"),
    [
        ("cpu", 2, 100, 32, 2, 4),  # as many as gain something
        ("cpu", 2, 6, 32, 2, 3),  # as many as fit
        ("cpu", 16, 100, 32, 16, 2),  # every core has its share
        ("cpu", 16, 100, 5, 5, 1),
        ("cpu", 16, 3, 32, 3, 1),
        ("cpu", 16, 0, 32, 1, 1),  # at least one, even where it does not fit
        ("gpu", 16, 100, 32, 1, 32),
        ("gpu", 16, 10, 32, 1, 10),
        ("gpu", 16, 1000, 320, 1, 64),
    ],
)
def test_threads_and_lanes_fill_cores_and_memory_and_no_more(monkeypatch, backend, cores, room, runs, threads, lanes):
    runs = [Run(SMALL, seed=seed) for seed in range(runs)]
    one = cost(runs[0]).lane_bytes
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(module, "_cores", lambda: cores)
    monkeypatch.setattr(module, "device_bytes", lambda: room * one + one // 2)
    assert threads_that_fit(runs) == threads
    assert lanes_that_fit(runs, threads) == lanes
    assert lanes_that_fit(runs, threads, most=2) == min(lanes, 2)


@pytest.mark.parametrize(("steps", "lanes"), [(3, 4), (300, 2)])
def test_a_program_of_little_training_is_not_compiled_by_every_thread(monkeypatch, steps, lanes):
    """Four runs for two threads: all in one where compiling is what takes long, else two in each."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert lanes_that_fit([Run(SMALL, steps=steps, seed=seed) for seed in range(4)], 2) == lanes


def test_the_largest_program_decides_how_many_run_at_a_time(monkeypatch):
    runs = [Run(SMALL), Run(dataclasses.replace(SMALL, d_model=64))]
    monkeypatch.setattr(module, "_cores", lambda: 2)
    for room, threads in ((cost(runs[0]).lane_bytes * 2, 1), (cost(runs[1]).lane_bytes * 2, 2)):
        monkeypatch.setattr(module, "device_bytes", lambda room=room: room)
        assert threads_that_fit(runs) == threads_that_fit(runs[::-1]) == threads


def test_there_is_memory_and_no_more_than_the_machine_has():
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < device_bytes() <= page * pages * 3 / 4
