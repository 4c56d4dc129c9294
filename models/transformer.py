"""The pre-LN decoder: x' = x + Attn(LN(x)), y = x' + FFN(LN(x')), then a final norm and the head.

`apply(params, tokens, arch)` is a pure function of the parameter tree of `models.init`. Blocks run in one
`jax.lax.scan`, so compile time does not grow with depth.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.attention import attend
from models.feed_forward import feed_forward
from models.normalization import normalize
from models.parameters import Block, Transformer
from models.probes import probe
from theory import Architecture
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


def attention_sublayer(block: Block, x: Float[Array, "batch seq d"], arch: Architecture) -> Float[Array, "batch seq d"]:
    """x + Attn(LN(x)) of one block (leaves without the layer axis)."""
    return x + attend(block.attention, normalize(block.attention_norm, x, arch), arch)[0]


def feed_forward_sublayer(
    block: Block, x: Float[Array, "batch seq d"], arch: Architecture
) -> Float[Array, "batch seq d"]:
    """x + FFN(LN(x)) of one block (leaves without the layer axis)."""
    return x + feed_forward(block.feed_forward, normalize(block.feed_forward_norm, x, arch), arch)[0]


def apply(
    params: Transformer,
    tokens: Int[Array, "batch seq"],
    arch: Architecture,
    readings: Float[Array, " places"] | None = None,
) -> tuple[Float[Array, "batch seq vocab"], Observations]:
    """Logits of every position, and what was observed on the way.

    readings: zeros float32[S + 1]; the loss's derivative by them is the squared gradient norm at each place
    (`models.probes`). None: the places are not probed.
    """
    if readings is None:
        readings = jnp.zeros(arch.num_sublayers + 1, jnp.float32)
    x = embed(params, tokens, arch)

    def run_block(
        x: Float[Array, "batch seq d"], layer: tuple[Block, Float[Array, " 2"]]
    ) -> tuple[Float[Array, "batch seq d"], tuple[Float[Array, " 2"], dict[str, Float[Array, ""]], Float[Array, ""]]]:
        block, reading = layer
        x = probe(x, reading[0])
        middle, attention_outputs, largest = attend(block.attention, normalize(block.attention_norm, x, arch), arch)
        middle = probe(x + middle, reading[1])
        last, feed_forward_outputs = feed_forward(
            block.feed_forward, normalize(block.feed_forward_norm, middle, arch), arch
        )
        norms = {f"attention.{name}": _rms(y) for name, y in attention_outputs.items()}
        norms |= {f"feed_forward.{name}": _rms(y) for name, y in feed_forward_outputs.items()}
        return middle + last, (jnp.stack([_std(x), _std(middle)]), norms, largest)

    x, (stds, norms, largest) = jax.lax.scan(run_block, x, (params.blocks, readings[:-1].reshape(-1, 2)))
    x = probe(x, readings[-1])
    z = normalize(params.final_norm, x, arch)
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
) -> tuple[Float[Array, ""], Observations]:
    """Mean cross-entropy in nats per predicted token, and the forward pass's observations.

    tokens: each sequence with the token that follows its last predicted position, so `seq_len + 1` of them.
    """
    logits, observations = apply(params, tokens[:, :-1], arch, readings)
    log_probability = jax.nn.log_softmax(logits.astype(np.promote_types(logits.dtype, np.float32)), axis=-1)
    chosen = jnp.take_along_axis(log_probability, tokens[:, 1:, None], axis=-1)
    return -jnp.mean(chosen), observations


def _rms(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _std(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.std(x.astype(jnp.float32))
