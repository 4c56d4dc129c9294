"""The model against a plain NumPy forward pass, its gradients against finite differences and a second derivation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.transformer import attention_sublayer, embed, feed_forward_sublayer
from theory import Architecture
from theory.embedding import EMBEDDINGS, Embedding


@st.composite
def architectures(draw):
    """Every switch, at sizes that are tiny and odd; few shapes, because each one compiles."""
    d_model, heads, kv_heads, d_ff = draw(st.sampled_from([(4, 2, 1, 7), (6, 1, 1, 5), (12, 3, 3, 8), (8, 4, 2, 32)]))
    layers, seq_len, vocab = draw(st.sampled_from([(1, 1, 2), (2, 5, 3), (3, 4, 11)]))
    even_head = d_model // heads % 2 == 0
    positions = ("none", "learned", "sinusoidal", *(("rope",) if even_head else ()))
    return Architecture(
        num_layers=layers, d_model=d_model, num_heads=heads, num_kv_heads=kv_heads, d_ff=d_ff, vocab_size=vocab,
        seq_len=seq_len,
        norm=draw(st.sampled_from(["layer_norm", "rms_norm"])),
        norm_epsilon=draw(st.sampled_from([0.0, 1e-5, 0.3])),
        activation=draw(st.sampled_from(["identity", "relu", "gelu", "gelu_tanh", "silu"])),
        positions=draw(st.sampled_from(positions)),
        initialization=draw(st.sampled_from(["megatron", "he", "palm"])),
        embedding=draw(st.sampled_from([*EMBEDDINGS, 0.37])),
        bias=draw(st.booleans()), tied=draw(st.booleans()), logit_scale=draw(st.sampled_from([1.0, 0.25])),
    )  # fmt: skip


def moved(params, seed):
    """The parameters with every leaf moved a little, so that biases are not 0 and norm scales not 1."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    shifted = [leaf + jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(tree, shifted)


@settings(max_examples=16)
@given(architectures(), st.integers(0, 1000))
def test_equals_the_plain_numpy_forward_pass(arch, seed):
    params = moved(models.init(jax.random.key(seed), arch), seed)
    tokens = jnp.asarray(np.random.default_rng(seed).integers(arch.vocab_size, size=(2, arch.seq_len)), jnp.int32)
    with jax.default_matmul_precision("highest"):
        actual = models.apply(params, tokens, arch)[0]
    method = EMBEDDINGS.get(arch.embedding) if isinstance(arch.embedding, str) else None
    multiplier = {"scaled": arch.d_model**0.5}.get(arch.embedding, 1.0 if method else arch.embedding)
    expected = reference.logits(params, tokens, arch, multiplier, bool(method and method.layer_norm))
    # float32 keeps 7 digits; a norm of a near-constant token (epsilon 0) can lose three of them
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


ARCH = Architecture(num_layers=2, d_model=8, num_heads=2, vocab_size=5, seq_len=4, bias=True)


@pytest.mark.parametrize("changes", [{}, {"norm": "rms_norm", "activation": "silu", "num_kv_heads": 1, "tied": True}])
def test_gradients_equal_finite_differences(changes):
    """Central differences in float64 along random directions: the error is of order step^2."""
    arch = dataclasses.replace(ARCH, **changes)
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), moved(models.init(jax.random.key(0), arch), 0)
        )
        tokens = jnp.asarray(np.random.default_rng(0).integers(5, size=(2, 5)), jnp.int32)
        with jax.numpy_dtype_promotion("standard"):
            loss = jax.jit(lambda p: models.loss(p, tokens, arch)[0].astype(jnp.float64))
            gradient = jax.grad(lambda p: models.loss(p, tokens, arch)[0])(params)
            leaves, tree = jax.tree.flatten(params)
            for seed in range(5):
                rng = np.random.default_rng(seed)
                direction = [jnp.asarray(rng.standard_normal(leaf.shape)) for leaf in leaves]
                slope = sum(float(jnp.sum(g * v)) for g, v in zip(jax.tree.leaves(gradient), direction, strict=True))
                step = 1e-5
                ahead, behind = (
                    loss(
                        jax.tree.unflatten(
                            tree, [leaf + s * step * v for leaf, v in zip(leaves, direction, strict=True)]
                        )
                    )
                    for s in (1, -1)
                )
                np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-6, atol=1e-7)


def test_readings_are_the_squared_gradients_of_the_cut_network():
    """Cut the network at each place by hand and differentiate the rest by the stream itself."""
    params = models.init(jax.random.key(1), ARCH)
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, size=(3, 5)), jnp.int32)
    readings = jax.grad(lambda r: models.loss(params, tokens, ARCH, r)[0])(jnp.zeros(5, jnp.float32))
    layers = [jax.tree.map(lambda leaf, n=n: leaf[n], params.blocks) for n in range(2)]
    sublayers = [f for block in layers for f in (
        lambda x, block=block: attention_sublayer(block, x, ARCH),
        lambda x, block=block: feed_forward_sublayer(block, x, ARCH),
    )]  # fmt: skip

    def rest(x, place):
        for sublayer in sublayers[place:]:
            x = sublayer(x)
        centred = x - x.mean(-1, keepdims=True)
        z = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        probabilities = jax.nn.log_softmax(z @ params.head.weight)
        return -jnp.take_along_axis(probabilities, tokens[:, 1:, None], -1).mean()

    x = embed(params, tokens[:, :-1], ARCH)
    for place in range(5):
        gradient = jax.grad(rest)(x, place)
        np.testing.assert_allclose(readings[place], np.sum(np.square(gradient)), rtol=1e-4)
        if place < 4:
            x = sublayers[place](x)


def test_no_position_sees_a_later_token():
    params = models.init(jax.random.key(0), ARCH)
    tokens = jnp.array([[0, 1, 2, 3]], jnp.int32)
    for place in range(4):
        changed = tokens.at[0, place].set(4)
        before, after = models.apply(params, tokens, ARCH)[0], models.apply(params, changed, ARCH)[0]
        np.testing.assert_array_equal(before[0, :place], after[0, :place])
        assert np.any(before[0, place] != after[0, place])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_detach_scales_the_tables_gradient_and_nothing_else(share):
    detached = dataclasses.replace(ARCH, embedding=Embedding("mine", gradient_share=share))
    plain = dataclasses.replace(ARCH, embedding="vanilla")
    params = models.init(jax.random.key(0), plain)
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, size=(3, 5)), jnp.int32)
    (loss, gradient), (detached_loss, detached_gradient) = (
        jax.value_and_grad(lambda p, arch=arch: models.loss(p, tokens, arch)[0])(params) for arch in (plain, detached)
    )
    np.testing.assert_allclose(detached_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(detached_gradient.embedding, share * gradient.embedding, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(detached_gradient.head.weight, gradient.head.weight, rtol=1e-4, atol=1e-6)


def test_observations_are_what_they_say():
    params = models.init(jax.random.key(3), ARCH)
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, size=(3, 4)), jnp.int32)
    logits, seen = models.apply(params, tokens, ARCH)
    x = embed(params, tokens, ARCH)
    np.testing.assert_allclose(seen.shortcut_std[0], np.std(x), rtol=1e-5)
    middle = attention_sublayer(jax.tree.map(lambda leaf: leaf[0], params.blocks), x, ARCH)
    np.testing.assert_allclose(seen.shortcut_std[1], np.std(middle), rtol=1e-5)
    np.testing.assert_allclose(seen.output_norm["attention.output"][0], np.sqrt(np.mean((middle - x) ** 2)), rtol=1e-4)
    np.testing.assert_allclose(seen.output_norm["head"], [np.sqrt(np.mean(logits**2))], rtol=1e-5)
    expected = np.mean(np.log(np.sum(np.exp(np.asarray(logits, np.float64)), -1)))
    np.testing.assert_allclose(seen.log_z, expected, rtol=1e-5)
    assert seen.largest_attention_logit.shape == (2,)
