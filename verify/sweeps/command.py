"""`python -m verify sweep plan | run | status FILE`: what a sweep's runs are, cost, and how far they are."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import NoReturn, TypeVar

import jax
from jax.sharding import Mesh
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from verify.sweeps import store
from verify.sweeps.cost import cost, device_bytes, mesh_bytes
from verify.sweeps.lanes import side_by_side, train_missing
from verify.sweeps.manifest import Sweep, read_sweep
from verify.sweeps.on_mesh import train_missing_on
from verify.sweeps.on_ray import train_missing_on_ray
from verify.sweeps.speed import measured
from verify.sweeps.standing import Standing, standings
from verify.training.mesh import MeshShape
from verify.training.run import Run, require_data

_Item = TypeVar("_Item")
Values = Callable[[Run], dict[str, object]]
"""a run's value of each field that varies in its sweep"""
Finished = Callable[[Run, Path], None]
Work = Callable[[Sequence[Run], Path, Finished], object]
"""trains what is missing of these runs into the folder, and calls with each that is written"""


def share(runs: Sequence[_Item], shard: str) -> Sequence[_Item]:
    """The I-th of N contiguous shares for "I/N", whose sizes differ by one at most.

    Raises ValueError unless 0 <= I < N.
    """
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"shard: must be I/N with whole numbers 0 <= I < N, as 0/4 to 3/4, got {shard!r}")
    ends = [len(runs) * i // int(count) for i in (int(index), int(index) + 1)]
    return runs[ends[0] : ends[1]]


def read_share(file: Path, shard: str, lanes: int | None) -> tuple[Sweep, Sequence[Run]]:
    """The sweep and that share of its runs. Raises as `read_sweep` and `share` do, and ValueError for no lanes."""
    if lanes is not None and lanes < 1:
        raise ValueError(f"lanes: must be at least 1, got {lanes}")
    sweep = read_sweep(file)
    return sweep, share(sweep.runs, shard)


def plan(
    title: str, runs: Sequence[Run], out: Path, values: Values, lanes: int | None, mesh: MeshShape,
    device_flops: float | None, measure: bool,
) -> int:  # fmt: skip
    """Print every run, and what is left to do; the exit status.

    mesh: devices each run is to be spread over, which need not be here. device_flops: floating-point operations a
    second that a device achieves, to say how long it takes. measure: train some steps here to say so. Raises ValueError
    where device_flops is not positive, and where a mesh of several devices is to be measured.
    """
    if device_flops is not None and not device_flops > 0:
        raise ValueError(f"device_flops: must be a positive number, got {device_flops}")
    if measure and mesh.devices > 1:
        raise ValueError("measure: runs on one device each are measured; for a mesh give --device-flops")
    found = standings(runs, out)
    print(title)
    _console().print(_table(found, values))
    groups, threads = side_by_side(runs, lanes)
    for number, (program, alike) in enumerate(groupby(groups, lambda group: group[0].program()), 1):
        _print_program(number, program, list(alike), found, threads, mesh)
    left = [run for run, standing in found.items() if standing.state != "done"]
    tokens, flops = sum(run.tokens for run in left), sum(run.flops for run in left)
    print(f"\n{len(runs) - len(left)} of {len(runs)} done in {out}/; left: {tokens:.3g} tokens, {flops:.3g} FLOP")
    if measure and left:
        print_time(left, lanes)
    if device_flops is not None:
        hours = flops / device_flops / mesh.devices / 3600
        print(f"{hours:.3g} hours on {mesh.devices} devices that achieve {device_flops:.3g} FLOP/s each")
    return 0


def print_time(runs: Sequence[Run], lanes: int | None) -> None:
    """Measure how fast this machine trains some of them, and say how long all of them take."""
    require_data(runs)
    speed = measured(runs, lanes)
    time_left = timedelta(seconds=round(speed.seconds(runs)))
    print(
        f"about {time_left} on this machine, which achieves {speed.flops:.3g} FLOP/s "
        f"in the program with the most to do, and takes {speed.compile_seconds:.0f} s to compile one",
        flush=True,
    )


def status(runs: Sequence[Run], out: Path, values: Values) -> int:
    """Print how far every run is; the exit status."""
    found = standings(runs, out)
    _console().print(_table(found, values))
    print(_summary(found, out))
    return 0


def here(lanes: int | None, mesh: Mesh | None) -> Work:
    """On this machine: lanes in threads, or one run at a time spread over the devices of a mesh."""
    if mesh is None:
        return lambda runs, out, finished: train_missing(runs, out, lanes, finished=finished)
    return lambda runs, out, finished: train_missing_on(mesh, runs, out, finished)


def on_ray(lanes: int | None, address: str | None) -> Work:
    """On a Ray cluster."""
    return lambda runs, out, finished: train_missing_on_ray(runs, out, lanes, address, finished)


def train(runs: Sequence[Run], out: Path, values: Values, work: Work) -> int:
    """Train what has no file in `out` yet, with a table of the runs on a terminal, else a line for each that ends.

    Of several processes only the first one prints. Returns the exit status, 130 after an interruption, also by SIGTERM.
    Raises ValueError for a corpus, folder, mesh or cluster that will not do, OSError where a file cannot be written.
    """
    require_data(runs)
    store.require_writable(out)
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if jax.process_index() > 0:
            work(runs, out, lambda run, path: None)
            return 0
        print(f"{_summary(standings(runs, out), out)}; after an interruption the same command goes on", flush=True)
        with _watched(runs, out, values) as finished:
            work(runs, out, finished)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {_summary(standings(runs, out), out)}; the same command goes on", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        if jax.process_count() > 1:
            _leave(2, f"error: process {jax.process_index()}: {error}")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(_summary(standings(runs, out), out))
    return 0


def _interrupt(number: int, frame: object) -> None:
    """The first time after what is in flight, the second time at once; of several processes always at once."""
    if jax.process_count() > 1:
        _leave(130, "interrupted; the same command goes on")
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: _leave(130, "stopped; the same command goes on"))
    print("\nstopping after the steps in flight; once more to stop at once, which loses them", file=sys.stderr)
    raise KeyboardInterrupt


def _leave(status: int, said: str) -> NoReturn:
    """Without waiting for threads or other processes; nothing is lost, as what is done is on the disk."""
    print(said, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


@contextmanager
def _watched(runs: Sequence[Run], out: Path, values: Values) -> Iterator[Finished]:
    """What to call for a run that has ended; on a terminal, a table of all of them for as long as they train."""
    console, before = _console(), standings(runs, out)
    if not console.is_terminal:
        for run, standing in before.items():
            if standing.state == "done":
                _print_ended(run, values, out)
        yield lambda run, path: _print_ended(run, values, out)
        return
    start, steps = time.monotonic(), _steps(before)

    def look() -> Group:
        found = standings(runs, out)
        rate = (_steps(found) - steps) / (time.monotonic() - start)
        table = _table(found, values, most=max(console.height - 6, 1))
        left = sum(run.steps for run in runs) - _steps(found)
        speed = f"; {rate:.1f} steps/s, {timedelta(seconds=round(left / rate))} left" if rate else ""
        return Group(table, _summary(found, out) + speed)

    with Live(get_renderable=look, console=console, refresh_per_second=1):
        yield lambda run, path: None


def _console() -> Console:
    """As wide as the terminal, or wide enough for any table."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def _table(found: dict[Run, Standing], values: Values, most: int | None = None) -> Table:
    """A row a run, in order; if there is no room for all, what runs and what comes next first."""
    shown = list(found.items())
    if most is not None and len(shown) > most:
        first = sorted(range(len(shown)), key=lambda i: _URGENCY[shown[i][1].state])[:most]
        shown = [shown[i] for i in sorted(first)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = list(values(shown[0][0]))
    for name in ("hash", *names, "steps", "state", "loss, nats"):
        table.add_column(name, justify="right" if name in ("steps", "loss, nats") else "left")
    for run, standing in shown:
        loss = "" if standing.loss is None else f"{standing.loss:.4f}"
        table.add_row(
            store.digest(run), *_cells(values(run)), f"{standing.steps}/{run.steps}",
            standing.state + (f": {standing.outcome}" if standing.outcome else ""), loss,
        )  # fmt: skip
    return table


_URGENCY: dict[str, int] = {"running": 0, "damaged": 1, "interrupted": 2, "to do": 3, "done": 4}


def _cells(values: dict[str, object]) -> list[str]:
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in values.values()]


def _print_ended(run: Run, values: Values, out: Path) -> None:
    named = "  ".join(f"{name} {cell}" for name, cell in zip(values(run), _cells(values(run)), strict=True))
    ended = standings([run], out)[run]
    print(
        f"{named}: {ended.outcome}, held-out loss {ended.loss:.4f} nats per token: {store.path_of(run, out)}",
        flush=True,
    )


def _summary(found: dict[Run, Standing], out: Path) -> str:
    counts = Counter[str](standing.state for standing in found.values())
    others = "".join(f", {counts[state]} {state}" for state in _URGENCY if state != "done" and counts[state])
    return f"{counts['done']} of {len(found)} runs done{others} in {out}/"


def _steps(found: dict[Run, Standing]) -> int:
    return sum(standing.steps for standing in found.values())


def _print_program(
    number: int, program: Run, groups: list[list[Run]], found: dict[Run, Standing], threads: int, mesh: MeshShape
) -> None:
    runs = [run for group in groups for run in group]
    one, left = cost(program), sum(found[run].state != "done" for run in runs)
    said = (
        f"\nprogram {number}: {len(runs)} runs, {left} left; {one.parameters:,} parameters; "
        f"a run: {one.tokens:,} tokens, {one.flops:.3g} FLOP; "
    )
    if mesh.devices > 1:
        print(f"{said}one at a time takes {mesh_bytes(program, mesh) / 1e9:,.2f} GB of each of {mesh.devices} devices")
        return
    lanes, room = len(groups[0]), device_bytes()
    print(
        f"{said}{lanes} lanes in each of {threads} threads take {threads * lanes * one.lane_bytes / 1e9:,.2f} GB"
        + (f", MORE than the {room / 1e9:,.2f} GB of this machine" if one.lane_bytes > room else "")
    )
