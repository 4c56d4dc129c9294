"""What does recording everything cost? Step time with the telemetry, with spectral norms too, and with the loss alone.

The programs take the same steps on the same data, in turns, so that whatever else the machine does falls on all. The
bars, at 12 layers of 256: 5 % of the step, and 15 % with spectral norms.

    python benchmarks/telemetry_cost.py [--rounds 9]
"""

import argparse
import dataclasses
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from theory import Architecture
from verify.training import loop
from verify.training.compiled import programs
from verify.training.corpus import load_corpus
from verify.training.run import Chunk, Run, lanes_of

STEPS = 5
SIZES = [(8, 64, 64), (6, 128, 64), (12, 256, 64)]  # num_layers, d_model, seq_len
KINDS = {"loss only": (False, False), "recorded": (True, False), "and spectral norms": (True, True)}


def step_times(run: Run, rounds: int) -> dict[str, np.ndarray]:
    """Seconds a step of every kind, one number a round."""
    corpus = load_corpus(run.corpus, run.arch.vocab_size)
    chunk = Chunk(0, STEPS, STEPS, run.batch_size, run.arch.seq_len)
    tokens = jnp.asarray(loop._tokens(corpus, run, chunk)[None])
    lanes = lanes_of([run])
    kinds = {name: dataclasses.replace(run, spectral_norms=spectral).program() for name, (_, spectral) in KINDS.items()}
    of = programs(run)
    states = {name: of.begin(lanes, program.untrained()) for name, program in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    for round_number in range(rounds + 1):
        for name in sorted(KINDS, reverse=bool(round_number % 2)):
            start = time.perf_counter()
            states[name], telemetry = of.advance(
                states[name], lanes, tokens, np.int32(run.steps), kinds[name], KINDS[name][0]
            )
            jax.block_until_ready((states[name], telemetry))
            if round_number:  # the first compiles
                times[name].append((time.perf_counter() - start) / STEPS)
    return {name: np.array(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each")
    rounds = parser.parse_args().rounds
    print(f"{os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    print(f"{'layers':>7}{'d_model':>8}{'seq_len':>8}" + "".join(f"{name:>20}" for name in KINDS) + "   (ms a step)")
    base = Run(Architecture(), steps=10_000)
    for num_layers, d_model, seq_len in SIZES:
        arch = Architecture(num_layers=num_layers, d_model=d_model, num_heads=d_model // 32, seq_len=seq_len)
        times = step_times(dataclasses.replace(base, arch=arch), rounds)
        row = f"{num_layers:7d}{d_model:8d}{seq_len:8d}"
        for values in times.values():
            cost = np.median(values / times["loss only"]) - 1
            row += f"{1e3 * np.median(values):11.1f}" + (f" {cost:+8.1%}" if np.any(cost) else " " * 9)
        print(row, flush=True)


if __name__ == "__main__":
    main()
