"""How far is the two-number closed form from `theory.predict`? Largest error over the places of 12 blocks, by block.

Width 1024, 32 tokens, GELU, ReLU and SwiGLU, nearly flat attention (Megatron's initialisation) and SmallInit;
`predict` follows two networks, whose own error is about 1 %.

    python benchmarks/closed_form.py
"""

import numpy as np

from theory import Architecture, predict
from theory.block import BLOCKS
from theory.closed_form import closed_form


def errors(arch: Architecture) -> tuple[float, float]:
    """Largest |log ratio| over the places, of the stream's standard deviation and of the gradient's relative norm."""
    closed, kernel = closed_form(arch), predict(arch, networks=2)
    ratio = kernel.gradient_norm / kernel.gradient_norm[-1]
    found = (np.log(closed.shortcut_std / kernel.shortcut_std), np.log(closed.gradient_ratio / ratio))
    return float(np.abs(found[0]).max()), float(np.abs(found[1]).max())


def main() -> None:
    print("| block | " + " | ".join(f"{i}, {q} %" for i in ("megatron", "small") for q in ("std", "gradient")) + " |")
    print("|---|" + "---|" * 4)
    for block in BLOCKS:
        cells = []
        for scheme in ("megatron", "small"):
            found = [
                errors(
                    Architecture(
                        num_layers=12, d_model=1024, num_heads=16, seq_len=32, block=block, activation=activation,
                        initialization=scheme,
                    )
                )
                for activation in ("gelu", "relu", "swiglu")
            ]  # fmt: skip
            cells += [f"{100 * max(error[i] for error in found):.1f}" for i in (0, 1)]
        print(f"| {block} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
