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
    sizes = _sizes(params)
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


def _sizes(params: Transformer) -> dict[str, int]:
    """Entries of one matrix of each kind."""
    sizes = {kind: int(np.prod(weight.shape[1:])) for kind, weight in params.blocks.matrices.items()}
    sizes["embedding"] = params.embedding.size
    if params.head is not None:
        sizes["head"] = params.head.weight.size
    return sizes


def global_norm(tree: Transformer) -> Float[Array, ""]:
    """Norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))
