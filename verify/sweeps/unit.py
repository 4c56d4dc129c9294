"""What advances together and where: the runs of a unit, its checkpoint in FOLDER/.unfinished, and who is at it."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from theory.atomic_file import named, write_atomically
from verify.sweeps import store
from verify.training.checkpoint import Checkpoint
from verify.training.run import Run

_MEMBERS = "runs.txt"


def _unfinished(folder: Path) -> Path:
    return folder / ".unfinished"


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
        members = "".join(f"{store.digest(run)}\n" for run in self.runs)
        with named(f"checkpoint: cannot write {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / _MEMBERS, lambda path: path.write_text(members))


def unfinished_units(runs: Iterable[Run], folder: Path) -> list[Unit]:
    """Units in the folder that were begun and not finished, all of whose runs are among these."""
    by_digest = {store.digest(run): run for run in runs}
    return [
        Unit(tuple(by_digest[digest] for digest in digests), folder)
        for _, digests in begun(folder)
        if all(digest in by_digest for digest in digests)
    ]


def begun(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every file that names runs which began together, with their digests."""
    for members in sorted(_unfinished(folder).glob(f"*/{_MEMBERS}")):
        with suppress(FileNotFoundError, UnicodeDecodeError):  # finished this moment, or damaged
            if digests := members.read_text().split():
                yield members, digests


def lock(run: Run, folder: Path) -> FileLock:
    """Held by the process that trains this run, and free as soon as it is dead."""
    return FileLock(_unfinished(folder) / f"{store.digest(run)}.lock")


@contextmanager
def held(runs: Iterable[Run], folder: Path) -> Iterator[bool]:
    """Holds the locks of all these runs, or says that another process or thread has one of them."""
    _unfinished(folder).mkdir(parents=True, exist_ok=True)
    locks = [lock(run, folder) for run in runs]
    with ExitStack() as stack:
        try:
            for one in locks:
                stack.enter_context(one.acquire(blocking=False))
        except Timeout:
            yield False
            return
        yield True
        for one in locks:
            with suppress(OSError):
                Path(one.lock_file).unlink()
