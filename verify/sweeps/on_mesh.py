"""Runs one after the other, each spread over a mesh; of several processes each makes the same call."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from verify.sweeps import store
from verify.sweeps.lanes import Unit, lock, set_aside_if_damaged
from verify.training.loop import Run, train_lanes
from verify.training.sharded_checkpoint import ShardedCheckpoint


def train_missing_on(
    mesh: Mesh, runs: Sequence[Run], folder: Path, finished: Callable[[Run, Path], None] = lambda run, path: None
) -> None:
    """Train the runs that have no file in `folder` yet; of several processes the first one decides and writes.

    finished: called there with each run that is written. A run that another job is at is waited for. A damaged file is
    named, set aside, and its run trained again. Raises what `train_lanes` and `store.save` raise.
    """
    for run in runs:
        unit, path = Unit((run,), folder), store.path_of(run, folder)
        with ExitStack() as held:
            missing = False
            if jax.process_index() == 0:
                unit.begin()
                held.enter_context(lock(run, folder))
                missing = not path.exists() or set_aside_if_damaged(path)
            if bool(multihost_utils.broadcast_one_to_all(np.array(missing))):
                checkpoint = ShardedCheckpoint(unit.checkpoint.folder)
                dataset = train_lanes([run], checkpoint=checkpoint, mesh=mesh)[0]
                if jax.process_index() == 0:
                    finished(run, store.save(run, dataset, folder))
            if jax.process_index() == 0:
                unit.checkpoint.remove()
                with suppress(OSError):
                    Path(lock(run, folder).lock_file).unlink()
                    unit.checkpoint.folder.parent.rmdir()
