"""What does one sweep gain over one process a run? Wall time, start-up and steady state.

The same 32 runs (6 layers, d_model 64, seq_len 64, batch 8) by `sweep run` in one process, and each in a process of its
own, as many at a time as there are cores. Both at two lengths, whose difference is the steady state. Of the separate
processes only `--sample` are run, all being alike, and their time is multiplied. The bar is 0.6 of their wall time, and
a steady state that is no slower.

    python benchmarks/sweep_speed.py [--steps 300] [--sample 8]
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

RUNS = 32
SWEEP = """
seeds = {seeds}
[run]
steps = {steps}
batch_size = 8
arch.num_layers = 6
arch.d_model = 64
arch.num_heads = 2
arch.seq_len = 64
[grid]
optimizer.learning_rate = [1e-3, 2e-3, 4e-3, 8e-3]
"""


def run(sweep: Path, out: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "verify", "sweep", "run", str(sweep), "--out", str(out), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def seconds(steps: int, sample: int) -> tuple[float, float]:
    """Wall time of the sweep, and of one process a run."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweep.toml"
        sweep.write_text(SWEEP.format(steps=steps, seeds=RUNS // 4))
        start = time.perf_counter()
        run(sweep, Path(folder) / "together")
        together = time.perf_counter() - start
        start = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            apart = Path(folder) / "apart"
            list(pool.map(lambda i: run(sweep, apart, "--shard", f"{i}/{RUNS}"), range(sample)))
        return together, (time.perf_counter() - start) * RUNS / sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sample", type=int, default=8)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    short = options.steps // 3
    few, many = seconds(short, options.sample), seconds(options.steps, options.sample)
    print(f"{RUNS} runs of {options.steps} steps      one sweep   one process a run     ratio")
    print(f"wall time, s          {many[0]:14.0f}{many[1]:20.0f}{many[0] / many[1]:10.2f}")
    steady = [1e3 * (b - a) / (RUNS * (options.steps - short)) for a, b in zip(few, many, strict=True)]
    print(f"ms a run and step     {steady[0]:14.1f}{steady[1]:20.1f}{steady[0] / steady[1]:10.2f}")


if __name__ == "__main__":
    main()
