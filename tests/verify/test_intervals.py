"""Intervals, effects, tests and corrections against closed forms, published numbers and counting."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from verify.measurement.compare import root_mean_square_interval
from verify.statistics import corrections, intervals
from verify.statistics.intervals import Estimate

SAMPLE = arrays.arrays(float, st.integers(2, 6), elements=st.integers(-4, 4).map(float))


def test_bootstrap_covers_the_mean():
    draws = np.random.default_rng(0).standard_normal((200, 12))
    covered = sum(low < 0 < high for low, high in map(intervals.bootstrap_interval, draws))
    assert 165 < covered <= 200  # 95 % nominal, about 91 % for 12 values
    assert np.all(np.isnan(intervals.bootstrap_interval(np.array([1.0]))))
    assert intervals.bootstrap_interval(np.ones(5)) == (1.0, 1.0)


def test_clopper_pearson():
    assert intervals.proportion_interval(0, 10) == pytest.approx((0, 1 - 0.025 ** (1 / 10)))
    assert intervals.proportion_interval(0, 0) == (0, 1)


def test_wilson():
    """Centre and half width by the formula, z = 1.96, 3 of 10."""
    z = 1.959964
    centre, half = (0.3 + z**2 / 20) / (1 + z**2 / 10), z * np.sqrt(0.3 * 0.7 / 10 + z**2 / 400) / (1 + z**2 / 10)
    wilson = intervals.proportion_interval(3, 10, method="wilson")
    assert wilson == pytest.approx((centre - half, centre + half), rel=1e-5)
    exact = intervals.proportion_interval(3, 10)
    assert exact[0] < wilson[0] and wilson[1] < exact[1]


def test_difference_of_means_covers():
    """95 % nominal; 10 against 10 and 3 against 3, with unequal spread."""
    rng = np.random.default_rng(0)
    for size in (3, 10):
        pairs = [(rng.standard_normal(size) + 1, 3 * rng.standard_normal(size)) for _ in range(600)]
        found = [intervals.difference_of_means(*pair) for pair in pairs]
        assert 0.93 <= np.mean([one.low <= 1 <= one.high for one in found]) < 0.99
    assert all(one.value == first.mean() - second.mean() for one, (first, second) in zip(found, pairs, strict=True))


@settings(max_examples=25)
@given(SAMPLE, SAMPLE)
def test_difference_of_means_has_the_sign_and_the_unit_of_its_arguments(first, second):
    found = intervals.difference_of_means(first, second)
    assert found.low <= found.value + 1e-12 and found.value <= found.high + 1e-12
    scaled = intervals.difference_of_means(4 * first + 8, 4 * second + 8)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((4 * found.value, 4 * found.low, 4 * found.high))


def test_welch_is_scipys():
    first, second = np.random.default_rng(0).standard_normal((2, 7)) * [[1], [5]]
    expected = stats.ttest_ind(first, second[:4], equal_var=False).confidence_interval(0.9)
    found = intervals.difference_of_means(first, second[:4], 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_difference_of_means_of_few_values():
    found = intervals.difference_of_means(np.array([3.0]), np.array([1.0, 2.0]))
    assert found.value == 1.5 and np.isnan(found.low) and np.isnan(found.high)
    assert intervals.difference_of_means(np.ones(3), np.zeros(3)) == Estimate(1.0, 1.0, 1.0)
    for bad in (np.array([1.0, np.inf]), np.array([np.nan, 1.0]), np.array([])):
        for call in (intervals.difference_of_means, intervals.permutation_p, intervals.paired_permutation_p):
            with pytest.raises(ValueError, match="finite"):
                call(bad, np.ones(2))


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((56, 70, 48, 80), 0.0524, 0.3339), ((9, 10, 3, 10), 0.1705, 0.8090), ((10, 10, 0, 10), 0.6075, 1.0)],
)
def test_difference_of_proportions_is_newcombes(counts, low, high):
    """Table II of Newcombe 1998 (Statistics in Medicine 17, 873), method 10."""
    found = intervals.difference_of_proportions(*counts)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    turned = intervals.difference_of_proportions(*counts[2:], *counts[:2])
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_difference_of_proportions_covers():
    rng = np.random.default_rng(0)
    covered = 0
    for first, second in rng.binomial(8, [0.7, 0.3], (300, 2)):
        found = intervals.difference_of_proportions(int(first), 8, int(second), 8)
        covered += found.low <= 0.4 <= found.high
    assert covered >= 0.90 * 300
    with pytest.raises(ValueError, match="trials"):
        intervals.difference_of_proportions(0, 0, 1, 2)


def test_ratio_of_rates_covers():
    """Events cluster in runs, and runs differ in exposure: 90 % intervals hold the true ratio in 90 % of trials."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        counts, steps = [], []
        for rate in (0.02, 0.01):
            exposure = rng.integers(0, 1000, 20)
            counts.append(rng.poisson(rate * exposure * rng.gamma(4, 1 / 4, 20)))
            steps.append(exposure)
        found = intervals.ratio_of_rates(counts[0], steps[0], counts[1], steps[1], level=0.9)
        held += found.low <= 2 <= found.high
    assert 0.83 <= held / 200 <= 0.97


def test_ratio_of_rates_of_known_numbers():
    found = intervals.ratio_of_rates(np.array([2, 0, 4]), np.array([100, 0, 200]), np.array([1, 1]), np.array([50, 50]))
    assert found.value == pytest.approx(1)
    assert np.isnan(found.low)  # one resample is the run without exposure alone
    equal = intervals.ratio_of_rates(np.array([3, 6]), np.array([10, 20]), np.array([1, 2]), np.array([10, 20]))
    assert (equal.value, equal.low, equal.high) == pytest.approx((3, 3, 3))
    none = intervals.ratio_of_rates(np.array([3, 6]), np.array([10, 20]), np.array([0, 0]), np.array([10, 20]))
    assert none == Estimate(np.inf, np.inf, np.inf)
    one = intervals.ratio_of_rates(np.array([3]), np.array([10]), np.array([1, 2]), np.array([10, 20]))
    assert one.value == pytest.approx(3) and np.isnan(one.high)


@pytest.mark.parametrize(
    "events, exposure", [([1], [1, 2]), ([-1, 2], [1, 2]), ([1, 2], [0, 0]), ([1, np.nan], [1, 2])]
)
def test_ratio_of_rates_refuses(events, exposure):
    with pytest.raises(ValueError, match=r"exposure|finite"):
        intervals.ratio_of_rates(np.array(events), np.array(exposure), np.array([1, 2]), np.array([10, 20]))


@settings(max_examples=25)
@given(SAMPLE, SAMPLE)
def test_common_language_effect_counts_pairs(first, second):
    found = intervals.common_language_effect(first, second)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(first, second)]
    assert found.value == pytest.approx(np.mean(pairs)) and 0 <= found.low <= found.high <= 1
    statistic = stats.mannwhitneyu(first, second, method="exact").statistic
    assert found.value == pytest.approx(statistic / (len(first) * len(second)))
    assert intervals.common_language_effect(np.exp(first), np.exp(second)) == found  # ranks alone


def test_common_language_effect_ranks_diverged_runs_last_and_covers():
    found = intervals.common_language_effect(np.array([3.0, np.inf]), np.array([2.0, np.inf]))
    assert found.value == (1 + 0 + 1 + 0.5) / 4
    assert np.isnan(intervals.common_language_effect(np.array([1.0]), np.ones(2)).low)
    with pytest.raises(ValueError, match="nan"):
        intervals.common_language_effect(np.array([1.0, np.nan]), np.ones(2))
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    pairs = [(rng.standard_normal(15) + 1, rng.standard_normal(15)) for _ in range(100)]
    draws = [intervals.common_language_effect(*pair) for pair in pairs]
    assert np.mean([one.low <= truth <= one.high for one in draws]) >= 0.88


def test_permutation_p_of_separated_samples():
    assert intervals.permutation_p(np.array([4.0, 5, 6]), np.array([1.0, 2, 3])) == pytest.approx(1 / 20)
    assert intervals.permutation_p(np.array([1.0, 2, 3]), np.array([4.0, 5, 6])) == pytest.approx(1.0)


@given(arrays.arrays(float, st.integers(2, 7), elements=st.integers(-4, 4).map(float)))
def test_paired_permutation_counts_sign_flips(differences):
    flips = itertools.product([-1, 1], repeat=len(differences))
    expected = np.mean([np.dot(flip, differences) >= differences.sum() for flip in flips])
    base = np.arange(len(differences))
    assert intervals.paired_permutation_p(base + differences, base) == pytest.approx(expected)


def test_pairing_finds_what_seeds_hide():
    """The seeds differ by 10, the schemes by 1."""
    seeds = 10.0 * np.arange(5)
    assert intervals.paired_permutation_p(seeds + 1, seeds) == pytest.approx(1 / 32)
    assert intervals.permutation_p(seeds + 1, seeds) > 0.4
    many = intervals.paired_permutation_p(np.ones(16), np.zeros(16))  # 2^16 flips: drawn, not counted
    assert 1 / 20_001 <= many < 5e-4
    with pytest.raises(ValueError, match="one value a seed"):
        intervals.paired_permutation_p(np.ones(3), np.ones(2))


def test_tests_keep_their_level():
    """Of 200 equal samples about 5 % have p <= 0.05, within three standard errors; of counts fewer: they are coarse."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((200, 2, 6))
    for test in (intervals.permutation_p, intervals.paired_permutation_p):
        assert abs(np.mean([test(first, second) <= 0.05 for first, second in draws]) - 0.05) < 0.046
    counts = rng.binomial(8, 0.5, (400, 2))
    assert np.mean([intervals.fisher_p(int(a), 8, int(b), 8) <= 0.05 for a, b in counts]) < 0.05


def test_fisher():
    assert intervals.fisher_p(3, 3, 0, 3) == pytest.approx(1 / 20)
    assert intervals.fisher_p(0, 3, 3, 3) == pytest.approx(1)
    assert intervals.fisher_p(3, 4, 1, 4) == pytest.approx(17 / 70)  # the lady who tastes tea
    assert intervals.fisher_p(0, 0, 1, 2) == 1
    with pytest.raises(ValueError):
        intervals.fisher_p(4, 3, 0, 3)


def test_holm():
    np.testing.assert_allclose(corrections.holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(corrections.holm(np.array([0.9, 0.8])), [1.0, 1.0])


def test_benjamini_hochberg():
    """p m / rank, from the largest downwards the smallest so far."""
    found = corrections.benjamini_hochberg(np.array([0.04, 0.01, 0.03, 0.5]))
    np.testing.assert_allclose(found, [0.16 / 3, 0.04, 0.16 / 3, 0.5])


@given(st.lists(st.floats(0, 1), max_size=8), st.randoms())
def test_corrections_keep_the_order_and_holm_is_the_stricter(values, random):
    p_values, order = np.array(values), list(range(len(values)))
    random.shuffle(order)
    for correct in (corrections.holm, corrections.benjamini_hochberg):
        corrected = correct(p_values)
        assert np.all((corrected >= p_values - 1e-15) & (corrected <= 1))
        np.testing.assert_array_equal(correct(p_values[order]), corrected[order])
        assert np.all(np.diff(corrected[np.argsort(p_values)]) >= 0)
    assert np.all(corrections.holm(p_values) >= corrections.benjamini_hochberg(p_values) - 1e-15)
    assert np.all(corrections.holm(p_values) <= np.minimum(len(values) * p_values, 1))  # Bonferroni's


def test_corrections_refuse_what_is_no_p_value():
    for correct in (corrections.holm, corrections.benjamini_hochberg):
        for bad in ([0.1, np.nan], [1.1], [-0.1]):
            with pytest.raises(ValueError):
                correct(np.array(bad))


def test_root_mean_square_interval_covers():
    rng = np.random.default_rng(0)
    draws = np.exp(0.1 * rng.standard_normal((8, 2000)))  # 8 seeds, 2,000 repetitions
    low, middle, high = root_mean_square_interval(draws)
    truth = np.exp(0.01)
    assert 0.92 < np.mean((low < truth) & (truth < high)) < 0.97
    np.testing.assert_allclose(middle, np.sqrt(np.mean(draws**2, axis=0)))
    assert np.all(np.isnan(root_mean_square_interval(draws[:1])[0]))
