"""What a run costs before it is started: tokens, arithmetic, and the memory of one lane."""

import dataclasses
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import models
from theory.architecture import Architecture
from theory.parameter_count import num_parameters
from verify.training.compiled import quick
from verify.training.mesh import MeshShape
from verify.training.run import Run


@dataclass(frozen=True)
class Cost:
    """Of one run. flops: floating-point operations. lane_bytes: memory while it trains, an estimate from above."""

    parameters: int
    tokens: int
    flops: float
    lane_bytes: int


def cost(run: Run) -> Cost:
    """Memory apart, what the run says of itself."""
    return Cost(num_parameters(run.arch), run.tokens, run.flops, int(_SLACK * sum(_most(run))))


_SLACK = 1.25
"""what a compiled step was measured to take at most, over what is counted here"""


def mesh_bytes(run: Run, mesh: MeshShape) -> int:
    """Memory of one device of a mesh, an estimate from above: the tensor axis cuts weights, but no activations."""
    weights, activations = _most(run)
    return int(_SLACK * (weights / (mesh.fsdp * mesh.tensor) + activations / (mesh.data * mesh.fsdp)))


def _most(run: Run) -> tuple[int, int]:
    """Bytes of weights, and of activations at the run's largest size."""
    program = run.program()
    sizes = {(chunk.batch_size // run.accumulate, chunk.seq_len) for chunk in run.chunks()}
    weights, activations = zip(*(_sizes(program.arch, *size, program.switches) for size in sizes), strict=True)
    return max(weights), max(activations)


@lru_cache(maxsize=256)
def _sizes(arch: Architecture, batch_size: int, seq_len: int, switches: models.Switches) -> tuple[int, int]:
    """Bytes, from shapes alone, without compiling: six copies of the weights; what backward keeps, and logits twice."""
    tokens = jax.ShapeDtypeStruct((batch_size, seq_len + 1), jnp.int32)
    readings = jax.ShapeDtypeStruct((arch.num_sublayers + 1,), jnp.float32)
    params = jax.eval_shape(lambda: models.init(jax.random.key(0), arch))

    def loss(params: models.Transformer, tokens: jax.Array, readings: jax.Array) -> jax.Array:
        return models.loss(params, tokens, arch, readings, switches, jax.random.key(0))[0]

    def backward(params: models.Transformer, tokens: jax.Array, readings: jax.Array) -> object:
        return jax.vjp(partial(loss, tokens=tokens, readings=readings), params)[1]

    kept = _bytes(jax.eval_shape(backward, params, tokens, readings))
    if switches.recompute and arch.num_layers > 1:  # and all of one block at a time
        one = dataclasses.replace(arch, num_layers=1)
        plain = dataclasses.replace(switches, recompute=False)
        kept += _sizes(one, batch_size, seq_len, plain)[1] - _sizes(one, batch_size, seq_len, switches)[1]
    logits = batch_size * seq_len * arch.vocab_size * np.dtype(np.float32).itemsize
    return 6 * _bytes(params), kept + 2 * logits


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


_CPU_LANES, _MOST_LANES = 4, 64
"""lanes of one program: on a core, where more gain nothing; on an accelerator"""


def threads_that_fit(runs: Sequence[Run]) -> int:
    """How many programs run at a time: on a CPU one a core, as far as there are runs and memory, else one."""
    if jax.default_backend() != "cpu":
        return 1
    largest = max(cost(program).lane_bytes for program in {run.program() for run in runs})
    return int(min(_cores(), len(runs), max(device_bytes() // largest, 1)))


def lanes_that_fit(runs: Sequence[Run], threads: int, most: int | None = None) -> int:
    """How many of these runs, which share a program, advance together in each thread; at least 1, at most `most`.

    Decided by what the machine has, not by what is free at the moment, so that it is the same at the next start.
    """
    brief = quick(runs[0])  # then compiling is what takes long: one program of one number of lanes
    if most is None:
        most = _CPU_LANES if jax.default_backend() == "cpu" and not brief else _MOST_LANES
    room = device_bytes() // (threads * cost(runs[0]).lane_bytes)
    return int(min(max(room, 1), most, len(runs) if brief else -(-len(runs) // threads)))


def device_bytes() -> int:
    """Memory to train in: all that JAX may take of the first accelerator; three quarters of a CPU's, as is usual there.

    Of a CPU it is what the machine, or this process's control group, has at most.
    """
    seen = jax.devices()[0].memory_stats()
    if seen and "bytes_limit" in seen:
        return int(seen["bytes_limit"])
    most = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError):  # no control groups here, or no limit in this one
        most.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(most) * 3 // 4


def _cores() -> int:
    """Those that this process, or its control group, may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(min(cores, int(quota) // int(period)), 1)
    return cores
