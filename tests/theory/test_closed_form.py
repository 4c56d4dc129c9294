"""The two-number recursion against the kernel prediction at a wide width, and against hand-made cases."""

import numpy as np
import pytest
import sympy as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from theory import Activation, Architecture, predict
from theory.activation import ACTIVATIONS, activation
from theory.block import BLOCKS
from theory.closed_form import additions, closed_form
from theory.dual_activation import dual_activation
from theory.dual_expression import dual_expression, dual_tables, mean_expression
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS

# Norms on an output see positions of unequal variance, which two numbers do not; without a norm before attention its
# logits grow with the stream (docs/growth.md).
GRADIENT = {"sandwich": 0.13, "output_norm": 0.60, "sub_ln": 0.04}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_against_the_kernel_prediction(block: str, activation: str) -> None:
    """d_model 1024, two networks: 1 % is the ensemble's own error; Megatron's attention is nearly flat."""
    arch = Architecture(num_layers=12, d_model=1024, num_heads=16, seq_len=32, block=block, activation=activation)
    closed, kernel = closed_form(arch), predict(arch, networks=2)
    np.testing.assert_allclose(closed.shortcut_std, kernel.shortcut_std, rtol=0.015)
    ratio = kernel.gradient_norm / kernel.gradient_norm[-1]
    assert np.abs(np.log(closed.gradient_ratio / ratio)).max() < GRADIENT.get(block, 0.01)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("q", [0.16, 1.0, 9.0])
def test_dual_expression_is_the_dual_activation(name: str, q: float) -> None:
    """1e-4: interpolation in the tables of `theory.dual_activation`; 4e-4: the series ends at the tenth power."""
    size, rho = sp.symbols("q rho", positive=True)
    scheme = ACTIVATIONS[name]
    numbers = sp.lambdify((size, rho), dual_expression(scheme, size, rho), modules=[dual_tables(scheme), "numpy"])
    for correlation in (0.1, 0.6, 1.0):
        wanted = dual_activation(scheme, q * np.array([[1, correlation], [correlation, 1]]))
        np.testing.assert_allclose(numbers(q, correlation), [w[0, 1] for w in wanted], rtol=4e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("q", [0.0123, 1.0, 9.0])
def test_mean_expression_is_the_gaussian_integral(name: str, q: float) -> None:
    size, scheme = sp.Symbol("q", positive=True), ACTIVATIONS[name]
    mean = sp.lambdify(size, mean_expression(scheme, size), modules=[dual_tables(scheme), "numpy"])
    wanted, _ = integrate.quad(
        lambda x: float(scheme.numeric[0](np.array(q**0.5 * x))) * stats.norm.pdf(x), -10, 10, points=[0]
    )
    assert mean(q) == pytest.approx(wanted, rel=1e-4, abs=1e-12)


_REGLU = Activation("reglu", ACTIVATIONS["relu"].function, "a test", gated=True)


@pytest.mark.parametrize(
    ("norm", "scheme", "unlike", "back"),
    [
        ("layer_norm", "relu", 0, np.pi / (np.pi - 1)),
        ("rms_norm", "relu", 1 / np.pi, 1),
        ("layer_norm", "silu", 0, None),
        ("layer_norm", _REGLU, 0, 2),
        ("rms_norm", _REGLU, 0, 2),
    ],
)
def test_a_norm_within_the_feed_forward_by_hand(
    norm: str, scheme: str | Activation, unlike: float, back: float | None
) -> None:
    """ReLU has E F^2 = q / 2, mean square q / 2 pi and E F'^2 = 1 / 2; a gated layer's mean is 0. LeCun's gains are 1.

    So what is written has variance 1, unlike tokens' covariance is what is left of the mean's square over E F^2, and
    the squared gradient goes back as 1 / 2 over what the norm divides by, or, gated, as 2 q over q.
    """
    arch = Architecture(d_model=64, block="sub_ln", norm=norm, activation=scheme, initialization="lecun")
    step = additions(arch)[1]
    own, pair, gradient, _ = step.compiled(*step.written["feed_forward"])(1.0, 0.0, 0.0, 1, 24, 0.0)
    assert own == pytest.approx(1, rel=1e-9) and pair == pytest.approx(unlike, rel=1e-9, abs=1e-4)
    if back is None:
        moments = [_moment(activation(scheme), derivative, power) for derivative, power in ((1, 2), (0, 2), (0, 1))]
        back = moments[0] / (moments[1] - moments[2] ** 2)
    assert gradient == pytest.approx(back, rel=1e-3)


def _moment(scheme: Activation, derivative: int, power: int) -> float:
    function = scheme.numeric[derivative]
    return integrate.quad(lambda x: float(function(np.array(x))) ** power * stats.norm.pdf(x), -10, 10, points=[0])[0]


def test_relu_telescopes_for_one_token() -> None:
    """T = 1: forward and backward gains agree, so the gradient grows exactly as the stream does."""
    found = closed_form(Architecture(seq_len=1, activation="relu", initialization="xavier", norm_epsilon=0.0))
    np.testing.assert_allclose(found.gradient_ratio, found.shortcut_std[-1] / found.shortcut_std, rtol=1e-12)


def test_expressions_take_arrays() -> None:
    step = additions(Architecture(block="post_ln"))[1]
    variance, correlation = step.forward(np.ones(3), np.array([0.0, 0.5, 1.0]), 0.0, 1, 24, 0.0)
    np.testing.assert_allclose(variance, 1)
    assert correlation.shape == (3,) and np.all(np.diff(correlation) > 0) and correlation[2] == pytest.approx(1)


@settings(max_examples=15)
@given(
    st.sampled_from(list(BLOCKS)), st.sampled_from(list(INITIALIZATIONS)), st.sampled_from(list(EMBEDDINGS)),
    st.sampled_from(list(ACTIVATIONS)), st.sampled_from(["none", "learned", "sinusoidal", "alibi"]),
    st.sampled_from(["standard", "qkv_norm", "qk_fc_norm", "soft_clip", "sigma_reparam"]),
)  # fmt: skip
def test_every_architecture_has_one(block, initialization, embedding, activation, positions, attention) -> None:
    assume(not (attention == "sigma_reparam" and initialization == "zero_output"))
    arch = Architecture(
        num_layers=3, d_model=32, num_heads=2, seq_len=8, block=block, initialization=initialization,
        embedding=embedding, activation=activation, positions=positions, attention=attention,
    )  # fmt: skip
    found = closed_form(arch)
    assert found.shortcut_std.shape == found.gradient_ratio.shape == (arch.num_sublayers + 1,)
    assert np.all(found.shortcut_std > 0) and found.gradient_ratio[-1] == 1
    assert np.all((found.token_correlation >= 0) & (found.token_correlation <= 1))


@pytest.mark.parametrize(("gated", "plain"), [("swiglu", "silu"), ("geglu", "gelu")])
def test_a_gate_adds_one_to_backward_over_forward_gain(gated: str, plain: str) -> None:
    """kappa of `derive("gains")`, of equal tokens behind a norm."""
    kappas = []
    for name in (gated, plain):
        arch = Architecture(block="pre_ln", activation=name, initialization="lecun", seq_len=1)
        step = additions(arch)[1]
        size, _, own, _ = (float(value) for value in step.compiled(*step.written["feed_forward"])(1, 1, 1, 1, 1, 0))
        kappas.append(own / size)
    assert kappas[1] > 1.01 and kappas[0] == pytest.approx(1 + kappas[1], rel=1e-9)
