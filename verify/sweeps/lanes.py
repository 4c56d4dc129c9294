"""A grid of runs into a folder: what is missing is trained, runs of one program side by side; files there stay."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from verify.sweeps import store
from verify.training.loop import Run, train_lanes


def train_missing(
    runs: Sequence[Run], folder: Path, lanes: int = 4, advanced: Callable[[int], None] | None = None
) -> list[Path]:
    """Train the runs that have no file in `folder` yet; the path of every run, in the order given.

    lanes: how many advance together; each group's files are written as soon as it is done, so an interruption costs
    one group. advanced: called with the number of steps done, finished runs' included. Raises ValueError that names a
    damaged file, before any training, and what `train_lanes` raises.
    """
    if lanes < 1:
        raise ValueError(f"lanes: must be at least 1, got {lanes}")
    paths = {run: store.path_of(run, folder) for run in runs}
    missing = []
    for run, path in paths.items():
        if not path.exists():
            missing.append(run)
            continue
        store.load(path)
        if advanced is not None:
            advanced(run.steps)
    for group in _groups(missing, lanes):
        for run, dataset in zip(group, train_lanes(group, advanced), strict=True):
            store.save(run, dataset, folder)
    return [paths[run] for run in runs]


def _groups(runs: Sequence[Run], lanes: int) -> Iterator[list[Run]]:
    """At most `lanes` neighbours that share a program."""
    for _, same in groupby(runs, Run.program):
        group = list(same)
        for start in range(0, len(group), lanes):
            yield group[start : start + lanes]
