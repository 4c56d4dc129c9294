"""Where unfinished runs stand, on disk: their states after the last whole chunk, and the telemetry of every chunk."""

import shutil
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

from theory.atomic_file import named, write_atomically

Recorded = dict[str, np.ndarray]
"""telemetry of some steps, [lanes, steps, ...] by name"""
_STATES, _DONE = "states.npz", "steps done"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile, RuntimeError, zlib.error)  # NumPy and zipfile


class DamagedCheckpoint(ValueError):
    """What is in the folder cannot be read, lacks a part, or is of other runs."""


class Checkpoint:
    """A folder with the last states and one file a chunk. A kill at any moment leaves those of the chunk before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, like: Any) -> tuple[int, Any, list[Recorded]]:
        """Steps done, the states in a tree as `like`, and the chunks so far; 0, `like`, [] where there is none.

        Raises DamagedCheckpoint, which names the folder.
        """
        if not self._is_there():
            return 0, like, []
        try:
            done, states = self._read_states(like)
            chunks = [load_arrays(path) for path in self._chunks() if int(path.stem) <= done]
        except _UNREADABLE as error:
            raise DamagedCheckpoint(f"checkpoint: {self.folder} is damaged ({error})") from error
        if sum(chunk["loss"].shape[1] for chunk in chunks) != done:
            raise DamagedCheckpoint(f"checkpoint: {self.folder} lacks the telemetry of some of its {done} steps")
        return done, states, chunks

    def write(self, done: int, states: Any, chunk: Recorded) -> None:
        """Keep the states after `done` steps, and the telemetry of the last ones.

        Raises OSError that names the folder and says what to do.
        """
        with named(f"checkpoint: cannot write {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                write_atomically(self.folder / f"{done}.npz", lambda path: save_arrays(path, chunk))
            self._write_states(done, states)

    def remove(self) -> None:
        """Nothing is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def steps_done(self) -> int:
        """How many steps it has behind it, as far as can be read; a mesh's states are a folder of that name."""
        try:
            return int(load_arrays(self.folder / _STATES, _DONE)[_DONE])
        except _UNREADABLE:
            return max(self.sharded(), default=0)

    def sharded(self) -> list[int]:
        """Steps after which a mesh left its states here; Orbax writes under another name, and renames what is whole."""
        return [int(path.name) for path in self.folder.glob("*") if path.name.isdecimal() and path.is_dir()]

    def last_losses(self) -> np.ndarray | None:
        """Every lane's training loss at the last step, in nats per token, if it can be read."""
        try:
            return load_arrays(self.folder / f"{self.steps_done()}.npz", "loss")["loss"][:, -1]
        except _UNREADABLE:
            return None

    def _is_there(self) -> bool:
        return (self.folder / _STATES).exists()

    def _read_states(self, like: Any) -> tuple[int, Any]:
        saved = load_arrays(self.folder / _STATES)
        return int(saved[_DONE]), jax.tree_util.tree_map_with_path(
            lambda path, leaf: _as(leaf, saved[_name(path)]), like
        )

    def _write_states(self, done: int, states: Any) -> None:
        leaves = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(states)}
        write_atomically(self.folder / _STATES, lambda path: save_arrays(path, leaves | {_DONE: np.array(done)}))

    def _chunks(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npz"), key=lambda path: int(path.stem))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _as(leaf: Any, saved: np.ndarray) -> jax.Array:
    if (leaf.shape, leaf.dtype) != (saved.shape, saved.dtype):
        raise ValueError(f"{saved.dtype}{saved.shape} where {leaf.dtype}{leaf.shape} is expected")
    return jax.device_put(saved, leaf.sharding)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As npz, under exactly that name."""
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """These arrays of the file; all of them where none is named."""
    with path.open("rb") as file, np.load(file) as arrays:
        return {name: arrays[name] for name in names or arrays}
