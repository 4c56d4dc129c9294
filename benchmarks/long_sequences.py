"""How near is `predict` to autodiff for sequences that it does not follow token by token?

Four recipes, 4 layers, heads of 64, 2,000 words, batches of 2 random sequences: the largest relative error, beside the
measurement's own standard error there, of any place's standard deviation and gradient norm and of the matrices'
gradients, and the seconds that `predict` took.

    python benchmarks/long_sequences.py [--seq-len 1024] [--d-model 128] [--seeds 24]
"""

import argparse
import time
from typing import Any

import numpy as np

from theory import Architecture, predict
from theory.propagation import logit_variance
from verify import measure

RECIPES: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned", "initialization": "gpt2", "embedding": "vanilla"},
    "bloom": {"positions": "alibi", "initialization": "bloom", "embedding": "layer_norm"},
    "lecun": {"initialization": "lecun", "activation": "swiglu", "embedding": "vanilla", "block": "parallel"},
    "he": {"initialization": "he"},
}


def error(predicted: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """Largest relative error, in per cent, against the root mean square over the seeds, and its standard error."""
    square, seeds = np.square(draws), len(draws)
    mean = square.mean(axis=0)
    found = 100 * np.abs(predicted / np.sqrt(mean) - 1)
    at = int(np.argmax(found))
    return float(found[at]), float(50 * square[:, at].std(ddof=1) / mean[at] / seeds**0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens a sequence")
    parser.add_argument("--d-model", type=int, default=128, help="width, a multiple of 64")
    parser.add_argument("--seeds", type=int, default=24, help="draws of weights and tokens")
    options = parser.parse_args()
    columns = ("std %", "gradient norm %", "query and key %", "value and output %", "others %")
    print(f"| recipe | seq_len | d_model | logit variance | {' | '.join(columns)} | seconds |")
    print("|---" * (len(columns) + 5) + "|")
    for name, fields in RECIPES.items():
        arch = Architecture(
            num_layers=4, d_model=options.d_model, num_heads=options.d_model // 64, vocab_size=2000,
            seq_len=options.seq_len, **fields,
        )  # fmt: skip
        start = time.perf_counter()
        predicted = predict(arch, batch_size=2)
        seconds = time.perf_counter() - start
        measured = measure(arch, seeds=options.seeds, batch_size=2)
        groups: dict[str, list[tuple[float, float]]] = {column: [] for column in columns}
        for column, field in zip(columns, ("shortcut_std", "gradient_norm"), strict=False):
            groups[column].append(error(getattr(predicted, field), getattr(measured, field)))
        for kind, norm in predicted.parameter_gradient_norm.items():
            part, _, matrix = kind.partition(".")
            column = columns[4] if part != "attention" else columns[2] if matrix in ("query", "key") else columns[3]
            groups[column].append(error(norm, measured.parameter_gradient_norm[kind]))
        errors = " | ".join(f"{found:.1f} ({noise:.1f})" for found, noise in map(max, groups.values()))
        size = f"{options.seq_len} | {options.d_model} | {logit_variance(arch):.2g}"
        print(f"| {name} | {size} | {errors} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
