"""What does recording everything cost? Step time with the whole telemetry and with the loss alone.

Both programs take the same steps on the same data, in turns, so that whatever else the machine does falls on both.
The bar is 10 % of the step.

    python benchmarks/telemetry_cost.py
"""

import dataclasses
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from theory import Architecture
from verify.training import loop
from verify.training.corpus import load_corpus

STEPS, ROUNDS = 5, 9
SIZES = [(8, 64, 64), (6, 128, 64), (12, 256, 64)]  # num_layers, d_model, seq_len


def step_times(run: loop.Run) -> dict[bool, np.ndarray]:
    """Seconds a step, with and without telemetry, one number a round."""
    corpus = load_corpus(run.corpus, run.arch.vocab_size)
    tokens = jnp.asarray(loop._tokens(corpus, run, range(STEPS))[None])
    rates = jnp.asarray([run.optimizer.learning_rate], jnp.float32)
    program = run.program()
    states = {observed: loop._start(jnp.stack([jax.random.key(0)]), program) for observed in (True, False)}
    times: dict[bool, list[float]] = {True: [], False: []}
    for round_number in range(ROUNDS + 1):
        for observed in (True, False) if round_number % 2 else (False, True):
            start = time.perf_counter()
            states[observed], telemetry = loop.advance(states[observed], rates, tokens, program, observed)
            jax.block_until_ready((states[observed], telemetry))
            if round_number:  # the first compiles
                times[observed].append((time.perf_counter() - start) / STEPS)
    return {observed: np.array(values) for observed, values in times.items()}


def main() -> None:
    print(f"{os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    print(f"{'layers':>7}{'d_model':>8}{'seq_len':>8}{'loss only':>12}{'all recorded':>14}{'cost':>8}   (ms a step)")
    base = loop.Run(Architecture(), steps=10_000)
    for num_layers, d_model, seq_len in SIZES:
        arch = Architecture(num_layers=num_layers, d_model=d_model, num_heads=d_model // 32, seq_len=seq_len)
        times = step_times(dataclasses.replace(base, arch=arch))
        with_all, without = np.median(times[True]), np.median(times[False])
        cost = np.median(times[True] / times[False]) - 1
        print(f"{num_layers:7d}{d_model:8d}{seq_len:8d}{1e3 * without:12.1f}{1e3 * with_all:14.1f}{cost:8.1%}")


if __name__ == "__main__":
    main()
