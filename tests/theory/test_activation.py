"""The symbolic activations against their papers' definitions, and the derivatives that SymPy makes of them."""

import math

import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from theory import Activation
from theory.activation import ACTIVATIONS, activation, u


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


_DEFINITIONS = {  # value and derivative, by hand
    "identity": (lambda x: x, lambda x: 1.0),
    "relu": (lambda x: max(x, 0.0), lambda x: 1.0 if x > 0 else 0.0),
    "gelu": (
        lambda x: x * _normal_cdf(x),
        lambda x: _normal_cdf(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": (
        lambda x: 0.5 * x * (1 + math.tanh(0.7978845608028654 * (x + 0.044715 * x**3))),
        lambda x: 0.5 * (1 + math.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))
        + 0.5 * x * 0.7978845608028654 * (1 + 0.134145 * x * x)
        * (1 - math.tanh(0.7978845608028654 * (x + 0.044715 * x**3)) ** 2),
    ),
    "silu": (
        lambda x: x / (1 + math.exp(-x)),
        lambda x: (1 + math.exp(-x) * (1 + x)) / (1 + math.exp(-x)) ** 2,
    ),
}  # fmt: skip
_DEFINITIONS |= {"swiglu": _DEFINITIONS["silu"], "geglu": _DEFINITIONS["gelu"]}  # of the gate's branch


def test_every_registered_activation_is_checked_here():
    assert set(_DEFINITIONS) == set(ACTIVATIONS)


@given(st.sampled_from(sorted(_DEFINITIONS)), st.floats(-100, 100))
def test_value_and_derivative_equal_the_definition(name, x):
    for ours, definition in zip(activation(name).numeric, _DEFINITIONS[name], strict=True):
        if name == "relu" and x == 0:
            continue  # the kink, of measure zero
        # cancellation in 1 + erf and 1 + tanh at large negative u costs absolute, not relative digits: 100 x 1e-16 x 10
        assert float(ours(np.array(x))) == pytest.approx(definition(x), rel=1e-12, abs=1e-13)


def test_gated_ones_say_so():
    assert {name for name, scheme in ACTIVATIONS.items() if scheme.gated} == {"swiglu", "geglu"}


def test_the_two_gelus_differ():
    points = np.linspace(-6, 6, 2001)
    exact, approximate = (activation(name).numeric for name in ("gelu", "gelu_tanh"))
    assert 8e-4 < np.max(np.abs(exact[1](points) - approximate[1](points))) < 9e-4
    assert 4e-4 < np.max(np.abs(exact[0](points) - approximate[0](points))) < 5e-4


@pytest.mark.parametrize("scheme", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_numeric_forms_keep_shape_and_are_finite_far_out(scheme):
    points = np.array([[-1e4, -100.0, 0.0], [1e-300, 100.0, 1e4]])
    for function in scheme.numeric:
        assert function(points).shape == (2, 3) and function(points).dtype == np.float64
        assert np.all(np.isfinite(function(points)))
    assert scheme.source and activation(scheme.name) is scheme and activation(scheme) is scheme


def test_a_constant_derivative_is_broadcast():
    np.testing.assert_array_equal(activation("identity").numeric[1](np.zeros((2, 3))), np.ones((2, 3)))


def test_one_of_ones_own():
    cubed = Activation("cubed", u**3, "a test")
    np.testing.assert_allclose(cubed.numeric[1](np.array([2.0, -1.0])), [12.0, 3.0])
    assert sp.simplify(cubed.derivative - 3 * u**2) == 0
    assert Activation("cubed", u**3, "a test") == cubed and hash(cubed) == hash(Activation("cubed", u**3, "a test"))


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (sp.Symbol("u") ** 2, r"the rule uses \['u'\]; it may use only \['u'\] of theory.activation"),
        (u * sp.Symbol("beta"), r"the rule uses \['beta'\]"),
        ("u**2", r"must be a number or a SymPy expression, got 'u\*\*2'"),
        (np.tanh, "must be a number or a SymPy expression, got <ufunc 'tanh'>"),
    ],
)
def test_bad_functions_are_refused(function, why):
    with pytest.raises(ValueError, match=f"^activation 'mine', function: {why}"):
        Activation("mine", function, "a test")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"^activation: unknown value 'swish'; choose one of identity, relu, gelu"):
        activation("swish")
