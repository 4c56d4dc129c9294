"""Growth classes against the closed form followed to 2048 blocks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import Architecture, Block, Initialization, function_of
from theory.block import BLOCKS
from theory.closed_form import closed_form
from theory.derivation import topics
from theory.embedding import EMBEDDINGS
from theory.growth import KINDS, growth, growth_table
from theory.initialization import INITIALIZATIONS
from theory.notation import N, layer, near_tie_rate, sigma_0

SMALL = Architecture(d_model=64, num_heads=2, seq_len=4, activation="relu", initialization="small")


def _slope(arch: Architecture, low: int, high: int) -> float:
    logs = [np.log(closed_form(replace(arch, num_layers=n)).amplification) for n in (low, high)]
    return (logs[1] - logs[0]) / np.log(high / low)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("scheme", ["small", "deepnorm"])
def test_class_is_what_the_closed_form_does_at_many_blocks(block: str, scheme: str) -> None:
    """Tokens become alike like a power of N, so a slope is still up to a tenth short of its limit."""
    arch = replace(SMALL, block=block, initialization=scheme, activation="gelu", norm_epsilon=0.0)
    found = growth(arch)
    if found.topic == "near_tie_growth":  # the closed form has no score path
        assert block in ("output_norm", "no_norm")
        return
    if found.kind == "logarithm":
        depths = (64, 256, 1024)
        powers = [closed_form(replace(arch, num_layers=n)).amplification ** (1 / found.exponent) for n in depths]
        assert powers[2] - powers[1] == pytest.approx(powers[1] - powers[0], rel=0.03)
        return
    low, high = {"exponential": (512, 1024), "stretched exponential": (2048, 8192)}.get(found.kind, (512, 2048))
    slope = _slope(arch, low, high)
    if found.kind in ("constant", "power"):
        assert slope == pytest.approx(found.exponent, abs=0.06)
    elif found.kind == "stretched exponential":
        rate = slope * np.log(high / low) / (high**found.exponent - low**found.exponent)
        assert rate == pytest.approx(found.rate, abs=0.001)
    else:
        assert found.kind == "exponential"
        assert slope * np.log(high / low) / (high - low) == pytest.approx(found.rate, rel=0.01)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_constant_is_reached_at_2048_blocks(block: str) -> None:
    """Wang's outputs of 2 / (N sqrt d) write 1 / N in all, so 2048 blocks are within 2 per cent of the limit."""
    arch = replace(SMALL, block=block, initialization="wang")
    found = growth(arch)
    assert found.kind == {"sandwich": "power", "output_norm": "stretched exponential"}.get(block, "constant")
    if found.kind == "constant":
        amplification = closed_form(replace(arch, num_layers=2048)).amplification
        first_norm = 0.4**-0.5 if BLOCKS[block].post_norm else 1.0  # of the embedding itself, std sqrt(2 / 5)
        assert amplification == pytest.approx(first_norm * float(found.expression.subs(sigma_0, 0.4**0.5)), rel=0.02)


def test_depth_factor_turns_the_power_into_a_constant() -> None:
    assert growth(replace(SMALL, initialization="megatron")).kind == "constant"


def test_layer_scaling_gives_a_logarithm() -> None:
    found = growth(replace(SMALL, block="ln_scaling", activation="gelu"))
    assert (found.kind, found.exponent) == ("logarithm", 0.5)


def test_a_shortcut_above_one_multiplies_the_gradient() -> None:
    """Twice a block, as branches behind a norm are soon nothing beside the stream."""
    found = growth(replace(SMALL, block=Block("mine", shortcut=sp.Integer(2))))
    assert (found.kind, found.exponent) == ("exponential", 1) and found.rate == pytest.approx(2 * np.log(2), rel=1e-12)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(("activation", "initialization"), [("gelu", "lecun"), ("silu", "lecun"), ("gelu", "small")])
def test_a_shortcut_below_one_forgets_the_stream(activation: str, initialization: str, parallel: bool) -> None:
    block = Block("mine", shortcut=sp.Rational(1, 2), parallel=parallel)
    arch = replace(SMALL, block=block, activation=activation, initialization=initialization, norm_epsilon=0.0)
    found = growth(arch)
    assert found.kind == "exponential"
    assert _slope(arch, 64, 128) * np.log(2) / 64 == pytest.approx(found.rate, rel=1e-5)


def test_a_shortcut_that_loses_less_than_branches_write_leaves_the_power() -> None:
    """ReLU's gains agree, so the gradient grows as the stream does: like the root of N, a constant factor less."""
    arch = replace(SMALL, block=Block("mine", shortcut=sp.sqrt(1 - 1 / (2 * N))), norm_epsilon=0.0)
    found = growth(arch)
    assert (found.kind, found.exponent) == ("power", 0.5)
    assert _slope(arch, 512, 2048) == pytest.approx(0.5, abs=0.06)


def test_a_shortcut_that_tends_to_one_from_above() -> None:
    """(1 + 1/N)^(2N) is e^2 for the square of the gradient, and Wang's branches write next to nothing beside it."""
    arch = replace(SMALL, block=Block("mine", shortcut=sp.sqrt(1 + 1 / N)), initialization="wang", norm_epsilon=0.0)
    found = growth(arch)
    assert found.kind == "constant" and float(found.expression) == pytest.approx(np.e, rel=1e-12)
    assert closed_form(replace(arch, num_layers=4096)).amplification == pytest.approx(np.e, rel=0.01)


@pytest.mark.parametrize(("sign", "order", "power"), [(1, "1/2", 0.0), (1, "1/3", 0.0), (-1, "1/2", 0.25)])
def test_a_shortcut_further_from_one_than_by_one_over_depth(sign: int, order: str, power: float) -> None:
    """2 N additions each multiply the square of the gradient by 1 + 1/(2 N^p): exp(N^(1 - p) / 2).

    From below the stream tends to a variance of order root N, and the gradient to about its root's part.
    """
    p = sp.Rational(order)
    reached = float(1 - p)
    block = Block("mine", shortcut=sp.sqrt(1 + sign / (2 * N**p)))
    arch = replace(SMALL, block=block, activation="gelu", norm_epsilon=0.0)
    found = growth(arch)
    assert (found.kind, found.exponent) == ("stretched exponential", reached)
    assert sign < 0 or found.rate == pytest.approx(0.5, rel=1e-12)
    few, many = 1024, 4096
    measured = (_slope(arch, few, many) - power) * np.log(many / few) / (many**reached - few**reached)
    assert measured == pytest.approx(found.rate, rel=0.05)
    of_relu = growth(replace(arch, activation="relu"))
    assert sign > 0 or (of_relu.kind, of_relu.exponent) == ("power", 0.25)


def test_branches_over_their_number_add_up_to_a_constant() -> None:
    """Of one token attention writes 1 / n^2 and ReLU half of that: 3/2 times pi^2 / 6 in all, onto a stream of 1."""
    arch = replace(
        SMALL, block=Block("mine", branch=1 / layer), initialization="lecun", embedding="unit", seq_len=1,
        norm_epsilon=0.0,
    )  # fmt: skip
    found, wanted = growth(arch), np.sqrt(1 + np.pi**2 / 4)
    assert found.kind == "constant" and float(found.expression.subs(sigma_0, 1)) == pytest.approx(wanted, rel=1e-9)
    assert closed_form(replace(arch, num_layers=2048)).amplification == pytest.approx(wanted, rel=1e-3)


_LOSING = sp.sqrt(1 - 1 / (2 * N))


@pytest.mark.parametrize(
    "fields",
    [
        {"block": "deep_scale_lm", "initialization": "small", "activation": "gelu"},
        {"block": "deep_scale_lm"},
        {"block": "depth_mup", "activation": "geglu"},
        {"block": Block("mine", shortcut=_LOSING, branch=(N * layer) ** sp.Rational(-1, 4))},
        {"block": Block("mine", shortcut=_LOSING, branch=1 / layer, parallel=True), "activation": "relu"},
    ],
)
def test_constants_of_unequal_gains_are_numbers_of_the_closed_form(fields: dict[str, Any]) -> None:
    """One token, so that gains are at their fixed point from the start; what is left is of order 1 / N or its root."""
    defaults = {"activation": "swiglu", "initialization": "lecun", "embedding": "unit", "seq_len": 1}
    arch = replace(SMALL, **defaults | {"norm_epsilon": 0.0} | fields)
    found, few, many = growth(arch), *(closed_form(replace(arch, num_layers=n)) for n in (512, 2048))
    assert found.kind == "constant"
    value = float(function_of(found.expression, sigma_0)(many.shortcut_std[0]))
    left = [abs(np.log(followed.amplification / value)) for followed in (few, many)]
    assert left[1] < 0.012 and left[1] < 0.6 * left[0]


@pytest.mark.parametrize(
    ("fields", "formula"),
    [
        ({}, "exp(c N^0.75)"),
        ({"positions": "none"}, "exp(c N^0.875)"),
        ({"positions": "alibi", "activation": "gelu", "attention": "soft_clip"}, "exp(c N^0.875)"),
        ({"activation": "swiglu"}, "exp(c N)"),
        ({"block": Block("mine", pre_norm=False, inner_norm=True), "norm": "rms_norm"}, "exp(c N^0.9)"),
        ({"seq_len": 1}, "N^0.50"),
        ({"attention": "qk_norm"}, "N^0.50"),
        ({"initialization": "zero_output"}, "constant"),
        ({"attention": "soft_cap", "positions": "none"}, "exp(c N^0.625)"),
        ({"attention": "soft_cap", "positions": "none", "activation": "swiglu"}, "not derived: score path"),
        ({"attention": "soft_cap"}, "not derived: score path"),
        ({"attention": "soft_cap", "positions": "alibi"}, "not derived: score path"),
        ({"block": Block("mine", pre_norm=False, output_norm=True, branch=N ** sp.Rational(-1, 4))},
         "not derived: score path"),
    ],
)  # fmt: skip
def test_near_ties_under_output_norms(fields: dict[str, Any], formula: str) -> None:
    """With inner norms attention writes 0.4 and the feed-forward 1.6, so that 0.2 + 1.6 of 2 are kept."""
    found = growth(replace(SMALL, **{"block": "output_norm"} | fields))
    assert found.formula == formula
    if found.topic in ("near_tie_growth", "growing_logits", "capped_growth"):
        assert np.isnan(found.rate) and "N^0." in found.explanation


def test_attention_that_writes_nothing_has_no_score_path() -> None:
    scheme = Initialization("mine", 0.05, {"attention.output": sp.S.Zero}, "a test")
    assert growth(replace(SMALL, block="no_norm", initialization=scheme)).kind == "exponential"


def test_logits_of_a_stream_that_shrinks_do_not_grow() -> None:
    shrinking = Block("mine", pre_norm=False, final_norm=False, shortcut=sp.Rational(1, 2))
    assert growth(replace(SMALL, block=shrinking)).formula.startswith("exp(-")


@pytest.mark.parametrize("positions", ["none", "rope"])
def test_near_ties_without_norms(positions: str) -> None:
    """Small initialisation: attention writes 0.16 of the stream's variance and half of a difference, ReLU 0.32."""
    found = growth(replace(SMALL, block="no_norm", positions=positions))
    difference, size = 1.08 * 1.32, 1.16 * 1.32
    assert found.kind == "compressed exponential" and found.exponent == 2
    other = size if positions == "none" else difference
    assert found.rate == pytest.approx(np.log(difference * other) / 8, rel=1e-12)


def test_capped_logits_without_norms() -> None:
    """Attention averages evenly and keeps a quarter of a difference, of 0.16; ReLU 0.32."""
    found = growth(replace(SMALL, block="no_norm", positions="none", attention="soft_cap"))
    assert (found.kind, found.exponent, found.topic) == ("compressed exponential", 2, "capped_growth")
    assert found.rate == pytest.approx(np.log(1.04 * 1.32) / 4, rel=1e-12)


def test_what_stays_apart_where_attention_picks() -> None:
    """SwiGLU of large input is ReLU times a line: rho as half a difference and that product's sum leave it."""
    rho = growth(replace(SMALL, block="output_norm", activation="swiglu")).token_correlation
    relu = (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / np.pi
    assert 0.1 < rho < 0.9 and (1 - (1 - rho) / 2) + rho * relu == pytest.approx(2 * rho, rel=1e-6)


def test_a_norm_of_the_matrices_takes_the_depth_factor_away() -> None:
    assert growth(replace(SMALL, initialization="megatron", attention="sigma_reparam")).kind == "power"


@settings(max_examples=30)
@given(st.sampled_from(list(BLOCKS)), st.sampled_from(list(INITIALIZATIONS)), st.sampled_from(list(EMBEDDINGS)))
def test_every_combination_has_a_class(block: str, scheme: str, method: str) -> None:
    found = growth(replace(SMALL, block=block, initialization=scheme, embedding=method))
    assert found.kind in KINDS
    assert np.isfinite(found.exponent) and found.topic in topics()
    assert np.isfinite(found.rate) or (
        found.topic == "near_tie_growth" and near_tie_rate in found.expression.free_symbols
    )
    assert found.expression.free_symbols <= {N, sigma_0, near_tie_rate}
    assert (found.kind == "constant") == (found.exponent == 0) and found.kind != "not derived"


def test_gated_without_norms_squares() -> None:
    arch = replace(SMALL, block="no_norm", activation="swiglu", initialization="lecun", embedding="unit")
    assert growth(arch).kind == growth(replace(arch, attention="qk_norm")).kind == "double exponential"


def test_table_and_wrong_names() -> None:
    assert len(list(growth_table(SMALL, ("pre_ln", "rezero"), ("wang",), ("scaled", "unit")))) == 4
    spectral = replace(SMALL, attention="sigma_reparam")
    assert len(list(growth_table(spectral, ("pre_ln",), ("wang", "zero_output"), ("scaled",)))) == 1
    with pytest.raises(ValueError, match="block: unknown value 'nope'"):
        list(growth_table(SMALL, ("nope",), ("wang",), ("scaled",)))


def test_long_irrational_numbers_are_not_simplified_for_hours():
    """A truncated Gaussian under 1 / sqrt(N) branches: gains are long irrational numbers; the value is near 1."""
    found = growth(replace(SMALL, block="depth_mup", initialization="olmo2", activation="gelu"))
    assert found.kind == "constant" and 1 < float(found.expression.subs(sigma_0, 1)) < 1.01
