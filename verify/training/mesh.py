"""One model over many devices: a mesh of data x fsdp x tensor, and where every array of a run lies on it.

Matrices are cut along their input and output as in Megatron (arXiv 1909.08053): those that read the stream give each
tensor shard whole heads or hidden units, those that write it take them; fsdp cuts the other side, and with data the
batch. XLA puts the communication in.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
_READS = ("query", "key", "value", "up", "gate", "head")


@dataclass(frozen=True)
class MeshShape:
    """How many ways each is cut: the batch alone, batch and weights (ZeRO stage 3), heads and hidden units."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        if min(astuple(self)) < 1:
            raise ValueError(f"mesh: data, fsdp and tensor must be at least 1, got {astuple(self)}")

    @property
    def devices(self) -> int:
        """How many it takes."""
        return self.data * self.fsdp * self.tensor

    def mesh(self) -> Mesh:
        """Of the devices there are, as many as it takes; of several processes' all.

        Raises ValueError where there are too few, or some would be left over of several processes.
        """
        sizes, count, there = astuple(self), self.devices, jax.device_count()
        if count > there or (count < there and jax.process_count() > 1):
            raise ValueError(
                f"mesh: data x fsdp x tensor = {' x '.join(map(str, sizes))} = {count} devices, but there are {there}"
            )
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:count])


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Become one of several processes that share all their devices; before anything else is done with JAX.

    coordinator: ADDRESS:PORT of the first process, or "auto" as the cluster says (Slurm, Kubernetes, TPU pod, MPI).
    Raises ValueError for what is missing or does not go together, or where the cluster says nothing.
    """
    if coordinator is None:
        raise ValueError("hosts.coordinator: is missing; give ADDRESS:PORT of process 0, or auto")
    known = coordinator != "auto"
    if known and (processes is None or process is None or not 0 <= process < processes):
        raise ValueError(f"hosts.process: must be at least 0 and below hosts.processes, got {process} and {processes}")
    try:
        jax.distributed.initialize(coordinator if known else None, processes, process)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"hosts.coordinator: {coordinator!r} did not do: {error}") from error


def tree_shardings(mesh: Mesh, shapes: Any) -> Any:
    """Where each leaf of a tree of lanes goes. Raises ValueError where an axis of the mesh does not divide a leaf's."""
    return jax.tree_util.tree_map_with_path(partial(_leaf_sharding, mesh), shapes)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on all devices."""
    return NamedSharding(mesh, PartitionSpec())


def put_tokens(mesh: Mesh, tokens: np.ndarray) -> jax.Array:
    """[..., batch, seq_len + 1], which every process has whole, cut along the batch.

    Raises ValueError where the mesh does not divide it.
    """
    ways, batch = mesh.shape["data"] * mesh.shape["fsdp"], tokens.shape[-2]
    if batch % ways:
        raise ValueError(f"batch_size: must be a multiple of data x fsdp = {ways} on this mesh, got {batch}")
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * (tokens.ndim - 2), ("data", "fsdp"), None))
    put: Callable[..., jax.Array] = jax.make_array_from_callback
    return put(tokens.shape, sharding, lambda index: tokens[index])


def _leaf_sharding(mesh: Mesh, path: Any, leaf: Any) -> NamedSharding:
    names = [str(getattr(key, "name", key)) for key in path]
    cut = list(_cut(names))
    for number, axis in enumerate(cut):
        size = leaf.shape[number - len(cut)]
        if size % mesh.shape[axis]:
            if (names[-1], number) == ("embedding", 0) or (names[-2:], number) == (["head", "weight"], 1):
                cut[number] = None  # a vocabulary of any size will do: it stays whole
            else:
                raise ValueError(
                    f"mesh: {axis} = {mesh.shape[axis]} must divide the {size} of {'.'.join(names[-3:])} {leaf.shape}"
                )
    return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - len(cut)), *cut))


def _cut(names: list[str]) -> tuple[str | None, ...]:
    """By which axes of the mesh the last axes of that leaf are cut; names: along its path in the tree."""
    if names[-1] == "embedding":
        return ("tensor", "fsdp")
    if names[-1] != "weight":
        return ()
    return ("fsdp", "tensor") if names[-2] in _READS else ("tensor", "fsdp")
