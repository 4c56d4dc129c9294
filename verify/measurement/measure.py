"""What `theory.predict` says, measured: the same quantities from autodiff through the JAX model, seed by seed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

import models
from models.parameters import Transformer
from theory import Architecture

QUICK = {"xla_backend_optimization_level": 0}
"""what to tell JAX's compiler where compiling is nearly all of the time"""
if jax.__version_info__ < (0, 11):  # compiles in half the time, but XLA refuses a flag that it has forgotten
    QUICK["xla_cpu_use_fusion_emitters"] = False
_EASY = QUICK | {"xla_backend_optimization_level": 1}
"""twice as long to compile, a quarter of the time to run; more care takes twice as long again, and runs no faster"""
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
    fresh for every seed. init: what draws the weights. quick: compile in half the time, for small
    programs that run on few seeds. Raises ValueError for a shape or a token that does not fit.
    """
    for name, value in (("batch_size", batch_size), ("seeds", seeds)):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if tokens is not None:
        check_tokens(arch, tokens)
    keys = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + seeds, dtype=jnp.uint32))
    batch = None if tokens is None else jnp.asarray(tokens, jnp.int32)
    with jax.default_matmul_precision("highest"):
        drawn = (_all_quickly if quick else _all)(keys, batch, arch, batch_size, init)
    return Measurement(**jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), drawn))


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


def _drawn(
    key: PRNGKeyArray, tokens: Int[Array, "batch seq_plus_1"], arch: Architecture, init: Init
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


def _drawn_in_turn(
    keys: Key[Array, " seeds"],
    tokens: Int[Array, "batch seq_plus_1"] | None,
    arch: Architecture,
    batch_size: int,
    init: Init,
) -> dict[str, object]:
    """Every seed's, one after the other in one program."""

    def one(key: PRNGKeyArray) -> dict[str, object]:
        weights_key, tokens_key = jax.random.split(key)
        batch = tokens
        if batch is None:
            batch = jax.random.randint(tokens_key, (batch_size, arch.seq_len + 1), 0, arch.vocab_size)
        return _drawn(weights_key, batch, arch, init)

    return jax.lax.map(one, keys)


_in_turn = partial(jax.jit, _drawn_in_turn, static_argnames=("arch", "batch_size", "init"))
_all, _all_quickly = _in_turn(compiler_options=_EASY), _in_turn(compiler_options=QUICK)


def matrix_norms(tree: Transformer) -> dict[str, Float[Array, " layers"]]:
    """Frobenius norm of every weight matrix of a parameter tree (or of its gradient), by kind: [num_layers] or [1].

    Learned positions are left out.
    """
    return {kind: _frobenius(weight) for kind, weight in tree.matrices.items() if kind != "position"}


def _frobenius(weight: Float[Array, "layers rows columns"]) -> Float[Array, " layers"]:
    return jnp.sqrt(jnp.sum(jnp.square(weight.astype(jnp.float32)), axis=(1, 2)))
