"""AdamW with warm-up, cosine and clipping, from Optax; the peak rate stays an argument so that runs share a program."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from models.parameters import Transformer


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), linear warm-up, cosine to a share of the peak rate.

    learning_rate: peak. warmup_steps: linear from 0. final_share: of the peak, at the last step (1: constant after
    warm-up). weight_decay: times the rate, on matrices and tables, not on norms and biases. clip: largest global
    gradient norm, none where 0. Raises ValueError that names the field and the value.
    """

    learning_rate: float = 3e-3
    warmup_steps: int = 50
    final_share: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "a positive number")
        for name in ("weight_decay", "clip", "warmup_steps"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("beta1", "beta2"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _require("final_share", self.final_share, 0 <= self.final_share <= 1, "in [0, 1]")

    def shape(self, steps: int, step: Int[Array, ""]) -> Float[Array, ""]:
        """Share of the peak rate at that step, counted from 0."""
        progress = step.astype(jnp.float32)
        warm = (progress + 1) / max(self.warmup_steps, 1)
        run = jnp.clip((progress - self.warmup_steps) / max(steps - self.warmup_steps, 1), 0.0, 1.0)
        cosine = self.final_share + (1 - self.final_share) * (1 + jnp.cos(jnp.pi * run)) / 2
        return jnp.where(progress < self.warmup_steps, warm, cosine)

    def transformation(self) -> optax.GradientTransformation:
        """Clip, Adam and decay for a rate of 1; the caller multiplies by minus the rate."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay, mask=_decayed),
        )


def _decayed(params: Transformer) -> Transformer:
    """True for matrices and tables, False for norm scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].name in ("weight", "embedding", "position"), params
    )


def _require(name: str, value: int | float, good: bool, expected: str) -> None:
    if not (good and math.isfinite(value)):
        raise ValueError(f"{name}: must be {expected}, got {value!r}")
