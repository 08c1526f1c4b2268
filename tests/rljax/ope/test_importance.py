"""Importance sampling by hand, against loops, and where products leave the range of numbers."""

import numpy as np
import pytest

from rljax.ope import importance, weighted
from rljax.ope.trajectories import from_episodes

# Episode 0: w = 2, ½ (ρ = 2, 1), r = 1, 2. Episode 1: w = 4 (ρ = 4, stays 4), r = 3. γ = ½.
HAND = from_episodes(
    [np.array([1.0, 2.0]), np.array([3.0])], [np.log([2.0, 0.5]), np.log([4.0])], 0.5
)
ALL = [
    importance.importance_sampling,
    importance.weighted_importance_sampling,
    importance.per_decision,
    importance.weighted_per_decision,
]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (importance.importance_sampling, 7.0),  # (1·(1 + ½·2) + 4·3) / 2
        (importance.weighted_importance_sampling, 14 / 5),  # the same sum over 1 + 4
        (importance.per_decision, 7.5),  # (2·1 + ½·1·2 + 4·3) / 2
        # (2·1 + 4·3) / 6 + ½·(1·2 + 4·0) / 5; dropping the ended episode would give 14/6 + ½·2
        (importance.weighted_per_decision, 14 / 6 + 0.5 * 2 / 5),
    ],
)
def test_estimators_by_hand(estimator, expected):
    means = estimator(HAND)
    assert weighted.estimate(means) == pytest.approx(expected, rel=1e-12)
    assert weighted.contributions(means).mean() == pytest.approx(expected, rel=1e-12)


def random_episodes(seed, num=7, horizon=5, discount=0.9):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, horizon + 1, size=num)
    reward = [rng.normal(size=length) for length in lengths]
    ratio = [np.log(rng.uniform(0.2, 3.0, size=length)) for length in lengths]
    last_value = rng.normal(size=num)
    return reward, ratio, discount, last_value


def loops(reward, log_ratio, discount, last_value):
    """The four estimators with one loop per sum, from products of ratios."""
    num, horizon = len(reward), max(map(len, reward))
    rho = np.ones((num, horizon))
    paid = np.zeros((num, horizon))
    for i in range(num):
        product = 1.0
        for t in range(horizon):
            if t < len(reward[i]):
                product *= np.exp(log_ratio[i][t])
                paid[i, t] = reward[i][t]
            rho[i, t] = product
        paid[i, len(reward[i]) - 1] += discount * last_value[i]
    value = {"is": 0.0, "wis": 0.0, "pdis": 0.0, "wpdis": 0.0}
    for i in range(num):
        total = sum(discount**t * paid[i, t] for t in range(horizon))
        value["is"] += rho[i, -1] * total / num
        value["wis"] += rho[i, -1] * total / rho[:, -1].sum()
        for t in range(horizon):
            value["pdis"] += discount**t * rho[i, t] * paid[i, t] / num
            value["wpdis"] += discount**t * rho[i, t] * paid[i, t] / rho[:, t].sum()
    return list(value.values())


@pytest.mark.parametrize("seed", range(5))
def test_estimators_agree_with_loops_on_episodes_of_unequal_length(seed):
    episodes = random_episodes(seed)
    logged = from_episodes(*episodes[:3], last_value=episodes[3])
    ours = [weighted.estimate(estimator(logged)) for estimator in ALL]
    np.testing.assert_allclose(ours, loops(*episodes), rtol=1e-10)


@pytest.mark.parametrize("estimator", ALL)
def test_the_log_itself_is_the_value_where_the_policies_are_one(estimator):
    reward, ratio, discount, _ = random_episodes(0)
    same = from_episodes(reward, [np.zeros_like(x) for x in ratio], discount)
    expected = np.mean([discount ** np.arange(len(x)) @ x for x in reward])
    assert weighted.estimate(estimator(same)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", [ALL[1], ALL[3]])
def test_a_constant_factor_drops_out_of_estimators_that_divide(estimator):
    reward = [np.array([1.0, 2.0]), np.array([4.0, 0.0])]
    ratio = [np.log([0.3, 2.0]), np.log([1.5, 0.1])]
    scaled = [x + np.log(1e6) for x in ratio]
    expected = weighted.estimate(estimator(from_episodes(reward, ratio, 0.9)))
    found = weighted.estimate(estimator(from_episodes(reward, scaled, 0.9)))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_two_thousand_steps_neither_overflow_nor_underflow(shift):
    # ρ = e^±4000 · (1, 3): as a product 0/0 or inf/inf. WIS = (1·1 + 3·2) / 4.
    ratio = np.full((2, 2000), shift)
    ratio[1, 0] += np.log(3.0)
    reward = np.zeros((2, 2000))
    reward[:, -1] = [1.0, 2.0]
    logged = from_episodes(list(reward), list(ratio), 1.0)
    for estimator in (ALL[1], ALL[3]):
        assert weighted.estimate(estimator(logged)) == pytest.approx(7 / 4, rel=1e-9)
    if shift < 0:
        assert weighted.estimate(ALL[0](logged)) == 0.0
    else:
        for estimator in (ALL[0], ALL[2]):
            with pytest.raises(ValueError, match=r"a product of ratios, e\^4001, is too large"):
                estimator(logged)


def test_no_overlap_is_refused_where_it_would_be_0_over_0():
    logged = from_episodes([np.ones(2)] * 3, [np.full(2, -np.inf)] * 3, 0.9)
    assert weighted.estimate(importance.importance_sampling(logged)) == 0.0
    assert weighted.estimate(importance.per_decision(logged)) == 0.0
    for estimator in (ALL[1], ALL[3]):
        with pytest.raises(ValueError, match="no weight is above 0"):
            weighted.estimate(estimator(logged))


def test_an_action_that_the_policy_never_takes_takes_its_episode_out():
    logged = from_episodes(
        [np.array([5.0, 7.0]), np.array([1.0, 1.0])],
        [np.array([0.0, -np.inf]), np.zeros(2)],
        1.0,
    )
    assert weighted.estimate(ALL[1](logged)) == 2.0  # the second episode alone
    assert weighted.estimate(ALL[2](logged)) == 3.5  # (5 + 0 + 1 + 1) / 2
