"""Every symbolic result as a function of arrays: broadcast, and the same number as SymPy's at every point."""

from itertools import product

import numpy as np
import pytest
import sympy as sp

from theory import Architecture, attention, feed_forward, function_of
from theory import notation as s
from theory.addition_bound import (
    ATTENTION,
    BRANCH,
    FEED_FORWARD,
    GATED,
    HEADS,
    attention_matrix_bounds,
    feed_forward_bound_of,
    heads_bound,
)  # fmt: skip
from theory.conditions import embedding_std, feed_forward_excess, value_path_excess
from theory.growth import growth
from theory.logit_bound import CAPPED, OUTPUT
from theory.norm_scale import ADAM_STEP, GRADIENT, KEPT_GAIN, KEPT_VARIANCE, RMS_GRADIENT, SMALLEST_STD
from theory.residual import AMPLIFICATION, SMALLEST_SHORTCUT
from theory.score_path import KEY_GAIN, QUERY_GAIN, TURNED_GAP_SQUARE, TURNED_KEY_GAIN
from theory.solved_recursion import AFFINE_GROWTH, CONSTANT_GROWTH, HARMONIC

RESULTS = {
    "heads": HEADS, "attention": ATTENTION, "feed_forward": FEED_FORWARD, "gated": GATED, "branch": BRANCH,
    "column_sum": attention.COLUMN_SUM, "averaging": attention.AVERAGING, "attention_excess": attention.EXCESS,
    "paper_excess": feed_forward.PAPER_EXCESS, "feed_forward_excess": feed_forward_excess("megatron"),
    "value_path_excess": value_path_excess("xavier"), "embedding_std": embedding_std("he", "scaled"),
    "amplification": AMPLIFICATION, "smallest_shortcut": SMALLEST_SHORTCUT, "capped": CAPPED, "output": OUTPUT,
    "key_gain": KEY_GAIN, "query_gain": QUERY_GAIN, "turned_key_gain": TURNED_KEY_GAIN,
    "turned_gap": TURNED_GAP_SQUARE, "kept_variance": KEPT_VARIANCE, "kept_gain": KEPT_GAIN, "gradient": GRADIENT,
    "rms_gradient": RMS_GRADIENT,
    "adam_step": ADAM_STEP, "smallest_std": SMALLEST_STD, "harmonic": HARMONIC, "affine": AFFINE_GROWTH,
    "constant": CONSTANT_GROWTH,
}  # fmt: skip


def _draw(symbol: sp.Symbol, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(3, 40, shape) if symbol.is_integer else rng.uniform(0.2, 0.9, shape)


@pytest.mark.parametrize("name", RESULTS)
def test_arrays_broadcast_to_what_sympy_has_at_each_point(name: str) -> None:
    """The first symbol's values along one axis, the others' along another; integers count as numbers."""
    expression, rng = RESULTS[name], np.random.default_rng(len(name))
    symbols = sorted(expression.free_symbols, key=str)
    drawn = [_draw(x, rng, (3, 1) if i == 0 else (2,)) for i, x in enumerate(symbols)]
    if s.amplification in symbols:
        drawn[symbols.index(s.amplification)] = drawn[symbols.index(s.amplification)] + 1
    found = function_of(expression)(**dict(zip(map(str, symbols), drawn, strict=True)))
    shape = np.broadcast_shapes(*map(np.shape, drawn))
    assert found.shape == shape and found.dtype == np.float64
    for point in product(*map(range, shape)):
        at = {x: sp.sympify(np.broadcast_to(v, shape)[point].item()) for x, v in zip(symbols, drawn, strict=True)}
        assert found[point] == pytest.approx(float(expression.subs(at)), rel=1e-11)


@pytest.mark.parametrize("block", ["pre_ln", "post_ln", "deepnorm", "rezero", "ln_scaling", "deep_scale_lm"])
def test_a_growth_is_a_function_of_depths_and_shortcuts(block: str) -> None:
    """A power, exponentials, constants with and without a shortcut in them, and a logarithm."""
    arch = Architecture(d_model=64, num_heads=2, seq_len=4, block=block, initialization="small")
    expression, depths, stds = growth(arch).expression, [[4.0], [6.0]], [0.5, 1.0, 2.0]
    found = function_of(expression, s.N, s.sigma_0)(depths, stds)
    wanted = [[float(expression.subs({s.N: n[0], s.sigma_0: std})) for std in stds] for n in depths]
    np.testing.assert_allclose(found, wanted, rtol=1e-11)


def test_numbers_give_a_number_by_position_or_by_name() -> None:
    by_name, by_position = function_of(AMPLIFICATION), function_of(AMPLIFICATION, s.N, s.sigma_0, s.delta)
    assert float(by_name(N=3, delta=1, sigma_0=1)) == float(by_position(3, 1, delta=1)) == 2
    np.testing.assert_array_equal(by_position([0, 3, 8], 1, 1), [1, 2, 3])


def test_what_no_symbol_stands_for_still_has_the_arguments_shape() -> None:
    assert function_of(sp.Rational(1, 2), s.N, s.d)([[1], [2]], [1, 2, 3]).tolist() == [[0.5] * 3] * 2


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="symbols: the expression also has delta, sigma_0"):
        function_of(AMPLIFICATION, s.N)
    call = function_of(AMPLIFICATION)
    for values, named in (((1,), {}), ((1, 1, 1, 1), {}), ((1,), {"N": 2, "delta": 1}), ((1, 1, 1), {"d": 2})):
        with pytest.raises(TypeError, match="arguments: must be N, delta, sigma_0, got"):
            call(*values, **named)


def test_the_bounds_take_arrays() -> None:
    lengths, stds = np.array([[4], [1024]]), np.array([0.0, 0.5, 1e6])
    averaging, column = attention_matrix_bounds(lengths, stds)
    assert averaging.shape == column.shape == (2, 3)
    for i, j in product(range(2), range(3)):
        assert attention_matrix_bounds(int(lengths[i, 0]), stds[j]) == (averaging[i, j], column[i, j])
    names = sorted(map(str, HEADS.free_symbols))
    grown = heads_bound(**{name: np.array([1.0, 2.0]) if name == "m_v" else 1.0 for name in names})
    np.testing.assert_allclose(grown, [3, 5])
    sizes = {"nu_1": 2.0, "nu_2": 1.0, "nu_g": 3.0, "Lambda_F": 1.0, "u_max": 1.0, "F_max": 1.0}
    for gated, wanted in ((False, [2, 4]), (True, [5, 10])):
        np.testing.assert_allclose(feed_forward_bound_of(gated)(**sizes, s_inner=[1.0, 2.0]), wanted)
