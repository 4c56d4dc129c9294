"""LR sensitivity and the highest stable rate, against sums done by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from verify.statistics.sensitivity import highest_stable_rate, lr_sensitivity

RATES = np.array([1e-3, 1e-2, 1e-1])
LOSSES = arrays.arrays(float, (3, 4), elements=st.floats(0, 12) | st.just(np.nan) | st.just(np.inf))


def test_by_hand():
    """Capped at 10: 4, 3, 10; less the best 3: 1, 0, 7."""
    found = lr_sensitivity(RATES, np.array([[4.0], [3.0], [11.0]]), 10.0)
    assert found.value == pytest.approx(8 / 3) and found.best_rate == 1e-2 and not found.chance_everywhere
    assert np.isnan(found.low) and np.isnan(found.high)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_diverged_run_counts_as_its_initial_loss(bad):
    diverged = np.array([[4.0, 4.0], [3.0, 3.0], [bad, 6.0]])
    assert lr_sensitivity(RATES, diverged, np.array([10.0, 9.0])).value == pytest.approx((1 + 0 + 5) / 3)


def test_the_minimum_is_taken_after_the_mean_over_seeds():
    """Each seed is best at another rate: minima first would give 2, and a regret of 1."""
    seeds = np.array([[2.0, 4.0], [4.0, 2.0], [5.0, 5.0]])
    found = lr_sensitivity(RATES, seeds, 10.0)
    assert found.value == pytest.approx((0 + 0 + 2) / 3) and found.best_rate == 1e-3


def test_a_model_at_chance_scores_0_and_is_flagged():
    for losses in (np.full((3, 2), 9.95), np.full((3, 2), np.nan)):
        found = lr_sensitivity(RATES, losses, 10.0)
        assert found.value == 0 and found.chance_everywhere and found.best_rate == 1e-3
    learnt = lr_sensitivity(RATES, np.full((3, 2), 9.85), 10.0)
    assert learnt.value == 0 and not learnt.chance_everywhere
    assert lr_sensitivity(RATES, np.full((3, 2), 9.85), 10.0, chance_margin=0.2).chance_everywhere


@given(LOSSES, st.permutations(range(4)), st.permutations(range(3)), st.floats(0.1, 10), st.floats(-3, 3))
def test_what_sensitivity_does_not_depend_on(losses, seeds, rates, scale, shift):
    initial = np.array([9.0, 9.5, 10.0, 10.5])
    found = lr_sensitivity(RATES, losses, initial, resamples=20)
    assert 0 <= found.value <= 10.5
    shuffled = lr_sensitivity(RATES[rates], losses[rates][:, seeds], initial[seeds], resamples=20)
    assert shuffled.value == pytest.approx(found.value, abs=1e-12)
    moved = lr_sensitivity(RATES, scale * losses + shift, scale * initial + shift, resamples=20)
    for name in ("value", "low", "high"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(found, name), abs=1e-9)
    assert found.low <= found.high


def test_the_interval_covers_and_keeps_a_seeds_losses_together():
    """Of 12 seeds, 300 times: about 91 %. A seed's offset at all rates cancels, and must not widen the interval."""
    rng = np.random.default_rng(0)
    curve = np.array([3.0, 2.5, 4.0])
    covered = 0
    for _ in range(300):
        losses = curve[:, None] + 0.2 * rng.standard_normal((3, 12)) + rng.standard_normal(12)
        found = lr_sensitivity(RATES, losses, 20.0, resamples=500)
        covered += found.low <= np.mean(curve - 2.5) <= found.high
        assert found.high - found.low < 0.5
    assert covered >= 0.88 * 300


def test_wrong_shapes_have_names():
    for losses, message in (
        (np.ones(3), "rates, seeds"),
        (np.ones((2, 3)), "rates, seeds"),
        (np.ones((3, 0)), "seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            lr_sensitivity(RATES, losses, 1.0)
    with pytest.raises(ValueError, match="initial_loss"):
        lr_sensitivity(RATES, np.ones((3, 2)), np.nan)
    with pytest.raises(ValueError, match="share"):
        highest_stable_rate(RATES, np.ones((3, 2)), share=0.0)


def test_the_highest_stable_rate_and_what_few_seeds_say_about_it():
    finished = np.array([[1] * 10, [1] * 9 + [0], [1, 1, 1] + [0] * 7], dtype=bool)
    found = highest_stable_rate(RATES, finished)
    assert (found.value, found.low, found.high) == (1e-2, 1e-2, 1e-1)  # 3 of 10: 0.07 to 0.65, half is not ruled out
    assert highest_stable_rate(RATES, finished, share=1.0).value == 1e-3
    assert highest_stable_rate(RATES[::-1], finished[::-1]) == found
    assert highest_stable_rate(RATES, finished[:, :5]).low == 0  # 5 of 5: from 0.48
    assert highest_stable_rate(RATES, np.zeros((3, 10))).value == 0


def test_the_stable_rates_interval_covers():
    """Half of the runs finish up to 1e-2: chances 1, 0.7, 0.2."""
    rng = np.random.default_rng(0)
    chances = np.array([1.0, 0.7, 0.2])
    draws = [highest_stable_rate(RATES, rng.random((3, 12)) < chances[:, None]) for _ in range(300)]
    assert np.mean([found.low <= 1e-2 <= found.high for found in draws]) >= 0.95
