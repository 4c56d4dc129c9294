"""Growth classes against the closed form followed to 2048 blocks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import Architecture
from theory.block import BLOCKS
from theory.closed_form import closed_form
from theory.derivation import topics
from theory.embedding import EMBEDDINGS
from theory.growth import KINDS, growth, growth_table
from theory.initialization import INITIALIZATIONS
from theory.notation import N, sigma_0

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
    if found.kind == "not derived":
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
    assert found.kind == {"sandwich": "power", "output_norm": "not derived"}.get(block, "constant")
    if found.kind == "constant":
        amplification = closed_form(replace(arch, num_layers=2048)).amplification
        first_norm = 0.4**-0.5 if BLOCKS[block].post_norm else 1.0  # of the embedding itself, std sqrt(2 / 5)
        assert amplification == pytest.approx(first_norm * float(found.expression.subs(sigma_0, 0.4**0.5)), rel=0.02)


def test_depth_factor_turns_the_power_into_a_constant() -> None:
    assert growth(replace(SMALL, initialization="megatron")).kind == "constant"


def test_layer_scaling_gives_a_logarithm() -> None:
    found = growth(replace(SMALL, block="ln_scaling", activation="gelu"))
    assert (found.kind, found.exponent) == ("logarithm", 0.5)


def test_logits_that_grow_are_said_to_be_not_derived() -> None:
    found = growth(replace(SMALL, block="output_norm"))
    assert found.formula == "not derived: score path" and np.isnan(found.exponent) and "N^0.50" in found.explanation
    assert growth(replace(SMALL, block="output_norm", attention="qk_norm")).formula == "N^0.50"


def test_a_norm_of_the_matrices_takes_the_depth_factor_away() -> None:
    assert growth(replace(SMALL, initialization="megatron", attention="sigma_reparam")).kind == "power"


@settings(max_examples=30)
@given(st.sampled_from(list(BLOCKS)), st.sampled_from(list(INITIALIZATIONS)), st.sampled_from(list(EMBEDDINGS)))
def test_every_combination_has_a_class(block: str, scheme: str, method: str) -> None:
    found = growth(replace(SMALL, block=block, initialization=scheme, embedding=method))
    assert found.kind in KINDS
    if found.kind == "not derived":
        assert block in ("output_norm", "no_norm")
    else:
        assert np.isfinite(found.exponent) and np.isfinite(found.rate) and found.topic in topics()
        assert found.expression.free_symbols <= {N, sigma_0}
        assert (found.kind == "constant") == (found.exponent == 0)


def test_gated_without_norms_squares() -> None:
    """With QK norm, without which the class is not derived."""
    arch = replace(SMALL, block="no_norm", activation="swiglu", initialization="lecun", embedding="unit")
    assert growth(arch).kind == "not derived"
    assert growth(replace(arch, attention="qk_norm")).kind == "double exponential"


def test_table_and_wrong_names() -> None:
    assert len(list(growth_table(SMALL, ("pre_ln", "rezero"), ("wang",), ("scaled", "unit")))) == 4
    spectral = replace(SMALL, attention="sigma_reparam")
    assert len(list(growth_table(spectral, ("pre_ln",), ("wang", "zero_output"), ("scaled",)))) == 1
    with pytest.raises(ValueError, match="block: unknown value 'nope'"):
        list(growth_table(SMALL, ("nope",), ("wang",), ("scaled",)))
