"""What a norm makes of the stream's scale, against autodiff, Optax, and the derivations' own constants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.normalization import normalize
from models.parameters import Norm
from theory import Architecture, Initialization
from theory.norm_scale import (
    adam_step,
    kept_gain,
    normed_variance,
    rms_stream_gradient,
    stream_gradient,
)
from verify import measure

EPSILON, WIDTH = 1e-5, 128
STDS = np.array([1.0, 0.004])


def test_gradient_below_the_last_norm_against_autodiff() -> None:
    """Blocks that write nothing leave the embedding as the stream; a small head makes the loss's gradient the same."""
    zero = {"attention.output": 0.0, "feed_forward.down": 0.0, "embedding": 1.0, "head": 1e-3}
    flat = Initialization("flat", 0.02, zero, "this test")
    norms = []
    for std in STDS:
        arch = Architecture(
            num_layers=1, d_model=WIDTH, seq_len=16, vocab_size=64, norm_epsilon=EPSILON, initialization=flat,
            embedding=float(std),
        )  # fmt: skip
        measured = measure(arch, batch_size=4, seeds=4, quick=True)
        norms.append(np.sqrt(np.square(measured.gradient_norm[:, -1]).mean()))
        assert measured.shortcut_std.mean() == pytest.approx(std, rel=0.02)
    predicted = stream_gradient(1.0, STDS, EPSILON, WIDTH)
    # tokens differ in length: the mean of 1 / |x|^2 is 2 / d above the inverse of the mean, the root of that 1 / d
    assert norms[1] / norms[0] == pytest.approx(predicted[1] / predicted[0], rel=1 / WIDTH + 0.005)
    assert predicted[1] / predicted[0] < 200  # 250 without epsilon


@pytest.mark.parametrize(("norm", "below"), [("layer_norm", stream_gradient), ("rms_norm", rms_stream_gradient)])
@pytest.mark.parametrize(("width", "std", "epsilon"), [(3, 1.0, 0.5), (4, 0.1, 0.0), (64, 0.004, 1e-5)])
def test_what_a_norm_leaves_of_a_random_gradient(norm, below, width, std, epsilon) -> None:
    """The model's own norm, its whole Jacobian, a token of exactly that size: |J^T u|^2 in the mean is |J|^2 / d."""
    token = np.random.default_rng(width).standard_normal(width).astype(np.float32)
    token -= token.mean() if norm == "layer_norm" else 0
    token *= std / np.sqrt(np.square(token).mean())
    arch = Architecture(norm=norm, norm_epsilon=epsilon)
    jacobian = jax.jacobian(lambda x: normalize(Norm(jnp.ones(width), None), x, arch))(jnp.asarray(token))
    measured = np.sqrt(np.square(np.asarray(jacobian, np.float64)).sum() / width)
    assert measured == pytest.approx(below(1.0, std, epsilon, width), rel=1e-4)


def test_values_on_arrays_and_their_limits() -> None:
    assert normed_variance(np.array([0.02, 0.006]), 1e-5) == pytest.approx([4e-4 / 4.1e-4, 3.6e-5 / 4.6e-5])
    assert kept_gain(STDS, EPSILON) == pytest.approx(np.sqrt(normed_variance(STDS, EPSILON)))
    large = np.array([10.0, 100.0, 1000.0])
    assert stream_gradient(1.0, large, EPSILON, WIDTH) * large == pytest.approx(np.sqrt(126 / 128), rel=1e-6)
    assert stream_gradient(1.0, 1e-9, EPSILON, WIDTH) == pytest.approx(np.sqrt((WIDTH - 1) / WIDTH / EPSILON))


def test_adam_step_against_optax() -> None:
    adam = optax.scale_by_adam(0.9, 0.95, 1e-8)
    for gradient in (1e-6, 1e-8, 1e-10):
        value = jnp.array([gradient, -gradient])
        with jax.numpy_dtype_promotion("standard"):
            update, _ = adam.update(value, adam.init(value))
        assert np.abs(np.asarray(update)) == pytest.approx(adam_step(gradient, 1e-8), rel=1e-4)
