"""Training: what is recorded is what happened, lanes are alone with themselves, divergence is an outcome."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from theory import Architecture
from verify.measurement.measure import _draw, matrix_norms
from verify.training.corpus import load_corpus
from verify.training.loop import Run, _chunks, _start, _tokens, advance, outcome_of, train, train_lanes
from verify.training.optimizer import Optimizer

ARCH = Architecture(num_layers=2, d_model=16, num_heads=2, vocab_size=32, seq_len=8)
OPTIMIZER = Optimizer(learning_rate=1e-2, warmup_steps=5, beta2=0.99, weight_decay=0.1, clip=0.5)
RUN = Run(ARCH, OPTIMIZER, corpus="zipf", batch_size=4, steps=30)


@pytest.fixture(scope="module")
def trained():
    """Three lanes: two rates and one that explodes."""
    rates = (1e-2, 3e-2, 1e12)
    runs = [dataclasses.replace(RUN, optimizer=dataclasses.replace(OPTIMIZER, learning_rate=rate)) for rate in rates]
    return train_lanes(runs)


def test_learns_the_unigrams(trained):
    """Zipf's entropy over 32 words is 2.98 nats; a model that learns nothing stays at log 32 = 3.47 or above."""
    assert trained[0]["loss"][:3].mean() > 3.4
    assert trained[0]["loss"][-5:].mean() < 3.25
    assert trained[0].attrs["held_out_loss"] < 3.25


def test_a_lane_alone_gives_the_same_numbers(trained):
    """Also beside a lane of NaN. Sums may run in another order: float32 over 30 steps."""
    alone = train(RUN)
    for name in ("loss", "gradient_norm", "update_rms", "place_gradient_norm"):
        np.testing.assert_allclose(trained[0][name], alone[name], rtol=2e-3, atol=1e-6, err_msg=name)


def test_divergence_is_an_outcome(trained):
    run = trained[2]
    assert run.attrs["outcome"] == "non_finite_loss"
    step = run.attrs["outcome_step"]
    assert 0 < step < 30
    assert np.all(np.isfinite(run["loss"][:step])) and np.all(np.isnan(run["loss"][step:]))
    assert np.all(np.isnan(run["update_rms"][step + 1 :]))
    assert trained[0].attrs["outcome"] == "finished" and trained[0].attrs["outcome_step"] == 30


def test_first_step_by_hand(trained):
    """AdamW's first step: m / (sqrt(v) + eps) is the clipped gradient's sign, plus decay, times a fifth of the rate."""
    params = models.init(jax.random.key(0), ARCH)
    batch = jnp.asarray(load_corpus("zipf", 32).batch(8, 4, seed=0, step=0))
    (loss, seen), gradient = jax.value_and_grad(lambda p: models.loss(p, batch, ARCH), has_aux=True)(params)
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


def test_every_place_and_layer_is_what_autodiff_and_the_forward_pass_say(trained):
    """The first step's telemetry against `measure`'s own program on the same weights and tokens."""
    batch = jnp.asarray(load_corpus("zipf", 32).batch(8, 4, seed=0, step=0))
    measured = _draw(jax.random.key(0), batch, ARCH)
    _, seen = models.loss(models.init(jax.random.key(0), ARCH), batch, ARCH)
    run = trained[0].isel(step=0)
    np.testing.assert_allclose(run["place_gradient_norm"], measured["gradient_norm"], rtol=1e-4)
    np.testing.assert_allclose(run["largest_attention_logit"], seen.largest_attention_logit, rtol=1e-4)
    np.testing.assert_allclose(run["logit_rms"], seen.output_norm["head"][0], rtol=1e-5)
    for kind in ARCH.matrices:
        np.testing.assert_allclose(run["output_norm"].sel(matrix=kind), seen.output_norm[kind], rtol=1e-4)
        np.testing.assert_allclose(
            run["matrix_gradient_norm"].sel(matrix=kind), measured["parameter_gradient_norm"][kind], rtol=1e-4
        )


def test_a_chunk_that_reaches_beyond_the_last_step_changes_nothing():
    """A program of 3 steps, given tokens for 5: whatever the last two are, the weights are those after the third."""
    program = dataclasses.replace(RUN, steps=3).program()
    corpus = load_corpus("zipf", 32)
    first = np.stack([_tokens(corpus, RUN, range(5))])
    other = first.copy()
    other[:, 3:] = 0
    rates, keys = jnp.asarray([1e-2], jnp.float32), jnp.stack([jax.random.key(0)])
    ends = [advance(_start(keys, program), rates, tokens, program, observed=False)[0] for tokens in (first, other)]
    jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)
    other[:, 2] = 0
    changed = advance(_start(keys, program), rates, other, program, observed=False)[0]
    assert np.any(changed.params.embedding != ends[0].params.embedding)


@pytest.mark.parametrize("steps", [1, 4, 25, 26, 30, 51, 200, 251, 997])
def test_chunks_are_of_one_length_and_cover_the_steps(steps):
    chunks = list(_chunks(steps))
    assert len({len(chunk) for chunk in chunks}) == 1 and len(chunks[0]) <= 25
    covered = [step for chunk in chunks for step in chunk]
    assert covered[:steps] == list(range(steps)) and len(covered) - steps < len(chunks)


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


def test_norms_and_biases_do_not_decay():
    arch = dataclasses.replace(ARCH, bias=True)
    params = models.init(jax.random.key(0), arch)
    transformation = Optimizer(weight_decay=0.5).transformation()
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = transformation.update(zero, transformation.init(params), params)
    np.testing.assert_allclose(updates.blocks.feed_forward.up.weight, 0.5 * params.blocks.feed_forward.up.weight)
    np.testing.assert_allclose(updates.embedding, 0.5 * params.embedding)
    assert not np.any(updates.final_norm.scale) and not np.any(updates.blocks.attention.query.bias)


def test_schedule_warms_up_and_ends_at_its_share():
    optimizer = Optimizer(warmup_steps=4, final_share=0.25)
    shape = np.array([optimizer.shape(104, jnp.asarray(step)) for step in range(105)])
    np.testing.assert_allclose(shape[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(shape[[4, 54, 104]], [1.0, 0.625, 0.25], rtol=1e-6)
    assert np.all(np.diff(shape[4:]) <= 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Optimizer(learning_rate=-1.0), "learning_rate: must be a positive number, got -1.0"),
        (lambda: Optimizer(learning_rate=float("nan")), "learning_rate: must be a positive number, got nan"),
        (lambda: Optimizer(beta2=1.0), r"beta2: must be in \[0, 1\), got 1.0"),
        (lambda: Optimizer(clip=-0.1), "clip: must be 0 or more, got -0.1"),
        (lambda: Run(ARCH, steps=0), "steps: must be a whole number of at least 1, got 0"),
        (lambda: train_lanes([RUN, dataclasses.replace(RUN, steps=31)]), "runs: lanes must agree"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
