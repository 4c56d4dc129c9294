"""The prescription does what it says, by `predict`, and the narrow stand-in has the wide one's propagation."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from theory import Architecture, predict, proxy, recommend, recommendation
from theory.recommendation import _depth, _multiplied, _smallest, _with_gain

SMALL = Architecture(num_layers=12, d_model=128, seq_len=16, embedding="vanilla")


def worst(arch):
    norms = predict(arch, networks=8).gradient_norm
    return norms.max() / norms[-1]


@pytest.mark.parametrize("power", [0.5, 1, 2])
@pytest.mark.parametrize("guess", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_the_smallest_argument_within_a_budget_is_found(power, guess, scale):
    def amplification(at):
        return math.sqrt(1 + (scale / at) ** (2 * power))

    found = _smallest(amplification, guess * scale, 2.0)
    assert amplification(found) <= 2 and amplification(0.98 * found) > 2


def test_what_no_argument_changes_is_not_solved():
    assert _smallest(lambda at: 3.0, 1.0, 2.0) is None


def test_neither_is_what_lies_a_million_times_beyond_the_guess():
    assert _smallest(lambda at: math.sqrt(1 + 1e7 * at**-0.5), 1.0, 2.0) is None


@pytest.mark.parametrize("edge", [0.0013, 37.0, 900.0])
def test_an_amplification_that_falls_all_at_once_is_met_above_the_edge(edge):
    """No secant helps, and the steps run out near it."""
    found = _smallest(lambda at: 100.0 if at < edge else 1 + 1e-7, 1.0, 2.0)
    assert edge <= found < 1.01 * edge


@pytest.mark.parametrize("initialization", ["megatron", "xavier", "gpt2"])
def test_the_recommended_changes_meet_the_budget_and_hardly_less_does(initialization):
    arch = replace(SMALL, initialization=initialization)
    found = recommend(arch, 1.8, networks=8)
    assert found.amplification > 1.8
    assert worst(found.with_multiplier) <= 1.8
    less = _multiplied(arch, 0.95 * found.embedding_multiplier)
    assert worst(less) > 1.8
    assert found.output_gain < 1 and worst(found.with_gain) <= 1.8
    assert worst(_with_gain(arch, 1.05 * found.output_gain)) > 1.8
    assert found.largest_depth is None or found.largest_depth < arch.num_layers
    assert f"{found.embedding_multiplier:.4g}" in found.explanation and "ABOVE" in found.explanation
    for kind in ("attention.output", "feed_forward.down"):
        assert f"{kind} {found.output_gain * arch.std(kind)[0]:.3g}" in found.explanation
    assert f"goes like: {found.growth.formula}" in found.explanation


def test_both_changes_together_share_the_work():
    """Under xavier; megatron and gpt2 have the depth factor already."""
    arch = replace(SMALL, initialization="xavier", norm_epsilon=1e-3)
    found = recommend(arch, 1.8, networks=8)
    assert worst(found.with_both) <= 1.8
    for kind in ("attention.output", "feed_forward.down"):
        np.testing.assert_allclose(found.with_both.std(kind), arch.std(kind) / math.sqrt(24))
    less = _multiplied(found.with_both, 0.95 * found.shared_multiplier)
    assert worst(less) > 1.8
    assert f"multiplier: at least {found.shared_multiplier:.4g}" in found.explanation
    for other in (replace(arch, initialization="gpt2"), replace(arch, block="rezero")):
        found = recommend(other, 1.8, networks=4)
        assert found.shared_multiplier is None and found.with_both is None and "Or both" not in found.explanation


def test_the_papers_two_requirements_are_told_apart():
    vanilla, scaled = (recommend(replace(SMALL, embedding=e), 2.0, networks=8) for e in ("vanilla", "scaled"))
    assert vanilla.small_sublayers.holds and not vanilla.large_shortcut.holds
    assert scaled.small_sublayers.holds and scaled.large_shortcut.holds and scaled.output_gain == 1
    large = recommend(replace(SMALL, embedding="unit", initialization="he"), 2.0, networks=8)
    assert not large.small_sublayers.holds and large.large_shortcut.holds
    assert "met by smaller attention.output" in large.explanation and "met by a larger embedding" in vanilla.explanation


def test_a_norm_on_the_sum_asks_for_no_large_embedding():
    """Of std sqrt(2 / (5 d)), which pre-LN's requirement is the number of."""
    post, pre = (recommend(replace(SMALL, num_layers=2, block=b), 2.0, networks=4) for b in ("post_ln", "pre_ln"))
    assert post.large_shortcut.holds and post.large_shortcut.number == pytest.approx(1, rel=1e-6)
    assert "large shortcut    holds" in post.explanation
    assert not pre.large_shortcut.holds and pre.large_shortcut.number == pytest.approx((2 / 640) ** 0.5, rel=0.02)


def test_a_stack_that_adds_nothing_stands_any_depth():
    found = recommend(replace(SMALL, block="rezero"), 1.5, networks=4)
    assert found.amplification == pytest.approx(1, abs=1e-3) and found.deeper and found.largest_depth == 48
    assert "or more" in found.explanation


@pytest.mark.parametrize(
    ("blocks", "budget", "found"),
    [
        (5, 1, 1), (5, 3.5, 3), (5, 7.5, 7), (5, 11, 11), (5, 13, 13), (5, 19, 19), (24, 23, 23), (24, 50.5, 50),
        (24, 60, 60), (24, 95, 93),
    ],
)  # fmt: skip
def test_the_largest_depth_is_found(blocks: int, budget: float, found: int) -> None:
    """Exactly up to 64 blocks, beyond within one in 32."""
    arch = replace(SMALL, num_layers=blocks)
    assert _depth(arch, lambda changed: float(changed.num_layers), budget) == (found, False)


def test_the_largest_depth_has_ends() -> None:
    assert _depth(SMALL, lambda changed: float(changed.num_layers), 0.9) == (None, False)
    assert _depth(SMALL, lambda changed: float(changed.num_layers), 4 * 12) == (48, True)


@pytest.mark.parametrize(("width", "least", "most"), [(128, 16, 16), (4096, 2, 15)])
def test_networks_of_ones_own_number(width: int, least: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = set()

    def flat(arch: Architecture, networks: int) -> SimpleNamespace:
        followed.add(networks)
        return SimpleNamespace(gradient_norm=np.ones(2), shortcut_std=np.ones(2))

    monkeypatch.setattr(recommendation, "predict", flat)
    assert recommend(replace(SMALL, d_model=width, seq_len=64)).amplification == 1
    assert len(followed) == 1 and least <= followed.pop() <= most


def test_an_embedding_cannot_cure_norms_after_the_sum():
    found = recommend(replace(SMALL, block="post_ln", initialization="he"), 1.1, networks=4)
    assert found.embedding_multiplier is None and "No embedding multiplier" in found.explanation


@pytest.mark.parametrize("budget", [1.0, 0.5, math.inf, math.nan])
def test_a_budget_is_above_one(budget):
    with pytest.raises(ValueError, match="max_amplification: must be a number above 1, got"):
        recommend(SMALL, budget)


@pytest.mark.parametrize(
    "fields",
    [
        {"initialization": "megatron", "embedding": "vanilla"},
        {"initialization": "gpt2", "embedding": "vanilla", "positions": "learned"},
        {"initialization": "lecun", "embedding": "unit", "num_kv_heads": 2, "activation": "swiglu", "d_ff": 1400},
        {"initialization": "xavier", "embedding": "scaled", "block": "post_ln"},
        {"initialization": "palm", "tied": True, "embedding": "vanilla", "logit_scale": 512**-0.5},
    ],
)
def test_a_narrow_stand_in_has_the_wide_ones_propagation(fields):
    wide = Architecture(
        **{"num_layers": 6, "d_model": 512, "num_heads": 8, "seq_len": 16, "vocab_size": 1000, "norm_epsilon": 0.0}
        | fields
    )
    narrow = proxy(wide, 256)
    assert (narrow.d_model, narrow.d_head, narrow.num_layers) == (256, 64, 6)
    one, other = predict(wide, networks=64), predict(narrow, networks=256)
    np.testing.assert_allclose(other.shortcut_std, one.shortcut_std, rtol=0.03)
    ratios = [p.gradient_norm / p.gradient_norm[-1] for p in (one, other)]
    np.testing.assert_allclose(ratios[1], ratios[0], rtol=0.05)


def test_a_narrow_stand_in_keeps_the_table_as_large_as_its_width_asks():
    """The output's size is the multiplier's work: the table's std is the wide one's times the root of the widths."""
    wide = Architecture(num_layers=2, d_model=2304, num_heads=24, embedding="vanilla")
    narrow = proxy(wide, 96)
    np.testing.assert_allclose(narrow.std("embedding"), wide.std("embedding") * (2304 / 96) ** 0.5)
    np.testing.assert_allclose(predict(narrow).shortcut_std[0], predict(wide, networks=2).shortcut_std[0], rtol=0.01)


def test_a_longer_sequence_is_searched_at_a_shorter_one_and_still_meets_the_budget():
    found = recommend(replace(SMALL, num_layers=4, seq_len=96, initialization="he"), 2.0, networks=16)
    got = predict(found.with_multiplier, networks=32)
    assert found.with_multiplier.seq_len == 96
    np.testing.assert_allclose(got.gradient_norm.max() / got.gradient_norm[-1], 2.0, rtol=0.05)
