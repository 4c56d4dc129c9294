"""What does the theory say of every published recipe at its published size? The tables of docs/recipes.md.

Everything as published, sequence length and tied tables too; the batch is two sequences of random tokens (with
--recommend, eight). Bounds are the paper's, the largest of all sub-layers. With --recommend instead what `recommend`
advises for an amplification of at most 2: the numbers of both requirements (at most 2; at least 0.5), the smallest
embedding multiplier, the largest factor on the output matrices, and the most blocks.

    python benchmarks/recipes.py [NAME ...] [--seq-len 64] [--recommend]
"""

import argparse
import dataclasses
import time

from theory import Architecture, bound, predict, recommend
from theory.parameter_count import num_parameters
from theory.presets import PRESETS, preset

PREDICTED = ("preset", "block", "initialization", "embedding", "N x d", "parameters", "seq_len", "std in", "std out",
             "gradient in", "amplification", "largest bound", "seconds")  # fmt: skip
ADVISED = ("preset", "amplification", "behind std 1 (<= 2)", "std in (>= 0.5)", "embedding multiplier", "output factor",
           "most blocks", "seconds")  # fmt: skip


def predicted(name: str, arch: Architecture) -> list[str]:
    """A line of the first table, but for the seconds."""
    full, p = preset(name).arch, predict(arch, batch_size=2)
    return [
        name, str(full.block), str(full.initialization), str(full.embedding), f"{full.num_layers} x {full.d_model}",
        f"{num_parameters(full):.4g}", f"{arch.seq_len}", f"{p.shortcut_std[0]:.3g}", f"{p.shortcut_std[-1]:.3g}",
        f"{p.gradient_norm[0]:.3g}", f"{p.amplification:.3g}",
        f"{bound(arch, shortcut_std=p.shortcut_std).sublayer.max():.3g}",
    ]  # fmt: skip


def advised(name: str, arch: Architecture) -> list[str]:
    """A line of the second."""
    found = recommend(arch)

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.3g}"

    depth = "none" if found.largest_depth is None else f"{found.largest_depth}{' or more' if found.deeper else ''}"
    return [
        name, number(found.amplification), number(found.small_sublayers.number), number(found.large_shortcut.number),
        number(found.embedding_multiplier), number(found.output_gain), f"{depth} of {arch.num_layers}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="presets; none: all")
    parser.add_argument("--seq-len", type=int, default=2**20, help="most tokens a sequence; none: as published")
    parser.add_argument("--recommend", action="store_true", help="what to change, instead of what is so")
    options = parser.parse_args()
    columns, line = (ADVISED, advised) if options.recommend else (PREDICTED, predicted)
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name in options.names or PRESETS:
        full = preset(name).arch
        start = time.perf_counter()
        row = line(name, dataclasses.replace(full, seq_len=min(options.seq_len, full.seq_len)))
        print("| " + " | ".join([*row, f"{time.perf_counter() - start:.0f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
