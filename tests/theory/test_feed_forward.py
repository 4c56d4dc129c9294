"""Lipschitz constants, the Gaussian norm law and the feed-forward bound against NumPy."""

import numpy as np
import pytest
import sympy as sp

from theory.activation import ACTIVATIONS, Activation, u
from theory.feed_forward import EXCESS, PAPER_EXCESS, lipschitz


@pytest.mark.parametrize(
    ("name", "value"), [("identity", 1), ("relu", 1), ("gelu", 1.1289), ("gelu_tanh", 1.1290), ("silu", 1.0998)]
)
def test_lipschitz_constants(name: str, value: float) -> None:
    assert lipschitz(name) == pytest.approx(value, abs=1e-4)
    grid = np.linspace(-8, 8, 100_001)
    assert np.abs(np.diff(ACTIVATIONS[name].numeric[0](grid)) / np.diff(grid)).max() <= lipschitz(name) + 1e-8


def test_gelu_exactly() -> None:
    assert lipschitz("gelu") == pytest.approx(float((1 + sp.erf(1)) / 2 + sp.exp(-1) / sp.sqrt(sp.pi)), abs=1e-12)


def test_unbounded_slope_is_refused() -> None:
    with pytest.raises(ValueError, match="activation: the slope of 'square'"):
        lipschitz(Activation("square", u**2, "a test"))


def test_paper_form_has_no_lipschitz_constant() -> None:
    assert {str(symbol) for symbol in PAPER_EXCESS.free_symbols} == {"sigma_1", "sigma_2", "sigma_x'", "d", "d_ff"}
    assert len(EXCESS.free_symbols) == 7


@pytest.mark.parametrize("shape", [(32, 32), (64, 256), (256, 64)])
def test_gaussian_norm_law(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(7)
    norms = [np.linalg.norm(draw.normal(size=shape), 2) for _ in range(30)]
    law = shape[0] ** 0.5 + shape[1] ** 0.5
    # From above in expectation; from below the Tracy-Widom shift is about -1.2 law n^(-2/3)/2: under 8 % at n = 32.
    assert 0.92 * law < np.mean(norms) < law
