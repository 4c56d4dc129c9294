"""Training: what is recorded is what happened, lanes are alone with themselves, divergence is an outcome."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from theory import Architecture
from verify.measurement.measure import matrix_norms, measure
from verify.training.compiled import programs
from verify.training.corpus import load_corpus
from verify.training.loop import _tokens, begin, outcome_of, train, train_lanes
from verify.training.optimizer import Optimizer
from verify.training.run import Chunk, Run, lanes_of

ARCH = Architecture(num_layers=2, d_model=16, num_heads=2, vocab_size=32, seq_len=8)
OPTIMIZER = Optimizer(learning_rate=1e-2, warmup_steps=5, beta2=0.99, weight_decay=0.1, clip=0.5)
RUN = Run(ARCH, OPTIMIZER, corpus="zipf", batch_size=4, steps=30)


@pytest.fixture(scope="module")
def trained():
    """Three lanes: two rates and one that explodes."""
    rates = (1e-2, 3e-2, 1e12)
    runs = [dataclasses.replace(RUN, optimizer=dataclasses.replace(OPTIMIZER, learning_rate=rate)) for rate in rates]
    return train_lanes(runs)


@pytest.fixture(scope="module")
def plain():
    return train(RUN)


@pytest.fixture(scope="module")
def params():
    return jax.jit(models.init, static_argnames="arch")(jax.random.key(0), arch=ARCH)


def test_learns_the_unigrams(trained):
    """Zipf's entropy over 32 words is 2.98 nats; a model that learns nothing stays at log 32 = 3.47 or above."""
    assert trained[0]["loss"][:3].mean() > 3.4
    assert trained[0]["loss"][-5:].mean() < 3.25
    assert trained[0].attrs["held_out_loss"] < 3.25


def test_a_lane_alone_gives_the_same_numbers(trained, plain):
    """Also beside a lane of NaN. Sums may run in another order: float32 over 30 steps."""
    for name in ("loss", "gradient_norm", "update_rms", "place_gradient_norm"):
        np.testing.assert_allclose(trained[0][name], plain[name], rtol=2e-3, atol=1e-6, err_msg=name)


def test_divergence_is_an_outcome(trained):
    run = trained[2]
    assert run.attrs["outcome"] == "non_finite_loss"
    step = run.attrs["outcome_step"]
    assert 0 < step < 30
    assert np.all(np.isfinite(run["loss"][:step])) and np.all(np.isnan(run["loss"][step:]))
    assert np.all(np.isnan(run["update_rms"][step + 1 :]))
    assert trained[0].attrs["outcome"] == "finished" and trained[0].attrs["outcome_step"] == 30


def test_first_step_by_hand(trained, params):
    """AdamW's first step: m / (sqrt(v) + eps) is the clipped gradient's sign, plus decay, times a fifth of the rate."""
    batch = jnp.asarray(load_corpus("zipf", 32).batch(8, 4, seed=0, step=0))
    value_and_gradient = jax.jit(jax.value_and_grad(lambda p: models.loss(p, batch, ARCH), has_aux=True))
    (loss, seen), gradient = value_and_gradient(params)
    run = trained[0].isel(step=0)
    np.testing.assert_allclose(run["loss"], loss, rtol=1e-5)
    norms = [float(jnp.linalg.norm(leaf.ravel())) for leaf in jax.tree.leaves(gradient)]
    norm = np.sqrt(np.sum(np.square(norms)))
    np.testing.assert_allclose(run["gradient_norm"], norm, rtol=1e-4)
    np.testing.assert_allclose(run["learning_rate"], 1e-2 / 5, rtol=1e-6)
    np.testing.assert_allclose(run["shortcut_std"], seen.shortcut_std, rtol=1e-5)
    np.testing.assert_allclose(run["log_z"], seen.log_z, rtol=1e-5)
    up, weight = gradient.blocks.feed_forward.up.weight[1], params.blocks.feed_forward.up.weight[1]
    clipped = up * min(1, 0.5 / norm)
    step = 1e-2 / 5 * (clipped / (jnp.abs(clipped) + 1e-8) + 0.1 * weight)
    selected = run.sel(matrix="feed_forward.up").isel(layer=1)
    np.testing.assert_allclose(selected["update_rms"], np.sqrt(np.mean(step**2)), rtol=1e-4)
    np.testing.assert_allclose(selected["parameter_rms"], np.sqrt(np.mean(weight**2)), rtol=1e-5)
    np.testing.assert_allclose(selected["matrix_gradient_norm"], np.linalg.norm(up), rtol=1e-4)
    np.testing.assert_allclose(
        run["table_gradient_norm"].sel(table="head"), matrix_norms(gradient)["head"][0], rtol=1e-4
    )


def test_every_place_and_layer_is_what_autodiff_and_the_forward_pass_say(trained, params):
    """The first step's telemetry against `measure`'s own program on the same weights and tokens."""
    batch = jnp.asarray(load_corpus("zipf", 32).batch(8, 4, seed=0, step=0))
    measured = measure(ARCH, seeds=1, tokens=np.asarray(batch), init=lambda key, arch: params)
    _, seen = jax.jit(lambda params: models.loss(params, batch, ARCH))(params)
    run = trained[0].isel(step=0)
    np.testing.assert_allclose(run["place_gradient_norm"], measured.gradient_norm[0], rtol=1e-4)
    np.testing.assert_allclose(run["largest_attention_logit"], seen.attention.largest_logit, rtol=1e-4)
    np.testing.assert_allclose(run["logit_rms"], seen.output_norm["head"][0], rtol=1e-5)
    for kind in ARCH.matrices:
        np.testing.assert_allclose(run["output_norm"].sel(matrix=kind), seen.output_norm[kind], rtol=1e-4)
        np.testing.assert_allclose(
            run["matrix_gradient_norm"].sel(matrix=kind), measured.parameter_gradient_norm[kind][0], rtol=1e-4
        )


def test_a_chunk_that_reaches_beyond_the_last_step_changes_nothing():
    """Stopped after 3 steps, given tokens for 5: whatever the last two are, the state is that after the third."""
    program, of = RUN.program(), programs(RUN)
    corpus = load_corpus("zipf", 32)
    first = np.stack([_tokens(corpus, RUN, Chunk(0, 3, 5, 4, 8))])
    other = first.copy()
    other[:, 3:] = 0
    lanes = lanes_of([RUN])

    def end(tokens):
        return of.advance(of.begin(lanes, program.untrained()), lanes, tokens, np.int32(3), program, observed=False)[0]

    ends = [end(tokens) for tokens in (first, other)]
    jax.tree.map(np.testing.assert_array_equal, ends[0], ends[1])
    assert ends[0].step == 3
    other[:, 2] = 0
    assert np.any(end(other).params.embedding != ends[0].params.embedding)


@pytest.mark.parametrize(
    ("loss", "gradient", "expected"),
    [
        ([5, 4, 3], [1, 1, 1], ("finished", 3)),
        ([5, np.nan, np.nan], [1, np.nan, np.nan], ("non_finite_loss", 1)),
        ([5, np.inf, np.nan], [1, 1, np.nan], ("non_finite_loss", 1)),
        ([5, 4, np.nan], [1, np.inf, np.nan], ("non_finite_gradient", 1)),
        ([5, 4, *[6] * 10], np.ones(12), ("loss_above_initial", 2)),
        ([5, 4, *[6] * 9], np.ones(11), ("finished", 11)),  # nine steps may be noise
        ([5, 4, *[6] * 150, 5], np.ones(153), ("finished", 153)),  # it came back
        ([5, *[6] * 10, *[4] * 89, *[6] * 20], np.ones(120), ("loss_above_initial", 100)),
        ([5], [1], ("finished", 1)),
    ],
)
def test_outcomes(loss, gradient, expected):
    assert outcome_of(np.array(loss, float), np.array(gradient, float)) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Run(ARCH, steps=0), "steps: must be a whole number of at least 1, got 0"),
        (lambda: train_lanes([RUN, dataclasses.replace(RUN, steps=31)]), "runs: must share one program"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_gradient_in_parts_is_the_gradient(plain):
    """Accumulated over 4 parts: the same losses, gradients, places and sizes. Only the stds are pooled otherwise."""
    parts = train(dataclasses.replace(RUN, accumulate=4))
    names = ("loss", "gradient_norm", "place_gradient_norm", "output_norm", "update_rms", "largest_attention_logit",
             "attention_entropy", "query_norm", "log_z")  # fmt: skip
    for name in names:
        np.testing.assert_allclose(parts[name][:5], plain[name][:5], rtol=2e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(parts["shortcut_std"][0], plain["shortcut_std"][0], rtol=0.02)
    np.testing.assert_allclose(parts.attrs["held_out_loss"], plain.attrs["held_out_loss"], rtol=1e-3)


def test_ramps_change_what_a_step_sees(plain):
    """From step 10 on 8 sequences of 4: up to there as without ramps, then other losses, and the series go on."""
    ramped = train(dataclasses.replace(RUN, batch_ramp=((10, 8),), sequence_ramp=((10, 4),)))
    np.testing.assert_allclose(ramped["loss"][:10], plain["loss"][:10], rtol=1e-3)
    assert len(ramped["loss"]) == 30 and np.all(np.isfinite(ramped["loss"]))
    assert abs(float(ramped["loss"][10] - plain["loss"][10])) > 1e-3
    assert len(set(np.asarray(ramped["loss"]).tolist())) == 30


def test_dropout_is_a_pure_function_of_seed_and_step(plain):
    run = dataclasses.replace(RUN, dropout=0.5)
    first, again = train(run), train(run)
    np.testing.assert_array_equal(first["loss"], again["loss"])
    assert abs(float(first["loss"][0] - plain["loss"][0])) > 1e-3
    still = train(dataclasses.replace(run, optimizer=dataclasses.replace(OPTIMIZER, learning_rate=1e-30), windows=4))
    assert len(set(np.asarray(still["loss"]).tolist())) == 30  # the same four sequences, another mask every time


def test_bfloat16_is_near_and_keeps_weights_in_float32(plain):
    run = dataclasses.replace(RUN, precision="bfloat16")
    rough = train(run)
    np.testing.assert_allclose(rough["loss"], plain["loss"], rtol=0.02)
    assert np.any(np.asarray(rough["loss"]) != np.asarray(plain["loss"]))
    small = dataclasses.replace(run, optimizer=dataclasses.replace(OPTIMIZER, learning_rate=1e-5, clip=0.0))
    moved = train(small)["update_rms"]
    state = begin(run)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params)) and np.all(moved > 0)


def test_z_loss_is_trained_on_but_not_in_the_loss(plain):
    run = dataclasses.replace(RUN, z_loss=1.0)
    pulled = train(run)
    np.testing.assert_allclose(pulled["loss"][0], plain["loss"][0], rtol=1e-5)
    assert abs(pulled["log_z"][-1]) < 0.5 * abs(plain["log_z"][-1])


def test_forced_logits_have_their_size_at_every_step():
    forced = train(dataclasses.replace(RUN, forced_logit=7.0))
    largest = np.asarray(forced["largest_attention_logit"])
    assert largest.max() <= 7.0 * (1 + 1e-5) and np.median(largest) > 3
    assert np.any(np.isclose(largest, 7.0, rtol=1e-4))


def test_spectral_norms_and_certificates_follow_the_weights(params):
    """By power iteration from step to step against the SVD, and never above it; bounds above the norms they bound."""
    run = dataclasses.replace(RUN, steps=6, spectral_norms=True, certify_every=3)
    seen = train(run)
    for kind in ARCH.matrices:
        exact = np.linalg.norm(params.blocks.matrices[kind], 2, axis=(1, 2))
        first = np.asarray(seen["spectral_norm"].sel(matrix=kind, step=0))
        assert np.all(first <= exact * (1 + 1e-5)) and np.all(first > 0.9 * exact)
    exact = [np.linalg.norm(params.embedding, 2), np.linalg.norm(params.head.weight, 2)]
    assert np.all(np.asarray(seen["table_spectral_norm"][0]) > 0.9 * np.array(exact))
    assert seen["certified_step"].values.tolist() == [3, 6]
    assert np.all(seen["certified_bound"] >= seen["certified_jacobian_norm"]) and np.all(seen["certified_bound"] > 1)
    np.testing.assert_allclose(seen["loss"], train(dataclasses.replace(RUN, steps=6))["loss"], rtol=1e-4)
    rms = seen["matrix_gradient_norm"] / np.sqrt(seen["matrix_entries"])
    assert (
        rms.sel(matrix="feed_forward.up").shape == (6, 2)
        and seen["matrix_entries"].sel(matrix="feed_forward.up") == 16 * 64
    )
