"""How near is `predict` to autodiff for sequences that it does not follow token by token?

Four recipes, 4 layers of width 128, 2 heads of 64, 2,000 words, batches of 2 random sequences, 8 seeds: the largest
relative error of any place's standard deviation and gradient norm and of the matrices' gradients, and the seconds that
`predict` took.

    python benchmarks/long_sequences.py [--seq-len 1024]
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


def error(predicted: np.ndarray, draws: np.ndarray) -> float:
    """Largest relative error, in per cent, against the root mean square over the seeds."""
    return 100 * float(np.abs(predicted / np.sqrt(np.square(draws).mean(axis=0)) - 1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens a sequence")
    seq_len = parser.parse_args().seq_len
    print(
        "| recipe | seq_len | logit variance | std % | gradient norm % | attention's matrices % | others % | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, fields in RECIPES.items():
        arch = Architecture(num_layers=4, d_model=128, num_heads=2, vocab_size=2000, seq_len=seq_len, **fields)
        start = time.perf_counter()
        predicted = predict(arch, batch_size=2)
        seconds = time.perf_counter() - start
        measured = measure(arch, seeds=8, batch_size=2)
        matrices = {
            kind: error(norm, measured.parameter_gradient_norm[kind])
            for kind, norm in predicted.parameter_gradient_norm.items()
        }
        attention = max(value for kind, value in matrices.items() if kind.startswith("attention"))
        others = max(value for kind, value in matrices.items() if not kind.startswith("attention"))
        print(
            f"| {name} | {seq_len} | {logit_variance(arch):.2g} |"
            f" {error(predicted.shortcut_std, measured.shortcut_std):.1f}"
            f" | {error(predicted.gradient_norm, measured.gradient_norm):.1f} | {attention:.0f} | {others:.1f}"
            f" | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
