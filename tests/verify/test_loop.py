"""Training: what is recorded is what happened, lanes are alone with themselves, divergence is an outcome."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from theory import Architecture
from verify.measurement.measure import matrix_norms
from verify.training.corpus import load_corpus
from verify.training.loop import Run, train, train_lanes
from verify.training.optimizer import Optimizer

ARCH = Architecture(num_layers=2, d_model=16, num_heads=2, vocab_size=32, seq_len=8)
OPTIMIZER = Optimizer(learning_rate=1e-2, warmup_steps=5, beta2=0.99, weight_decay=0.1, clip=0.5)
RUN = Run(ARCH, OPTIMIZER, corpus="zipf", batch_size=4, steps=30)


@pytest.fixture(scope="module")
def trained():
    """Three lanes: two rates and one that explodes."""
    rates = (1e-2, 3e-2, 1e30)
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
