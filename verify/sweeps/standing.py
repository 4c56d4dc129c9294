"""How far each run of a sweep is, read from the folder alone: the same for who trains, who waits and who looks on."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from filelock import Timeout

from verify.sweeps import store
from verify.sweeps.unit import lock, unfinished_units
from verify.training.run import Run

State = Literal["to do", "running", "interrupted", "done", "damaged"]


@dataclass(frozen=True)
class Standing:
    """Of one run. steps: behind it, as far as they are kept. loss: in nats per token, held-out once the run is done,
    else the last step's. outcome: as `outcome_of` says, once it is done."""

    state: State
    steps: int = 0
    loss: float | None = None
    outcome: str = ""


def standings(runs: Iterable[Run], folder: Path) -> dict[Run, Standing]:
    """Where every run stands, in the order given. "interrupted": it has steps behind it and no process is at it."""
    runs = list(runs)
    behind = {}
    for unit in unfinished_units(runs, folder):
        steps, losses = unit.checkpoint.steps_done(), unit.checkpoint.last_losses()
        for lane, run in enumerate(unit.runs):
            behind[run] = (steps, None if losses is None else float(losses[lane]))
    return {run: _standing(run, folder, *behind.get(run, (0, None))) for run in runs}


def _standing(run: Run, folder: Path, steps: int, loss: float | None) -> Standing:
    path = store.path_of(run, folder)
    if path.exists():
        return _done(run, path, path.stat().st_mtime_ns)
    if _is_locked(run, folder):
        return Standing("running", steps, loss)
    return Standing("interrupted", steps, loss) if steps else Standing("to do")


@lru_cache(maxsize=4096)
def _done(run: Run, path: Path, modified: int) -> Standing:
    """Of a file as it was at that time, so that it is read once."""
    try:
        ended = store.attributes(path)
    except ValueError:
        return Standing("damaged")
    return Standing(
        "done", run.steps, float(ended["held_out_loss"]), f"{ended['outcome']} at step {ended['outcome_step']}"
    )


def _is_locked(run: Run, folder: Path) -> bool:
    held = lock(run, folder)
    if not Path(held.lock_file).exists():
        return False
    try:
        held.acquire(blocking=False).lock.release()
    except (Timeout, PermissionError):  # held, or of another user, whose process removes it at the end
        return True
    return False
