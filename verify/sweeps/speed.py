"""How fast this machine trains, from a few steps of a run that is to be trained."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from verify.sweeps.lanes import side_by_side
from verify.training.loop import train_lanes
from verify.training.run import Run, by_program

_CHUNKS = 3  # the first one has the compiling in it


@dataclass(frozen=True)
class Speed:
    """compile_seconds: before a program's first steps are done; flops: floating-point operations a second after it.

    Both of all threads that train at a time together.
    """

    compile_seconds: float
    flops: float

    def seconds(self, runs: Sequence[Run]) -> float:
        """That these runs take, by their arithmetic: small models do less of it a second than large ones."""
        return len(by_program(runs)) * self.compile_seconds + sum(run.flops for run in runs) / self.flops


def measured(runs: Sequence[Run], lanes: int | None) -> Speed:
    """On the program that most of the arithmetic is in, as many runs of it side by side as `train_missing` has.

    Takes the compiling and `_CHUNKS` chunks of steps; writes nothing. Raises what `train_lanes` raises.
    """
    largest = max(by_program(runs), key=lambda same: sum(run.flops for run in same))
    groups, threads = side_by_side(largest, lanes)
    group = groups[0]
    share = group[0].flops / group[0].steps * len(group)

    def timed(_: int) -> tuple[float, float]:
        """Seconds to the end of the first chunk, and operations a second in the others."""
        ends = [(time.perf_counter(), 0)]

        def advanced(steps: int) -> None:
            ends.append((time.perf_counter(), steps // len(group)))
            if len(ends) > _CHUNKS:
                raise _Enough

        with suppress(_Enough):
            train_lanes(group, advanced, one_core=threads > 1)
        (begun, _), (first, steps) = ends[:2]
        if len(ends) == 2:
            return 0.0, steps * share / (first - begun)
        return first - begun, sum(steps for _, steps in ends[2:]) * share / (ends[-1][0] - first)

    with ThreadPoolExecutor(threads) as pool:
        firsts, speeds = zip(*pool.map(timed, range(threads)), strict=True)
    return Speed(max(firsts) / threads, sum(speeds))


class _Enough(Exception):
    pass
