"""Planted leads are found, and independent series give none more often than chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verify.statistics.lead_lag import cross_correlation, gradient_lead


def run_with_events(starts, lead, length=2000, seed=0):
    """Loss spikes at `starts`; the gradient norm five times its level at each start - lead."""
    norm = 1 + 0.1 * np.random.default_rng(seed).standard_normal(length)
    loss_spikes = np.zeros(length, dtype=bool)
    loss_spikes[starts] = True
    norm[np.array(starts) - lead] = 5.0
    return loss_spikes, norm


@pytest.mark.parametrize("lead", [-19, -3, 0, 1, 7, 20])
def test_a_planted_lead_is_found(lead):
    found = gradient_lead([run_with_events([300, 900, 1500], lead), run_with_events([700], lead, seed=1)])
    assert found.leads.tolist() == [lead] * 4 and found.share == (lead > 0) and found.left_out == 0
    assert found.low <= found.share <= found.high and found.control_share == 0
    assert np.all(np.isnan(found.control_leads)) and (found.p < 1e-3) == (lead > 0)


def test_what_lies_beyond_the_window_is_no_lead():
    for lead in (21, -20):
        found = gradient_lead([run_with_events([300], lead)], window=20)
        assert np.isnan(found.leads).all() and found.share == 0


def test_the_threshold_knows_nothing_of_the_window():
    """The norm doubles 15 steps ahead; a median that looked into the window would follow it."""
    loss_spikes, norm = run_with_events([300], 0)
    norm[285:300] = 2.5
    assert gradient_lead([(loss_spikes, norm)], window=20, history=10).leads.tolist() == [15]
    assert gradient_lead([(loss_spikes, 1e-6 * norm)], window=20, history=10).leads.tolist() == [15]
    assert np.isnan(gradient_lead([(loss_spikes, norm)], history=10, factor=6.0).leads).all()


def test_the_first_step_counts_and_a_norm_that_is_not_finite():
    loss_spikes, norm = run_with_events([300], 0)
    norm[[290, 295]] = 5.0
    assert gradient_lead([(loss_spikes, norm)]).leads.tolist() == [10]
    norm[288] = np.nan
    assert gradient_lead([(loss_spikes, norm)]).leads.tolist() == [12]


def test_events_closer_than_the_window_are_one_and_early_ones_are_left_out():
    found = gradient_lead([run_with_events([119, 300, 319, 338], 5)])
    assert found.leads.tolist() == [5] and found.left_out == 1
    assert gradient_lead([run_with_events([120, 300, 320], 5)]).leads.tolist() == [5, 5, 5]


def test_controls_keep_away_from_events_and_from_each_other():
    """Excursions everywhere within 20 steps of the events and nowhere else: no control may see one, early or late."""
    loss_spikes, norm = run_with_events([300, 900], 0)
    for start in (300, 900):
        norm[start - 20 : start + 20] = 5.0
    found = gradient_lead([(loss_spikes, norm)])
    assert np.isnan(found.control_leads).all() and 30 < len(found.control_leads) <= 1880 // 20
    loss_spikes, norm = run_with_events([300], 5)
    norm[1200] = 5.0  # in the window of one control at most
    assert np.sum(gradient_lead([(loss_spikes, norm)]).control_leads > 0) <= 1
    repeated = gradient_lead([(loss_spikes, norm)], seed=0)
    np.testing.assert_array_equal(repeated.control_leads, gradient_lead([(loss_spikes, norm)]).control_leads)


def test_without_events_or_controls_there_is_no_share():
    none = gradient_lead([(np.zeros(500, dtype=bool), np.ones(500))])
    assert np.isnan([none.share, none.low, none.high, none.p]).all() and none.control_share == 0
    only = gradient_lead([run_with_events([125], 5, length=130)])
    assert only.share == 1 and np.isnan(only.control_share) and np.isnan(only.p)
    assert gradient_lead([]).leads.shape == (0,)
    with pytest.raises(ValueError, match="gradient norms"):
        gradient_lead([(np.zeros(5, dtype=bool), np.ones(4))])
    with pytest.raises(ValueError, match="window"):
        gradient_lead([], window=0)


def test_an_unrelated_gradient_norm_leads_no_more_often_than_chance():
    """1 % of steps are excursions, so a window of 20 holds one in 18 % of cases, at events as at controls."""
    rng = np.random.default_rng(0)
    shares, controls, alarms = [], [], []
    for _ in range(100):
        loss_spikes = np.zeros(2000, dtype=bool)
        loss_spikes[rng.choice(np.arange(150, 2000, 60), 10, replace=False)] = True
        norm = np.where(rng.random(2000) < 0.01, 5.0, 1.0)
        found = gradient_lead([(loss_spikes, norm)])
        shares.append(found.share)
        controls.append(found.control_share)
        alarms.append(found.p <= 0.05)
    assert np.mean(shares) == pytest.approx(1 - 0.99**20, abs=3 * np.sqrt(0.18 * 0.82 / 1000))
    assert np.mean(controls) == pytest.approx(1 - 0.99**20, abs=3 * np.sqrt(0.18 * 0.82 / 3000))
    assert np.mean(alarms) <= 0.08  # Fisher's is at most 0.05; 100 draws


def walk(steps):
    return np.exp(0.01 * np.cumsum(steps))


@pytest.mark.parametrize("lead", [-20, -4, 0, 3, 20])
def test_cross_correlation_peaks_at_the_planted_lag(lead):
    rng = np.random.default_rng(0)
    steps = rng.standard_normal(1000)
    loss = walk(np.roll(steps, lead) + rng.standard_normal(1000))
    found = cross_correlation(walk(steps), loss)
    assert found.peak_lag == lead and found.p <= 0.01
    assert found.correlation[found.lags == lead] == pytest.approx(1 / np.sqrt(2), abs=0.1)
    others = found.correlation[found.lags != lead]
    assert np.mean((found.low <= others) & (others <= found.high)) >= 0.8


@pytest.mark.parametrize("seed", range(4))
def test_cross_correlation_is_the_correlation_of_turned_steps(seed):
    first, second = np.random.default_rng(seed).standard_normal((2, 200))
    found = cross_correlation(np.exp(np.cumsum(np.r_[0, first])), np.exp(np.cumsum(np.r_[0, second])), max_lag=30)
    expected = [np.corrcoef(first, np.roll(second, -lag))[0, 1] for lag in found.lags]
    np.testing.assert_allclose(found.correlation, expected, atol=1e-12)  # rounding of a sum of 200
    far = [np.corrcoef(first, np.roll(second, -lag))[0, 1] for lag in range(31, 170)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(far, [0.025, 0.975])))
    peaks = [np.abs(far[turn : turn + 61]).max() for turn in range(139 - 60)]
    peak = np.abs(expected).max()
    assert abs(expected[found.peak_lag + 30]) == peak and found.p == (1 + np.sum(peaks >= peak)) / 80


def test_independent_series_raise_few_false_alarms():
    """Both autocorrelated (0.5): 5 % of 300 pairs, within three standard errors."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(300):
        noise = rng.standard_normal((2, 700))
        steps = sum(0.5**k * noise[:, 20 - k : 700 - k] for k in range(20))
        alarms.append(cross_correlation(walk(steps[0]), walk(steps[1])).p <= 0.05)
    assert abs(np.mean(alarms) - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 300)


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6), st.floats(0.5, 3))
def test_cross_correlation_does_not_depend_on_units_and_powers(seed, scale, power):
    steps = np.random.default_rng(seed).standard_normal((2, 150))
    norm, loss = walk(steps[0]), walk(steps[1])
    found, moved = cross_correlation(norm, loss), cross_correlation(scale * norm**power, loss)
    np.testing.assert_allclose(moved.correlation, found.correlation, atol=1e-9)
    turned = cross_correlation(loss, norm)
    np.testing.assert_allclose(turned.correlation[::-1], found.correlation, atol=1e-12)


def test_cross_correlation_stops_at_divergence_and_refuses_too_little():
    rng = np.random.default_rng(0)
    norm, loss = walk(rng.standard_normal(400)), walk(rng.standard_normal(400))
    diverged = loss.copy()
    diverged[300:] = np.nan
    np.testing.assert_array_equal(
        cross_correlation(norm, diverged).correlation, cross_correlation(norm[:300], loss[:300]).correlation
    )
    constant = cross_correlation(norm, np.full(400, 0.3))
    assert np.isnan(constant.correlation).all() and np.isnan(constant.p)
    with pytest.raises(ValueError, match="needs 101 steps, got 100"):
        cross_correlation(norm[:100], loss[:100])
    assert cross_correlation(norm[:101], loss[:101]).p >= 1 / 21
