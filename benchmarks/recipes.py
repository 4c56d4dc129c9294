"""What does the theory say of every published recipe at its published size? The table of docs/recipes.md.

Everything as published, sequence length and tied tables too; the batch is two sequences of random tokens. Bounds are
the paper's, the largest of all sub-layers.

    python benchmarks/recipes.py [NAME ...] [--seq-len 64]
"""

import argparse
import dataclasses
import time

from theory import bound, predict
from theory.parameter_count import num_parameters
from theory.presets import PRESETS, preset

COLUMNS = ("preset", "block", "initialization", "embedding", "N x d", "parameters", "seq_len", "std in", "std out",
           "gradient in", "amplification", "largest bound", "seconds")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="presets; none: all")
    parser.add_argument("--seq-len", type=int, default=2**20, help="most tokens a sequence; none: as published")
    options = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for name in options.names or PRESETS:
        full = preset(name).arch
        arch = dataclasses.replace(full, seq_len=min(options.seq_len, full.seq_len))
        start = time.perf_counter()
        p = predict(arch, batch_size=2)
        row = [
            name, full.block, full.initialization, full.embedding, f"{full.num_layers} x {full.d_model}",
            f"{num_parameters(full):.4g}", f"{arch.seq_len}", f"{p.shortcut_std[0]:.3g}",
            f"{p.shortcut_std[-1]:.3g}", f"{p.gradient_norm[0]:.3g}", f"{p.amplification:.3g}",
            f"{bound(arch, shortcut_std=p.shortcut_std).sublayer.max():.3g}", f"{time.perf_counter() - start:.0f}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
