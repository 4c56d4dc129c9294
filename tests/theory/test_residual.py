"""The closed form of the amplification against a plain loop over blocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import notation as s
from theory.residual import AMPLIFICATION, SMALLEST_SHORTCUT

POSITIVE = st.floats(0.01, 10)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(sigma=POSITIVE, delta=POSITIVE, depth=st.integers(1, 60))
def test_telescoping(sigma: float, delta: float, depth: int) -> None:
    variance, squared = sigma**2, 1.0
    for _ in range(depth):
        squared *= 1 + delta / variance
        variance += delta
    closed = float(AMPLIFICATION.subs({s.sigma_0: sigma, s.delta: delta, s.N: depth}))
    assert np.isclose(closed, np.sqrt(squared), rtol=1e-10)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(delta=POSITIVE, depth=st.integers(1, 60), a=st.floats(1.1, 20))
def test_smallest_shortcut(delta: float, depth: int, a: float) -> None:
    least = float(SMALLEST_SHORTCUT.subs({s.delta: delta, s.N: depth, s.amplification: a}))
    found = [float(AMPLIFICATION.subs({s.sigma_0: f * least, s.delta: delta, s.N: depth})) for f in (0.9, 1.0, 1.1)]
    assert found[0] > a > found[2]
    assert np.isclose(found[1], a, rtol=1e-10)
