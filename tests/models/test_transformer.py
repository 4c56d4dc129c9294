"""The model against a plain NumPy forward pass, its gradients against finite differences and a second derivation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.transformer import addition, embed
from theory import Activation, Architecture, Initialization
from theory.activation import ACTIVATIONS, u
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.embedding import EMBEDDINGS, Embedding
from theory.notation import N, d, layer


@st.composite
def architectures(draw):
    """Every switch, at sizes that are tiny and odd; few shapes, because each one compiles."""
    d_model, heads, kv_heads, d_ff = draw(st.sampled_from([(4, 2, 1, 7), (6, 1, 1, 5), (12, 3, 3, 8), (8, 4, 2, 32)]))
    layers, seq_len, vocab = draw(st.sampled_from([(1, 1, 2), (2, 5, 3), (3, 4, 11)]))
    even_head = d_model // heads % 2 == 0
    positions = ("none", "learned", "sinusoidal", "alibi", *(("rope",) if even_head else ()))
    norm = draw(st.sampled_from(["layer_norm", "rms_norm"]))
    wide_head = d_model // heads >= 3 or norm == "rms_norm"
    return Architecture(
        num_layers=layers, d_model=d_model, num_heads=heads, num_kv_heads=kv_heads, d_ff=d_ff, vocab_size=vocab,
        seq_len=seq_len,
        block=draw(st.sampled_from(list(BLOCKS))),
        attention=draw(st.sampled_from([name for name, a in ATTENTIONS.items() if wide_head or not a.normed])),
        norm=norm,
        norm_epsilon=draw(st.sampled_from([0.0, 1e-5, 0.3])),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        positions=draw(st.sampled_from(positions)),
        initialization=draw(st.sampled_from(["megatron", "he", "palm"])),
        embedding=draw(st.sampled_from([*EMBEDDINGS, 0.37])),
        bias=draw(st.booleans()), tied=draw(st.booleans()), logit_scale=draw(st.sampled_from([1.0, 0.25])),
    )  # fmt: skip


# every value of every switch at least once, whatever Hypothesis draws
_OWN = Activation("own", sp.sin(u) * u, "a test")
_COVERING = [
    Architecture(
        num_layers=layers, d_model=d_model, num_heads=heads, num_kv_heads=kv_heads, d_ff=7, vocab_size=vocab,
        seq_len=seq_len, norm=norm, norm_epsilon=epsilon, activation=activation, positions=positions,
        initialization=initialization, embedding=embedding, bias=bias, tied=tied, logit_scale=scale,
    )
    for layers, d_model, heads, kv_heads, vocab, seq_len, norm, epsilon, activation, positions, initialization,
        embedding, bias, tied, scale in (
        (1, 4, 4, 1, 2, 1, "layer_norm", 1e-5, "gelu", "none", "megatron", "vanilla", True, False, 1.0),
        (2, 8, 2, 2, 5, 6, "layer_norm", 0.3, "gelu_tanh", "rope", "gpt2", "scaled", True, True, 0.25),
        (3, 8, 4, 2, 5, 4, "rms_norm", 1e-5, "silu", "rope", "he", "layer_norm", False, True, 3.0),
        (2, 6, 1, 1, 3, 5, "layer_norm", 1e-5, "relu", "learned", "palm", "layer_norm", True, False, 1.0),
        (2, 6, 3, 1, 3, 5, "rms_norm", 0.0, "identity", "sinusoidal", "wang", "unit", True, False, 1.0),
        (1, 1, 1, 1, 2, 3, "rms_norm", 0.1, _OWN, "learned", "lecun", 0.37, False, False, 1.0),
        (2, 8, 8, 4, 3, 4, "layer_norm", 1e-5, _OWN, "none", "xavier", "detach", False, False, 1.0),
        (1, 8, 2, 1, 3, 4, "layer_norm", 1e-5, "gelu", "sinusoidal", "small", "2.5", True, True, 1.0),
    )
] + [
    Architecture(
        num_layers=3, d_model=12, num_heads=3, num_kv_heads=kv_heads, d_ff=7, vocab_size=3, seq_len=4, norm=norm,
        norm_epsilon=epsilon, activation=activation, positions=positions, block=block, attention=attention, bias=bias,
    )
    for block, attention, activation, positions, norm, epsilon, kv_heads, bias in (
        ("post_ln", "qk_norm", "swiglu", "rope", "rms_norm", 1e-5, 1, False),
        ("parallel", "standard", "swiglu", "rope", "layer_norm", 1e-5, 1, False),
        ("parallel", "qkv_norm", "gelu", "alibi", "layer_norm", 0.3, 3, True),
        ("sandwich", "soft_clip", "geglu", "alibi", "rms_norm", 1e-5, 3, False),
        ("output_norm", "qk_norm_cap", "swiglu", "rope", "rms_norm", 0.1, 3, False),
        ("deepnorm", "soft_temp", "geglu", "rope", "layer_norm", 1e-5, 3, True),
        ("rezero", "soft_cap", "relu", "learned", "layer_norm", 1e-5, 1, True),
        ("layer_scale", "qkv_norm", "silu", "rope", "layer_norm", 1e-5, 1, True),
        ("ln_scaling", "qk_fc_norm", "gelu_tanh", "none", "layer_norm", 1e-5, 3, True),
        ("deep_scale_lm", "qk_norm", "gelu", "sinusoidal", "layer_norm", 1e-5, 3, True),
        ("sub_ln", "qk_fc_norm", "geglu", "rope", "layer_norm", 0.2, 1, True),
        ("depth_mup", "mup_attention", "gelu", "rope", "layer_norm", 1e-5, 3, True),
        ("deepnorm_glm", "standard", "geglu", "rope", "layer_norm", 1e-5, 3, True),
        ("no_norm", "qk_norm", "identity", "alibi", "layer_norm", 1e-5, 3, True),
        ("pre_ln", "sigma_reparam", "swiglu", "rope", "layer_norm", 1e-5, 1, True),
        ("post_ln", "sigma_reparam", "relu", "learned", "rms_norm", 1e-5, 3, False),
    )
]  # fmt: skip


@pytest.fixture(autouse=True)
def _converged(monkeypatch):
    """Norms of matrices to rounding, whatever the gap between the largest two singular values."""
    monkeypatch.setattr(models.linear, "POWER_ITERATIONS", 5000)


_apply = jax.jit(models.apply, static_argnames="arch")


def random_params(arch, seed, dtype=jnp.float32):
    """Every leaf drawn at random, so that biases are not 0 and norm scales not 1; nothing compiles for it."""
    shapes = jax.eval_shape(lambda: models.init(jax.random.key(0), arch, dtype))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def random_tokens(arch, seed, batch=2, extra=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(arch.vocab_size, size=(batch, arch.seq_len + extra)), jnp.int32)


def assert_equals_reference(arch, seed):
    """In float64 both agree to rounding: a wrong GELU, epsilon or frequency (1e-4 and more) cannot hide."""
    with jax.enable_x64(True):
        params = random_params(arch, seed, jnp.float64)
        tokens = random_tokens(arch, seed)
        actual = _apply(params, tokens, arch=arch)[0]
    assert actual.dtype == jnp.float64
    method = EMBEDDINGS.get(arch.embedding) if isinstance(arch.embedding, str) else None
    multiplier = {"scaled": arch.d_model**0.5}.get(arch.embedding, 1.0 if method else float(arch.embedding))
    expected = reference.logits(params, tokens, arch, multiplier, bool(method and method.layer_norm))
    # 1e-16 per operation; a norm of a near-constant token can lose some digits (epsilon 0: all but a few)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("arch", _COVERING, ids=range(len(_COVERING)))
def test_equals_the_plain_numpy_forward_pass(arch):
    assert_equals_reference(arch, seed=0)


@settings(max_examples=8)
@given(architectures(), st.integers(0, 1000))
def test_equals_the_plain_numpy_forward_pass_for_any_switches(arch, seed):
    assert_equals_reference(arch, seed)


def test_float32_stays_near_float64():
    """Unit roundoff 6e-8 through two layers of width 8: a few hundred roundings at most."""
    with jax.enable_x64(True):
        exact_params = random_params(ARCH, 0, jnp.float64)
        exact = np.asarray(_apply(exact_params, random_tokens(ARCH, 0), arch=ARCH)[0])
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), exact_params)
    with jax.default_matmul_precision("highest"):
        logits = _apply(params, random_tokens(ARCH, 0), arch=ARCH)[0]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, rtol=0, atol=2e-5 * np.abs(exact).max())


ARCH = Architecture(num_layers=2, d_model=8, num_heads=2, vocab_size=5, seq_len=4, bias=True)


# no Embed Detach (its gradient is no derivative) and no LayerNorm of a single direction
@pytest.mark.parametrize("index", [1, 2, 3, 4, 9, 11, 15, 18])
def test_gradients_equal_finite_differences(index):
    """Central differences in float64 along random directions: error step^2 = 1e-10, rounding 1e-16 / step = 1e-11."""
    arch = _COVERING[index]
    with jax.enable_x64(True):
        params = random_params(arch, 0, jnp.float64)
        tokens = random_tokens(arch, 0, extra=1)
        leaves, tree = jax.tree.flatten(params)
        both = jax.jit(
            jax.value_and_grad(lambda leaves: models.loss(jax.tree.unflatten(tree, leaves), tokens, arch)[0])
        )
        gradient = both(leaves)[1]
        for seed in range(5):
            rng = np.random.default_rng(seed)
            direction = [jnp.asarray(rng.standard_normal(leaf.shape)) for leaf in leaves]
            slope = sum(float(jnp.sum(g * v)) for g, v in zip(gradient, direction, strict=True))
            step = 1e-5
            ahead, behind = (
                both([leaf + sign * step * v for leaf, v in zip(leaves, direction, strict=True)])[0] for sign in (1, -1)
            )
            # third derivatives of order 1e3 (norms of narrow tokens) take the step's 1e-10 to 1e-7
            np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-6, atol=1e-7)


def test_readings_are_the_squared_gradients_of_the_cut_network():
    """Cut the network at each place by hand and differentiate the rest by the stream itself."""
    params = models.init(jax.random.key(1), ARCH)
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, size=(3, 5)), jnp.int32)
    readings = jax.jit(jax.grad(lambda r: models.loss(params, tokens, ARCH, r)[0]))(jnp.zeros(5, jnp.float32))
    sublayers = [jax.jit(addition(params, ARCH, place)) for place in range(4)]

    def rest(x, place):
        for sublayer in sublayers[place:]:
            x = sublayer(x)
        centred = x - x.mean(-1, keepdims=True)
        z = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        probabilities = jax.nn.log_softmax(z @ params.head.weight)
        return -jnp.take_along_axis(probabilities, tokens[:, 1:, None], -1).mean()

    x = embed(params, tokens[:, :-1], ARCH)
    for place in range(5):
        gradient = jax.jit(jax.grad(rest), static_argnums=1)(x, place)
        np.testing.assert_allclose(readings[place], np.sum(np.square(gradient)), rtol=1e-4)
        if place < 4:
            x = sublayers[place](x)


def test_no_position_sees_a_later_token():
    params = random_params(ARCH, 0)
    tokens = jnp.array([[0, 1, 2, 3]], jnp.int32)
    for place in range(4):
        changed = tokens.at[0, place].set(4)
        before, after = _apply(params, tokens, arch=ARCH)[0], _apply(params, changed, arch=ARCH)[0]
        np.testing.assert_array_equal(before[0, :place], after[0, :place])
        assert np.any(before[0, place] != after[0, place])


@pytest.mark.parametrize("changes", [{}, {"positions": "learned", "norm": "rms_norm", "num_kv_heads": 1}])
def test_no_gradient_flows_from_a_later_token(changes):
    """Four different tokens: the logits of position t depend on the table's rows of tokens 0..t and on no other."""
    arch = dataclasses.replace(ARCH, **changes)
    params = random_params(arch, 0)
    tokens = jnp.array([[2, 0, 3, 1]], jnp.int32)
    jacobian = jax.jit(
        jax.jacrev(lambda table: models.apply(dataclasses.replace(params, embedding=table), tokens, arch)[0][0])
    )(params.embedding)
    size = np.abs(np.asarray(jacobian)).max(axis=(1, 3))[:, [2, 0, 3, 1]]  # position of the logits, of the token
    assert np.all(size[np.triu_indices(4, 1)] == 0)
    assert np.all(size[np.tril_indices(4)] > 1e-6)


def test_an_architecture_is_a_static_argument():
    """Equal descriptions share one compiled program; unequal ones do not."""
    traces = []

    def traced(key, arch):
        traces.append(arch)
        return jax.random.normal(key, arch.shape("head")) * arch.std("head")[0].astype(np.float32)

    def own(std):
        rules = Initialization("mine", std, {"head": layer / N}, "a test")
        mine = Activation("mine", u**2 + u, "a test")
        return dataclasses.replace(ARCH, initialization=rules, activation=mine, embedding=Embedding("mine", 1 / d))

    compiled = jax.jit(traced, static_argnames="arch")
    for arch in (own(0.5), own(0.5), own(0.25), own(0.5)):
        compiled(jax.random.key(0), arch=arch)
    assert len(traces) == 2


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_detach_scales_the_tables_gradient_and_nothing_else(share):
    detached = dataclasses.replace(ARCH, embedding=Embedding("mine", gradient_share=share))
    plain = dataclasses.replace(ARCH, embedding="vanilla")
    params = random_params(plain, 0)
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, size=(3, 5)), jnp.int32)
    (loss, gradient), (detached_loss, detached_gradient) = (
        jax.jit(jax.value_and_grad(lambda p, arch=arch: models.loss(p, tokens, arch)[0]))(params)
        for arch in (plain, detached)
    )
    np.testing.assert_allclose(detached_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(detached_gradient.embedding, share * gradient.embedding, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(detached_gradient.head.weight, gradient.head.weight, rtol=1e-4, atol=1e-6)


def test_observations_are_what_they_say():
    params = models.init(jax.random.key(3), ARCH)
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, size=(3, 4)), jnp.int32)
    logits, seen = _apply(params, tokens, arch=ARCH)
    x = embed(params, tokens, ARCH)
    np.testing.assert_allclose(seen.shortcut_std[0], np.std(x), rtol=1e-5)
    middle = addition(params, ARCH, 0)(x)
    np.testing.assert_allclose(seen.shortcut_std[1], np.std(middle), rtol=1e-5)
    np.testing.assert_allclose(seen.output_norm["attention.output"][0], np.sqrt(np.mean((middle - x) ** 2)), rtol=1e-4)
    np.testing.assert_allclose(seen.output_norm["head"], [np.sqrt(np.mean(logits**2))], rtol=1e-5)
    expected = np.mean(np.log(np.sum(np.exp(np.asarray(logits, np.float64)), -1)))
    np.testing.assert_allclose(seen.log_z, expected, rtol=1e-5)
    assert seen.attention.largest_logit.shape == (2, ARCH.num_heads)


def test_recomputed_blocks_give_the_same_gradients():
    params = models.init(jax.random.key(0), ARCH)
    tokens = jax.random.randint(jax.random.key(1), (2, ARCH.seq_len + 1), 0, ARCH.vocab_size)
    readings = jnp.zeros(ARCH.num_sublayers + 1, jnp.float32)
    kept, again = (
        jax.value_and_grad(
            lambda params, readings, again=again: models.loss(
                params, tokens, ARCH, readings, models.Switches(recompute=again)
            )[0],
            argnums=(0, 1),
        )(params, readings)
        for again in (False, True)
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-8), kept, again)
