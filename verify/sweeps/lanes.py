"""A grid of runs into a folder: what is missing is trained, runs of one program side by side; files there stay.

Any number of processes may work on one folder, as each run is locked by the one that trains it. What a run has behind
it is kept chunk by chunk in FOLDER/.unfinished, so that after a kill the next process goes on from there.
"""

import hashlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from filelock import FileLock, Timeout

from theory.atomic_file import write_atomically
from verify.sweeps import store
from verify.sweeps.cost import lanes_that_fit, threads_that_fit
from verify.training.checkpoint import Checkpoint, DamagedCheckpoint
from verify.training.loop import Run, train_lanes

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Unit:
    """Runs that advance together, and where: their last bits depend on how many they are, so they stay together."""

    runs: tuple[Run, ...]
    folder: Path

    @property
    def checkpoint(self) -> Checkpoint:
        """What is done so far."""
        digests = "\n".join(map(store.digest, self.runs))
        return Checkpoint(_unfinished(self.folder) / hashlib.sha256(digests.encode()).hexdigest()[:12])

    def missing(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if not store.path_of(run, self.folder).exists())

    def begin(self) -> None:
        """Make the checkpoint's folder and name the runs in it, for the next process and for who looks on."""
        folder = self.checkpoint.folder
        folder.mkdir(parents=True, exist_ok=True)
        members = "".join(f"{store.digest(run)}\n" for run in self.runs)
        write_atomically(folder / _MEMBERS, lambda path: path.write_text(members))


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
    if lanes is not None and lanes < 1:
        raise ValueError(f"lanes: must be at least 1, got {lanes}")
    paths = {run: store.path_of(run, folder) for run in runs}
    for run, path in paths.items():
        if path.exists() and not set_aside_if_damaged(path):
            advanced(run.steps)
    groups = _groups(runs, lanes)
    units = list(_units(runs, groups, folder))
    threads = min(threads_that_fit(runs), len(groups))
    stop = threading.Event()

    def chunk_done(steps: int) -> None:
        advanced(steps)
        if stop.is_set():
            raise _Stopped

    def work() -> None:
        with suppress(_Stopped):
            while not stop.is_set() and (left := [unit for unit in units if unit.missing()]):
                if not any(_train_if_free(unit, threads > 1, chunk_done, finished) for unit in left):
                    stop.wait(_POLL_SECONDS)

    if any(unit.missing() for unit in units):
        with ThreadPoolExecutor(threads) as pool:
            try:
                for worker in as_completed([pool.submit(work) for _ in range(threads)]):
                    worker.result()
            except BaseException:
                stop.set()  # the others end after the chunk they are at
                raise
    with suppress(OSError):
        _unfinished(folder).rmdir()
    return list(paths.values())


def unfinished_units(runs: Iterable[Run], folder: Path) -> list[Unit]:
    """Units in the folder that were begun and not finished, all of whose runs are among these."""
    by_digest = {store.digest(run): run for run in runs}
    units = []
    for members in sorted(_unfinished(folder).glob(f"*/{_MEMBERS}")):
        try:
            digests = members.read_text().split()
        except FileNotFoundError:  # finished this moment
            continue
        if digests and all(digest in by_digest for digest in digests):
            units.append(Unit(tuple(by_digest[digest] for digest in digests), folder))
    return units


def lock(run: Run, folder: Path) -> FileLock:
    """Held by the process that trains this run, and free as soon as it is dead."""
    return FileLock(_unfinished(folder) / f"{store.digest(run)}.lock")


_MEMBERS = "runs.txt"


class _Stopped(Exception):
    pass


def _unfinished(folder: Path) -> Path:
    return folder / ".unfinished"


def _groups(runs: Sequence[Run], lanes: int | None) -> list[list[Run]]:
    """Neighbours that share a program, as many as advance together; whatever of them is done."""
    groups = []
    for _, same in groupby(runs, Run.program):
        alike = list(same)
        width = lanes_that_fit(alike, threads_that_fit(runs), lanes)
        groups += [alike[start : start + width] for start in range(0, len(alike), width)]
    return groups


def _units(runs: Sequence[Run], groups: list[list[Run]], folder: Path) -> Iterator[Unit]:
    """What was begun goes on as it was; then the groups, without that."""
    begun = unfinished_units(runs, folder)
    yield from begun
    taken = {run for unit in begun for run in unit.runs}
    for group in groups:
        if members := tuple(run for run in group if run not in taken):
            yield Unit(members, folder)


def _train_if_free(
    unit: Unit, one_core: bool, advanced: Callable[[int], None], finished: Callable[[Run, Path], None]
) -> bool:
    """Train what is missing of the unit, unless another process or thread is at one of its runs; whether it did."""
    _unfinished(unit.folder).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            locks = [
                held.enter_context(lock(run, unit.folder).acquire(blocking=False, poll_interval=0))
                for run in unit.missing()
            ]
        except Timeout:
            return False
        if missing := unit.missing():  # once more: it may have been finished before the locks were ours
            begun = unit if unit.checkpoint.steps_done() else Unit(missing, unit.folder)
            _train(begun, one_core, advanced, finished)
        for one in locks:
            with suppress(OSError):
                Path(one.lock_file).unlink()
    return True


def _train(unit: Unit, one_core: bool, advanced: Callable[[int], None], finished: Callable[[Run, Path], None]) -> None:
    unit.begin()
    checkpoint = unit.checkpoint
    try:
        datasets = train_lanes(unit.runs, advanced, checkpoint, one_core)
    except DamagedCheckpoint as error:
        print(f"{error}; these runs start again", file=sys.stderr)
        checkpoint.remove()
        _train(unit, one_core, advanced, finished)
        return
    missing = unit.missing()
    for run, dataset in zip(unit.runs, datasets, strict=True):
        if run in missing:
            finished(run, store.save(run, dataset, unit.folder))
    checkpoint.remove()


def set_aside_if_damaged(path: Path) -> bool:
    """Whether the file had to be renamed to .damaged; what another process is writing is left alone."""
    try:
        store.load(path)
        return False
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged")
        print(f"{error}; it is now {aside.name} and the run is trained again", file=sys.stderr)
        with suppress(FileNotFoundError):
            path.rename(aside)
        return True
