"""Gradient clipping other than by a fixed global norm, as Optax transformations.

ZClip (Kumar et al., arXiv 2504.02507) and AdaGC (Wang et al., arXiv 2502.11034) clip what goes into an optimizer; SPAM
(Huang et al., arXiv 2501.06842) is Adam with a clip of its own, by Adam's second moment, and momentum reset.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from models.parameters import Transformer
from verify.training.schedule import Number

_TINY = 1e-6


class _Norms(NamedTuple):
    """Of the global gradient norm, over the steps so far."""

    step: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]


def zclip(
    max_norm: Number = jnp.inf, decay: float = 0.97, deviations: float = 2.5, warmup_steps: int = 25
) -> optax.GradientTransformation:
    """Clip a gradient whose norm lies z > `deviations` standard deviations above its running mean, to a norm of
    mean + deviations^2 / z standard deviations, which goes into the running mean and variance in its place.

    Both start as those of the first `warmup_steps` norms, which are not clipped by it. max_norm: a fixed global norm
    that clips beside it.
    """

    def init(params: Any) -> _Norms:
        return _Norms(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def update(gradients: Any, state: _Norms, params: Any = None) -> tuple[Any, _Norms]:
        norm = optax.tree.norm(gradients).astype(jnp.float32)
        std = jnp.sqrt(state.variance)
        z = (norm - state.mean) / (std + _TINY)
        warm = state.step >= warmup_steps
        clipped = jnp.where(warm & (z > deviations), state.mean + deviations**2 * std / jnp.maximum(z, _TINY), norm)
        count = (state.step + 1).astype(jnp.float32)
        kept = jnp.where(warm, decay, 1 - 1 / count)  # during warm-up the plain mean and variance (Welford's update)
        mean = kept * state.mean + (1 - kept) * clipped
        square = (clipped - jnp.where(warm, mean, state.mean)) * (clipped - mean)
        variance = kept * state.variance + (1 - kept) * square
        limit = jnp.minimum(clipped, max_norm)
        factor = jnp.minimum(limit / jnp.maximum(norm, _TINY), 1.0)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients), _Norms(state.step + 1, mean, variance)

    return optax.GradientTransformation(init, update)


def _norms(tree: Transformer) -> Transformer:
    """Of every tensor, with axes that broadcast; a layer's is a tensor of its own, though stacked with the others'."""

    def norm(path: Any, leaf: Array) -> Array:
        axes = tuple(range(int(path[0].name == "blocks"), leaf.ndim))
        return jnp.sqrt(jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes, keepdims=True))

    return jax.tree_util.tree_map_with_path(norm, tree)


class _Limits(NamedTuple):
    """By tensor: the running mean of its clipped gradient norms."""

    step: Int[Array, ""]
    norm: Transformer


def adagc(
    max_norm: Number = jnp.inf, ratio: float = 1.05, decay: float = 0.98, warmup_steps: int = 100
) -> optax.GradientTransformation:
    """Clip each tensor's gradient to `ratio` times the running mean of its clipped norms.

    For the first `warmup_steps` the global norm is clipped to max_norm instead, and each tensor's
    smallest norm is where its mean starts.
    """

    def init(params: Transformer) -> _Limits:
        return _Limits(
            jnp.zeros((), jnp.int32), jax.tree.map(lambda norm: jnp.full_like(norm, jnp.inf), _norms(params))
        )

    def update(gradients: Transformer, state: _Limits, params: Any = None) -> tuple[Transformer, _Limits]:
        whole = optax.tree.norm(gradients)
        first = jnp.minimum(max_norm / jnp.maximum(whole, _TINY), 1.0)
        warm = state.step >= warmup_steps
        norms = _norms(gradients)

        def factor(norm: Array, limit: Array) -> Array:
            return jnp.where(warm, jnp.minimum(ratio * limit / jnp.maximum(norm, _TINY), 1.0), first)

        def running(norm: Array, limit: Array) -> Array:
            return jnp.where(warm, decay * limit + (1 - decay) * norm, jnp.minimum(limit, norm))

        factors = jax.tree.map(factor, norms, state.norm)
        clipped = jax.tree.map(jnp.multiply, gradients, factors)
        return clipped, _Limits(state.step + 1, jax.tree.map(running, _norms(clipped), state.norm))

    return optax.GradientTransformation(init, update)


class _Spam(NamedTuple):
    step: Int[Array, ""]
    adam: Any


def spam(
    adam: optax.GradientTransformation, threshold: float = 5000.0, reset_steps: int = 500, warmup_steps: int = 150
) -> optax.GradientTransformation:
    """Adam whose gradients are cut off, entry by entry, at sqrt(threshold v), v Adam's second moment before the step.

    Every reset_steps both moments and Adam's count start again, and the steps after that are scaled by half a cosine
    from 0 to 1 over warmup_steps; so are the first ones. An entry with v = 0 is not cut.
    """

    def init(params: Any) -> _Spam:
        return _Spam(jnp.zeros((), jnp.int32), adam.init(params))

    def update(gradients: Any, state: _Spam, params: Any = None) -> tuple[Any, _Spam]:
        since = state.step % reset_steps
        begun: Bool[Array, ""] = since == 0
        old = jax.tree.map(lambda leaf: jnp.where(begun, jnp.zeros_like(leaf), leaf), state.adam)

        def cut(gradient: Array, square: Array) -> Array:
            most = jnp.sqrt(threshold * square)
            return jnp.where(square > 0, jnp.clip(gradient, -most, most), gradient)

        directions, new = adam.update(jax.tree.map(cut, gradients, old.nu), old, params)
        passed = jnp.minimum((since + 1).astype(jnp.float32) / warmup_steps, 1.0)
        scale = (1 - jnp.cos(jnp.pi * passed)) / 2
        return jax.tree.map(lambda d: d * scale.astype(d.dtype), directions), _Spam(state.step + 1, new)

    return optax.GradientTransformation(init, update)
