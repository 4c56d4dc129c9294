"""Checkpoints of states that lie on a mesh: every process writes what it holds, and another mesh reads it back."""

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from verify.training.checkpoint import Checkpoint


class ShardedCheckpoint(Checkpoint):
    """The last states by Orbax, in a folder that is named after the steps done; the telemetry as in `Checkpoint`."""

    def _is_there(self) -> bool:
        return bool(self.sharded())

    def _read_states(self, like: Any) -> tuple[int, Any]:
        done = max(self.sharded())
        with ocp.StandardCheckpointer() as checkpointer:
            target = jax.tree.map(ocp.tree.to_shape_dtype_struct, like)
            try:
                return done, checkpointer.restore(self._states(done), target)
            except Exception as error:  # Orbax raises bare ones
                raise ValueError(str(error)) from error

    def _write_states(self, done: int, states: Any) -> None:
        before = self.sharded()
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self._states(done), states)
        except ValueError as error:  # of TensorStore, where there is no room
            raise OSError(str(error)) from error
        if jax.process_index() == 0:
            for steps in before:
                shutil.rmtree(self._states(steps), ignore_errors=True)

    def _states(self, done: int) -> Path:
        return self.folder.absolute() / str(done)
