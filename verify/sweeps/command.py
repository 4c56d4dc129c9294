"""`python -m verify sweep plan | run FILE`: what a sweep's runs are and cost, and the training of the missing ones."""

import dataclasses
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from verify.sweeps import store
from verify.sweeps.cost import cost, free_bytes, lanes_that_fit
from verify.sweeps.lanes import train_missing
from verify.sweeps.manifest import Sweep, read_sweep
from verify.training.loop import Run, require_data
from verify.training.progress import progress

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class _Options:
    file: tyro.conf.Positional[Path]
    """TOML file of the sweep"""
    out: Path = Path("runs")
    """folder of the runs' files"""
    shard: str = "0/1"
    """I/N: the I-th of N equal shares of the runs, I from 0 to N - 1"""
    lanes: int = 8
    """most runs that advance together in one compiled program; fewer where memory is short"""


@dataclasses.dataclass(frozen=True)
class Plan(_Options):
    """List the runs with the hash of their configuration, which of them are done, and what the rest costs."""


@dataclasses.dataclass(frozen=True)
class Train(_Options):
    """Train the runs that have no file yet, one netCDF file a run; the same command goes on after an interruption."""


Command = Annotated[Plan, tyro.conf.subcommand("plan")] | Annotated[Train, tyro.conf.subcommand("run")]


@dataclasses.dataclass(frozen=True)
class SweepCommand:
    """Train a grid of runs described by a TOML file."""

    command: tyro.conf.OmitSubcommandPrefixes[Command]


def run_command(options: SweepCommand) -> int:
    """Exit status of that command. Raises ValueError and OSError for what the user can mend."""
    command = options.command
    if command.lanes < 1:
        raise ValueError(f"lanes: must be at least 1, got {command.lanes}")
    sweep = read_sweep(command.file)
    runs = share(sweep.runs, command.shard)
    return _plan(command, sweep, runs) if isinstance(command, Plan) else _train(command, runs)


def share(runs: Sequence[_Item], shard: str) -> Sequence[_Item]:
    """The I-th of N contiguous shares for "I/N", whose sizes differ by one at most.

    Raises ValueError unless 0 <= I < N.
    """
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"shard: must be I/N with whole numbers 0 <= I < N, as 0/4 to 3/4, got {shard!r}")
    ends = [len(runs) * i // int(count) for i in (int(index), int(index) + 1)]
    return runs[ends[0] : ends[1]]


def _plan(options: Plan, sweep: Sweep, runs: Sequence[Run]) -> int:
    done = {run: store.path_of(run, options.out).exists() for run in runs}
    print(f"{options.file}: {len(runs)} runs" + (f" (share {options.shard})" if options.shard != "0/1" else ""))
    print(_table(sweep, runs, done))
    for number, (program, group) in enumerate(groupby(runs, Run.program), 1):
        _print_program(number, program, list(group), done, options.lanes)
    left = [run for run in runs if not done[run]]
    tokens, flops = sum(cost(run).tokens for run in left), sum(cost(run).flops for run in left)
    print(
        f"\n{len(runs) - len(left)} of {len(runs)} done in {options.out}/; left: {tokens:.3g} tokens, {flops:.3g} FLOP"
    )
    return 0


def _train(options: Train, runs: Sequence[Run]) -> int:
    require_data(runs)
    store.require_writable(options.out)
    try:
        with progress() as stage, stage("train (steps)", sum(run.steps for run in runs)) as advance:
            for _, same in groupby(runs, Run.program):
                group = list(same)
                train_missing(group, options.out, lanes_that_fit(group, options.lanes, free_bytes()), advance)
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished runs stay in {options.out}/ and the same command goes on", file=sys.stderr)
        return 130
    for trained in runs:
        path = store.path_of(trained, options.out)
        ended = store.load(path).attrs
        print(f"{path}: {ended['outcome']} at step {ended['outcome_step']}, held-out loss {ended['held_out_loss']:.4f}")
    return 0


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
