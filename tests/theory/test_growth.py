"""Growth classes against the closed form followed to 4096 blocks, and the solved recursions."""

from dataclasses import replace

import numpy as np
import pytest

from theory import Architecture
from theory.block import BLOCKS
from theory.closed_form import closed_form
from theory.growth import growth, growth_table
from theory.notation import sigma_0

SMALL = Architecture(d_model=64, num_heads=2, seq_len=4, activation="relu", initialization="small")


def _slope(arch: Architecture, low: int, high: int) -> float:
    logs = [np.log(closed_form(replace(arch, num_layers=n)).amplification) for n in (low, high)]
    return (logs[1] - logs[0]) / np.log(high / low)


@pytest.mark.parametrize("block", ["pre_ln", "parallel", "sandwich"])
def test_power_is_the_slope_at_4096_blocks(block: str) -> None:
    """Tokens become alike like a power of N, so the slope is still up to a tenth short of its limit."""
    arch = replace(SMALL, block=block)
    found = growth(arch)
    assert found.kind == "power" and found.exponent == pytest.approx(0.5)
    assert _slope(arch, 1024, 4096) == pytest.approx(0.5, abs=0.05)


def test_exponential_is_the_rate_at_many_blocks() -> None:
    arch = replace(SMALL, block="post_ln", activation="gelu")
    found = growth(arch)
    logs = [np.log(closed_form(replace(arch, num_layers=n)).amplification) for n in (512, 1024)]
    assert found.kind == "exponential" and (logs[1] - logs[0]) / 512 == pytest.approx(found.rate, rel=0.01)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_constant_is_reached_at_4096_blocks(block: str) -> None:
    """Wang's outputs of 2 / (N sqrt d) write 1 / N in all, so 4096 blocks are within a per cent of the limit."""
    arch = replace(SMALL, block=block, initialization="wang")
    found = growth(arch)
    assert found.kind == ("power" if block in ("sandwich", "output_norm") else "constant")
    if found.kind == "constant":
        amplification = closed_form(replace(arch, num_layers=4096)).amplification
        first_norm = 0.4**-0.5 if block in ("post_ln", "deepnorm") else 1.0  # of the embedding itself, std sqrt(2 / 5)
        assert amplification == pytest.approx(first_norm * float(found.expression.subs(sigma_0, 0.4**0.5)), rel=0.01)


def test_depth_factor_turns_the_power_into_a_constant() -> None:
    assert growth(replace(SMALL, initialization="megatron")).kind == "constant"


def test_layer_scaling_gives_a_logarithm() -> None:
    found = growth(replace(SMALL, block="ln_scaling", activation="gelu"))
    assert (found.kind, found.exponent) == ("logarithm", 0.5)


def test_logits_that_grow_are_said() -> None:
    assert not growth(replace(SMALL, block="output_norm")).flat_logits
    assert growth(replace(SMALL, block="output_norm", attention="qk_norm")).flat_logits
    assert growth(SMALL).flat_logits


def test_gated_without_norms_squares() -> None:
    found = growth(replace(SMALL, block="no_norm", activation="swiglu", initialization="lecun", embedding="unit"))
    assert found.kind == "double exponential"


def test_table_and_wrong_names() -> None:
    assert len(growth_table(("pre_ln", "rezero"), ("wang",), ("scaled", "unit"), activation="relu")) == 4
    with pytest.raises(ValueError, match="block: unknown value 'nope'"):
        growth_table(("nope",), ("wang",), ("scaled",))
