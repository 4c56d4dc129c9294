"""The newest states of one run on disk, so that it can go back as well as on, and the telemetry of every step taken."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from theory.atomic_file import named, write_atomically
from verify.training.checkpoint import load_arrays, save_arrays
from verify.training.state import State

Rows = dict[str, np.ndarray]
"""telemetry of some steps, [steps, ...] by name"""


class Ring:
    """The last `most` states by step, and by number those that the run went back to; by Orbax, as a context.

    A kill at any moment leaves the states kept before it, each with the notes and the rows of its time, of which
    `read` gives the newest. owner: what decides the run's numbers. like: a state of that run. Raises OSError that names
    the folder where it cannot be written, ValueError that names it where it is damaged or another owner's.
    """

    def __init__(self, folder: Path, most: int, owner: str, like: State) -> None:
        self.folder, self.owner = folder, owner
        self._like = _on_host(like)
        self._written = 0
        with named(f"folder: cannot write {folder}"):
            (folder / "rows").mkdir(parents=True, exist_ok=True)
            self._ring = _manager(folder / "ring", most)

    def __enter__(self) -> "Ring":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ring.close()

    def steps(self) -> list[int]:
        """Steps that the kept states have behind them, in order."""
        return sorted(self._ring.all_steps())

    def keep(self, state: State, notes: dict[str, Any], rows: Sequence[Rows]) -> None:
        """Keep the state, unless there is one of its step. notes: JSON values. rows: all since the run's first step."""
        step, new = int(state.step[0]), rows[self._written :]
        if step in self.steps():
            return
        count = _count(rows)
        with named(f"folder: cannot write {self.folder}"):
            if new:
                write_atomically(self._rows(count), lambda path: save_arrays(path, joined(new)))
            known = ocp.args.JsonSave({"owner": self.owner, "rows": count, "notes": notes})
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), known=known)
            _write(lambda: self._ring.save(step, args=items))
        self._written = len(rows)

    def read(self) -> tuple[State, dict[str, Any], list[Rows]] | None:
        """The newest state, and the notes and rows of its time; None where there is none."""
        step = self._ring.latest_step()
        if step is None:
            return None
        with _readable(self.folder):
            known = self._ring.restore(step, args=ocp.args.Composite(known=ocp.args.JsonRestore())).known
            owner, count, notes = known["owner"], known["rows"], known["notes"]
        if owner != self.owner:
            raise ValueError(f"folder: {self.folder} holds the states of another run; name another folder")
        paths = sorted((self.folder / "rows").glob("*.npz"), key=lambda path: int(path.stem))
        with _readable(self.folder):
            rows = [load_arrays(path) for path in paths if int(path.stem) <= count]
            if _count(rows) != count:
                raise ValueError(f"it lacks some of {count} steps")
        for path in paths[len(rows) :]:
            path.unlink()
        self._written = len(rows)
        return self._read(step), notes, rows

    def go_back(self, step: int, number: int) -> State:
        """The kept state of that step, set aside under the number as well; those of later steps are dropped."""
        state = self._read(step)
        with named(f"folder: cannot write {self.folder}"):
            with _manager(self.folder / "aside") as aside:
                if number in aside.all_steps():
                    aside.delete(number)
                _write(lambda: aside.save(number, args=ocp.args.StandardSave(state)))
            for later in reversed(self.steps()):
                if later > step:
                    self._ring.delete(later)
        return state

    def _read(self, step: int) -> State:
        with _readable(self.folder):
            items = ocp.args.Composite(state=ocp.args.StandardRestore(self._like))
            return _on_device(self._ring.restore(step, args=items).state)

    def _rows(self, count: int) -> Path:
        return self.folder / "rows" / f"{count}.npz"


def set_aside(folder: Path, number: int, like: State) -> State:
    """The state that the run of this folder went back to by its recovery of that number, counted from 0.

    Raises ValueError that names the folder where it has none, or is damaged.
    """
    if not (folder / "aside" / str(number)).is_dir():
        raise ValueError(f"folder: {folder} has no state that recovery {number} went back to; name the run's own")
    with _readable(folder), _manager(folder / "aside") as aside:
        return _on_device(aside.restore(number, args=ocp.args.StandardRestore(_on_host(like))))


def joined(rows: Sequence[Rows]) -> Rows:
    """One after the other."""
    return {name: np.concatenate([piece[name] for piece in rows]) for name in rows[0]}


def _manager(folder: Path, most: int | None = None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=most, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _write(save: Callable[[], object]) -> None:
    try:
        save()
    except ValueError as error:  # of TensorStore, where there is no room
        raise OSError(str(error)) from error


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax raises bare ones
        raise ValueError(f"folder: {folder} is damaged ({error}); remove it to start anew") from error


def _on_host(state: State) -> State:
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)


def _on_device(state: State) -> State:
    """Not committed to a device, as a state that never left it: else the programs are compiled once more."""
    return jax.tree.map(jnp.asarray, state)


def _count(rows: Sequence[Rows]) -> int:
    return sum(len(piece["step"]) for piece in rows)
