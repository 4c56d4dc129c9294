"""Does the gradient amplification grow with depth as `theory.growth` derives?

Measures it by autodiff at several depths (16 tokens, GELU) for every block, with and without a depth factor on the
output matrices, small and large embedding, and prints a table: the derived class, the amplification a(N) at each depth
(geometric mean over the seeds), and the slope d log a / d log N between the two deepest, measured (with twice its
standard error over the seeds) and of the closed form at the same depths.

    python benchmarks/growth.py [--out FILE.md] [--seeds 3] [--blocks pre_ln post_ln ...] [--depths 4 16 64 256]
                                [--d-model 64] [--attention qk_norm] [--initializations small] [--embeddings scaled]
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from theory import Architecture
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.closed_form import closed_form
from theory.embedding import EMBEDDINGS
from theory.growth import growth
from theory.initialization import INITIALIZATIONS
from verify import measure
from verify.training.compiled import release_when_many


def header(depths: list[int]) -> str:
    """The table's first two lines."""
    names = ("block", "initialisation", "embedding", "derived", *(f"a({depth})" for depth in depths))
    return f"| {' | '.join(names)} | slope, measured | slope, closed form |\n" + "|---" * (len(names) + 2) + "|"


def row(arch: Architecture, depths: list[int], seeds: int) -> str:
    """One line of the table."""
    models = [replace(arch, num_layers=depth) for depth in depths]
    logs = np.array([np.log(measure(model, batch_size=2, seeds=seeds).amplification) for model in models])
    closed = [np.log(closed_form(model).amplification) for model in models]
    span = np.log(depths[-1] / depths[-2])
    slopes = (logs[-1] - logs[-2]) / span
    error = 2 * slopes.std(ddof=1) / np.sqrt(seeds)
    means = (f"{np.exp(log.mean()):.3g}" for log in logs)
    return (
        f"| {arch.block} | {arch.initialization} | {arch.embedding} | {growth(arch).formula} | {' | '.join(means)} | "
        f"{slopes.mean():.3f} ± {error:.3f} | {(closed[-1] - closed[-2]) / span:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the table, in Markdown")
    parser.add_argument("--seeds", type=int, default=3, help="independent draws of weights and tokens, at least 2")
    parser.add_argument("--depths", nargs="+", type=int, default=[4, 16, 64, 256], help="blocks, at least two depths")
    parser.add_argument("--d-model", type=int, default=64, help="width, in coordinates; heads have 32")
    parser.add_argument("--attention", choices=tuple(ATTENTIONS), default="standard")
    for name, known, default in (
        ("blocks", BLOCKS, tuple(BLOCKS)),
        ("initializations", INITIALIZATIONS, ("megatron", "small")),
        ("embeddings", EMBEDDINGS, ("vanilla", "scaled")),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=tuple(known), default=default, help="which, by name")
    options = parser.parse_args()
    lines = [header(options.depths)]
    print(lines[0], flush=True)
    for block, initialization, embedding in product(options.blocks, options.initializations, options.embeddings):
        arch = Architecture(
            d_model=options.d_model, num_heads=options.d_model // 32, seq_len=16, block=block,
            attention=options.attention, initialization=initialization, embedding=embedding,
        )  # fmt: skip
        lines.append(row(arch, options.depths, options.seeds))
        print(lines[-1], flush=True)
        release_when_many()
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
