"""How the learning rate goes with the step: a linear warm-up, a plateau, and a decay."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Number = int | float | Float[Array, "*lanes"]
Schedule = Literal["cosine", "linear", "inverse_sqrt", "constant"]


def share_of_peak(
    schedule: Schedule,
    step: Int[Array, ""],
    steps: Number,
    warmup_steps: Number,
    hold_steps: Number,
    final_share: Number,
) -> Float[Array, ""]:
    """Share of the peak rate at that step, counted from 0.

    It rises in proportion to the step over warmup_steps, is 1 for hold_steps, and then falls: "cosine" and "linear" to
    final_share at `steps`, where they stay; "inverse_sqrt" as 1 / sqrt(steps so far), without an end (PaLM, arXiv
    2204.02311: 1e-2 for 10,000 steps, then 1 / sqrt k); "constant" not at all.
    """
    progress = step.astype(jnp.float32)
    begin = warmup_steps + hold_steps
    first = jnp.maximum(begin, 1)
    passed = jnp.clip((progress - begin) / jnp.maximum(steps - begin, 1), 0.0, 1.0)
    match schedule:
        case "cosine":
            fallen = final_share + (1 - final_share) * (1 + jnp.cos(jnp.pi * passed)) / 2
        case "linear":
            fallen = 1 - (1 - final_share) * passed
        case "inverse_sqrt":
            fallen = jnp.sqrt(first / jnp.maximum(progress + 1, first))
        case "constant":
            fallen = jnp.ones_like(progress)
    warm = (progress + 1) / jnp.maximum(warmup_steps, 1)
    return jnp.where(progress < warmup_steps, warm, fallen)
