"""Densities of real actions against those of `rljax.distributions`, and masses at the bounds."""

import jax.numpy as jnp
import numpy as np
import pytest

from rljax import distributions
from rljax.ope import densities, kernels

LOW, HIGH = np.array([-1.0, -2.0]), np.array([1.0, 4.0])


def made_up(num=50, seed=0):
    rng = np.random.default_rng(seed)
    action = rng.uniform(LOW, HIGH, (num, 2))
    return action, rng.normal(size=(num, 2)), np.exp(rng.normal(size=(num, 2)))


def test_densities_are_those_of_the_policies_that_draw():
    action, mean, scale = made_up()
    base = distributions.Normal(jnp.asarray(mean), jnp.log(jnp.asarray(scale)))
    np.testing.assert_allclose(
        densities.normal(action, mean, scale), base.log_prob(jnp.asarray(action)), rtol=1e-4
    )
    bounds = (jnp.broadcast_to(x, mean.shape) for x in (LOW, HIGH))
    squashed = distributions.TanhNormal(base, *bounds)
    found = densities.squashed_normal(action, mean, scale, LOW, HIGH)
    np.testing.assert_allclose(found, squashed.log_prob(jnp.asarray(action)), rtol=2e-3)


def test_mass_and_density_of_clipped_draws_add_to_1():
    line = np.linspace(-1, 1, 20_001)[1:-1, None]
    one = np.ones_like(line)
    inside = np.exp(densities.clipped_normal(line, 0.7 * one, one, LOW[:1], HIGH[:1]))
    ends = np.array([[-1.0], [1.0]])
    at = densities.clipped_normal(ends, np.full((2, 1), 0.7), np.ones((2, 1)), LOW[:1], HIGH[:1])
    assert inside.sum() * 1e-4 + np.exp(at).sum() == pytest.approx(1.0, abs=1e-4)
    assert np.exp(at[1]) == pytest.approx(0.38209, abs=1e-5)  # 1 - Φ(0.3)


def test_weights_of_clipped_draws_average_1_and_find_the_value():
    """Densities alone would give draws beyond the bounds the weight of the bound, without end."""
    rng = np.random.default_rng(0)
    num = 200_000
    low, high = np.array([-1.0]), np.array([1.0])

    def draw(mean, scale):
        return np.clip(rng.normal(mean, scale, (num, 1)), low, high)

    def ratio(action, of):
        full = (np.full((num, 1), x) for x in of)
        return of and densities.clipped_normal(action, *full, low, high)

    action = draw(0.0, 1.0)
    weight = np.exp(ratio(action, (0.4, 0.8)) - ratio(action, (0.0, 1.0)))
    assert weight.mean() == pytest.approx(1.0, abs=0.01)
    value = (weight * action[:, 0] ** 2).mean()
    assert value == pytest.approx((draw(0.4, 0.8) ** 2).mean(), abs=0.01)


@pytest.mark.parametrize("scale", [1e-6, 1e-30])
def test_a_tiny_deviation_weighs_what_it_does_by_much_and_all_else_by_nothing(scale):
    action, mean = np.array([[0.5], [0.5 + 1e-3], [-0.9]]), np.full((3, 1), 0.5)
    narrow, wide = np.full((3, 1), scale), np.ones((3, 1))
    low, high = LOW[:1], HIGH[:1]
    for density, bounds in (
        (densities.normal, ()),
        (densities.squashed_normal, (low, high)),
        (densities.clipped_normal, (low, high)),
    ):
        center = np.arctanh(mean) if density is densities.squashed_normal else mean
        ratio = density(action, center, narrow, *bounds) - density(action, center, wide, *bounds)
        np.testing.assert_allclose(ratio[0], -np.log(scale), rtol=1e-9)
        np.testing.assert_array_equal(np.exp(ratio[1:]), 0)


def test_a_far_bound_has_a_tiny_mass_not_none():
    far = densities.clipped_normal(
        np.array([[1.0]]), np.array([[-50.0]]), np.ones((1, 1)), LOW[:1], HIGH[:1]
    )
    assert -1310 < far[0] < -1300  # ln Φ(-51) = -1305.4


def test_what_was_clipped_is_found_by_repetition():
    low, high = np.array([0.0]), np.array([1.0])
    once = np.array([[0.0], [0.5], [1.0]])  # a box as wide as the data
    assert not densities.clipped(once, low, high).any()
    twice = np.array([[0.0], [0.5], [1.0], [1.0]])
    np.testing.assert_array_equal(densities.clipped(twice, low, high), [False, False, True, True])


@pytest.mark.parametrize("center", [0.0, 300.0, 3_000.0, -20_000.0])
def test_far_from_0_what_is_rounded_to_a_bound_was_not_clipped(center):
    """Draws as they are kept, in float32, of a squashed policy that goes near the bounds."""
    rng = np.random.default_rng(0)
    low, high = np.array([center - 0.5]), np.array([center + 0.5])
    drawn = rng.normal(1.0, 2.0, (5_000, 1))
    squashed = (low + 0.5 * (np.tanh(drawn) + 1)).astype(np.float32).astype(np.float64)
    if abs(center) > 1_000:
        assert (squashed == high).sum() > 5  # so many by rounding
    assert not densities.clipped(squashed, low, high).any()
    normal = np.clip(center + rng.normal(0.0, 0.3, (5_000, 1)), low, high)
    normal = normal.astype(np.float32).astype(np.float64)
    found = densities.clipped(normal, low, high)
    np.testing.assert_array_equal(found, ((normal == low) | (normal == high))[:, 0])
    assert 0.08 < found.mean() < 0.11  # 2 Φ(-5/3)


def test_what_has_no_bound_is_not_clipped():
    action = np.array([[1e30, 0.0], [-1e30, 0.0]])
    ends = np.array([-np.inf, -np.inf]), np.array([np.inf, 0.0])
    np.testing.assert_array_equal(densities.clipped(action, *ends), [True, True])
    np.testing.assert_array_equal(densities.clipped(action[:, :1], ends[0][:1], ends[1][:1]), False)


def test_the_mass_of_a_kernel_within_the_box():
    found = densities.log_mass_within(
        np.array([[1.0, 1.0]]), np.array([0.1, 0.1]), np.array([-9.0, -9.0]), np.array([1.0, 9.0])
    )
    assert np.exp(found[0]) == pytest.approx(0.5)  # half of the first, all of the second


def test_slope_takes_the_last_estimate_that_agrees_with_all_before():
    assert kernels.slope([0.0, 0.5, 1.0, 5.0], [1.0, 0.5, 0.25, 0.1]) == 2
    # 1.4 ± 0.2 meets the interval before it, 1 ± 1, but not the first one's, which ends at 1
    assert kernels.slope([0.0, 1.0, 1.4], [0.5, 0.5, 0.1]) == 1
    assert kernels.slope([0.0, 7.0], [np.inf, 0.1]) == 1
    assert kernels.slope([0.0, 7.0, 0.0], [0.1, 0.1, 9.0]) == 0
