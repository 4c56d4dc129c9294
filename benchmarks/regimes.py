"""Where does the embedding's scale decide whether training spikes? The search, setting by setting.

Each setting is a base run and what varies in it; its table has one row a scheme and rate: losses, 7-sigma events of the
loss and of the gradient norm (window 100 steps) over all seeds, and the largest gradient norm after warm-up. Runs are
files in --out, so that a setting that was interrupted goes on, and a table is drawn once more without training.

    python benchmarks/regimes.py [SETTING ...] [--seeds 0 1] [--out regimes]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from theory import Architecture
from verify.claims.embedding_scale import DETACH, EMBEDDING, METHODS, RATE, SEED, VANILLA, stand_in
from verify.claims.evidence import Cell, Evidence, cells
from verify.claims.scale import SCALES
from verify.sweeps.lanes import train_missing
from verify.training.optimizer import Optimizer
from verify.training.run import Run, changed

WINDOW = 100
BOTH = (VANILLA, "scaled")
Seeds = tuple[int, ...]

FULL_BATCH = Run(
    Architecture(num_layers=8, d_model=64, num_heads=2),
    Optimizer(learning_rate=0.02, warmup_steps=20, schedule="constant", beta2=0.99, clip=0.0),
    batch_size=16, windows=16, steps=250,
)  # fmt: skip
RARE_WORDS = Run(
    Architecture(num_layers=24, d_model=32, num_heads=2, seq_len=32, vocab_size=1024),
    Optimizer(learning_rate=0.02, schedule="constant"), corpus="words", batch_size=16, steps=600,
)  # fmt: skip
STAND_IN = stand_in(SCALES["small"])
PEAK = STAND_IN.optimizer.learning_rate


def _grid(base: Run, fields: dict[str, object], *, methods: tuple = BOTH, rates: tuple[float, ...] = ()) -> Callable:
    run = changed(base, fields)
    chosen = rates or (run.optimizer.learning_rate,)
    return lambda seeds: cells(run, {EMBEDDING: methods, RATE: chosen, SEED: seeds})


SETTINGS: dict[str, Callable[[Seeds], tuple[Cell, ...]]] = {
    "full-batch": _grid(FULL_BATCH, {}, methods=("vanilla", "detach", "scaled", "layer_norm")),
    "full-batch-learned": _grid(
        FULL_BATCH, {"arch.positions": "learned"}, methods=("vanilla", "detach", "scaled", "layer_norm")
    ),
    "full-batch-stand-in": _grid(STAND_IN, {"windows": 16, "steps": 600}, rates=(PEAK / 2, PEAK)),
    "rare-words": _grid(RARE_WORDS, {}, methods=(0.18, "vanilla", "scaled"), rates=(0.005, 0.02)),
    "stand-in": _grid(STAND_IN, {}, methods=METHODS, rates=(PEAK / 2, PEAK, 2 * PEAK)),
    "clip-0": _grid(STAND_IN, {"optimizer.clip": 0.0}),
    "beta2-0.99": _grid(STAND_IN, {"optimizer.beta2": 0.99}),
    "beta2-0.999": _grid(STAND_IN, {"optimizer.beta2": 0.999}),
    "decay-0": _grid(STAND_IN, {"optimizer.weight_decay": 0.0}),
    "decay-0.3": _grid(STAND_IN, {"optimizer.weight_decay": 0.3}),
    "warm-up-1": _grid(STAND_IN, {"optimizer.warmup_steps": 1}),
    "batch-64": _grid(STAND_IN, {"batch_size": 64, "steps": 500}),
    "batch-64-rate-x2": _grid(STAND_IN, {"batch_size": 64, "steps": 500}, rates=(2 * PEAK, 4 * PEAK)),
    "24-layers": _grid(STAND_IN, {"arch.num_layers": 24}),
    "3-layers": _grid(STAND_IN, {"arch.num_layers": 3}),
    "width-64": _grid(STAND_IN, {"arch.d_model": 64, "arch.num_heads": 4}, rates=(PEAK / 2,)),
    "length-128": _grid(STAND_IN, {"arch.seq_len": 128, "batch_size": 4}),
    "tied": _grid(STAND_IN, {"arch.tied": True}),
    "frozen-table": _grid(STAND_IN, {"optimizer.embedding_rate": 0.0}),
    "words": _grid(STAND_IN, {"corpus": "words", "arch.vocab_size": 1024}),
    "bfloat16": _grid(STAND_IN, {"precision": "bfloat16"}),
    "detach": _grid(STAND_IN, {}, methods=(VANILLA, DETACH)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", choices=[[], *SETTINGS], help="none: they are listed", metavar="SETTING")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("regimes"), help="folder of the runs")
    options = parser.parse_args()
    if not options.settings:
        print("\n".join(SETTINGS))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.settings:
        chosen = SETTINGS[name](tuple(options.seeds))
        train_missing([cell.run for cell in chosen], options.out)
        table = Evidence(options.out, WINDOW).table(chosen)
        rows = table.groupby(["learning_rate", "embedding"], sort=False).agg(
            final=("final_loss", "mean"), held_out=("held_out_loss", "mean"), loss_events=("loss_spikes", "sum"),
            gradient_events=("gradient_spikes", "sum"), largest_gradient=("largest_gradient_norm", "max"),
            excess=("largest_loss_excess", "mean"), not_finished=("outcome", lambda found: (found != "finished").sum()),
            runs=("seed", "size"),
        )  # fmt: skip
        print(f"\n{name}\n{rows.to_string(float_format=lambda value: f'{value:.3g}')}", flush=True)


if __name__ == "__main__":
    main()
