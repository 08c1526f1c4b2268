"""Kernel weights for continuous actions: normalized in every dimension."""

import numpy as np
import pytest

from rljax.ope import bandit, kernels, weighted
from rljax.ope.bandit import Events

KERNELS = [kernels.gaussian, kernels.epanechnikov, kernels.uniform]


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_densities_around_0(kernel):
    line = np.linspace(-8, 8, 160_001)
    density = np.exp(kernel(line))
    assert density.sum() * 1e-4 == pytest.approx(1.0, abs=2e-4)
    assert (line * density).sum() * 1e-4 == pytest.approx(0.0, abs=1e-9)


def test_a_weight_by_hand():
    # distances 1 and ½ in units of h = 2 and 4: φ(1)/2 · φ(½)/4 over b = 0.1
    found = kernels.log_ratio(
        np.array([[2.0, 2.0]]), np.array([[0.0, 0.0]]), np.log([0.1]), np.array([2.0, 4.0])
    )
    expected = np.exp(-0.5) * np.exp(-0.125) / (2 * np.pi) / 8 / 0.1
    np.testing.assert_allclose(np.exp(found), [expected], rtol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dimension", [1, 3])
def test_weights_average_1_in_every_dimension(kernel, dimension):
    rng = np.random.default_rng(0)
    num, half = 100_000, 3.0
    action = rng.uniform(-half, half, size=(num, dimension))
    log_density = np.full(num, -dimension * np.log(2 * half))
    target = rng.uniform(-0.5, 0.5, size=(num, dimension))  # no kernel reaches over the border
    bandwidth = np.full(dimension, 0.6)
    weight = np.exp(kernels.log_ratio(target, action, log_density, bandwidth, kernel))
    assert weight.mean() == pytest.approx(1.0, abs=4 * weight.std() / np.sqrt(num) + 1e-4)
    assert 4 * weight.std() / np.sqrt(num) < 0.2  # h¹ for h³ would miss by a factor of 0.36


def test_the_value_of_a_policy_by_its_actions_neighbors():
    rng = np.random.default_rng(1)
    num = 200_000
    action = rng.normal(size=(num, 1))
    reward = -((action[:, 0] - 0.5) ** 2)
    log_density = kernels.gaussian(action[:, 0])
    target = np.full((num, 1), 0.5)
    for bandwidth in (0.1, 0.3):
        ratio = kernels.log_ratio(target, action, log_density, np.array([bandwidth]))
        value = weighted.estimate(bandit.ipw(Events(reward, ratio)))
        assert value == pytest.approx(-(bandwidth**2), rel=0.05)  # the kernel's own variance


def test_a_tiny_bandwidth_far_from_the_log_is_0_not_nan():
    far = kernels.log_ratio(
        np.array([[1e3], [0.0]]), np.zeros((2, 1)), np.zeros(2), np.array([1e-3])
    )
    np.testing.assert_allclose(np.exp(far), [0.0, 1e3 / np.sqrt(2 * np.pi)])


def test_bandwidths_are_positive():
    with pytest.raises(ValueError, match=r"must be positive, not \[0\.0\]"):
        kernels.log_ratio(np.ones((2, 1)), np.ones((2, 1)), np.zeros(2), np.zeros(1))
    rng = np.random.default_rng(0)
    action = rng.normal(size=(1000, 2)) * np.array([[1.0, 5.0]])
    found = kernels.rule_of_thumb(action)
    np.testing.assert_allclose(found, action.std(axis=0) * 1000 ** (-1 / 6))
    with pytest.raises(ValueError, match="agree in dimension 1"):
        kernels.rule_of_thumb(np.array([[0.0, 1.0], [2.0, 1.0]]))
