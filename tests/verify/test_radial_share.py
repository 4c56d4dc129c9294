"""How much of the gradient lies along the stream: the recursion of `theory.propagation` against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.normalization import normalize
from models.transformer import addition, embed
from theory import Architecture
from theory.propagation import _radial_share

SEEDS = 128


def streams_and_gradients(arch, seed):
    """(x, dL/dx) at every place, float[S + 1, batch, T, d], sub-layer by sub-layer with a zero added at each place."""
    params = models.init(jax.random.key(seed), arch)
    tokens = jax.random.randint(jax.random.key(seed + SEEDS), (2, arch.seq_len + 1), 0, arch.vocab_size)

    def loss(zeros):
        x, seen = embed(params, tokens[:, :-1], arch), []
        for place in range(arch.num_sublayers):
            x = x + zeros[place]
            seen.append(x)
            x = addition(params, arch, place)(x)
        x = x + zeros[-1]
        logits = normalize(params.final_norm, x, arch) @ params.head.weight
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
    ],
)
def test_recursion_equals_autodiff(scheme, tolerance):
    """Of 0.04 to 0.5; in the mean over tokens, where the recursion is for each token's own lengths."""
    arch = Architecture(num_layers=4, d_model=64, num_heads=2, seq_len=16, **scheme)
    x, gradient = jax.jit(jax.vmap(lambda seed: streams_and_gradients(arch, seed)))(jnp.arange(SEEDS))
    x, gradient = np.asarray(x, np.float64), np.asarray(gradient, np.float64)
    sizes, norms = (np.sum(rows**2, axis=-1) for rows in (x, gradient))
    measured = (np.sum(x * gradient, axis=-1) ** 2 * arch.d_model / (sizes * norms)).mean(axis=(0, 2, 3))
    sizes, norms = (values.mean(axis=(0, 2, 3)) for values in (sizes, norms))
    expected = [0.0]
    for place in reversed(range(arch.num_sublayers)):
        expected.append(_radial_share(expected[-1], sizes[place + 1] / sizes[place], norms[place] / norms[place + 1]))
    np.testing.assert_allclose(measured, expected[::-1], atol=tolerance)
    assert measured[0] < 0.5 and measured.max() > 0.15  # far from a random direction, and not nothing
