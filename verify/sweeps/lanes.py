"""A grid of runs into a folder: what is missing is trained, runs of one program side by side; files there stay.

Any number of processes may work on one folder, as each run is locked by the one that trains it. What a run has behind
it is kept chunk by chunk in FOLDER/.unfinished, so that after a kill the next process goes on from there.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from verify.sweeps import store
from verify.sweeps.cost import lanes_that_fit, threads_that_fit
from verify.sweeps.unit import Unit, begun, held, unfinished_units
from verify.training.checkpoint import Checkpoint, DamagedCheckpoint
from verify.training.compiled import release_when_many
from verify.training.loop import train_lanes
from verify.training.run import Run, by_program

POLL_SECONDS = 1.0


def train_missing(
    runs: Sequence[Run],
    folder: Path,
    lanes: int | None = None,
    advanced: Callable[[int], None] = lambda steps: None,
    finished: Callable[[Run, Path], None] = lambda run, path: None,
) -> list[Path]:
    """Train the runs that have no file in `folder` yet; the path of every run, in the order given.

    lanes: most runs of a program that advance together; None: as `lanes_that_fit` says. advanced: called with the
    number of steps done, those of finished runs too. finished: called with each run that is written. Both are called
    in threads. Runs that another process is at are waited for. A damaged file is named, set aside, and its run trained
    again. Raises what `train_lanes` and `store.save` raise; after that, or an interruption, what is done stays.
    """
    groups, threads = prepare(runs, folder, lanes)
    advanced(sum(run.steps for run in runs if store.path_of(run, folder).exists()))
    stop = threading.Event()

    def chunk_done(steps: int) -> None:
        advanced(steps)
        if stop.is_set():
            raise _Stopped

    def work() -> None:
        with suppress(_Stopped):
            while not stop.is_set() and (left := units_left(runs, groups, folder)):
                if not any(train_if_free(unit, threads > 1, chunk_done, finished) for unit in left):
                    stop.wait(POLL_SECONDS)

    if units_left(runs, groups, folder):
        with ThreadPoolExecutor(threads) as pool:
            try:
                for worker in as_completed([pool.submit(work) for _ in range(threads)]):
                    worker.result()
            except BaseException:
                stop.set()  # the others end after the chunk they are at
                raise
    return [store.path_of(run, folder) for run in runs]


def prepare(runs: Sequence[Run], folder: Path, lanes: int | None) -> tuple[list[list[Run]], int]:
    """Runs that advance together, whatever of them is done, and how many threads or tasks there are to be at a time.

    A damaged file is named and set aside; what others began and this does not go on with is named. Raises ValueError
    for less than one lane.
    """
    if lanes is not None and lanes < 1:
        raise ValueError(f"lanes: must be at least 1, got {lanes}")
    for run in runs:
        if (path := store.path_of(run, folder)).exists():
            set_aside_if_damaged(path)
    asked = {store.digest(run) for run in runs}
    for members, digests in begun(folder):
        steps = Checkpoint(members.parent).steps_done()
        if steps and asked & set(digests) and not asked >= set(digests):
            print(
                f"{members.parent}: {steps} steps of {len(digests)} runs that began together stay unused here, as some "
                "of them are in another share or sweep; the command that began them goes on with them",
                file=sys.stderr,
            )
    for unit in unfinished_units(runs, folder):
        if len(unit.missing()) == len(unit.runs) and not unit.checkpoint.steps_done():
            with held(unit.runs, folder) as ours:
                if ours:
                    unit.checkpoint.remove()  # nothing is lost, and these lanes may have been too many
    return side_by_side(runs, lanes)


def units_left(runs: Sequence[Run], groups: Sequence[Sequence[Run]], folder: Path) -> list[Unit]:
    """What is to be trained; what was begun first, and as it was, the rest by its place in the groups.

    Begun is what has steps or a finished run behind it.
    """
    units = []
    for unit in unfinished_units(runs, folder):
        missing = unit.missing()
        if not missing:
            unit.checkpoint.remove()  # killed before it was tidied up
        elif len(missing) < len(unit.runs) or unit.checkpoint.steps_done():
            units.append(unit)
    taken = {run for unit in units for run in unit.runs}
    units += [Unit(rest, folder) for group in groups if (rest := tuple(run for run in group if run not in taken))]
    return [unit for unit in units if unit.missing()]


class _Stopped(Exception):
    pass


def side_by_side(runs: Sequence[Run], lanes: int | None) -> tuple[list[list[Run]], int]:
    """Runs that share a program, as many as advance together, and how many of these groups at a time."""
    groups, threads = [], threads_that_fit(runs)
    for alike in by_program(runs):
        width = lanes_that_fit(alike, threads, lanes)
        groups += [alike[start : start + width] for start in range(0, len(alike), width)]
    return groups, min(threads, len(groups))


def train_if_free(
    unit: Unit, one_core: bool, advanced: Callable[[int], None], finished: Callable[[Run, Path], None]
) -> bool:
    """Train what is missing of the unit, unless another process or thread is at one of its runs; whether it did."""
    with held(unit.missing(), unit.folder) as ours:
        if not ours:
            return False
        if missing := unit.missing():  # once more: it may have been finished before the locks were ours
            whole = unit.checkpoint.folder.exists() and (len(missing) < len(unit.runs) or unit.checkpoint.steps_done())
            _train(unit if whole else Unit(missing, unit.folder), missing, one_core, advanced, finished)
    return True


def _train(
    unit: Unit,
    missing: tuple[Run, ...],
    one_core: bool,
    advanced: Callable[[int], None],
    finished: Callable[[Run, Path], None],
) -> None:
    unit.begin()
    checkpoint = unit.checkpoint
    if checkpoint.sharded():
        print(f"{checkpoint.folder}: steps on a mesh stay unused; with its --mesh they go on", file=sys.stderr)
    try:
        datasets = train_lanes(unit.runs, advanced, checkpoint, one_core)
    except DamagedCheckpoint as error:
        print(f"{error}; these runs start again", file=sys.stderr)
        checkpoint.remove()
        unit.begin()
        datasets = train_lanes(unit.runs, advanced, checkpoint, one_core)
    for run, dataset in zip(unit.runs, datasets, strict=True):
        if run in missing:
            finished(run, store.save(run, dataset, unit.folder))
    checkpoint.remove()
    release_when_many()


def set_aside_if_damaged(path: Path) -> bool:
    """Whether the file had to be renamed to .damaged; what another process is writing is left alone."""
    try:
        store.attributes(path)
        return False
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged")
        print(f"{error}; it is now {aside.name} and the run is trained again", file=sys.stderr)
        with suppress(FileNotFoundError):
            path.rename(aside)
        return True
