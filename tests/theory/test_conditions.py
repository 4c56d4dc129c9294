"""THEORY.md section 1: the arithmetic table and the table of verdicts."""

import pytest
import sympy as sp

from theory import notation as s
from theory.conditions import embedding_std, feed_forward_excess, requirements, requirements_table
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS

TABLE = {
    ("350M", 24, 1024): (26.3, 0.82, 0.52),
    ("1.7B", 24, 2304): (39.4, 0.82, 0.52),
    ("13B", 40, 5120): (45.5, 0.64, 0.40),
}


@pytest.mark.parametrize("model", TABLE)
def test_arithmetic(model: tuple[str, int, int]) -> None:
    for method, printed in zip(("vanilla", "scaled", "layer_norm"), TABLE[model], strict=True):
        excess = feed_forward_excess("megatron").subs(s.sigma_y, embedding_std("megatron", method))
        # half a unit in the last printed digit
        digit = 0.05 if printed > 10 else 0.005
        assert float(excess.subs({s.N: model[1], s.d: model[2]})) == pytest.approx(printed, abs=digit)


def test_embedding_std() -> None:
    assert embedding_std("megatron", "vanilla") - sp.sqrt(2 / (5 * s.d)) == 0
    assert embedding_std("megatron", "detach") == embedding_std("megatron", "vanilla")
    assert embedding_std("megatron", "scaled") == sp.sqrt(sp.Rational(2, 5))
    assert embedding_std("megatron", "layer_norm") == 1
    ratio = embedding_std("megatron", 3.0) / embedding_std("megatron", "vanilla")
    assert float(sp.simplify(ratio)) == pytest.approx(3)


@pytest.mark.parametrize(
    ("initialization", "embedding", "small", "large"),
    [
        ("megatron", "vanilla", True, False),
        ("megatron", "detach", True, False),
        ("megatron", "layer_norm", True, True),
        ("megatron", "scaled", True, True),
        ("wang", "scaled", True, True),
        ("xavier", "vanilla", False, False),
        ("xavier", "layer_norm", False, True),
        ("he", "vanilla", False, False),
        ("small", "scaled", False, True),
        ("palm", "vanilla", False, True),
    ],
)
def test_verdicts(initialization: str, embedding: str, small: bool, large: bool) -> None:
    found = requirements(initialization, embedding)
    assert (found.small_sublayers, found.large_shortcut) == (small, large)


def test_limits_and_table() -> None:
    table = {(r.initialization, r.embedding): r for r in requirements_table()}
    assert len(table) == len(INITIALIZATIONS) * len(EMBEDDINGS)
    assert table["megatron", "vanilla"].wide_std == 0
    assert table["megatron", "scaled"].wide_std == sp.sqrt(sp.Rational(2, 5))
    assert table["megatron", "scaled"].deep_excess == 0
    assert table["xavier", "scaled"].deep_excess == 8
    assert table["he", "scaled"].deep_excess == 16
