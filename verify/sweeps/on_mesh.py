"""Runs one after the other, each spread over a mesh; of several processes each makes the same call."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from verify.sweeps import store
from verify.sweeps.lanes import set_aside_if_damaged
from verify.sweeps.unit import Unit, lock
from verify.training.checkpoint import DamagedCheckpoint
from verify.training.loop import train_lanes
from verify.training.run import Run
from verify.training.sharded_checkpoint import ShardedCheckpoint


def train_missing_on(
    mesh: Mesh, runs: Sequence[Run], folder: Path, finished: Callable[[Run, Path], None] = lambda run, path: None
) -> None:
    """Train the runs that have no file in `folder` yet; of several processes the first one decides and writes.

    finished: called there with each run that is written. A run that another job is at is waited for. A damaged file is
    named, set aside, and its run trained again. Raises what `train_lanes` and `store.save` raise.
    """
    leads = jax.process_index() == 0
    for run in runs:
        unit, path = Unit((run,), folder), store.path_of(run, folder)
        checkpoint = ShardedCheckpoint(unit.checkpoint.folder)
        with ExitStack() as held:
            missing = False
            if leads:
                held.enter_context(lock(run, folder))
                if missing := not path.exists() or set_aside_if_damaged(path):
                    if unit.checkpoint.steps_done() and not checkpoint.sharded():
                        print(
                            f"{checkpoint.folder}: steps without a mesh stay unused; without it they go on",
                            file=sys.stderr,
                        )
                    unit.begin()
            if _agreed(missing):
                dataset = _train(run, checkpoint, mesh, unit)
                if leads:
                    finished(run, store.save(run, dataset, folder))
                    checkpoint.remove()
            if leads:
                with suppress(OSError):
                    Path(lock(run, folder).lock_file).unlink()


def _train(run: Run, checkpoint: ShardedCheckpoint, mesh: Mesh, unit: Unit) -> xr.Dataset:
    try:
        return train_lanes([run], checkpoint=checkpoint, mesh=mesh)[0]
    except DamagedCheckpoint as error:  # in every process, as all read the same files
        if jax.process_index() == 0:
            print(f"{error}; this run starts again", file=sys.stderr)
            checkpoint.remove()
            unit.begin()
        _agreed(True)
        return train_lanes([run], checkpoint=checkpoint, mesh=mesh)[0]


def _agreed(said: bool) -> bool:
    """What the first process says; all wait for it."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(said)))
