"""`python -m verify sweep plan | run FILE`: what a sweep's runs are and cost, and the training of the missing ones."""

import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from verify.sweeps import store
from verify.sweeps.cost import cost, free_bytes, lanes_that_fit
from verify.sweeps.lanes import train_missing
from verify.sweeps.manifest import Sweep, read_sweep
from verify.training.loop import Run, require_data
from verify.training.progress import progress

_Item = TypeVar("_Item")


def share(runs: Sequence[_Item], shard: str) -> Sequence[_Item]:
    """The I-th of N contiguous shares for "I/N", whose sizes differ by one at most.

    Raises ValueError unless 0 <= I < N.
    """
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"shard: must be I/N with whole numbers 0 <= I < N, as 0/4 to 3/4, got {shard!r}")
    ends = [len(runs) * i // int(count) for i in (int(index), int(index) + 1)]
    return runs[ends[0] : ends[1]]


def plan(file: Path, out: Path, shard: str, lanes: int) -> int:
    """Print every run of the share, and what is left to do; the exit status. Raises as `read_sweep` and `share` do."""
    sweep, runs = _read(file, shard, lanes)
    done = {run: store.path_of(run, out).exists() for run in runs}
    print(f"{file}: {len(runs)} runs" + (f" (share {shard})" if shard != "0/1" else ""))
    print(_table(sweep, runs, done))
    for number, (program, group) in enumerate(groupby(runs, Run.program), 1):
        _print_program(number, program, list(group), done, lanes)
    left = [cost(run) for run in runs if not done[run]]
    tokens, flops = sum(one.tokens for one in left), sum(one.flops for one in left)
    print(f"\n{len(runs) - len(left)} of {len(runs)} done in {out}/; left: {tokens:.3g} tokens, {flops:.3g} FLOP")
    return 0


def train_share(file: Path, out: Path, shard: str, lanes: int) -> int:
    """Train what of the share is missing, as many at a time as memory holds. Returns and raises as `train` does."""
    _, runs = _read(file, shard, lanes)
    return train(runs, out, lambda group: lanes_that_fit(group, lanes, free_bytes()))


def train(runs: Sequence[Run], out: Path, lanes: Callable[[Sequence[Run]], int]) -> int:
    """Train what has no file in `out` yet, and print how every run ended. lanes: at a time, of runs of one program.

    Returns the exit status, 130 after an interruption. Raises ValueError for a corpus or folder that will not do.
    """
    require_data(runs)
    store.require_writable(out)
    paths = list[Path]()
    try:
        with progress() as stage, stage("train (steps)", sum(run.steps for run in runs)) as advance:
            for _, same in groupby(runs, Run.program):
                group = list(same)
                paths += train_missing(group, out, lanes(group), advance)
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished runs stay in {out}/ and the same command goes on", file=sys.stderr)
        return 130
    for trained, path in zip(runs, paths, strict=True):
        ended = store.load(path).attrs
        print(
            f"rate {trained.optimizer.learning_rate:<8g} seed {trained.seed:<3d} {ended['outcome']} at step "
            f"{ended['outcome_step']}, held-out loss {ended['held_out_loss']:.4f} nats per token: {path}"
        )
    return 0


def _read(file: Path, shard: str, lanes: int) -> tuple[Sweep, Sequence[Run]]:
    if lanes < 1:
        raise ValueError(f"lanes: must be at least 1, got {lanes}")
    sweep = read_sweep(file)
    return sweep, share(sweep.runs, shard)


def _table(sweep: Sweep, runs: Sequence[Run], done: dict[Run, bool]) -> str:
    rows = [["hash", *(name.split(".")[-1] for name in sweep.varied), "steps", "state"]]
    for run in runs:
        values = [f"{value:g}" if isinstance(value, float) else str(value) for value in sweep.values(run).values()]
        rows.append([store.digest(run), *values, str(run.steps), "done" if done[run] else "to do"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _print_program(number: int, program: Run, runs: list[Run], done: dict[Run, bool], most: int) -> None:
    one, left, free = cost(program), sum(not done[run] for run in runs), free_bytes()
    lanes = lanes_that_fit(runs, most, free)
    print(
        f"\nprogram {number}: {len(runs)} runs, {left} left; {one.parameters:,} parameters; "
        f"a run: {one.tokens:,} tokens, {one.flops:.3g} FLOP; "
        f"{lanes} at a time in {lanes * one.lane_bytes / 1e9:,.2f} GB"
        + (f", MORE than the {free / 1e9:,.2f} GB that are free here" if one.lane_bytes > free else "")
    )
