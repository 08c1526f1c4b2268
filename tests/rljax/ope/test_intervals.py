"""Intervals: formulas by hand, coverage, speed."""

import functools
import time

import numpy as np
import pytest
from scipy import stats

from rljax.ope import intervals, weighted
from rljax.ope.weighted import WeightedMeans, plain

VALUES = plain(np.array([0.0, 1.0, 1.0, 0.0, 1.0]))  # mean 0.6, s² = 0.3 (ddof 1), n = 5


def test_student_t_by_hand():
    # 0.6 ± 2.776 · √(0.3 / 5): the quantile of 4 degrees of freedom at 97.5 %, both sides
    low, high = intervals.student_t(VALUES)
    assert low == pytest.approx(0.6 - 2.7764451 * np.sqrt(0.06), rel=1e-7)
    assert high == pytest.approx(0.6 + 2.7764451 * np.sqrt(0.06), rel=1e-7)
    reference = stats.t.interval(0.9, 4, 0.6, np.sqrt(0.06))
    np.testing.assert_allclose(intervals.student_t(VALUES, confidence=0.9), reference, rtol=1e-9)


def test_hoeffding_by_hand():
    # 4·√(ln(2/0.05) / 10): a range of 4 from -1 to 3
    half = 4 * np.sqrt(np.log(40) / 10)
    np.testing.assert_allclose(
        intervals.hoeffding(VALUES, -1.0, 3.0), [0.6 - half, 0.6 + half], rtol=1e-9
    )
    many = plain(np.tile([0.0, 1.0], 5000))
    low, high = intervals.hoeffding(many, 0.0, 1.0)
    assert high - low == pytest.approx(2 * 0.0135810, rel=1e-5)  # not n times that


def test_empirical_bernstein_by_hand():
    log = np.log(2 / 0.025)  # δ = 2.5 % for each side
    half = np.sqrt(2 * 0.3 * log / 5) + 7 * 4 * log / (3 * 4)
    np.testing.assert_allclose(
        intervals.empirical_bernstein(VALUES, -1.0, 3.0), [0.6 - half, 0.6 + half], rtol=1e-9
    )


def test_bounds_refuse_what_they_do_not_hold_for():
    for bound in (intervals.hoeffding, intervals.empirical_bernstein):
        with pytest.raises(ValueError, match=r"reach from 0 to 1, beyond .* 0 to 0\.5"):
            bound(VALUES, 0.0, 0.5)
        with pytest.raises(ValueError, match="beyond the stated range"):
            bound(VALUES, 0.5, 1.0)
        with pytest.raises(ValueError, match="not for estimators that divide"):
            bound(WeightedMeans(np.ones((3, 1)), np.zeros((3, 1))), 0.0, 1.0)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_is_a_fraction(confidence):
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        intervals.student_t(VALUES, confidence=confidence)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        intervals.bootstrap(VALUES, confidence=confidence)


def test_there_is_a_resample_at_least():
    with pytest.raises(ValueError, match="one resample at least, not 0"):
        intervals.bootstrap(VALUES, resamples=0)


def test_one_trajectory_has_no_interval():
    one = plain(np.ones(1))
    assert intervals.bootstrap(one) is None
    assert intervals.student_t(one) is None
    assert intervals.hoeffding(one, 0.0, 1.0) is None
    assert intervals.empirical_bernstein(one, 0.0, 1.0) is None


def test_equal_values_leave_a_width_to_bounds_only():
    same = plain(np.ones(4))
    assert intervals.bootstrap(same) == (1.0, 1.0)
    assert intervals.student_t(same) == (1.0, 1.0)
    low, high = intervals.empirical_bernstein(same, 0.0, 1.0)
    assert low < 1.0 < high


def test_the_bootstrap_draws_trajectories_and_divides_by_what_it_drew():
    rng = np.random.default_rng(3)
    means = WeightedMeans(rng.normal(size=(40, 1)), rng.normal(size=(40, 1)))
    weight = np.exp(means.log_weight[:, 0])
    drawn = rng.integers(40, size=(20000, 40))
    value = (weight[drawn] * means.value[drawn, 0]).sum(1) / weight[drawn].sum(1)
    found = intervals.bootstrap(means, resamples=20000, seed=1)
    np.testing.assert_allclose(found, np.quantile(value, [0.025, 0.975]), atol=0.02)
    fixed = 40 * weight / weight.sum() * means.value[:, 0]  # obp's way: a different interval
    wrong = np.quantile(fixed[drawn].mean(1), [0.025, 0.975])
    assert np.abs(wrong - found).max() > 0.04


def test_estimates_that_share_resamples_have_the_intervals_that_each_has_alone():
    rng = np.random.default_rng(3)
    weighted_means = WeightedMeans(rng.normal(size=(5_000, 2)), rng.normal(size=(5_000, 2)))
    both = [plain(rng.normal(size=5_000)), weighted_means]  # 500 resamples: two chunks of draws
    estimates = [functools.partial(weighted.resampled, means) for means in both]
    found = intervals.bootstrap_each(estimates, 5_000, resamples=500, seed=4)
    assert found == [intervals.bootstrap(means, resamples=500, seed=4) for means in both]
    assert found[0] != found[1]
    assert intervals.bootstrap_each(estimates, 1) == [None, None]
    assert intervals.bootstrap_each([], 5_000) == []


def test_seeds_decide_the_bootstrap():
    assert intervals.bootstrap(VALUES, seed=1) == intervals.bootstrap(VALUES, seed=1)
    rng = np.random.default_rng(0)
    many = plain(rng.normal(size=100))
    assert intervals.bootstrap(many, seed=1) != intervals.bootstrap(many, seed=2)


def test_resamples_without_weight_leave_no_interval_if_they_are_many():
    log_weight = np.full((20, 1), -np.inf)
    log_weight[0] = 0.0  # (1 - 1/20)^20 = 36 % of the resamples do not draw it
    assert intervals.bootstrap(WeightedMeans(np.ones((20, 1)), log_weight)) is None
    log_weight[:10] = 0.0  # 2^-20
    assert intervals.bootstrap(WeightedMeans(np.ones((20, 1)), log_weight)) == (1.0, 1.0)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = {"bootstrap": 0, "t": 0, "bernstein": 0, "hoeffding": 0}
    for _ in range(300):
        means = plain(rng.beta(2.0, 5.0, size=60))
        found = {
            "bootstrap": intervals.bootstrap(means, resamples=300),
            "t": intervals.student_t(means),
            "bernstein": intervals.empirical_bernstein(means, 0.0, 1.0),
            "hoeffding": intervals.hoeffding(means, 0.0, 1.0),
        }
        for name, (low, high) in found.items():
            covered[name] += low <= 2 / 7 <= high
    deviation = np.sqrt(0.95 * 0.05 / 300)
    for name in ("bootstrap", "t"):
        assert abs(covered[name] / 300 - 0.95) <= 3.5 * deviation, covered
    assert covered["bernstein"] == covered["hoeffding"] == 300  # they hold, and are wide


def test_the_student_interval_of_a_ratio_is_that_of_the_bootstrap_for_many():
    rng = np.random.default_rng(0)
    means = WeightedMeans(rng.normal(size=(4000, 1)), 0.3 * rng.normal(size=(4000, 1)))
    found = np.array(intervals.student_t(means)) - weighted.estimate(means)
    expected = np.array(intervals.bootstrap(means, resamples=4000)) - weighted.estimate(means)
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_a_thousand_resamples_of_ten_thousand_events_take_no_time():
    rng = np.random.default_rng(0)
    means = WeightedMeans(rng.random((10_000, 1)), rng.normal(size=(10_000, 1)))
    start = time.process_time()
    intervals.bootstrap(means)
    assert time.process_time() - start < 2.0
