"""What `theory.predict` says, measured: the same quantities from autodiff through the JAX model, seed by seed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

import models
from models.parameters import Transformer
from theory import Architecture

QUICK = {"xla_backend_optimization_level": 0}
"""what to tell JAX's compiler where compiling is nearly all of the time"""
if jax.__version_info__ < (0, 11):  # compiles in half the time, but XLA refuses a flag that it has forgotten
    QUICK["xla_cpu_use_fusion_emitters"] = False
Init = Callable[[PRNGKeyArray, Architecture], Transformer]


@dataclass(frozen=True)
class Measurement:
    """Fields of `theory.Prediction` with a leading axis of seeds; each draws weights and, where none are given, tokens.

    shortcut_std, gradient_norm: float64[seeds, S + 1]. amplification, loss: float64[seeds]. parameter_gradient_norm:
    dict[str, float64[seeds, num_layers]], for embedding and head float64[seeds, 1].
    """

    shortcut_std: np.ndarray
    gradient_norm: np.ndarray
    amplification: np.ndarray
    parameter_gradient_norm: dict[str, np.ndarray]
    loss: np.ndarray


def measure(
    arch: Architecture,
    batch_size: int = 8,
    seeds: int = 8,
    tokens: np.ndarray | None = None,
    first_seed: int = 0,
    init: Init = models.init,
    quick: bool = False,
) -> Measurement:
    """Measure `arch` at initialisation over `seeds` independent draws of the weights, in float32 at full precision.

    tokens: int[batch, seq_len + 1], the same for every seed; None: `batch_size` sequences of uniform random tokens,
    fresh for every seed. init: what draws the weights. quick: compile in half the time, for programs
    that run once. Raises ValueError for a shape or a token that does not fit.
    """
    for name, value in (("batch_size", batch_size), ("seeds", seeds)):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if tokens is not None:
        check_tokens(arch, tokens)
    with jax.default_matmul_precision("highest"):
        draws = list(_draws(arch, batch_size, seeds, tokens, first_seed, init, quick))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *draws)
    return Measurement(**stacked)


def check_tokens(arch: Architecture, tokens: np.ndarray) -> None:
    """Raise ValueError unless tokens are int[batch, seq_len + 1] within the vocabulary."""
    if tokens.ndim != 2 or tokens.shape[1] != arch.seq_len + 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens: expected whole numbers of shape (batch, {arch.seq_len + 1}), got {tokens.dtype}{tokens.shape}"
        )
    if tokens.size and (tokens.min() < 0 or tokens.max() >= arch.vocab_size):
        raise ValueError(
            f"tokens: expected 0 <= token < vocab_size = {arch.vocab_size}, got {tokens.min()}..{tokens.max()}"
        )


def _draws(
    arch: Architecture, batch_size: int, seeds: int, tokens: np.ndarray | None, first_seed: int, init: Init, quick: bool
) -> Iterator[dict[str, object]]:
    for seed in range(first_seed, first_seed + seeds):
        weights_key, tokens_key = jax.random.split(jax.random.key(seed))
        if tokens is None:
            batch = jax.random.randint(tokens_key, (batch_size, arch.seq_len + 1), 0, arch.vocab_size)
        else:
            batch = jnp.asarray(tokens, jnp.int32)
        yield jax.device_get((_draw_quickly if quick else _draw)(weights_key, batch, arch, init))


def _drawn(
    key: PRNGKeyArray, tokens: Int[Array, "batch seq_plus_1"], arch: Architecture, init: Init = models.init
) -> dict[str, object]:
    params = init(key, arch)
    readings = jnp.zeros(arch.num_sublayers + 1, jnp.float32)
    (loss, seen), (gradients, squares) = jax.value_and_grad(
        lambda params, readings: models.loss(params, tokens, arch, readings), argnums=(0, 1), has_aux=True
    )(params, readings)
    gradient_norm = jnp.sqrt(squares)
    return {
        "shortcut_std": seen.shortcut_std,
        "gradient_norm": gradient_norm,
        "amplification": gradient_norm[0] / gradient_norm[-1],
        "parameter_gradient_norm": matrix_norms(gradients),
        "loss": loss,
    }


_draw = jax.jit(_drawn, static_argnames=("arch", "init"))
_draw_quickly = jax.jit(_drawn, static_argnames=("arch", "init"), compiler_options=QUICK)


def matrix_norms(tree: Transformer) -> dict[str, Float[Array, " layers"]]:
    """Frobenius norm of every weight matrix of a parameter tree (or of its gradient), by kind: [num_layers] or [1].

    Learned positions are left out.
    """
    return {kind: _frobenius(weight) for kind, weight in tree.matrices.items() if kind != "position"}


def _frobenius(weight: Float[Array, "layers rows columns"]) -> Float[Array, " layers"]:
    return jnp.sqrt(jnp.sum(jnp.square(weight.astype(jnp.float32)), axis=(1, 2)))
