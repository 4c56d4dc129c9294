"""Sampled weights against the symbolic rules they come from, with a stated rate of false alarms."""

import jax
import numpy as np
import pytest
from scipy import stats

import models
from theory import Architecture, Initialization
from theory.initialization import INITIALIZATIONS
from theory.notation import N, d, fan_in, layer

_EXPECTED = {  # worked out by hand for d 32, d_ff 128, N 3, V 50, a key-value width of 16
    ("megatron", "attention.query"): (2 / 160) ** 0.5,
    ("megatron", "attention.output"): (2 / 160 / 6) ** 0.5,
    ("gpt2", "feed_forward.down"): 0.02 / 6**0.5,
    ("gpt2", "position"): 0.01,
    ("xavier", "attention.key"): (2 / 48) ** 0.5,
    ("xavier", "embedding"): (2 / 82) ** 0.5,
    ("he", "feed_forward.down"): (2 / 128) ** 0.5,
    ("he", "embedding"): (2 / 32) ** 0.5,
    ("lecun", "feed_forward.up"): (1 / 32) ** 0.5,
    ("palm", "embedding"): 1.0,
    ("palm", "head"): (1 / 32) ** 0.5,
    ("small", "attention.output"): (2 / 160) ** 0.5,
    ("wang", "feed_forward.down"): 2 / (3 * 32**0.5),
}


def architecture(initialization):
    return Architecture(
        num_layers=3, d_model=32, num_heads=4, num_kv_heads=2, vocab_size=50, seq_len=40, positions="learned",
        initialization=initialization, embedding="vanilla", activation="swiglu",
    )  # fmt: skip


def matrices(params):
    """Every weight matrix by kind, layer by layer."""
    found = {"embedding": [params.embedding], "position": [params.position], "head": [params.head.weight]}
    for kind in ("query", "key", "value", "output"):
        found[f"attention.{kind}"] = list(getattr(params.blocks.attention, kind).weight)
    for kind in ("up", "gate", "down"):
        found[f"feed_forward.{kind}"] = list(getattr(params.blocks.feed_forward, kind).weight)
    return found


@pytest.mark.parametrize(("scheme", "kind"), _EXPECTED)
def test_rules_have_the_published_values(scheme, kind):
    np.testing.assert_allclose(architecture(scheme).std(kind), _EXPECTED[scheme, kind], rtol=1e-12)


@pytest.mark.parametrize("scheme", INITIALIZATIONS)
def test_samples_have_the_rules_std_and_distribution(scheme):
    arch = architecture(scheme)
    for kind, layers in matrices(models.init(jax.random.key(0), arch)).items():
        std = np.broadcast_to(arch.std(kind), len(layers))
        for weight, expected in zip(layers, std, strict=True):
            values = np.asarray(weight, np.float64).ravel()
            if expected == 0:
                assert not values.any(), (scheme, kind)
                continue
            values /= expected
            cutoff = arch.truncation(kind)
            scale = 1 if cutoff is None else stats.truncnorm(-cutoff, cutoff).std()
            law = stats.norm() if cutoff is None else stats.truncnorm(-cutoff, cutoff, scale=1 / scale)
            # the variance's own standard error: (kurtosis + 2) / n; the widest of some 700 Gaussian ones is near 4
            reach = 5.7 * np.sqrt((law.stats("k") + 2) / values.size)
            assert abs(np.mean(values**2) - 1) < reach, (scheme, kind)
            assert abs(values.mean()) * values.size**0.5 < 6, (scheme, kind)
            assert cutoff is None or np.abs(values).max() <= cutoff / scale * (1 + 1e-6), (scheme, kind)
            assert stats.kstest(values, law.cdf).pvalue > 1e-7, (scheme, kind)
        assert layers[0].shape == arch.shape(kind)


def test_a_truncated_matrix_has_the_rules_std_and_not_the_nominal_one():
    """3 million entries of OLMo 2's: four standard errors are 0.15 %, the two differ by 1.3 %."""
    arch = Architecture(num_layers=3, d_model=512, initialization="olmo2")
    values = np.asarray(models.init(jax.random.key(1), arch).blocks.feed_forward.up.weight, np.float64)
    kurtosis = stats.truncnorm(-3, 3).stats("k")
    error = np.sqrt((kurtosis + 2) / values.size) / 2
    assert abs(values.std() / (0.02 * 0.98657839) - 1) < 4 * error < 0.002
    assert np.abs(values).max() <= 0.06 * (1 + 1e-6)


def test_a_rule_of_ones_own_may_depend_on_the_layer():
    mine = Initialization("mine", 1 / d, {"attention.value": layer / (N * fan_in)}, "a test")
    arch = architecture(mine)
    np.testing.assert_allclose(arch.std("attention.value"), np.array([1, 2, 3]) / 96)
    values = models.init(jax.random.key(0), arch).blocks.attention.value.weight
    np.testing.assert_allclose(np.std(values, axis=(1, 2)), np.array([1, 2, 3]) / 96, rtol=0.2)


def test_matrices_and_layers_are_independent():
    """Of every kind and layer the first 512 draws; their correlations have a standard deviation of 512^-1/2.

    The first, because counter-based generators give two shapes with the same key the same first numbers.
    """
    params = models.init(jax.random.key(0), architecture("megatron"))
    drawn = [np.asarray(weight, np.float64).ravel()[:512] for layers in matrices(params).values() for weight in layers]
    correlations = np.corrcoef(np.stack(drawn))[~np.eye(len(drawn), dtype=bool)]
    assert len(drawn) == 3 + 7 * 3
    assert np.abs(correlations).max() < 6 / 512**0.5


def test_entries_of_one_matrix_are_independent():
    """Neighbouring rows and columns of W_1: 12,000 products, six standard errors."""
    weight = np.asarray(models.init(jax.random.key(0), architecture("small")).blocks.feed_forward.up.weight, np.float64)
    unit = weight / weight.std()
    for one, other in ((unit[:, 1:], unit[:, :-1]), (unit[:, :, 1:], unit[:, :, :-1]), (unit[1:], unit[:-1])):
        assert abs(np.mean(one * other)) < 6 / one.size**0.5


def test_same_key_same_weights_and_switches_leave_other_draws_alone():
    arch = architecture("megatron")
    first, second = models.init(jax.random.key(7), arch), models.init(jax.random.key(7), arch)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
    other = Architecture(**{**arch.__dict__, "positions": "none", "bias": True})
    np.testing.assert_array_equal(
        models.init(jax.random.key(7), other).blocks.feed_forward.up.weight, first.blocks.feed_forward.up.weight
    )
