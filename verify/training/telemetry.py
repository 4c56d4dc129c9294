"""What is recorded of a training step: pure functions over parameter trees, called inside the compiled step."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models import Observations
from models.attention import AttentionSeen
from models.parameters import Transformer
from verify.measurement.measure import matrix_norms

Telemetry = dict[str, Array]

# name: (dimensions after the step, unit, meaning)
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "loss": ((), "nats per token", "training loss before the step"),
    "gradient_norm": ((), "nats per token", "global gradient norm before clipping"),
    "learning_rate": ((), "1", "learning rate of the step"),
    "log_z": ((), "nats", "mean logarithm of the output softmax's denominator"),
    "logit_mean": ((), "1", "mean of the head's output"),
    "place_gradient_norm": (("place",), "nats per token", "Frobenius norm of dL/dx of the residual stream"),
    "shortcut_std": (("place",), "1", "standard deviation of the residual stream"),
    "largest_attention_logit": (("layer", "head"), "1", "largest attention logit before the softmax"),
    "attention_entropy": (("layer", "head"), "nats", "entropy of a query's attention, mean over queries"),
    "query_norm": (("layer",), "1", "root mean square length of a head's query"),
    "key_norm": (("layer",), "1", "root mean square length of a head's key"),
    "output_norm": (("matrix", "layer"), "1", "root mean square of a linear layer's output"),
    "logit_rms": ((), "1", "root mean square of the head's output"),
    "matrix_gradient_norm": (("matrix", "layer"), "nats per token", "Frobenius norm of dL/dW before clipping"),
    "update_rms": (("matrix", "layer"), "1", "root mean square of the step's change of W"),
    "parameter_rms": (("matrix", "layer"), "1", "root mean square of W before the step"),
    "table_gradient_norm": (("table",), "nats per token", "Frobenius norm of dL/dW, embedding and head"),
    "table_update_rms": (("table",), "1", "root mean square of the step's change, embedding and head"),
    "table_rms": (("table",), "1", "root mean square of embedding and head before the step"),
    "spectral_norm": (("matrix", "layer"), "1", "largest singular value of W before the step, if followed"),
    "table_spectral_norm": (("table",), "1", "the same of embedding and head"),
}


CERTIFIED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "certified_bound": (("sublayer",), "1", "bound on the addition's Jacobian norm that these weights cannot break"),
    "certified_jacobian_norm": (("sublayer",), "1", "that norm, by power iteration from below"),
}


def record(
    loss: Float[Array, ""],
    seen: Observations,
    squared_place_gradients: Float[Array, " places"],
    params: Transformer,
    gradients: Transformer,
    updates: Transformer,
) -> Telemetry:
    """One step's values for every name of `VARIABLES` but those of the optimizer."""
    recorded = {
        "loss": loss,
        "log_z": seen.log_z,
        "logit_mean": seen.logit_mean,
        "place_gradient_norm": jnp.sqrt(squared_place_gradients),
        "shortcut_std": seen.shortcut_std,
        "largest_attention_logit": seen.attention.largest_logit,
        "attention_entropy": seen.attention.entropy,
        "query_norm": seen.attention.query_norm,
        "key_norm": seen.attention.key_norm,
        "logit_rms": seen.output_norm["head"][0],
        "output_norm": jnp.stack([seen.output_norm[kind] for kind in params.blocks.matrices]),
    }
    sizes = {kind: weight[0].size for kind, weight in matrices(params).items()}
    for matrix, table, tree, relative in (
        ("matrix_gradient_norm", "table_gradient_norm", gradients, False),
        ("update_rms", "table_update_rms", updates, True),
        ("parameter_rms", "table_rms", params, True),
    ):
        norms = matrix_norms(tree)
        if relative:
            norms = {kind: norm / np.float32(np.sqrt(sizes[kind])) for kind, norm in norms.items()}
        recorded[matrix] = jnp.stack([norms[kind] for kind in params.blocks.matrices])
        recorded[table] = jnp.concatenate([norms[kind] for kind in tables(params)])
    return recorded


def merged(parts: Observations) -> Observations:
    """Of a batch what was seen of its equal parts, which the first axis counts.

    Standard deviations and lengths by their mean squares: what differs between the parts' means is left out.
    """
    mean = partial(jax.tree.map, partial(jnp.mean, axis=0))
    root = partial(jax.tree.map, lambda values: jnp.sqrt(jnp.mean(jnp.square(values), axis=0)))
    attention = parts.attention
    return dataclasses.replace(
        mean(parts),
        shortcut_std=root(parts.shortcut_std),
        output_norm=root(parts.output_norm),
        attention=AttentionSeen(
            jnp.max(attention.largest_logit, axis=0), mean(attention.entropy), root(attention.query_norm),
            root(attention.key_norm),
        ),
    )  # fmt: skip


def tables(params: Transformer) -> tuple[str, ...]:
    """Names along the `table` axis."""
    return ("embedding",) if params.head is None else ("embedding", "head")


def matrices(params: Transformer) -> dict[str, Float[Array, "layers fan_in fan_out"]]:
    """Every weight matrix that is recorded: all but learned positions."""
    return {kind: weight for kind, weight in params.matrices.items() if kind != "position"}


def singular_vectors(params: Transformer, iterations: int = 10) -> dict[str, Float[Array, "layers fan_out"]]:
    """Of every matrix, a guess at its first right singular vector: power iterations from all ones."""
    vectors = {kind: jnp.ones((weight.shape[0], weight.shape[2])) for kind, weight in matrices(params).items()}
    for _ in range(iterations):
        vectors, _ = spectral_norms(params, vectors)
    return vectors


def spectral_norms(
    params: Transformer, vectors: dict[str, Float[Array, "layers fan_out"]]
) -> tuple[dict[str, Float[Array, "layers fan_out"]], Telemetry]:
    """Better guesses by one power iteration each, and the singular values that they give, never too large."""
    better, norms = {}, {}
    for kind, weight in matrices(params).items():
        left = jnp.einsum("lio,lo->li", weight, _unit(vectors[kind]))
        right = jnp.einsum("lio,li->lo", weight, _unit(left))
        better[kind], norms[kind] = _unit(right), jnp.linalg.norm(right, axis=1)
    return better, {
        "spectral_norm": jnp.stack([norms[kind] for kind in params.blocks.matrices]),
        "table_spectral_norm": jnp.concatenate([norms[kind] for kind in tables(params)]),
    }


def _unit(rows: Float[Array, "layers width"]) -> Float[Array, "layers width"]:
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(length > 0, length, 1)


def global_norm(tree: Transformer) -> Float[Array, ""]:
    """Norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))
