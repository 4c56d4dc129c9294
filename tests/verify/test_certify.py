"""`certify` is never violated, is tight where a path can be made the only one, and refuses what it cannot read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import models
from theory import Activation, Architecture
from theory.activation import u
from theory.block import BLOCKS
from verify import certify

# every block, attention, activation, norm and position code; all shapes of one architecture share a compilation
_ARCHITECTURES = [
    Architecture(
        num_layers=2, d_model=12, num_heads=2, num_kv_heads=kv_heads, d_ff=10, vocab_size=7, seq_len=6, block=block,
        attention=attention, activation=activation, positions=positions, norm=norm, bias=bias, tied=tied,
        norm_epsilon=1e-5,
    )
    for block, attention, activation, positions, norm, kv_heads, bias, tied in (
        ("pre_ln", "soft_clip", "identity", "alibi", "layer_norm", 2, True, False),
        ("post_ln", "standard", "relu", "rope", "rms_norm", 1, False, True),
        ("parallel", "qk_norm_cap", "swiglu", "rope", "layer_norm", 1, True, False),
        ("sandwich", "soft_cap", "geglu", "learned", "rms_norm", 2, True, True),
        ("output_norm", "qk_norm", "swiglu", "rope", "rms_norm", 2, False, False),
        ("deepnorm", "soft_temp", "geglu", "none", "layer_norm", 1, True, False),
        ("rezero", "standard", "gelu", "rope", "layer_norm", 2, True, True),
        ("layer_scale", "qkv_norm", "silu", "alibi", "layer_norm", 1, True, False),
        ("ln_scaling", "standard", "gelu_tanh", "sinusoidal", "layer_norm", 2, False, False),
        ("deep_scale_lm", "qk_fc_norm", "gelu", "rope", "layer_norm", 2, True, False),
        ("sub_ln", "soft_cap", "gelu", "rope", "layer_norm", 1, True, False),
        ("no_norm", "standard", Activation("quadratic", u + sp.Rational(1, 4) * u**2, "the user's own"), "learned",
         "layer_norm", 1, True, False),
        ("deepnorm_glm", "sigma_reparam", "swiglu", "rope", "layer_norm", 1, True, False),
        ("depth_mup", "standard", "relu", "alibi", "rms_norm", 2, True, False),
    )
]  # fmt: skip
assert {arch.block for arch in _ARCHITECTURES} == set(BLOCKS)


def _weights(arch, seed, scale):
    """Every leaf random, norm scales and biases too, so that no factor is 1 and no term 0."""
    shapes = jax.eval_shape(lambda: models.init(jax.random.key(0), arch))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (scale * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def _assert_certified(arch, params, seed, batch=2):
    tokens = np.random.default_rng(seed).integers(arch.vocab_size, size=(batch, arch.seq_len))
    found = certify((params, arch), tokens)
    assert found.sublayer_bound.shape == found.sublayer_jacobian_norm.shape == (arch.num_sublayers,)
    assert np.all(found.sublayer_jacobian_norm > 0)
    assert np.all(found.sublayer_bound >= found.sublayer_jacobian_norm), found
    assert np.all(found.attention_logit_bound >= found.largest_attention_logit), found
    assert found.output_logit_bound >= found.largest_output_logit > 0, found


@pytest.mark.parametrize("arch", _ARCHITECTURES, ids=lambda arch: arch.block)
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2))
def test_no_weights_violate_the_certificate(arch, seed, magnitude):
    _assert_certified(arch, _weights(arch, seed, 10**magnitude), seed)


@pytest.mark.parametrize("arch", [_ARCHITECTURES[0], _ARCHITECTURES[4]], ids=lambda arch: arch.block)
def test_a_few_trained_steps(arch):
    params = models.init(jax.random.key(1), arch)
    tokens = jnp.asarray(np.random.default_rng(0).integers(7, size=(4, 7)), jnp.int32)
    gradient = jax.jit(jax.grad(lambda params: models.loss(params, tokens, arch)[0]))
    for step in range(4):
        _assert_certified(arch, params, step)
        params = jax.tree.map(lambda leaf, change: leaf - 0.5 * change, params, gradient(params))


def _one_layer(**changes):
    arch = Architecture(
        num_layers=1, d_model=4, num_heads=1, d_ff=4, vocab_size=2, seq_len=2, norm="rms_norm", norm_epsilon=0.0,
        activation="identity", positions="none", embedding="vanilla", **changes,
    )  # fmt: skip
    zero = jax.tree.map(np.zeros_like, _weights(arch, 0, 1.0))
    blocks = zero.blocks
    residual = dataclasses.replace(
        blocks.attention_residual, pre=dataclasses.replace(blocks.attention_residual.pre, scale=np.ones((1, 4), "f4"))
    )
    feed_forward = dataclasses.replace(blocks.feed_forward_residual, pre=residual.pre)
    blocks = dataclasses.replace(blocks, attention_residual=residual, feed_forward_residual=feed_forward)
    return arch, dataclasses.replace(zero, embedding=np.eye(2, 4, dtype="f4"), blocks=blocks)


def _with_attention(params, **weights):
    attention = dataclasses.replace(
        params.blocks.attention,
        **{
            name: dataclasses.replace(getattr(params.blocks.attention, name), weight=np.asarray(weight, "f4")[None])
            for name, weight in weights.items()
        },
    )
    return dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, attention=attention))


def _entry(row, column, value=1.0):
    matrix = np.zeros((4, 4))
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize("path", ["value", "query", "key"])
@pytest.mark.parametrize("attention", ["standard", "soft_cap", "soft_temp"])
def test_each_path_of_attention_is_tight(path, attention):
    """Two tokens 2 e_0 and 2 e_1 after the norm, logits 0; only one path is large, and the bound is near its norm.

    Query: keys are +-2, queries read the third coordinate, 0 here. Key: the second query is 2, keys read the fourth.
    """
    arch, params = _one_layer(attention=attention)
    large = 1e4
    params = _with_attention(
        params,
        value=_entry(0, 0) if path != "value" else large * np.eye(4),
        output=np.eye(4),
        query={"query": _entry(2, 1, large), "key": _entry(1, 1, large), "value": np.zeros((4, 4))}[path],
        key={"query": _entry(0, 1) - _entry(1, 1), "key": _entry(3, 1), "value": np.zeros((4, 4))}[path],
    )
    found = certify((params, arch), np.array([[0, 1]]), iterations=400)
    ratio = found.sublayer_bound[0] / found.sublayer_jacobian_norm[0]
    assert 1 <= ratio < (1.01 if path == "query" else 1.1)
    assert found.sublayer_jacobian_norm[0] > 100


def test_an_addition_that_adds_nothing_has_norm_one():
    arch = Architecture(num_layers=1, d_model=8, num_heads=2, vocab_size=5, seq_len=4, block="rezero")
    found = certify((models.init(jax.random.key(0), arch), arch), np.array([[0, 1, 2, 3]]))
    np.testing.assert_allclose(found.sublayer_bound, 1, rtol=1e-8)
    np.testing.assert_allclose(found.sublayer_jacobian_norm, 1, rtol=1e-12)


def test_linear_feed_forward_by_hand():
    """RMSNorm at 2 e_0 / 2: divisor 1/2; W_1 and W_2 read and write one coordinate, factors 3 and 5."""
    arch, params = _one_layer()
    feed_forward = params.blocks.feed_forward
    feed_forward = dataclasses.replace(
        feed_forward,
        up=dataclasses.replace(feed_forward.up, weight=_entry(2, 0, 3)[None]),
        down=dataclasses.replace(feed_forward.down, weight=_entry(0, 2, 5)[None]),
    )
    params = dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, feed_forward=feed_forward))
    found = certify((params, arch), np.array([[0]]))
    np.testing.assert_allclose(found.sublayer_bound[1], 1 + 2 * 3 * 5, rtol=1e-8)
    np.testing.assert_allclose(found.sublayer_jacobian_norm[1], 1 + 2 * 3 * 5, rtol=1e-8)


def test_who_can_explode():
    """Weights times 1000 move the logits' bound of standard attention, not that of QK norm or of a cap."""

    def limits(attention, scale):
        arch = dataclasses.replace(_ARCHITECTURES[8], attention=attention)
        params = models.init(jax.random.key(0), arch)
        matrices = {
            name: dataclasses.replace(getattr(params.blocks.attention, name), weight=scale * weight)
            for name, weight in (("query", params.blocks.attention.query.weight),
                                 ("key", params.blocks.attention.key.weight))
        }  # fmt: skip
        blocks = dataclasses.replace(params.blocks, attention=dataclasses.replace(params.blocks.attention, **matrices))
        return certify((dataclasses.replace(params, blocks=blocks), arch), np.array([[0, 1, 2]])).attention_logit_bound

    np.testing.assert_allclose(limits("standard", 1000.0), 1e6 * limits("standard", 1.0), rtol=1e-4)
    np.testing.assert_allclose(limits("qk_norm", 1000.0), np.sqrt(6), rtol=1e-6)
    assert np.all(limits("soft_cap", 1000.0) <= 50 * (1 + 1e-8))
    np.testing.assert_allclose(limits("soft_temp", 1.0), limits("standard", 1.0) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(3, int), "tokens: expected whole numbers of shape"),
        (np.zeros((1, 7), int), "tokens: expected whole numbers of shape"),
        (np.zeros((1, 3)), "tokens: expected whole numbers of shape"),
        (np.full((1, 3), 7), r"tokens: expected at least one sequence of whole numbers in 0\.\.6"),
        (np.zeros((0, 3), int), "tokens: expected at least one sequence"),
    ],
)
def test_refusals(tokens, message):
    with pytest.raises(ValueError, match=message):
        certify((_weights(_ARCHITECTURES[0], 0, 1.0), _ARCHITECTURES[0]), tokens)


def test_overflow_is_refused():
    arch = _ARCHITECTURES[11]
    with pytest.raises(ValueError, match="model: float64 overflows at place"):
        certify((_weights(arch, 0, 1e30), arch), np.zeros((1, 3), int))
