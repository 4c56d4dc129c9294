"""ZClip, AdaGC and SPAM against their published algorithms, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from theory import Architecture
from verify.training.clipping import adagc, spam, zclip

PARAMS = models.init(jax.random.key(0), Architecture(num_layers=2, d_model=8, num_heads=1, vocab_size=8, seq_len=4))


def test_zclip_by_hand():
    """Norms around 1 with outliers in warm-up and after it; the mean and variance are fed with what was clipped."""
    rng = np.random.default_rng(0)
    norms = np.exp(0.2 * rng.normal(size=120))
    norms[[3, 40, 41, 80]] *= [8, 20, 20, 1000]
    clip = zclip()
    state, seen = clip.init(jnp.zeros(2)), []
    for norm in norms:
        clipped, state = clip.update(jnp.array([0.6, 0.8]) * norm, state)
        seen.append(float(jnp.linalg.norm(clipped)))
    mean, variance, expected = norms[:25].mean(), norms[:25].var(), list(norms[:25])
    for norm in norms[25:]:
        z = (norm - mean) / np.sqrt(variance)
        kept = mean + 2.5 * np.sqrt(variance) * 2.5 / z if z > 2.5 else norm
        mean = 0.97 * mean + 0.03 * kept
        variance = 0.97 * variance + 0.03 * (kept - mean) ** 2
        expected.append(kept)
    np.testing.assert_allclose(seen, expected, rtol=1e-3)
    assert seen[80] < 5 and seen[3] == np.float32(norms[3])


def test_zclip_with_a_fixed_norm_beside_it():
    clip = zclip(max_norm=1.0)
    clipped, _ = clip.update(jnp.array([3.0, 4.0]), clip.init(jnp.zeros(2)))
    np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-5)


def test_adagc_keeps_a_mean_for_every_layer():
    """A gradient of constant direction; layer 1 of one matrix spikes after the warm-up, and is clipped alone."""
    clip = adagc(warmup_steps=3)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    state = clip.init(PARAMS)
    for factor in (1.0, 0.5, 1.0):  # the smallest norm is where the mean starts
        clipped, state = clip.update(jax.tree.map(lambda leaf, factor=factor: factor * leaf, ones), state)
        np.testing.assert_allclose(clipped.embedding, factor)
    key = ones.blocks.attention.key.weight.at[1].multiply(10.0)
    blocks = ones.blocks
    object.__setattr__(blocks.attention.key, "weight", key)
    clipped, state = clip.update(jax.tree.map(lambda leaf: 0.5 * leaf, ones), state)
    np.testing.assert_allclose(clipped.blocks.attention.key.weight[0], 0.5, rtol=1e-5)
    np.testing.assert_allclose(clipped.blocks.attention.key.weight[1], 1.05 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(clipped.embedding, 0.5, rtol=1e-5)
    size = 0.5 * 8  # of an 8 x 8 matrix of halves
    expected = np.array([1, 0.98 + 0.02 * 1.05]) * size
    np.testing.assert_allclose(state.norm.blocks.attention.key.weight[:, 0, 0], expected, rtol=1e-5)


def test_adagc_clips_the_whole_gradient_in_warm_up():
    clip = adagc(max_norm=2.0)
    clipped, _ = clip.update(jax.tree.map(jnp.ones_like, PARAMS), clip.init(PARAMS))
    np.testing.assert_allclose(optax.tree.norm(clipped), 2.0, rtol=1e-5)


def test_spam_cuts_single_entries_and_starts_again():
    """beta2 0.9: v is about g^2 of the steps before, and an entry 1,000 times as large is cut to sqrt(50 v)."""
    method = spam(optax.scale_by_adam(0.9, 0.9, 1e-12), threshold=50.0, reset_steps=6, warmup_steps=4)
    state = method.init(jnp.zeros(2))
    scales, taken = (1 - np.cos(np.pi * np.minimum(np.arange(1, 7) / 4, 1))) / 2, []
    for step in range(12):
        gradient = jnp.array([1.0, 1000.0 if step == 5 else 1.0])
        with jax.numpy_dtype_promotion("standard"):  # Optax raises Python floats to integer powers
            directions, state = method.update(gradient, state)
        taken.append(np.asarray(directions))
        if step == 5:
            before = 1 - 0.9**5
            square = 0.9 * before + 0.1 * 50 * before
            np.testing.assert_allclose(state.adam.nu, [0.9 * before + 0.1, square], rtol=1e-5)
    taken = np.array(taken)
    np.testing.assert_allclose(taken[:, 0], np.tile(scales, 2), rtol=1e-4)
    np.testing.assert_allclose(taken[6:, 1], scales, rtol=1e-4)  # nothing of the spike is left
