"""The units of a sweep on a Ray cluster: the same files as here, and a worker that is killed costs time, no results."""

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from verify.sweeps import store
from verify.sweeps.lanes import POLL_SECONDS, prepare, train_if_free, units_left
from verify.sweeps.unit import Unit
from verify.training.run import Run


def train_missing_on_ray(
    runs: Sequence[Run],
    folder: Path,
    lanes: int | None = None,
    address: str | None = None,
    finished: Callable[[Run, Path], None] = lambda run, path: None,
) -> None:
    """As `lanes.train_missing`, every unit a task that takes one core, or one GPU where the cluster has any.

    address: of a running cluster, which sees the folder under the same path and has this package; None: one is started
    on this machine. Raises ValueError where Ray is not installed or not there, and what a task raises.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("on: ray is not installed; pip install 'spikeless[cluster]'") from error
    try:
        with warnings.catch_warnings():
            # JAX's warning; what is forked here is replaced at once
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError) as error:
        raise ValueError(f"address: no Ray cluster at {address!r}: {error}") from error
    try:
        groups, threads = prepare(runs, folder.absolute(), lanes)
        units = units_left(runs, groups, folder.absolute())
        on_accelerator = ray.cluster_resources().get("GPU", 0) > 0
        task = ray.remote(num_cpus=1, num_gpus=int(on_accelerator), max_retries=-1)(_train)
        pending = {task.remote(unit, threads > 1): unit for unit in units}
        while pending:
            (ready,), _ = ray.wait(list(pending))
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            unit = pending.pop(ready)
            for run in unit.runs:
                finished(run, store.path_of(run, folder))
    finally:
        ray.shutdown()


def _train(unit: Unit, one_core: bool) -> None:
    """In a worker. What another one has begun and left, it goes on with."""
    while unit.missing():
        if not train_if_free(unit, one_core, lambda steps: None, lambda run, path: None):
            time.sleep(POLL_SECONDS)
