"""The dual activation against plain two-dimensional quadrature, which shares nothing with the Hermite series."""

import numpy as np
import pytest
import sympy as sp
from scipy import integrate, stats

from theory.activation import ACTIVATIONS, Activation, u
from theory.dual_activation import dual_activation, growth_moment, sampled

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(120)


def between(low, high):
    """Gauss and Legendre's points and weights on [low, high], for every element of these."""
    half = (np.asarray(high) - low)[..., None] / 2
    return np.asarray(low)[..., None] + half * (1 + _NODES), half * _WEIGHTS


def by_quadrature(function, first, second, correlation):
    """E[f(a x) f(b y)] for standard x, y of that correlation: over independent x, z, cut where a ReLU has its kinks."""
    other, total = np.sqrt(1 - correlation**2), 0.0
    for ends in ((-9, 0), (0, 9)):
        x, outer = between(*ends)
        kink = np.clip(-correlation * x / other, -9, 9)
        for low, high in ((np.full_like(x, -9), kink), (kink, np.full_like(x, 9))):
            z, weights = between(low, high)
            inner = function(second * (correlation * x[:, None] + other * z)) * stats.norm.pdf(z) * weights
            total += np.sum(function(first * x) * stats.norm.pdf(x) * outer * inner.sum(axis=1))
    return total


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("derivative", [False, True])
@pytest.mark.parametrize(("std", "correlation"), [(0.63, 0.2), (1.41, -0.5), (1.0, 0.95)])
def test_equals_two_dimensional_quadrature(name, derivative, std, correlation):
    activation = ACTIVATIONS[name]
    expected = by_quadrature(activation.numeric[derivative], std, std, correlation)
    actual = dual_activation(activation, std**2 * np.array([[1, correlation], [correlation, 1]]))[derivative]
    np.testing.assert_allclose(actual[0, 1], expected, rtol=3e-4)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu"])
@pytest.mark.parametrize(("first", "second", "correlation"), [(0.6, 0.64, 0.4), (0.09, 1.0, 0.3), (3.0, 0.4, -0.6)])
def test_unequal_standard_deviations(name, first, second, correlation):
    """Of tokens that a norm's epsilon sets apart, and of some that have not been through a norm."""
    activation, covariance = ACTIVATIONS[name], correlation * first * second
    for derivative in (False, True):
        expected = by_quadrature(activation.numeric[derivative], first, second, correlation)
        actual = dual_activation(activation, np.array([[first**2, covariance], [covariance, second**2]]))[derivative]
        np.testing.assert_allclose(actual[0, 1], expected, rtol=1e-3)
        np.testing.assert_allclose(actual, actual.T)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_is_the_second_moment_for_equal_tokens(name):
    std = np.array([0.3, 0.33])
    dual, _ = dual_activation(ACTIVATIONS[name], np.outer(std, std))
    function = ACTIVATIONS[name].numeric[0]
    for place, own in enumerate(std):
        expected, _ = integrate.quad(lambda x, own=own: function(own * x) ** 2 * stats.norm.pdf(x), -9, 9, points=[0])
        np.testing.assert_allclose(dual[place, place], expected, rtol=2e-4)


def test_a_function_of_ones_own():
    """E[sin(x) sin(y)] = exp(-1) sinh(correlation) and E[cos(x) cos(y)] = exp(-1) cosh(correlation)."""
    sine = Activation("sine", sp.sin(u), "a test")
    correlation = np.array([[1.0, 0.3, -0.8], [0.3, 1.0, 0.0], [-0.8, 0.0, 1.0]])
    values, slopes = dual_activation(sine, correlation)
    np.testing.assert_allclose(values, np.exp(-1) * np.sinh(correlation), atol=1e-4)
    np.testing.assert_allclose(slopes, np.exp(-1) * np.cosh(correlation), atol=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(
    ("first", "second", "correlation"), [(0.63, 0.63, 0.2), (1.41, 1.41, -0.5), (0.3, 1.4, 0.5), (2.0, 0.5, -0.4)]
)
def test_growth_moment_is_the_moments_growth(name, first, second, correlation):
    """E[u F'(u) F(v)] = d/dlog(a) E[F(a u) F(v)] at a = 1, by a difference of quadratures."""
    function, step = ACTIVATIONS[name].numeric[0], 1e-3
    ends = [by_quadrature(function, first * np.exp(sign * step), second, correlation) for sign in (1, -1)]
    covariance = correlation * first * second
    found = growth_moment(ACTIVATIONS[name], np.array([[first**2, covariance], [covariance, second**2]]))
    np.testing.assert_allclose(found[0, 1], (ends[0] - ends[1]) / (2 * step), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 1e5])
def test_values_read_off_between_points_are_the_functions(name, scale):
    """To half a square of the points' spacing times what F bends by at most, or, of a kink, within one spacing."""
    u = (scale * np.random.default_rng(0).standard_normal((3, 4, 500))).astype(np.float32)
    u[0, 0, :3] = 0, u.max(), u.min()
    function, slope = ACTIVATIONS[name].numeric
    values, slopes = sampled(ACTIVATIONS[name], u)
    assert values.dtype == slopes.dtype == np.float32
    apart = 1.5 * np.abs(u).max() / 2**11
    error = apart if name == "relu" or scale > 1e3 else 0.2 * apart**2 + 1e-6 * scale
    np.testing.assert_allclose(values, function(u.astype(float)), atol=error)
    near = np.abs(u) < 2 * apart if name == "relu" or scale > 1e3 else np.zeros(u.shape, bool)
    np.testing.assert_allclose(slopes[~near], slope(u.astype(float))[~near], atol=0.2 * min(apart, 0.1) ** 2 + 1e-6)


def test_nothing_but_zeros_are_read_off_too():
    values, slopes = sampled(ACTIVATIONS["gelu"], np.zeros((1, 2, 3), np.float32))
    np.testing.assert_allclose(values, 0, atol=1e-30)
    np.testing.assert_allclose(slopes, 0.5, atol=1e-6)
