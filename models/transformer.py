"""The decoder, in every arrangement of `theory.block`: pre-LN is x' = x + Attn(LN(x)), y = x' + FFN(LN(x')).

`apply(params, tokens, arch)` is a pure function of the parameter tree of `models.init`. Blocks run in one
`jax.lax.scan`, so compile time does not grow with depth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import attend
from models.feed_forward import feed_forward
from models.normalization import normalize
from models.parameters import Block, Residual, Transformer
from models.probes import probe
from theory import Architecture
from theory.block import block as block_scheme
from theory.embedding import embedding as embedding_method
from theory.positions import sinusoids


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observations:
    """What the forward pass saw, S + 1 places and N layers.

    shortcut_std: standard deviation of the residual stream over batch, position and coordinate, at each place.
    output_norm: root mean square of the output of every linear layer, by matrix kind. largest_attention_logit: over
    heads and unmasked pairs, before the softmax. log_z: mean over tokens of the logarithm of the softmax's denominator.
    """

    shortcut_std: Float[Array, " places"]
    output_norm: dict[str, Float[Array, " layers"]]
    largest_attention_logit: Float[Array, " layers"]
    log_z: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """A block's fixed factors: on the shortcut, on the branches where none is learned, on the pre-norm's output."""

    shortcut: Float[Array, "*layers"]
    branch: Float[Array, "*layers"]
    input: Float[Array, "*layers"]


def factors_of(arch: Architecture, dtype: DTypeLike) -> Factors:
    """The factors of every layer, stacked."""
    return Factors(*(jnp.asarray(arch.factor(name), dtype) for name in ("shortcut", "branch", "input")))


def embed(params: Transformer, tokens: Int[Array, "batch seq"], arch: Architecture) -> Float[Array, "batch seq d"]:
    """The residual stream that enters block 1: table row, embedding method, then positions."""
    method = embedding_method(arch.embedding)
    x = params.embedding[tokens]
    share = arch.evaluate(method.gradient_share)
    if share != 1:
        x = share * x + (1 - share) * jax.lax.stop_gradient(x)
    x = x * arch.evaluate(method.multiplier)
    if params.embedding_norm is not None:
        x = normalize(params.embedding_norm, x, arch)
    if params.position is not None:
        x = x + params.position[None, : tokens.shape[1]]
    elif arch.positions == "sinusoidal":
        x = x + jnp.asarray(sinusoids(tokens.shape[1], arch.d_model)[None], x.dtype)
    return x


def add(
    block: Block, x: Float[Array, "batch seq d"], arch: Architecture, factors: Factors, parts: tuple[str, ...]
) -> tuple[Float[Array, "batch seq d"], dict[str, Float[Array, ""]], Float[Array, ""] | None]:
    """One residual addition of one block (leaves without the layer axis), of attention, the feed-forward, or both.

    Also the root mean square of every linear layer's output by matrix kind, and the largest attention logit where
    there is one. A parallel block adds both sub-layers of the same normed stream.
    """
    total, post, largest, z = factors.shortcut * x, None, None, x
    seen = dict[str, Float[Array, ""]]()
    for part in parts:
        residual: Residual = getattr(block, f"{part}_residual")
        if residual.pre is not None:
            z = normalize(residual.pre, x, arch) * factors.input
        elif not arch.normed("pre", part):
            z = x * factors.input
        if part == "attention":
            y, outputs, largest = attend(block.attention, z, arch)
        else:
            y, outputs = feed_forward(block.feed_forward, z, arch)
        seen |= {f"{part}.{name}": _rms(output) for name, output in outputs.items()}
        if residual.output is not None:
            y = normalize(residual.output, y, arch)
        branch = factors.branch if residual.branch is None else residual.branch[None, None, :]
        total = total + branch * y
        post = residual.post
    return total if post is None else normalize(post, total, arch), seen, largest


def addition(params: Transformer, arch: Architecture, place: int) -> Callable[[Array], Float[Array, "batch seq d"]]:
    """The residual addition between that place and the next, as a function of the stream [batch, seq, d]."""
    additions = block_scheme(arch.block).additions
    layer, number = divmod(place, len(additions))
    factors = factors_of(arch, params.embedding.dtype)
    block, own = jax.tree.map(lambda leaf: leaf[layer], (params.blocks, factors))
    return lambda x: add(block, x, arch, own, additions[number])[0]


def apply(
    params: Transformer,
    tokens: Int[Array, "batch seq"],
    arch: Architecture,
    readings: Float[Array, " places"] | None = None,
    recompute: bool = False,
) -> tuple[Float[Array, "batch seq vocab"], Observations]:
    """Logits of every position, and what was observed on the way.

    readings: zeros float32[S + 1]; the loss's derivative by them is the squared gradient norm at each place
    (`models.probes`). None: the places are not probed. recompute: a gradient keeps of every block what enters it, and
    computes the rest once more (Chen et al., arXiv 1604.06174).
    """
    if readings is None:
        readings = jnp.zeros(arch.num_sublayers + 1, jnp.float32)
    x = embed(params, tokens, arch)

    additions = block_scheme(arch.block).additions

    def run_block(
        x: Float[Array, "batch seq d"], layer: tuple[Block, Factors, Float[Array, " additions"]]
    ) -> tuple[
        Float[Array, "batch seq d"], tuple[Float[Array, " additions"], dict[str, Float[Array, ""]], Float[Array, ""]]
    ]:
        block, factors, reading = layer
        stds, norms, logit = [], dict[str, Float[Array, ""]](), jnp.zeros((), x.dtype)
        for number, parts in enumerate(additions):
            x = probe(x, reading[number])
            stds.append(_std(x))
            x, seen, largest = add(block, x, arch, factors, parts)
            norms |= seen
            logit = logit if largest is None else largest
        return x, (jnp.stack(stds), norms, logit)

    per_layer = (params.blocks, factors_of(arch, x.dtype), readings[:-1].reshape(-1, len(additions)))
    x, (stds, norms, largest) = jax.lax.scan(jax.checkpoint(run_block) if recompute else run_block, x, per_layer)
    x = probe(x, readings[-1])
    z = x if params.final_norm is None else normalize(params.final_norm, x, arch)
    head = params.embedding.T if params.head is None else params.head.weight
    logits = jnp.einsum("btd,dv->btv", z, head) * arch.logit_scale
    observations = Observations(
        shortcut_std=jnp.append(stds.reshape(-1), _std(x)),
        output_norm=norms | {"head": _rms(logits)[None]},
        largest_attention_logit=largest,
        log_z=jnp.mean(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)),
    )
    return logits, observations


def loss(
    params: Transformer,
    tokens: Int[Array, "batch seq_plus_1"],
    arch: Architecture,
    readings: Float[Array, " places"] | None = None,
    recompute: bool = False,
) -> tuple[Float[Array, ""], Observations]:
    """Mean cross-entropy in nats per predicted token, and the forward pass's observations.

    tokens: each sequence with the token that follows its last predicted position, so `seq_len + 1` of them. readings,
    recompute: as in `apply`.
    """
    logits, observations = apply(params, tokens[:, :-1], arch, readings, recompute)
    log_probability = jax.nn.log_softmax(logits.astype(np.promote_types(logits.dtype, np.float32)), axis=-1)
    chosen = jnp.take_along_axis(log_probability, tokens[:, 1:, None], axis=-1)
    return -jnp.mean(chosen), observations


def _rms(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _std(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.std(x.astype(jnp.float32))
