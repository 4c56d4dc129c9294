"""Optimizers, schedules, decay and rates by kind of matrix, against the published formulas in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from theory import Architecture
from verify.training.optimizer import Optimizer

ARCH = Architecture(num_layers=3, d_model=16, num_heads=2, vocab_size=32, seq_len=8, bias=True, positions="learned")


@pytest.fixture(scope="module")
def params():
    return models.init(jax.random.key(0), ARCH)


def gradients_like(params, seed):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


def steps(optimizer, params, gradients):
    """The updates of successive steps at the peak rate, the weights staying as they are."""
    numbers = optimizer.numbers(100)
    transformation = optimizer.transformation(numbers)
    state, taken = transformation.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for gradient in gradients:
            directions, state = transformation.update(gradient, state, params)
            taken.append(optimizer.updates(directions, params, numbers.learning_rate, numbers))
    return taken


def shares(optimizer, length, at):
    numbers = dataclasses.replace(optimizer, learning_rate=1.0).numbers(length)
    return np.array([optimizer.rate(numbers, jnp.asarray(step)) for step in at])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse_sqrt", "constant"])
def test_every_schedule_warms_up_and_holds(schedule):
    optimizer = Optimizer(schedule=schedule, warmup_steps=4, hold_steps=3)
    np.testing.assert_allclose(shares(optimizer, 100, range(7)), [0.25, 0.5, 0.75, 1, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "at", "expected"),
    [
        ("cosine", [54, 79, 104, 300], [0.625, 0.25 + 0.75 * (1 - 2**-0.5) / 2, 0.25, 0.25]),
        ("linear", [54, 79, 104, 300], [0.625, 0.4375, 0.25, 0.25]),
        ("inverse_sqrt", [15, 63, 255], [0.5, 0.25, 0.125]),
        ("constant", [54, 104, 300], [1, 1, 1]),
    ],
)
def test_schedules_fall_as_they_say(schedule, at, expected):
    optimizer = Optimizer(schedule=schedule, warmup_steps=4, final_share=0.25)
    np.testing.assert_allclose(shares(optimizer, 104, at), expected, rtol=1e-5)


def test_palm_schedule():
    """1e-2 for 10,000 steps, then 1 / sqrt k, at every k."""
    optimizer = Optimizer(schedule="inverse_sqrt", warmup_steps=0, hold_steps=10_000)
    k = np.array([1, 5_000, 10_000, 40_000, 250_000])
    np.testing.assert_allclose(1e-2 * shares(optimizer, 255_000, k - 1), np.minimum(1e-2, k**-0.5), rtol=1e-5)


def test_a_fixed_final_rate_is_the_same_whatever_the_peak():
    optimizer = Optimizer(warmup_steps=2, final_rate=1e-5)
    for peak in (1e-4, 1e-2):
        numbers = dataclasses.replace(optimizer, learning_rate=peak).numbers(50)
        np.testing.assert_allclose(optimizer.rate(numbers, jnp.asarray(50)), 1e-5, rtol=1e-3)


def test_a_longer_schedule_is_cut_off():
    whole, part = Optimizer(warmup_steps=2), Optimizer(warmup_steps=2, schedule_steps=100)
    np.testing.assert_array_equal(shares(whole, 100, range(0, 40, 7)), shares(part, 40, range(0, 40, 7)))


@pytest.mark.parametrize(("decay", "share"), [("coupled", 0.02), ("independent", 1.0), ("rate_squared", 0.02**2)])
def test_decay_of_matrices_and_tables_alone(params, decay, share):
    """Gradients of 0 leave the decay."""
    optimizer = Optimizer(learning_rate=0.02, weight_decay=0.5, decay=decay)
    (update,) = steps(optimizer, params, [jax.tree.map(jnp.zeros_like, params)])
    for changed, weight in (
        (update.blocks.feed_forward.up.weight, params.blocks.feed_forward.up.weight),
        (update.embedding, params.embedding),
        (update.position, params.position),
        (update.head.weight, params.head.weight),
    ):  # fmt: skip
        np.testing.assert_allclose(changed, -0.5 * share * weight, rtol=1e-5)
    assert not np.any(update.final_norm.scale) and not np.any(update.blocks.attention.query.bias)
    exempt = dataclasses.replace(optimizer, decay_embeddings=False)
    (update,) = steps(exempt, params, [jax.tree.map(jnp.zeros_like, params)])
    assert not np.any(update.embedding) and not np.any(update.position) and np.any(update.head.weight)


def test_independent_decay_follows_the_schedule_and_not_the_rate(params):
    optimizer = Optimizer(weight_decay=0.5, decay="independent")
    zero = jax.tree.map(jnp.zeros_like, params)
    halfway = [
        optimizer.updates(
            zero, params, jnp.float32(peak / 2), dataclasses.replace(optimizer, learning_rate=peak).numbers(9)
        )
        for peak in (1e-4, 1e-1)
    ]
    np.testing.assert_allclose(halfway[0].embedding, -0.25 * params.embedding, rtol=1e-5)
    np.testing.assert_allclose(halfway[1].embedding, halfway[0].embedding, rtol=1e-5)


def test_embedding_rate(params):
    gradient = gradients_like(params, 1)
    (plain,), (scaled,), (frozen,) = (
        steps(Optimizer(embedding_rate=rate), params, [gradient]) for rate in (1.0, 3.0, 0.0)
    )
    np.testing.assert_allclose(scaled.embedding, 3 * plain.embedding, rtol=1e-5)
    assert not np.any(frozen.embedding) and not np.any(frozen.position)
    for other in (scaled, frozen):
        np.testing.assert_array_equal(other.blocks.attention.key.weight, plain.blocks.attention.key.weight)
        np.testing.assert_array_equal(other.head.weight, plain.head.weight)


@pytest.mark.parametrize(
    ("parametrization", "hidden", "down", "head"),
    [
        ("standard", 1, 1, 1),
        ("mup_simple", 8 / 16, 8 / 64, 1),
        ("mup", 8 / 16, 8 / 64, 8 / 16),
        ("depth_mup", 8 / 16 * (2 / 3) ** 0.5, 8 / 64 * (2 / 3) ** 0.5, 8 / 16),
    ],
)
def test_rates_by_kind_of_matrix(params, parametrization, hidden, down, head):
    """Adam's first step is the rate itself in every entry, but for epsilon."""
    optimizer = Optimizer(
        learning_rate=1e-2,
        weight_decay=0.0,
        clip=0.0,
        parametrization=parametrization,
        base_d_model=8,
        base_num_layers=2,
    )
    (update,) = steps(optimizer, params, [gradients_like(params, 1)])
    for changed, factor in (
        (update.blocks.attention.query.weight, hidden), (update.blocks.feed_forward.down.weight, down),
        (update.head.weight, head), (update.embedding, 1), (update.final_norm.scale, 1),
        (update.blocks.attention.query.bias, 1),
    ):  # fmt: skip
        np.testing.assert_allclose(np.abs(changed), 1e-2 * factor, rtol=1e-3)


def test_adafactor_by_hand(params):
    """One matrix of one layer, three steps: beta2 = 1 - k^-0.8, the step cut to a root mean square of 1, times W's."""
    gradients = [gradients_like(params, seed) for seed in range(3)]
    optimizer = Optimizer(method="adafactor", learning_rate=0.1, beta1=0.9, weight_decay=0.0, clip=0.0)
    taken = steps(optimizer, params, gradients)
    weight = np.asarray(params.blocks.attention.key.weight[1], np.float64)
    square, mean = 0.0, 0.0
    for k, (gradient, update) in enumerate(zip(gradients, taken, strict=True), 1):
        g = np.asarray(gradient.blocks.attention.key.weight[1], np.float64)
        beta2 = 1 - k**-0.8
        square = beta2 * square + (1 - beta2) * g**2
        step = g / np.sqrt(square)
        step /= max(1, np.sqrt(np.mean(step**2)))
        mean = 0.9 * mean + 0.1 * step * np.sqrt(np.mean(weight**2))
        np.testing.assert_allclose(update.blocks.attention.key.weight[1], -0.1 * mean, rtol=2e-3, atol=1e-7)


def test_sgd_has_momentum(params):
    gradients = [gradients_like(params, seed) for seed in range(2)]
    optimizer = Optimizer(method="sgd", learning_rate=0.1, beta1=0.5, weight_decay=0.0, clip=0.0)
    second = steps(optimizer, params, gradients)[1]
    expected = -0.1 * (gradients[1].embedding + 0.5 * gradients[0].embedding)
    np.testing.assert_allclose(second.embedding, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate: must be a positive number, got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate: must be a positive number, got nan"),
        ({"beta2": 1.0}, r"beta2: must be in \[0, 1\), got 1.0"),
        ({"clip": -0.1}, "clip: must be 0 or more, got -0.1"),
        ({"method": "adam"}, "method: unknown value 'adam'; choose one of adamw, adafactor, sgd"),
        ({"schedule": "step"}, "schedule: unknown value 'step'; choose one of cosine, linear, inverse_sqrt, constant"),
        ({"final_rate": -1.0}, "final_rate: must be 0 or more, got -1.0"),
        ({"method": "sgd", "clipping": "spam"}, "clipping: 'spam' cuts by Adam's second moment, which method 'sgd'"),
    ],
)
def test_bad_input(fields, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(**fields)
