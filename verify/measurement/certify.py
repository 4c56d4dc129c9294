"""A certificate: bounds that hold for these weights at these tokens, beside the Jacobian norms and logits they bound.

The bounds are inequalities on the weights and activations as they are (`verify.measurement.sublayer_bound`), at any
step of training; the norms come from power iteration through JAX, which approaches them from below. Both in float64.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import models
from models.linear import as_matrices
from models.parameters import Transformer
from theory import Architecture
from theory.block import block as block_scheme
from verify.measurement.jacobian import addition_norms
from verify.measurement.logit_bound import logit_bounds
from verify.measurement.sublayer_bound import addition_bound


@dataclass(frozen=True)
class Certificate:
    """S residual additions, N layers; the largest over the sequences.

    sublayer_bound, sublayer_jacobian_norm: float64[S], of the spectral norm of the addition's Jacobian, shortcut
    included, all tokens of a sequence at once; the first is never below the second. attention_logit_bound: float64[N],
    for any tokens at all; largest_attention_logit: float64[N], seen at these. output_logit_bound,
    largest_output_logit: the same of |output logit|.
    """

    sublayer_bound: np.ndarray
    sublayer_jacobian_norm: np.ndarray
    attention_logit_bound: np.ndarray
    largest_attention_logit: np.ndarray
    output_logit_bound: float
    largest_output_logit: float


def certify(model: tuple[Transformer, Architecture], tokens: np.ndarray, iterations: int = 60) -> Certificate:
    """Certify a model, the pair (params, arch), at tokens int[batch, seq] with seq of at most seq_len.

    params: `models.init`'s tree or a trained one. iterations: of the power iteration. Everything is computed in
    float64, so with the weights as they are but without float32's rounding. Raises ValueError for tokens that do not
    fit, and where float64 overflows.
    """
    params, arch = model
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= arch.seq_len or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens: expected whole numbers of shape (batch, 1 to {arch.seq_len}), got {tokens.dtype}{tokens.shape}"
        )
    if not tokens.size or tokens.min() < 0 or tokens.max() >= arch.vocab_size:
        raise ValueError(f"tokens: expected at least one sequence of whole numbers in 0..{arch.vocab_size - 1}")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        exact = _exact(params)
        seen = jax.device_get(_observe(exact, jnp.asarray(tokens, jnp.int32), arch, iterations))
        exact = jax.device_get(exact)
    streams, norms, largest_attention, largest_output = (np.asarray(array, np.float64) for array in seen)
    additions = block_scheme(arch.block).additions
    layers = [jax.tree.map(lambda leaf, n=n: leaf[n], exact.blocks) for n in range(arch.num_layers)]
    bounds = np.empty(arch.num_sublayers)
    for place, x in enumerate(streams):
        layer, number = divmod(place, len(additions))
        bounds[place] = np.nan
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                bounds[place] = addition_bound(layers[layer], x, arch, layer, additions[number]).max()
        except np.linalg.LinAlgError:  # of a matrix that is not finite
            pass
        if not np.all(np.isfinite([bounds[place], *norms[place]])):
            raise ValueError(f"model: float64 overflows at place {place}, so there is nothing to certify")
    attention_logit, output_logit = logit_bounds(exact, layers, arch)
    return Certificate(
        bounds, norms.max(axis=1), attention_logit, largest_attention, output_logit, float(largest_output)
    )


@jax.jit
def _exact(params: Transformer) -> Transformer:
    """In float64, where that is enabled, and with the matrices that the scheme divides by their norms written out."""
    return as_matrices(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params))


@partial(jax.jit, static_argnames=("arch", "iterations"))
def _observe(
    params: Transformer, tokens: jax.Array, arch: Architecture, iterations: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Streams [S, batch, seq, d], Jacobian norms [S, batch], largest logits of attention [N] and of the output."""
    start = jax.random.normal(jax.random.key(0), (*tokens.shape[1:], arch.d_model), params.embedding.dtype)
    streams, sizes = addition_norms(params, tokens, start, arch, iterations)
    logits, observations = models.apply(params, tokens, arch)
    largest = jnp.max(observations.attention.largest_logit, axis=-1)
    return streams, sizes[..., -1], largest, jnp.max(jnp.abs(logits))
