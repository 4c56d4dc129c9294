"""What a run costs before it is started: tokens, arithmetic, and the memory of one lane."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import models
from theory.architecture import Architecture
from theory.parameter_count import num_parameters
from verify.training.loop import Run


@dataclass(frozen=True)
class Cost:
    """Of one run. flops: floating-point operations. lane_bytes: memory while it trains, an estimate from above."""

    parameters: int
    tokens: int
    flops: float
    lane_bytes: int


def cost(run: Run) -> Cost:
    """Forward and backward take 6 operations a matrix entry and token, and 12 N d T a token in attention.

    Source: PaLM, arXiv 2204.02311, appendix B; here only entries that multiply count, so no embedding but a tied head.
    """
    arch = run.arch
    tokens = run.steps * run.batch_size * arch.seq_len
    entries = num_parameters(arch, embeddings=False) + arch.d_model * arch.vocab_size
    attention = 12 * arch.num_layers * arch.d_model * arch.seq_len
    return Cost(
        num_parameters(arch), tokens, float((6 * entries + attention) * tokens), _lane_bytes(arch, run.batch_size)
    )


_SLACK = 1.25
"""what a compiled step was measured to take at most, over what `_lane_bytes` counts"""


@lru_cache(maxsize=64)
def _lane_bytes(arch: Architecture, batch_size: int) -> int:
    """From shapes alone, without compiling: six copies of the weights, what backward keeps, and logits twice."""
    tokens = jax.ShapeDtypeStruct((batch_size, arch.seq_len + 1), jnp.int32)
    readings = jax.ShapeDtypeStruct((arch.num_sublayers + 1,), jnp.float32)
    params = jax.eval_shape(lambda: models.init(jax.random.key(0), arch))

    def backward(params: models.Transformer, tokens: jax.Array, readings: jax.Array) -> object:
        return jax.vjp(partial(_loss, tokens=tokens, arch=arch, readings=readings), params)[1]

    kept = jax.eval_shape(backward, params, tokens, readings)
    logits = batch_size * arch.seq_len * arch.vocab_size * np.dtype(np.float32).itemsize
    return int(_SLACK * (6 * _bytes(params) + _bytes(kept) + 2 * logits))


def _loss(params: models.Transformer, tokens: jax.Array, arch: Architecture, readings: jax.Array) -> jax.Array:
    return models.loss(params, tokens, arch, readings)[0]


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def lanes_that_fit(runs: Sequence[Run], most: int, free: int) -> int:
    """How many of these runs, which share a program, fit side by side into `free` bytes; at least 1, at most `most`."""
    return int(min(max(free // cost(runs[0]).lane_bytes, 1), most, len(runs)))


def free_bytes() -> int:
    """Memory that the first device has left; on a CPU what the machine, or this process's control group, has left."""
    seen = jax.devices()[0].memory_stats()
    if seen and "bytes_limit" in seen:
        return int(seen["bytes_limit"] - seen.get("bytes_in_use", 0))
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        free += [] if limit.strip() == "max" else [int(limit) - int(used)]
    except OSError:
        pass  # no control groups here
    return max(min(free), 0)
