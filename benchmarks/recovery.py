"""Does going back and leaving batches out help, and do the batches alone make the spike? A table for docs/recovery.md.

Two cases on the standard library's text. "planted": at a harmless rate, 20 batches of uniformly random bytes. "its
own": a rate at which the run spikes by itself (--rate, --beta2, --clip, --warmup-steps, the model's size). Each with
and without recovery, and for the first recovery of each case PaLM's control: the spike's batches from the earlier
state. Runs of a case see the same batches in the same order until the first recovery.

    python benchmarks/recovery.py [--rate 0.02 --beta2 0.99 --clip 0 --steps 600 --seed 0]
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from theory import Architecture
from verify.training.corpus import load_corpus
from verify.training.detection import Recovery
from verify.training.optimizer import Optimizer
from verify.training.recovery import control, surviving, train_recovering
from verify.training.run import Run

BAD = range(300, 320)
HARMLESS_RATE = 3e-3
LAST = 50


def planted(run: Run) -> Callable[[int], np.ndarray]:
    """The run's batches, the bad ones random."""
    corpus = load_corpus(run.corpus, run.arch.vocab_size)

    def batch(number: int) -> np.ndarray:
        if number in BAD:
            shape = (run.batch_size, run.arch.seq_len + 1)
            return np.random.default_rng(number).integers(run.arch.vocab_size, size=shape)
        return corpus.batch(run.arch.seq_len, run.batch_size, seed=run.seed, step=number)

    return batch


def row(case: str, name: str, dataset: xr.Dataset) -> str:
    """One line of the table, of the path that lasted but for the steps that were taken."""
    path = surviving(dataset)
    spikes = {kind: len(json.loads(dataset.attrs[kind])) for kind in ("recoveries", "ignored")}
    return (
        f"| {case} | {name} | {spikes['recoveries']} | {spikes['ignored']} | {dataset.sizes['step']} "
        f"| {float(path['loss'][LAST:].max()):.2f} | {float(path['loss'][-LAST:].median()):.3f} "
        f"| {dataset.attrs['held_out_loss']:.3f} | {dataset.attrs['outcome']} |"
    )


def show(case: str, run: Run, recovery: Recovery, batches: Callable[[int], np.ndarray] | None) -> None:
    """Train with and without, and print rows and control."""
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name, chosen in (("without", dataclasses.replace(recovery, most=0)), ("with", recovery)):
            made[name] = train_recovering(run, chosen, Path(folder, name), batches, lambda line: print(f"    {line}"))
        print(f"| case | recovery | recoveries | ridden out | steps taken | largest loss after step {LAST} "
              f"| median loss of the last {LAST} | held-out loss | outcome |\n{'|---' * 9}|")  # fmt: skip
        for name, dataset in made.items():
            print(row(case, name, dataset))
        if not json.loads(made["with"].attrs["recoveries"]):
            print("no recovery, so no control\n")
            return
        again = control(run, recovery, Path(folder, "with"), made["with"], batches=batches)
        print(
            f"control, batches {int(again['batch'][0])} to {int(again['batch'][-1])} from the state of step "
            f"{again.attrs['restored']}: largest loss {float(again['control_loss'].max()):.2f}, in the run itself "
            f"{float(again['loss'].max()):.2f}; {'a spike here too' if again.attrs['spiked'] else 'no spike here'}\n",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=2e-2, help="peak learning rate of the case that spikes by itself")
    parser.add_argument("--beta2", type=float, default=0.99)
    parser.add_argument("--clip", type=float, default=0.0, help="largest gradient norm (0: none)")
    parser.add_argument("--warmup-steps", type=int, default=50)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--excess", type=float, default=Recovery.excess, help="nats above the median")
    options = parser.parse_args()
    arch = Architecture(
        num_layers=options.layers, d_model=options.d_model, num_heads=max(options.d_model // 32, 1),
        seq_len=options.seq_len,
    )  # fmt: skip
    optimizer = Optimizer(
        learning_rate=options.rate, beta2=options.beta2, clip=options.clip, warmup_steps=options.warmup_steps,
        schedule="constant",
    )  # fmt: skip
    run = Run(arch, optimizer, batch_size=options.batch_size, steps=options.steps, seed=options.seed)
    harmless = dataclasses.replace(run, optimizer=dataclasses.replace(optimizer, learning_rate=HARMLESS_RATE))
    recovery = Recovery(excess=options.excess)
    show("planted", harmless, recovery, planted(harmless))
    show("its own", run, recovery, None)


if __name__ == "__main__":
    main()
