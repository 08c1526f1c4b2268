"""Sums of weighted means: resamples are divided by their own weights."""

import numpy as np
import pytest

from rljax.ope import weighted
from rljax.ope.weighted import WeightedMeans


def loop(means, count):
    """One resample, trajectory by trajectory."""
    total = 0.0
    for k in range(means.value.shape[1]):
        above = below = 0.0
        for i, times in enumerate(count):
            weight = 1.0 if means.log_weight is None else np.exp(means.log_weight[i, k])
            above += times * weight * means.value[i, k]
            below += times * weight
        total += above / below
    return total


@pytest.mark.parametrize("divides", [False, True])
def test_resamples_agree_with_loops(divides):
    rng = np.random.default_rng(0)
    means = WeightedMeans(rng.normal(size=(6, 3)), rng.normal(size=(6, 3)) if divides else None)
    counts = weighted.resample_counts(6, 20, rng)
    found = weighted.resampled(means, counts)
    np.testing.assert_allclose(found, [loop(means, count) for count in counts], rtol=1e-10)
    whole = weighted.resampled(means, np.ones((1, 6)))
    np.testing.assert_allclose(whole[0], weighted.estimate(means), rtol=1e-12)


def test_every_trajectory_is_drawn_as_often_as_any_other():
    counts = weighted.resample_counts(5, 4000, np.random.default_rng(0))
    assert (counts.sum(axis=1) == 5).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=5 * np.sqrt(0.8 / 4000))
    np.testing.assert_allclose(counts.var(axis=0), 0.8, rtol=0.15)  # 5 · 1/5 · 4/5


def test_a_resample_without_the_heaviest_weights_keeps_its_digits():
    # without trajectory 0, e^-1000 and e^-1000 · 3 must still share as 1 to 3
    means = WeightedMeans(
        np.array([[5.0], [1.0], [2.0]]), np.array([[0.0], [-1000.0], [-1000.0 + np.log(3.0)]])
    )
    counts = np.array([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    found = weighted.resampled(means, counts)
    np.testing.assert_allclose(found, [(2 * 1 + 3 * 2) / (2 + 3), 5.0], rtol=1e-10)


def test_a_resample_without_any_weight_is_not_a_number():
    means = WeightedMeans(np.ones((2, 1)), np.array([[0.0], [-np.inf]]))
    found = weighted.resampled(means, np.array([[0.0, 2.0], [1.0, 1.0]]))
    np.testing.assert_array_equal(found, [np.nan, 1.0])


def test_contributions_are_the_derivative_of_the_estimate():
    """d/dε of the estimate with weight 1 + ε on one trajectory is (contribution - mean) / E."""
    rng = np.random.default_rng(1)
    means = WeightedMeans(rng.normal(size=(5, 2)), rng.normal(size=(5, 2)))
    step = 1e-6
    counts = np.ones((5, 5)) + step * np.eye(5)
    slope = (weighted.resampled(means, counts) - weighted.estimate(means)) / step
    found = (weighted.contributions(means) - weighted.estimate(means)) / 5
    np.testing.assert_allclose(found, slope, atol=1e-5)


def test_what_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="value to be averaged is infinite or not a number"):
        weighted.plain(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="weight is infinite or not a number"):
        WeightedMeans(np.ones((2, 1)), np.array([[0.0], [np.nan]]))


def test_a_value_of_0_has_no_part_in_any_overflow():
    product = weighted.times_weight(np.array([1e4, 0.0]), np.array([0.0, 3.0]))
    np.testing.assert_array_equal(product, [0.0, 3.0])
