"""Runs of "Small-scale proxies for large-scale Transformer training instabilities", which claims and figures share.

Wortsman et al., arXiv 2309.14322, read [P]. Its set-up at our sizes: pre-LN, no biases, RoPE, GELU, untied, heads of
32, AdamW (0.9, 0.95, 1e-8) clipped at 1, a twentieth of the steps warm-up, cosine to 1e-5, independent decay 1e-4,
z-loss 1e-4; bytes of the standard library.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from theory import Architecture
from verify.claims.evidence import CORPUS, Cell, cells
from verify.claims.scale import Scale
from verify.training.optimizer import Optimizer
from verify.training.run import Run, changed

D_HEAD = 32
RATE, SEED, ATTENTION = "optimizer.learning_rate", "seed", "arch.attention"


def base(scale: Scale, size: tuple[int, int]) -> Run:
    """The paper's set-up at that (num_layers, d_model)."""
    layers, width = size
    arch = Architecture(
        num_layers=layers, d_model=width, num_heads=max(width // D_HEAD, 1), vocab_size=256, seq_len=scale.seq_len,
        activation="gelu_tanh", initialization="ssp", embedding="vanilla", attention="qk_norm",
    )  # fmt: skip
    optimizer = Optimizer(
        warmup_steps=max(scale.steps // 20, 1), final_rate=1e-5, weight_decay=1e-4, decay="independent"
    )
    return Run(arch, optimizer, batch_size=scale.batch_size, steps=scale.steps, z_loss=1e-4, corpus=CORPUS)


def _grid(scale: Scale, run: Run, axes: dict[str, Sequence[Any]] | None = None, **labels: Any) -> tuple[Cell, ...]:
    """Every rate with every seed, and every value of further axes."""
    return cells(run, (axes or {}) | {RATE: scale.rates, SEED: range(scale.seeds)}, **labels)


def ladder(scale: Scale) -> tuple[Cell, ...]:
    """Sizes x attention x rates x seeds: what most of these claims are judged on."""
    return tuple(
        cell
        for size in scale.sizes
        for cell in _grid(scale, base(scale, size), {ATTENTION: ("standard", "qk_norm")}, size=size_name(size))
    )


def qk_norm_runs(scale: Scale) -> tuple[Cell, ...]:
    """Those with QK norm."""
    return tuple(cell for cell in ladder(scale) if cell.labels["attention"] == "qk_norm")


def finer(scale: Scale) -> tuple[Cell, ...]:
    """Without QK norm, three rates more between the third and second highest of the ladder."""
    low, high = sorted(scale.rates)[-3:][:2]
    rates = [float(f"{rate:.2g}") for rate in np.geomspace(low, high, 5)[1:-1]]
    axes = {ATTENTION: ("standard",), RATE: rates, SEED: range(scale.seeds)}
    return tuple(cell for size in scale.sizes for cell in cells(base(scale, size), axes, size=size_name(size)))


def size_name(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def drift_runs(scale: Scale) -> tuple[Cell, ...]:
    """Neither decay nor z-loss, either of them, at the second highest rate, three times as long, in 64 letters.

    And neither of them in the 256 bytes, most of which never come: their logits only fall.
    """
    run = changed(base(scale, scale.middle), {"steps": 3 * scale.steps, RATE: sorted(scale.rates)[-2]})
    letters = {"corpus": "letters", "arch.vocab_size": 64}
    plain, undecayed = {"z_loss": 0.0}, {"optimizer.weight_decay": 0.0}
    variants: dict[str, dict[str, Any]] = {
        "neither": letters | plain | undecayed, "z-loss": letters | undecayed, "decay": letters | plain,
        "neither, bytes": plain | undecayed,
    }  # fmt: skip
    return tuple(
        cell
        for name, fields in variants.items()
        for cell in cells(changed(run, fields), {SEED: range(2 * scale.seeds)}, variant=name)
    )


def warmup_runs(scale: Scale) -> tuple[Cell, ...]:
    """Warm-up over a hundredth, a twentieth and a fifth of the steps, and coupled decay of 0.1."""
    run = base(scale, scale.middle)
    made: list[tuple[str, dict[str, Any]]] = [
        (f"warm-up 1/{part}", {"optimizer.warmup_steps": max(scale.steps // part, 1)}) for part in (100, 20, 5)
    ]
    made.append(("coupled decay", {"optimizer.decay": "coupled", "optimizer.weight_decay": 0.1}))
    return tuple(cell for name, fields in made for cell in _grid(scale, changed(run, fields), variant=name))


def shape_runs(scale: Scale) -> tuple[Cell, ...]:
    """The smallest size, four times as deep, and twice as wide: about as many weights in the blocks."""
    layers, width = scale.sizes[0]
    return tuple(
        cell
        for name, size in (("small", (layers, width)), ("deep", (4 * layers, width)), ("wide", (layers, 2 * width)))
        for cell in _grid(scale, base(scale, size), variant=name)
    )


def mup_runs(scale: Scale) -> tuple[Cell, ...]:
    """muP (simple), base width the smallest; the standard parametrisation is in `ladder`."""
    small = scale.sizes[0][1]
    fields = {"optimizer.parametrization": "mup_simple", "optimizer.base_d_model": small}
    return tuple(
        cell
        for size in scale.sizes
        for cell in _grid(scale, changed(base(scale, size), fields), size=size_name(size), variant="mup_simple")
    )


def epsilon_runs(scale: Scale) -> tuple[Cell, ...]:
    """Adam's epsilon at the largest size and second highest rate."""
    run = changed(base(scale, scale.sizes[-1]), {RATE: sorted(scale.rates)[-2]})
    return cells(run, {"optimizer.epsilon": (1e-6, 1e-8, 1e-15), SEED: range(2 * scale.seeds)})


def forced_runs(scale: Scale) -> tuple[Cell, ...]:
    """Every head's largest logit forced to a size, at the middle rate."""
    run = changed(base(scale, scale.middle), {RATE: sorted(scale.rates)[len(scale.rates) // 2]})
    return cells(run, {"forced_logit": (1e1, 1e2, 1e3, 1e4, 1e5), SEED: range(scale.seeds)})
