"""Aggregates over tasks and seeds, by hand and at their limits."""

import numpy as np
import pytest

from rljax import reliability

SCORES = np.array([[0.0, 2.0], [1.0, 3.0]])  # two runs of two tasks


def test_normalized_is_0_at_the_floor_and_1_at_the_top():
    floor, top = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    expected = [[0.0, 0.5], [0.5, 1.0]]  # (2 - 1) / (3 - 1), (3 - 1) / (3 - 1)
    np.testing.assert_allclose(reliability.normalized(SCORES, floor, top), expected)
    with pytest.raises(ValueError, match="cannot be normalized"):
        reliability.normalized(SCORES, floor, np.array([2.0, 1.0]))


def test_interquartile_mean_pools_tasks():
    assert reliability.interquartile_mean(SCORES) == 1.5  # the middle half of 0, 1, 2, 3


def test_performance_profile_counts_runs_above():
    profile = reliability.performance_profile(SCORES, np.array([-1.0, 0.0, 1.5, 3.0]))
    np.testing.assert_allclose(profile, [1.0, 0.75, 0.5, 0.0])


def test_probability_of_improvement_by_hand():
    theirs = np.array([[0.0, 9.0], [0.5, 9.0], [2.0, 9.0]])
    # task 1: 0 against 0, 0.5, 2: ½, 0, 0; 1: 1, 1, 0; 2.5 of 6. Task 2: none of 6.
    assert reliability.probability_of_improvement(SCORES, theirs) == pytest.approx(2.5 / 12)
    assert reliability.probability_of_improvement(SCORES, SCORES) == 0.5
    swapped = reliability.probability_of_improvement(theirs, SCORES)
    assert swapped == pytest.approx(1 - 2.5 / 12)


def test_runs_are_resampled_within_their_task():
    apart = np.array([[0.0, 100.0], [1.0, 101.0]])  # a draw over tasks would mix 0 with 100
    low, high = reliability.interval(lambda x: x.mean(axis=0), apart, confidence=1.0)
    assert (low >= [0.0, 100.0]).all()
    assert (high <= [1.0, 101.0]).all()
    assert (high > low).all()


def test_equal_runs_leave_no_doubt():
    low, high = reliability.interval(reliability.interquartile_mean, np.ones((3, 2)))
    assert low == high == 1.0


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = reliability.interval(np.mean, rng.normal(size=(30, 2)), resamples=200)
        covered += low <= 0 <= high
    assert 0.89 <= covered / 200 <= 0.99  # 95 % nominal; ±3 deviations of 200 draws
