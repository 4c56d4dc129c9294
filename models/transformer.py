"""The decoder, in every arrangement of `theory.block`: pre-LN is x' = x + Attn(LN(x)), y = x' + FFN(LN(x')).

`apply(params, tokens, arch)` is a pure function of the parameter tree of `models.init`. Blocks run in one
`jax.lax.scan`, so compile time does not grow with depth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from models.attention import AttentionSeen, attend
from models.dropout import dropout
from models.factors import BlockFactors, Factors, factors_of
from models.feed_forward import feed_forward
from models.linear import product
from models.normalization import normalize
from models.parameters import Block, Residual, Transformer
from models.probes import probe
from theory import Architecture
from theory.block import PARTS
from theory.block import block as block_scheme
from theory.positions import sinusoids


@dataclass(frozen=True)
class Switches:
    """How a training step passes through the network, beside what the architecture says.

    recompute: a gradient keeps of every block what enters it, and computes the rest once more (Chen et al., arXiv
    1604.06174). dropout: rate, on the embedding, the attention probabilities, and every sub-layer's output.
    forced_logit: see `models.attention.attend`. z_loss: coefficient of the mean of log^2 Z that is added to the loss
    (PaLM, arXiv 2204.02311). Both may be arrays. dtype: of weights and activations; norms, softmaxes and the loss stay
    in float32.
    """

    recompute: bool = False
    dropout: float = 0.0
    forced_logit: float | Float[Array, ""] | None = None
    z_loss: float | Float[Array, ""] = 0.0
    dtype: str = "float32"


PLAIN = Switches()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observations:
    """What the forward pass saw, S + 1 places and N layers.

    shortcut_std: standard deviation of the residual stream over batch, position and coordinate, at each place.
    output_norm: root mean square of the output of every linear layer, by matrix kind; "head" are the output logits,
    logit_mean their mean. log_z, log_z_square: mean over tokens of the logarithm of the softmax's denominator, and of
    its square.
    """

    shortcut_std: Float[Array, "*parts places"]
    output_norm: dict[str, Float[Array, "*parts layers"]]
    attention: AttentionSeen
    logit_mean: Float[Array, "*parts"]
    log_z: Float[Array, "*parts"]
    log_z_square: Float[Array, "*parts"]


def embed(
    params: Transformer, tokens: Int[Array, "batch seq"], arch: Architecture, factors: Factors | None = None
) -> Float[Array, "batch seq d"]:
    """The residual stream that enters block 1: table row, embedding method, then positions. factors: as in `apply`."""
    x = params.embedding[tokens]
    factors = factors or factors_of(arch, x.dtype)
    x = factors.gradient_share * x + (1 - factors.gradient_share) * jax.lax.stop_gradient(x)
    x = x * factors.embedding
    if params.embedding_norm is not None:
        x = normalize(params.embedding_norm, x, arch)
    if params.position is not None:
        x = x + params.position[None, : tokens.shape[1]]
    elif arch.positions == "sinusoidal":
        x = x + jnp.asarray(sinusoids(tokens.shape[1], arch.d_model)[None], x.dtype)
    return x


def add(
    block: Block,
    x: Float[Array, "batch seq d"],
    arch: Architecture,
    factors: BlockFactors,
    parts: tuple[str, ...],
    switches: Switches = PLAIN,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "batch seq d"], dict[str, Float[Array, ""]], AttentionSeen | None]:
    """One residual addition of one block (leaves without the layer axis), of attention, the feed-forward, or both.

    Also the root mean square of every linear layer's output by matrix kind, and what attention saw where there is one.
    A parallel block adds both sub-layers of the same normed stream. key: of the dropout.
    """
    total, post, attention, z = factors.shortcut * x, None, None, x
    seen = dict[str, Float[Array, ""]]()
    for part in parts:
        residual: Residual = getattr(block, f"{part}_residual")
        if residual.pre is not None:
            z = normalize(residual.pre, x, arch) * factors.input
        elif not arch.normed("pre", part):
            z = x * factors.input
        inner, outer = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, PARTS.index(part)))
        if part == "attention":
            y, outputs, attention = attend(block.attention, z, arch, switches.forced_logit, switches.dropout, inner)
        else:
            y, outputs = feed_forward(block.feed_forward, z, arch)
        seen |= {f"{part}.{name}": _rms(output) for name, output in outputs.items()}
        if residual.output is not None:
            y = normalize(residual.output, y, arch)
        branch = factors.branch if residual.branch is None else residual.branch[None, None, :]
        total = total + branch * dropout(outer, y, switches.dropout)
        post = residual.post
    return total if post is None else normalize(post, total, arch), seen, attention


def addition(params: Transformer, arch: Architecture, place: int) -> Callable[[Array], Float[Array, "batch seq d"]]:
    """The residual addition between that place and the next, as a function of the stream [batch, seq, d]."""
    additions = block_scheme(arch.block).additions
    layer, number = divmod(place, len(additions))
    factors = factors_of(arch, params.embedding.dtype).blocks
    block, own = jax.tree.map(lambda leaf: leaf[layer], (params.blocks, factors))
    return lambda x: add(block, x, arch, own, additions[number])[0]


def apply(
    params: Transformer,
    tokens: Int[Array, "batch seq"],
    arch: Architecture,
    readings: Float[Array, " places"] | None = None,
    switches: Switches = PLAIN,
    key: PRNGKeyArray | None = None,
    factors: Factors | None = None,
) -> tuple[Float[Array, "batch seq vocab"], Observations]:
    """Logits of every position, and what was observed on the way.

    readings: zeros float32[S + 1]; the loss's derivative by them is the squared gradient norm at each place
    (`models.probes`). None: the places are not probed. key: of the dropout; None: there is none. factors: in place of
    the architecture's own, which are `models.factors.factors_of` it.
    """
    if readings is None:
        readings = jnp.zeros(arch.num_sublayers + 1, jnp.float32)
    if key is not None and switches.dropout == 0:
        key = None
    if switches.dtype != "float32":
        params = jax.tree.map(lambda leaf: leaf.astype(switches.dtype), params)
    dtype = params.embedding.dtype
    factors = factors_of(arch, dtype) if factors is None else jax.tree.map(lambda leaf: leaf.astype(dtype), factors)
    x = dropout(key, embed(params, tokens, arch, factors), switches.dropout)

    additions = block_scheme(arch.block).additions

    def run_block(
        x: Float[Array, "batch seq d"],
        layer: tuple[Block, BlockFactors, Float[Array, " additions"], PRNGKeyArray | None],
    ) -> tuple[Float[Array, "batch seq d"], tuple[Float[Array, " additions"], dict[str, Float[Array, ""]], Any]]:
        block, own_factors, reading, own_key = layer
        stds, norms, attention = [], dict[str, Float[Array, ""]](), None
        for number, parts in enumerate(additions):
            x = probe(x, reading[number])
            stds.append(_std(x))
            x, seen, heads = add(block, x, arch, own_factors, parts, switches, own_key)
            norms |= seen
            attention = attention if heads is None else heads
        return x, (jnp.stack(stds), norms, attention)

    keys = None if key is None else jax.random.split(jax.random.fold_in(key, 0), arch.num_layers)
    per_layer = (params.blocks, factors.blocks, readings[:-1].reshape(-1, len(additions)), keys)
    block = jax.checkpoint(run_block) if switches.recompute else run_block
    x, (stds, norms, attention) = jax.lax.scan(block, x, per_layer)
    x = probe(x, readings[-1])
    z = x if params.final_norm is None else normalize(params.final_norm, x, arch)
    head = params.embedding.T if params.head is None else params.head.weight
    logits = product(z, head) * factors.logits
    log_z = jax.nn.logsumexp(logits.astype(np.promote_types(logits.dtype, np.float32)), axis=-1)
    observations = Observations(
        shortcut_std=jnp.append(stds.reshape(-1), _std(x)),
        output_norm=norms | {"head": _rms(logits)[None]},
        attention=attention,
        logit_mean=jnp.mean(logits.astype(jnp.float32)),
        log_z=jnp.mean(log_z),
        log_z_square=jnp.mean(jnp.square(log_z)),
    )
    return logits, observations


def loss(
    params: Transformer,
    tokens: Int[Array, "batch seq_plus_1"],
    arch: Architecture,
    readings: Float[Array, " places"] | None = None,
    switches: Switches = PLAIN,
    key: PRNGKeyArray | None = None,
    factors: Factors | None = None,
) -> tuple[Float[Array, ""], Observations]:
    """Mean cross-entropy in nats per predicted token, with the z-loss where there is one; and the observations.

    tokens: each sequence with the token that follows its last predicted position, so `seq_len + 1` of them. readings,
    key, factors: as in `apply`.
    """
    logits, observations = apply(params, tokens[:, :-1], arch, readings, switches, key, factors)
    logits = logits.astype(np.promote_types(logits.dtype, np.float32))
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[:, 1:, None], axis=-1)
    cross_entropy = -jnp.mean(chosen)
    return cross_entropy + switches.z_loss * observations.log_z_square, observations


def _rms(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _std(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.std(x.astype(jnp.float32))
