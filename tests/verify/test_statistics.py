"""Spike metrics on series made by hand, intervals against closed forms."""

import numpy as np
import pytest

from verify.claims.training import holm
from verify.measurement.compare import root_mean_square_interval
from verify.statistics import intervals, spikes


def noisy(length=400, seed=0):
    return 2 + 0.1 * np.random.default_rng(seed).standard_normal(length)


def test_one_planted_spike_is_one_event_at_its_step():
    series = noisy()
    series[300:303] += [2.0, 1.5, 1.2]
    found = spikes.spike_steps(series, window=100)
    assert np.flatnonzero(found)[0] == 300 and spikes.spike_count(found) == 1
    assert spikes.spike_score(series, window=100) == found.sum() / 400


def test_noise_and_trend_alone_are_no_spikes():
    for seed in range(20):
        assert spikes.spike_score(noisy(seed=seed)) == 0
    assert spikes.spike_score(np.linspace(5, 2, 300)) == 0
    assert spikes.spike_score(np.ones(100)) == 0


def test_seven_deviations_are_the_border():
    series = np.tile([1.0, -1.0], 100)  # mean 0, standard deviation 1
    for height, expected in ((6.9, 0), (7.1, 1)):
        assert spikes.spike_steps(np.append(series, height)).sum() == expected
        assert spikes.spike_steps(np.append(series, -height)).sum() == expected


def test_events_are_merged_within_ten_steps():
    steps = np.zeros(100, dtype=bool)
    steps[[10, 15, 24, 40, 49, 60]] = True
    assert spikes.spike_count(steps) == 3  # 10 15 24 | 40 49 | 60
    assert spikes.spike_count(np.zeros(5, dtype=bool)) == 0


def test_values_that_are_not_finite_are_spikes_and_make_the_excess_infinite():
    series = noisy(100)
    series[90:] = np.nan
    assert spikes.spike_steps(series)[90:].all() and spikes.spike_count(spikes.spike_steps(series)) == 1
    assert spikes.largest_excess(series) == np.inf
    assert spikes.gradient_norm_ratio(series) == np.inf


def test_largest_excess_of_a_step():
    series = np.r_[np.full(50, 3.0), np.full(50, 1.0), np.full(50, 1.7)]
    assert spikes.largest_excess(series) == pytest.approx(0.7)
    assert spikes.largest_excess(series, after=100) == pytest.approx(0.0)
    assert spikes.largest_excess(series[:5]) == 0.0


def test_excess_at_matched_loss_leaves_out_what_only_one_run_reached():
    """Both jump by 0.5 from 1.0; the better one also from 0.2 to 0.6, below all that its rival ever saw."""
    rival = np.r_[np.full(50, 3.0), np.full(50, 1.0), np.full(50, 1.5)]
    better = np.r_[rival, np.full(50, 0.2), np.full(50, 0.6)]
    floor = spikes.matched_floor([rival, better])
    assert floor == pytest.approx(1.0)
    assert spikes.largest_excess(better[150:]) == pytest.approx(1.3 - 0.9)
    assert spikes.largest_excess(better[150:], floor=floor) == 0.0
    for run in (rival, better):
        assert spikes.largest_excess(run, floor=floor) == pytest.approx(0.5)
    assert spikes.matched_floor([rival, np.full(5, 1.0)]) == -np.inf
    diverged = np.r_[np.full(50, 2.0), np.nan, np.nan]
    assert spikes.matched_floor([better, diverged]) == pytest.approx(2.0)
    assert spikes.largest_excess(diverged, floor=2.0) == np.inf


def test_relative_excess_is_in_units_of_the_means_noise():
    """White noise of std 0.1 in 10-step means has 0.0316; a step of 0.316 is ten of them, noise adds some."""
    series = noisy(4000)
    series[2000:] += 0.316
    assert 8 < spikes.relative_excess(series) < 16


def test_gradient_norm_ratio():
    assert spikes.gradient_norm_ratio(np.r_[np.ones(99), 12.0]) == 12.0
    assert spikes.gradient_norm_ratio(np.r_[12.0, np.ones(99)], after=1) == 1.0


def test_bootstrap_covers_the_mean():
    draws = np.random.default_rng(0).standard_normal((200, 12))
    covered = sum(low < 0 < high for low, high in map(intervals.bootstrap_interval, draws))
    assert 165 < covered <= 200  # 95 % nominal, about 91 % for 12 values
    assert np.all(np.isnan(intervals.bootstrap_interval(np.array([1.0]))))
    assert intervals.bootstrap_interval(np.ones(5)) == (1.0, 1.0)


def test_permutation_p_of_separated_samples():
    assert intervals.permutation_p(np.array([4.0, 5, 6]), np.array([1.0, 2, 3])) == pytest.approx(1 / 20)
    assert intervals.permutation_p(np.array([1.0, 2, 3]), np.array([4.0, 5, 6])) == pytest.approx(1.0)


def test_clopper_pearson():
    assert intervals.proportion_interval(0, 10) == pytest.approx((0, 1 - 0.025 ** (1 / 10)))


def test_wilson():
    """Centre and half width by the formula, z = 1.96, 3 of 10."""
    z = 1.959964
    centre, half = (0.3 + z**2 / 20) / (1 + z**2 / 10), z * np.sqrt(0.3 * 0.7 / 10 + z**2 / 400) / (1 + z**2 / 10)
    wilson = intervals.proportion_interval(3, 10, method="wilson")
    assert wilson == pytest.approx((centre - half, centre + half), rel=1e-5)
    exact = intervals.proportion_interval(3, 10)
    assert exact[0] < wilson[0] and wilson[1] < exact[1]


def test_holm():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])


def test_root_mean_square_interval_covers():
    rng = np.random.default_rng(0)
    draws = np.exp(0.1 * rng.standard_normal((8, 2000)))  # 8 seeds, 2,000 repetitions
    low, middle, high = root_mean_square_interval(draws)
    truth = np.exp(0.01)
    assert 0.92 < np.mean((low < truth) & (truth < high)) < 0.97
    np.testing.assert_allclose(middle, np.sqrt(np.mean(draws**2, axis=0)))
    assert np.all(np.isnan(root_mean_square_interval(draws[:1])[0]))
