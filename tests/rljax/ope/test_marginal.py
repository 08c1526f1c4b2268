"""Marginalized importance sampling: by hand, against loops, and where it must be PDIS."""

import numpy as np
import pytest

from rljax.ope import importance, intervals, marginal, weighted
from rljax.ope.trajectories import Trajectories, from_episodes


def test_states_that_episodes_share_by_hand():
    # Two episodes 0 → 2; w = 2, 0 first, then both are in state 2 with w = 1, 3 and r = 1, 5.
    # d_1(2) = (2 + 0)/2 = 1; r_1(2) = (1·1 + 3·5)/2 = 8. PDIS would say (2·1·1 + 0)/2 = 1.
    logged = from_episodes(
        [np.array([0.0, 1.0]), np.array([0.0, 5.0])],
        [np.array([np.log(2.0), 0.0]), np.array([-np.inf, np.log(3.0)])],
        0.5,
    )
    state = np.array([[0, 2], [0, 2]])
    assert marginal.marginal_importance_sampling(logged, state) == pytest.approx(4.0)
    assert weighted.estimate(importance.per_decision(logged)) == pytest.approx(0.5)


def random_log(seed, num=30, horizon=5, states=3):
    rng = np.random.default_rng(seed)
    valid = np.arange(horizon)[None] < rng.integers(1, horizon + 1, size=num)[:, None]
    valid[0] = True
    reward, log_ratio = rng.normal(size=(2, num, horizon))
    last_value = rng.normal(size=num)
    logged = Trajectories(reward, log_ratio, valid, 0.9, last_value=last_value)
    return logged, rng.integers(states, size=(num, horizon))


def loop(logged, state, counts, states=3):
    num, horizon = state.shape
    value, density = 0.0, np.zeros(states)
    for i in range(num):
        density[state[i, 0]] += counts[i] / counts.sum()
    for t in range(horizon):
        seen, paid, moved = np.zeros(states), np.zeros(states), np.zeros((states, states))
        for i in range(num):
            if not logged.valid[i, t]:
                continue
            s, weight = state[i, t], np.exp(logged.log_ratio[i, t])
            is_last = t == horizon - 1 or not logged.valid[i, t + 1]
            reward = logged.reward[i, t] + is_last * logged.discount * logged.last_value[i]
            seen[s] += counts[i]
            paid[s] += counts[i] * weight * reward
            if not is_last:
                moved[s, state[i, t + 1]] += counts[i] * weight
        seen = np.maximum(seen, 1)
        value += logged.discount**t * (density * paid / seen).sum()
        density = (density / seen) @ moved
    return value


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_the_recursion_over_states(seed):
    logged, state = random_log(seed)
    found = marginal.marginal_importance_sampling(logged, state)
    assert found == pytest.approx(loop(logged, state, np.ones(30)), rel=1e-9)
    counts = weighted.resample_counts(30, 5, np.random.default_rng(seed))
    expected = [loop(logged, state, count) for count in counts]
    np.testing.assert_allclose(marginal.resampled(logged, state, counts), expected, rtol=1e-9)


def test_where_no_state_is_shared_it_is_pdis():
    logged, state = random_log(0)
    state = np.arange(30)[:, None] * np.ones((1, 5), int)
    expected = weighted.estimate(importance.per_decision(logged))
    found = marginal.marginal_importance_sampling(logged, state)
    assert found == pytest.approx(expected, rel=1e-9)


def test_long_horizons_with_shared_states_keep_most_of_the_log():
    """A chain whose actions do not matter: after 100 factors of ½ or 1½ IS has nothing left."""
    rng = np.random.default_rng(0)
    num, horizon = 1000, 100
    ratio = np.log(np.where(rng.random((num, horizon)) < 0.5, 0.5, 1.5))
    logged = Trajectories(np.ones_like(ratio), ratio, np.ones(ratio.shape, bool), 1.0)
    state = np.zeros((num, horizon), int)
    low, high = intervals.bootstrap_of(
        lambda counts: marginal.resampled(logged, state, counts), num, resamples=100
    )
    assert low <= horizon <= high
    assert high - low < 0.5 * horizon
    plain = weighted.estimate(importance.per_decision(logged))
    ours = marginal.marginal_importance_sampling(logged, state)
    assert abs(ours - horizon) < 0.2 * abs(plain - horizon)


def test_states_are_counted_from_0():
    logged, state = random_log(0)
    with pytest.raises(ValueError, match="numbered from 0"):
        marginal.marginal_importance_sampling(logged, state - 1)
