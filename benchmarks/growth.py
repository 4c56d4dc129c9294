"""Does the gradient amplification grow with depth as `theory.growth` derives?

Measures it by autodiff at 16, 64 and 256 layers (d_model 64, 16 tokens, GELU) for every block, with and without a depth
factor on the output matrices, small and large embedding, and prints a table: the derived class, the slope d log a / d
log N from 64 to 256 layers measured over the seeds (with twice its standard error) and of the closed form, and the
rate per block where the class is an exponential.

    python benchmarks/growth.py [--out FILE.md] [--seeds 3] [--blocks pre_ln post_ln ...]
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from theory import Architecture
from theory.block import BLOCKS
from theory.closed_form import closed_form
from theory.growth import Growth, growth
from verify import measure

INITIALIZATIONS, EMBEDDINGS = ("megatron", "small"), ("vanilla", "scaled")
DEPTHS = (16, 64, 256)
HEADER = (
    "| block | initialisation | embedding | derived | a(16) | a(64) | a(256) | slope, measured | slope, closed form |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def derived(found: Growth) -> str:
    """The class with its exponent or rate."""
    classes = {
        "constant": "constant",
        "logarithm": f"(log N)^{found.exponent:.2f}",
        "power": f"N^{found.exponent:.2f}",
        "exponential": f"exp({found.rate:.4f} N)",
        "stretched exponential": f"exp({found.rate:.4f} N^{found.exponent:g})",
        "double exponential": "double exponential",
    }
    return classes[found.kind] + ("" if found.flat_logits else " (score path left out)")


def row(arch: Architecture, seeds: int) -> str:
    """One line of the table."""
    logs = np.array(
        [np.log(measure(replace(arch, num_layers=depth), batch_size=2, seeds=seeds).amplification) for depth in DEPTHS]
    )
    span = np.log(DEPTHS[-1] / DEPTHS[-2])
    slopes = (logs[-1] - logs[-2]) / span
    closed = [np.log(closed_form(replace(arch, num_layers=depth)).amplification) for depth in DEPTHS]
    found = growth(arch)
    error = 2 * slopes.std(ddof=1) / np.sqrt(seeds)
    medians = (f"{np.exp(log.mean()):.3g}" for log in logs)
    return (
        f"| {arch.block} | {arch.initialization} | {arch.embedding} | {derived(found)} | {' | '.join(medians)} | "
        f"{slopes.mean():.3f} ± {error:.3f} | {(closed[-1] - closed[-2]) / span:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the table, in Markdown")
    parser.add_argument("--seeds", type=int, default=3, help="independent draws of weights and tokens, at least 2")
    parser.add_argument("--blocks", nargs="+", choices=tuple(BLOCKS), default=tuple(BLOCKS), help="which blocks")
    options = parser.parse_args()
    lines = [HEADER]
    print(HEADER, flush=True)
    for block, initialization, embedding in product(options.blocks, INITIALIZATIONS, EMBEDDINGS):
        arch = Architecture(
            d_model=64, num_heads=2, seq_len=16, block=block, initialization=initialization, embedding=embedding
        )
        lines.append(row(arch, options.seeds))
        print(lines[-1], flush=True)
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
