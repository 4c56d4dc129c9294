"""Spike metrics on series made by hand, and against their definitions written as loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verify.statistics import spikes

ROUGH = st.one_of(
    st.floats(-1e6, 1e6),
    st.integers(-2, 2).map(float),  # ties and constant stretches
    st.sampled_from([np.nan, np.inf, -np.inf, 1e20, -1e20]),
)


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
    assert spikes.spike_score(np.full(100, 0.1)) == 0


def test_seven_deviations_are_the_border():
    series = np.tile([1.0, -1.0], 100)  # mean 0, standard deviation 1
    for height, expected in ((6.9, 0), (7.0, 1), (7.1, 1)):
        assert spikes.spike_steps(np.append(series, height)).sum() == expected
        assert spikes.spike_steps(np.append(series, -height)).sum() == expected


def test_the_window_is_the_previous_values_and_no_others():
    """The value that left the window a step ago, and the step itself, would each hide the spike."""
    series = np.r_[50.0, np.tile([1.0, -1.0], 50), 7.5]
    assert not spikes.spike_steps(series, window=101)[-1]
    for window in (100, 60, 7):
        assert spikes.spike_steps(series, window=window)[-1]


@given(st.lists(ROUGH, max_size=40), st.integers(2, 50), st.integers(0, 10), st.sampled_from([1.0, 3.0, 7.0]))
def test_vectorised_spikes_are_the_loops(values, window, warm_up, deviations):
    """Equal to the definition, value by value; at the border itself rounding may fall either way."""
    series = np.array(values, dtype=float)
    found = spikes.spike_steps(series, window, deviations, warm_up)
    assert found.dtype == bool and found.shape == series.shape
    for step, value in enumerate(series):
        before = series[max(step - window, 0) : step]
        before = before[np.isfinite(before)]
        if not np.isfinite(value):
            assert found[step]
        elif step < max(warm_up, 2) or len(before) < 2:
            assert not found[step]
        else:
            away, border = abs(value - before.mean()), deviations * before.std()
            if abs(away - border) > 1e-9 * (abs(value) + np.abs(before).max()):
                assert found[step] == (away >= border)


def test_a_spike_leaves_no_rounding_behind():
    """Running sums of squares would still hold 1e60 here, and see nothing."""
    series = noisy(3000)
    series[100], series[1500] = 1e30, 3.0
    assert np.flatnonzero(spikes.spike_steps(series, window=50)).tolist() == [100, 1500]


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-50, 50))
def test_spikes_do_not_depend_on_unit_and_origin(seed, scale, shift):
    series = noisy(seed=seed) + np.random.default_rng(seed).exponential(0.2, 400)
    assert spikes.spike_score(series, 50, 3.0) == spikes.spike_score(scale * series + shift, 50, 3.0)


def test_short_and_wrong_series():
    assert np.isnan(spikes.spike_score(np.array([])))
    for detector in (spikes.spike_steps, spikes.zclip_steps, spikes.rolling_median_steps, spikes.spam_steps):
        assert detector(np.array([])).shape == (0,)
        assert detector(np.array([1.0, np.nan])).tolist() == [False, True]
    with pytest.raises(ValueError, match="shape"):
        spikes.spike_steps(np.ones((3, 3)))
    with pytest.raises(ValueError, match="window"):
        spikes.spike_steps(np.ones(3), window=1)
    with pytest.raises(ValueError, match="centred"):
        spikes.rolling_median_steps(np.ones(3), length=200, centred=True)


def test_zclip_by_hand():
    """1, 3: mu 2, s 1. 5 has z = 3, is fed on as 2 + 6.25 / 3, so mu 2.0625, s^2 0.97 + 0.03 x 2.0208^2: border 4.6756.

    Other readings put it elsewhere: 4.6848 with the old mu in s^2, 4.75 fed with mu + 2.5 s, 4.86 with the value as it
    is, 4.5 with nothing. What is not finite leaves it where it is.
    """
    for after, expected in ((4.68, True), (4.67, False)):
        assert spikes.zclip_steps(np.array([1, 3, 5, after]), warm_up=2).tolist() == [False, False, True, expected]
        found = spikes.zclip_steps(np.array([1, np.nan, 3, np.inf, 5, np.nan, after]), warm_up=2)
        assert found.tolist() == [False, True, False, True, True, True, expected]


def test_zclip_sees_no_dip_and_no_warm_up():
    norm = noisy(400)
    norm[10], norm[300] = 9.0, 0.1
    assert not spikes.zclip_steps(norm)[[10, 300]].any()
    assert not spikes.zclip_steps(np.ones(100)).any() and not spikes.zclip_steps(noisy(25)).any()


def test_zclip_flags_a_high_plateau_for_ever_and_accepts_a_low_one():
    """A value beyond 6.25 s is fed on as less than one s: s shrinks, and the plateau looks ever farther away."""
    norm = noisy(2000)
    after = np.arange(2000) >= 400
    assert spikes.zclip_steps(norm + 1.0 * after)[400:].all()
    low = spikes.zclip_steps(norm + 0.3 * after)
    assert low[400:420].any() and low[600:].mean() < 0.02


@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0**-8, 2.0**9]))
def test_zclip_does_not_depend_on_the_unit_without_epsilon(seed, scale):
    norm = np.random.default_rng(seed).exponential(1, 200)
    found = spikes.zclip_steps(norm, epsilon=1e-300)
    np.testing.assert_array_equal(found, spikes.zclip_steps(scale * norm, epsilon=1e-300))


def test_spam_is_fifty_times_the_mean_of_the_whole_run():
    norms = np.ones((101, 2))
    norms[30] = [99.0, 101.0]  # 99 / 1.970 = 50.2 and 101 / 1.990 = 50.8
    assert spikes.spam_steps(norms).nonzero()[0].tolist() == [30, 30]
    norms[30, 0] = 97.0  # 97 / 1.950 = 49.7
    assert spikes.spam_steps(norms).sum(axis=0).tolist() == [0, 1]
    assert not spikes.spam_steps(np.r_[np.zeros(49), 1e9]).any()  # the mean holds the spike: 50 steps cannot
    assert spikes.spam_steps(np.r_[np.zeros(50), -1e9])[-1]
    assert not spikes.spam_steps(np.zeros(5)).any()
    assert spikes.spam_steps(np.array([1.0, np.inf, np.nan])).tolist() == [False, True, True]


@given(st.lists(ROUGH, min_size=1, max_size=40), st.integers(0, 6), st.booleans(), st.integers(0, 5))
def test_rolling_median_by_its_definition(values, half, centred, warm_up):
    series, length = np.array(values), 2 * half + 1
    found = spikes.rolling_median_steps(series, length, 0.1, centred, warm_up)
    for step, value in enumerate(series):
        first, stop = (step - half, step + half + 1) if centred else (step - length + 1, step + 1)
        known = series[max(first, 0) : stop]
        expected = (
            step >= warm_up and value > np.median(known[np.isfinite(known)]) + 0.1 if np.isfinite(value) else True
        )
        assert found[step] == expected


def test_a_centred_median_takes_a_steep_start_for_spikes():
    loss = np.r_[np.linspace(10, 4, 60), np.full(300, 4.0)]
    assert not spikes.rolling_median_steps(loss, warm_up=0).any()
    assert spikes.rolling_median_steps(loss, warm_up=0, centred=True)[:50].all()


def test_events_are_merged_within_ten_steps():
    steps = np.zeros(100, dtype=bool)
    steps[[10, 15, 24, 40, 49, 59]] = True
    assert spikes.spike_count(steps) == 3  # 10 15 24 | 40 49 | 59, ten later
    assert spikes.event_bounds(steps).tolist() == [[10, 24], [40, 49], [59, 59]]
    assert spikes.spike_count(np.zeros(5, dtype=bool)) == 0


def test_an_events_height_and_recovery():
    """Level 2 with noise 0.1 / 0.6745: up to 5 two steps after the flagged one, below 2.148 six steps after it."""
    series = np.tile([1.9, 2.0, 2.1], 40)
    series[60:67] = [4.0, 4.5, 5.0, 4.0, 3.0, 2.5, 2.14]
    flagged = np.arange(120) == 60
    (event,) = spikes.spike_events(series, flagged, before=30).itertuples(index=False)
    assert (event.start, event.end, event.steps_left, event.diverged) == (60, 60, 60, False)
    assert (event.level, event.height, event.recovery) == pytest.approx((2.0, 3.0, 6))
    assert spikes.spike_events(series, flagged, before=30, margin=0.9).recovery.item() == 7  # 2.133
    assert spikes.spike_events(series, flagged, before=1).level.item() == series[59]
    raised = spikes.spike_events(10 * series + 5, flagged, before=30)
    assert (raised.level.item(), raised.height.item(), raised.recovery.item()) == pytest.approx((25, 30, 6))


def test_recovery_waits_for_the_events_last_spike():
    series = np.full(100, 2.0)
    series[[50, 51, 56, 57]] = 3.0
    assert spikes.spike_events(series, series > 2).recovery.item() == 8


def test_an_event_that_never_recovers_is_a_divergence():
    series = np.full(100, 2.0)
    series[50:] = 3.0
    flagged = np.arange(100) == 50
    (event,) = spikes.spike_events(series, flagged).itertuples(index=False)
    assert event.diverged and np.isnan(event.recovery) and event.height == 1.0 and event.steps_left == 50
    series[80:] = np.nan
    assert spikes.spike_events(series, flagged).height.item() == np.inf
    first_step = spikes.spike_events(np.full(5, np.nan), np.ones(5, dtype=bool))
    assert first_step.diverged.item() and np.isnan(first_step.level.item())


def test_an_event_ends_where_the_next_begins():
    """Two spikes 20 steps apart, the first without a return in between: its height is not the second's."""
    series = np.r_[np.full(50, 2.0), np.full(20, 3.0), np.full(5, 9.0), np.full(25, 2.0)]
    flagged = np.isin(np.arange(100), [50, 70])
    events = spikes.spike_events(series, flagged)
    assert events.height.tolist() == [1.0, 7.0] and events.recovery.tolist() == [25.0, 5.0]
    dip = spikes.spike_events(np.r_[np.full(50, 2.0), 1.0, np.full(9, 2.0)], np.arange(60) == 50)
    assert (dip.height.item(), dip.recovery.item()) == (-1.0, 0.0)
    with pytest.raises(ValueError, match="99 steps"):
        spikes.spike_events(series, flagged[1:])


@given(st.lists(ROUGH, max_size=60), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_event_has_one_row_of_one_type(values, apart, seed):
    flagged = np.random.default_rng(seed).random(len(values)) < 0.2
    events = spikes.spike_events(np.array(values), flagged, apart)
    assert len(events) == spikes.spike_count(flagged, apart)
    assert [str(dtype) for dtype in events.dtypes] == ["int64", "int64", *["float64"] * 3, "bool", "int64"]
    assert (events.recovery.dropna() >= (events.end - events.start)[~events.diverged]).all()


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
