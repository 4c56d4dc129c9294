"""How much of the gradient lies along the stream: the recursion of `theory.propagation` against autodiff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.normalization import normalize
from models.transformer import addition, embed
from theory import Architecture, predict, propagation, stack
from theory.block import block
from theory.stream import diagonal

SEEDS = 256
# to draw weights takes longer than to use them, unless it is compiled well
draw = jax.jit(models.init, static_argnames="arch", compiler_options={"xla_backend_optimization_level": 2})


@partial(jax.jit, static_argnames="arch")
def streams_and_gradients(params, seed, arch):
    """(x, dL/dx) at every place, float[S + 1, batch, T, d], sub-layer by sub-layer with a zero added at each place."""
    tokens = jax.random.randint(jax.random.key(seed + SEEDS), (2, arch.seq_len + 1), 0, arch.vocab_size)

    def loss(zeros):
        x, seen = embed(params, tokens[:, :-1], arch), []
        for place in range(arch.num_sublayers):
            x = x + zeros[place]
            seen.append(x)
            x = addition(params, arch, place)(x)
        x = x + zeros[-1]
        read = normalize(params.final_norm, x, arch) if block(arch.block).final_norm else x
        logits = read @ params.head.weight
        log_probability = jax.nn.log_softmax(logits, axis=-1)
        return -jnp.mean(jnp.take_along_axis(log_probability, tokens[:, 1:, None], axis=-1)), jnp.stack([*seen, x])

    zeros = jnp.zeros((arch.num_sublayers + 1, 2, arch.seq_len, arch.d_model), jnp.float32)
    (_, x), gradient = jax.value_and_grad(loss, has_aux=True)(zeros)
    return x, gradient


@pytest.mark.parametrize(
    ("scheme", "tolerance"),
    [
        ({"initialization": "megatron", "embedding": "scaled"}, 0.015),
        ({"initialization": "lecun", "embedding": "vanilla", "positions": "none"}, 0.1),
        ({"initialization": "he", "embedding": "unit", "norm": "rms_norm"}, 0.1),
        ({"initialization": "he", "block": "post_ln", "positions": "none"}, 0.2),
        ({"initialization": "lecun", "block": "no_norm", "attention": "qk_fc_norm"}, 0.15),
    ],
)
def test_recursion_equals_autodiff(scheme, tolerance, monkeypatch):
    """Variance of dL/dx along x over that along a random direction, 0.04 to 0.5 behind a last norm."""
    arch = Architecture(**{"num_layers": 4, "d_model": 64, "num_heads": 2, "seq_len": 16} | scheme)
    seen = [streams_and_gradients(draw(jax.random.key(seed), arch=arch), seed, arch=arch) for seed in range(SEEDS)]
    x, gradient = (np.asarray(each, np.float64) for each in zip(*jax.device_get(seen), strict=True))
    along = np.sum(x * gradient, axis=-1) / np.linalg.norm(x, axis=-1)
    along = along - along.mean(axis=(0, 2, 3), keepdims=True) * (arch.block == "no_norm")
    measured = (along**2).mean(axis=(0, 2, 3)) * arch.d_model / np.sum(gradient**2, axis=-1).mean(axis=(0, 2, 3))
    shares, before = [], stack._back

    def back(*arguments):
        result = before(*arguments)
        shares.append(np.average(result[1].radial, weights=diagonal(result[0])))
        return result

    monkeypatch.setattr(stack, "_back", back)
    monkeypatch.setattr(propagation.os, "cpu_count", lambda: 1)  # one group of networks after the other
    predict(arch, batch_size=2, networks=512)
    expected = np.reshape(shares, (-1, arch.num_sublayers)).mean(axis=0)
    np.testing.assert_allclose(measured[:-1], expected[::-1], atol=tolerance)
    if block(arch.block).final_norm:  # far from a random direction, and not nothing; at the last place nothing
        assert measured[0] < 0.5 and measured.max() > 0.15
        np.testing.assert_allclose(measured[-1], 0, atol=tolerance)
