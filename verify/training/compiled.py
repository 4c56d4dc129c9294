"""Compiled programs: which a run has, with how much care they are compiled, and the room they take in a process."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from models.parameters import Transformer
from verify.measurement.measure import QUICK
from verify.training import step
from verify.training.mesh import put_tokens, replicated, tree_shardings
from verify.training.run import Lane, Run, lanes_of
from verify.training.state import State
from verify.training.telemetry import Telemetry

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = Path("/proc/sys/vm/max_map_count")
_FEW_FLOPS = 1e9
"""of a run that takes a CPU a second, compiled quickly, which is less than compiling its program well takes"""


@dataclass(frozen=True)
class Programs:
    """`step.begin`, `step.advance` and `step.held_out_loss`, compiled; put: tokens onto the devices."""

    begin: Callable[[Lane, Run], State]
    advance: Callable[..., tuple[State, Telemetry]]
    held_out_loss: Callable[[Transformer, Lane, Array, Run], Array]
    put: Callable[[np.ndarray], Array] = jnp.asarray


def programs(run: Run, one_core: bool = False) -> Programs:
    """Those of a run on one device. one_core: on a CPU, steps leave the other cores to threads that train others."""
    return _on_one_device(quick(run), one_core)


@lru_cache(maxsize=8)
def programs_on(mesh: Mesh, program: Run, lanes: int) -> Programs:
    """Those of so many lanes on the devices of a mesh, as `verify.training.mesh` cuts them."""
    start = jax.eval_shape(partial(step.begin, run=program.untrained()), lanes_of([program] * lanes))
    options = _options(quick(program))
    states, rest = tree_shardings(mesh, start), replicated(mesh)
    return Programs(
        _begin(compiler_options=options, out_shardings=states),
        _advance(compiler_options=options, out_shardings=(states, rest)),
        _held_out_loss(compiler_options=options, out_shardings=rest),
        partial(put_tokens, mesh),
    )


def quick(run: Run) -> bool:
    """Whether its programs are compiled quickly: by the run alone, lest its numbers hang on what is beside it."""
    return jax.default_backend() == "cpu" and run.flops < _FEW_FLOPS


def _options(quick: bool) -> dict[str, Any]:
    return dict(QUICK) if quick else {}


@cache
def _on_one_device(quick: bool, one_core: bool) -> Programs:
    options = _options(quick)
    stepping = options | ({"xla_cpu_multi_thread_eigen": False} if one_core else {})
    return Programs(
        _begin(compiler_options=options),
        _advance(compiler_options=stepping),
        _held_out_loss(compiler_options=options),
    )


_begin = partial(jax.jit, step.begin, static_argnames="run")
_advance = partial(jax.jit, step.advance, static_argnames=("program", "observed"), donate_argnames="states")
_held_out_loss = partial(jax.jit, step.held_out_loss, static_argnames="run")


def release_when_many(share: float = 0.5) -> bool:
    """Drop every compiled program where this process has used that share of its memory maps; whether it did.

    Linux allows a process 65,530 maps unless told otherwise. XLA takes about 900 for one program that trains on a CPU,
    and past the limit LLVM kills the process. What is still needed compiles once more. Elsewhere nothing is done.
    """
    with suppress(OSError, ValueError):
        if _MAPS.read_bytes().count(b"\n") > share * int(_MOST_MAPS.read_text()):
            jax.clear_caches()
            return True
    return False
