"""Prediction against what can be worked out by hand; against autodiff it stands in tests/verify/test_measurement.py."""

import dataclasses

import numpy as np
import pytest
import sympy as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory import Architecture, Initialization, predict, propagation
from theory.activation import ACTIVATIONS
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.embedding import EMBEDDINGS
from theory.gram import Draws
from theory.initialization import INITIALIZATIONS, OUTPUTS
from theory.notation import d as width
from theory.notation import fan_in
from theory.random_attention import uniform_attention
from theory.stream import Stream, embed
from theory.sublayers import forward
from theory.token_batch import TokenBatch, representative_pairs


def test_one_token_identity_stack_by_hand():
    """T = 1: attention is the identity on values, so every sub-layer adds a known variance, forward and backward."""
    d, layers, vocab = 4096, 3, 50000
    arch = Architecture(
        num_layers=layers, d_model=d, num_heads=32, seq_len=1, vocab_size=vocab, activation="identity",
        initialization="small", embedding="unit", positions="none", norm="rms_norm", norm_epsilon=0.0,
    )  # fmt: skip
    predicted = predict(arch, batch_size=1, networks=4000)  # a mean of 2000 lengths, each within 1.1 %
    weight = 2 / (5 * d)
    gain = [(d * weight) ** 2, d * weight * 4 * d * weight] * layers
    variance = 1 + np.concatenate([[0], np.cumsum(gain)])
    np.testing.assert_allclose(predicted.shortcut_std, np.sqrt(variance), rtol=1e-3)
    # backward: each sub-layer multiplies |g|^2 by 1 + gain / variance, which telescopes to the last over the first
    np.testing.assert_allclose(
        predicted.gradient_norm / predicted.gradient_norm[-1], np.sqrt(variance[-1] / variance), rtol=2e-3
    )
    # upstream: the head's rows times (softmax - one-hot), whose square is 1 up to 1/vocab, through the last norm
    np.testing.assert_allclose(predicted.gradient_norm[-1], np.sqrt(d * weight / variance[-1]), rtol=2e-3)
    np.testing.assert_allclose(predicted.parameter_gradient_norm["head"], np.sqrt(d), rtol=2e-3)


def test_gradients_scale_with_the_batch():
    """Gradients are means over tokens: of random, independent ones the norm falls as one over the root of the batch."""
    arch = Architecture(num_layers=2, vocab_size=10**6, seq_len=8)
    small, large = predict(arch, batch_size=1), predict(arch, batch_size=16)
    np.testing.assert_allclose(large.gradient_norm, small.gradient_norm / 4, rtol=5e-3)
    np.testing.assert_allclose(large.shortcut_std, small.shortcut_std, rtol=1e-2)


def test_detach_changes_the_table_only():
    vanilla, detach = (predict(Architecture(num_layers=2, embedding=e)) for e in ("vanilla", "detach"))
    np.testing.assert_array_equal(vanilla.gradient_norm, detach.gradient_norm)
    np.testing.assert_allclose(
        detach.parameter_gradient_norm["embedding"], 0.1 * vanilla.parameter_gradient_norm["embedding"], rtol=1e-12
    )


def test_narrow_stand_in_has_the_wide_models_propagation():
    """THEORY of the proxy: an embedding output times sqrt(narrow / wide) gives a narrow stack the wide one's ratios."""
    wide = predict(Architecture(num_layers=8, d_model=4096, num_heads=64, embedding="vanilla", norm_epsilon=0.0))
    narrow = predict(
        Architecture(num_layers=8, d_model=512, num_heads=8, embedding=(512 / 4096) ** 0.5, norm_epsilon=0.0)
    )
    np.testing.assert_allclose(wide.amplification, narrow.amplification, rtol=0.02)


def test_is_a_pure_function():
    arch = Architecture(num_layers=2, initialization="he")
    first, second = predict(arch), predict(arch)
    np.testing.assert_array_equal(first.gradient_norm, second.gradient_norm)
    for kind, norm in first.parameter_gradient_norm.items():
        np.testing.assert_array_equal(norm, second.parameter_gradient_norm[kind])


@pytest.mark.parametrize("networks", [1, 2, 3, 30])
def test_any_size_of_the_ensemble_tells_the_same(networks):
    """A wide stack's norms hardly vary from network to network; one network is followed as a pair."""
    arch = Architecture(num_layers=2, d_model=2048, num_heads=16, seq_len=8)
    few, many = predict(arch, networks=networks), predict(arch, networks=64)
    np.testing.assert_allclose(few.shortcut_std, many.shortcut_std, rtol=0.01)
    np.testing.assert_allclose(few.gradient_norm, many.gradient_norm, rtol=0.05)


@pytest.mark.parametrize(
    ("fields", "grows"),
    [
        ({"initialization": "megatron", "embedding": "scaled"}, False),
        ({"initialization": "lecun", "block": "output_norm", "attention": "soft_clip"}, True),
    ],
)
def test_more_networks_are_followed_where_they_differ(fields, grows, monkeypatch):
    """Logits that grow with a stream that no norm divides make each network's attention its own."""
    counts, ensemble = [], propagation._ensemble

    def counted(arch, batch_size, tokens, networks, *random):
        counts.append(networks)
        return ensemble(arch, batch_size, tokens, networks, *random)

    monkeypatch.setattr(propagation, "_ensemble", counted)
    arch = Architecture(num_layers=8, d_model=64, num_heads=1, seq_len=32, **fields)
    first = propagation.ensemble_size(arch, None)
    predict(arch)
    assert counts == [first, 3 * first] if grows else counts == [first]
    counts.clear()
    predict(arch, networks=6)
    assert counts == [6]


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_order_of_the_sequences_does_not_matter(batch):
    tokens = np.random.default_rng(0).integers(5, size=(batch, 9)) ** 2
    arch = Architecture(num_layers=2, d_model=64, seq_len=8, vocab_size=20)
    one, other = predict(arch, tokens=tokens), predict(arch, tokens=tokens[::-1])
    np.testing.assert_allclose(one.gradient_norm, other.gradient_norm, rtol=0.03)
    np.testing.assert_allclose(
        one.parameter_gradient_norm["embedding"], other.parameter_gradient_norm["embedding"], rtol=0.03
    )


@pytest.mark.parametrize(("sequences", "count"), [(1, 3), (2, 1), (2, 5), (5, 2), (5, 10), (6, 3), (8, 40)])
def test_pairs_are_of_different_sequences_and_take_all_alike(sequences, count):
    tokens = np.arange(sequences)[:, None].repeat(4, axis=1)
    pairs = representative_pairs(tokens, count, np.random.default_rng(0))[..., 0]
    if sequences == 1:
        np.testing.assert_array_equal(pairs, np.zeros((count, 1)))
        return
    assert (pairs[:, 0] != pairs[:, 1]).all()
    used = np.bincount(pairs.ravel(), minlength=sequences)
    assert used.max() - used.min() <= 1
    each = np.unique(np.sort(pairs, axis=1), axis=0, return_counts=True)[1]
    assert each.max() == each.min()


FLAT = Initialization("flat", default=1 / sp.sqrt(fan_in), std={"attention.query": sp.Float(1e-9)}, source="none")


@pytest.mark.parametrize(("d_model", "kv_heads"), [(64, 4), (64, 1), (2048, 2)])  # of the widest, some heads are drawn
def test_attention_without_logits_averages_values_of_their_own_width(d_model, kv_heads):
    """A C A^T on average; what the first token has is |v|^2 over d_head coordinates of each value head."""
    arch = Architecture(
        num_layers=1, d_model=d_model, num_heads=4, num_kv_heads=kv_heads, seq_len=4, positions="none",
        norm="rms_norm", norm_epsilon=0.0, initialization=FLAT,
    )  # fmt: skip
    draws, networks = Draws.of(np.random.SeedSequence(0)), 2000
    rows = np.random.default_rng(0).standard_normal((1, 8, 64), dtype=np.float32).repeat(networks, axis=0)
    norm = Stream(rows, rows @ rows.mT).norm(arch).tokens
    batch = TokenBatch.of(arch, 2, np.zeros((networks, 2, 5), int), random=False)
    mean = np.kron(np.eye(2), uniform_attention(4))
    made, _ = forward("attention", arch, 0, norm, batch, draws)
    np.testing.assert_allclose(made.mixed.mean(axis=0), mean @ norm.kernel[0] @ mean.T, atol=0.06)
    np.testing.assert_allclose(made.mixed[:, 0, 0].var() * kv_heads * arch.d_head / 2, 1, rtol=0.2)


@pytest.mark.parametrize("d_model", [8, 40])  # 2 x 4 tokens: all axes are followed, or those that they span
def test_rows_of_a_normalised_embedding_have_no_mean_and_unit_length(d_model):
    arch = Architecture(num_layers=1, d_model=d_model, seq_len=4, embedding="layer_norm", norm_epsilon=0.0)
    batch = TokenBatch.of(arch, 2, np.arange(20).reshape(2, 2, 5), random=True)
    stream, _ = embed(arch, batch, Draws.of(np.random.SeedSequence(0)))
    np.testing.assert_array_equal(stream.rows[..., 0], 0)
    np.testing.assert_allclose(np.einsum("nss->ns", stream.kernel), 1, rtol=1e-5)


def test_equal_tokens_stay_equal():
    """One token repeated: all kernels are constant, attention changes nothing, and the batch acts as one token."""
    predicted, alone = (
        predict(
            Architecture(
                num_layers=2,
                d_model=2048,
                num_heads=16,
                vocab_size=4,
                positions="none",
                embedding="unit",
                seq_len=seq_len,
            ),
            tokens=np.zeros((sequences, seq_len + 1), dtype=np.int64),
            networks=256,
        )
        for sequences, seq_len in ((3, 6), (1, 1))
    )
    np.testing.assert_allclose(predicted.shortcut_std, alone.shortcut_std, rtol=5e-3)
    np.testing.assert_allclose(
        predicted.parameter_gradient_norm["head"], alone.parameter_gradient_norm["head"], rtol=5e-3
    )


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
@pytest.mark.parametrize("embedding", [*EMBEDDINGS, 0.01, 1000.0])
def test_every_scheme_gives_finite_positive_numbers(initialization, embedding):
    arch = Architecture(
        num_layers=3, d_model=8, num_heads=2, num_kv_heads=1, seq_len=9, vocab_size=2, positions="learned",
        initialization=initialization, embedding=embedding,
    )  # fmt: skip
    predicted = predict(arch, batch_size=2, networks=128)  # of fewer, what is negative is averaged out less
    values = {"std": predicted.shortcut_std, "gradient": predicted.gradient_norm} | predicted.parameter_gradient_norm
    for name, value in values.items():
        if initialization == "zero_output" and "." in name and name not in OUTPUTS:
            np.testing.assert_array_equal(value, 0)  # nothing comes back through a matrix of zeros
        else:
            assert np.all(np.isfinite(value) & (value > 0)), (arch, name, value)
    assert predicted.shortcut_std.shape == predicted.gradient_norm.shape == (7,)


@st.composite
def tiny(draw):
    """Widths of a few coordinates, vocabularies of a few words, one token: where corrections could outgrow what is."""
    d_model, heads = draw(st.sampled_from([(4, 1), (6, 2), (8, 2), (12, 3), (32, 2)]))
    return Architecture(
        num_layers=draw(st.integers(1, 4)), d_model=d_model, num_heads=heads, seq_len=draw(st.integers(1, 8)),
        vocab_size=draw(st.integers(2, 30)), block=draw(st.sampled_from(sorted(BLOCKS))),
        attention=draw(st.sampled_from([name for name in ATTENTIONS if name != "sigma_reparam"])),
        initialization=draw(st.sampled_from([name for name in INITIALIZATIONS if name != "zero_output"])),
        embedding=draw(st.sampled_from(sorted(EMBEDDINGS))), activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        tied=draw(st.booleans()), norm="layer_norm" if d_model // heads >= 3 and draw(st.booleans()) else "rms_norm",
        positions=draw(st.sampled_from(["none", "learned", "alibi", "sinusoidal"])),
        norm_epsilon=draw(st.sampled_from([0.0, 1e-5, 0.3])),
    )  # fmt: skip


_NARROW = Architecture(
    num_layers=2, d_model=4, num_heads=1, vocab_size=3, seq_len=4, block="deepnorm", norm_epsilon=0.3,
    activation="geglu", positions="none", embedding="detach", tied=True,
)  # fmt: skip


@settings(max_examples=100)
@example(_NARROW)  # a tied table's row fills a token that the norm's epsilon has made short
@example(
    dataclasses.replace(_NARROW, vocab_size=2, seq_len=3, norm_epsilon=0.0, positions="rope", initialization="megatron")
)  # what the gradient lacks along attention's output is a third of it in a width of four
@example(
    dataclasses.replace(
        _NARROW, num_layers=1, vocab_size=2, seq_len=3, block="deepnorm_glm", positions="learned", initialization="he"
    )
)  # a token's mean leaves less than nothing of its square
@example(
    dataclasses.replace(
        _NARROW,
        num_layers=1,
        vocab_size=2,
        seq_len=1,
        block="no_norm",
        norm="rms_norm",
        norm_epsilon=0.0,
        positions="sinusoidal",
        embedding="layer_norm",
        tied=False,
    )
)  # a row and its position cancel, in a width of four
@given(tiny())
def test_tiny_models_have_finite_positive_norms(arch):
    try:
        predicted = predict(arch, batch_size=2, networks=4)
    except ValueError as error:
        assert "explode beyond float32" in str(error)
        assert arch.block == "no_norm" and arch.num_layers > 2  # a gated layer squares the one below
        return
    for values in (predicted.shortcut_std, predicted.gradient_norm):
        assert np.all(np.isfinite(values) & (values > 0))
    assert all(np.all(np.isfinite(norm)) for norm in predicted.parameter_gradient_norm.values())


def test_a_norm_of_nothing_is_refused():
    arch = Architecture(num_layers=1, block="output_norm", initialization="zero_output", norm_epsilon=0.0)
    with pytest.raises(ValueError, match=r"norm_epsilon: at 0\.0 a norm of this architecture divides zeros by zero"):
        predict(arch)


def test_a_stack_without_norms_may_explode_beyond_float32_squared():
    """Each ReLU block under He multiplies the squares of stream and gradient by at least 1 + 2; no warning either."""
    arch = Architecture(
        num_layers=24, d_model=64, num_heads=2, seq_len=4, block="no_norm", attention="qk_norm", activation="relu",
        initialization="he", norm="rms_norm",
    )  # fmt: skip
    predicted = predict(arch, batch_size=2, networks=8)
    assert np.all(np.isfinite(predicted.gradient_norm)) and predicted.shortcut_std[-1] > 3 ** (24 / 2)
    assert predicted.gradient_norm[0] > 3 ** (24 / 2) * predicted.gradient_norm[-1]
    assert all(np.all(np.isfinite(norm)) for norm in predicted.parameter_gradient_norm.values())
    with pytest.raises(ValueError, match="num_layers: 60 blocks 'no_norm' under 'he' explode beyond float32"):
        predict(dataclasses.replace(arch, num_layers=60), batch_size=2, networks=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"networks": 0}, "networks"),
        ({"tokens": np.zeros((2, 5), dtype=int)}, "tokens: expected shape"),
        ({"tokens": np.full((2, 65), 300)}, "tokens: expected whole numbers"),
        ({"tokens": np.zeros((2, 65))}, "tokens: expected whole numbers"),
        ({"tokens": np.zeros((0, 65), dtype=int)}, "tokens: expected shape"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        predict(Architecture(), **arguments)


def test_behind_a_norm_inside_attention_the_size_of_its_values_is_nothing():
    """Only the values' own gradient is less by as much as they are larger."""
    arch = Architecture(num_layers=2, d_model=64, num_heads=2, seq_len=8, vocab_size=32, block="sub_ln", tied=True)
    rules = [
        Initialization(
            str(size), default=1 / sp.sqrt(fan_in), std={"attention.value": size / sp.sqrt(width)}, source=""
        )
        for size in (1, 8)
    ]
    small, large = (predict(dataclasses.replace(arch, initialization=rule), networks=8) for rule in rules)
    np.testing.assert_allclose(large.gradient_norm, small.gradient_norm, rtol=1e-3)
    for kind, norms in small.parameter_gradient_norm.items():
        factor = 8 if kind == "attention.value" else 1
        np.testing.assert_allclose(large.parameter_gradient_norm[kind], norms / factor, rtol=2e-3, err_msg=kind)


def test_a_reparametrised_matrix_is_as_large_as_its_gain_whatever_it_was_drawn_from():
    """sigma-reparametrisation: W / ‖W‖, so that the gradient of W is less by as much as W is larger."""
    arch = Architecture(num_layers=2, d_model=64, num_heads=2, seq_len=8, vocab_size=32, attention="sigma_reparam")
    tables = {"embedding": 1, "head": 1 / sp.sqrt(width)}
    he, lecun = (
        predict(dataclasses.replace(arch, initialization=Initialization(str(gain), default=sp.sqrt(gain / fan_in),
                                                                        std=tables, source="a test")), networks=8)
        for gain in (2, 1)
    )  # fmt: skip
    np.testing.assert_allclose(he.gradient_norm, lecun.gradient_norm, rtol=1e-5)
    for kind in arch.matrices:
        norms = lecun.parameter_gradient_norm[kind] / 2**0.5
        np.testing.assert_allclose(he.parameter_gradient_norm[kind], norms, rtol=1e-4, err_msg=kind)
