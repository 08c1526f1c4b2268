"""DR, WDR and MAGIC: by hand, against loops over the papers' definitions, and at their limits."""

import numpy as np
import pytest

from rljax.ope import doubly_robust, importance, weighted
from rljax.ope.trajectories import Trajectories, from_episodes


def random_log(seed, num=6, horizon=4, discount=0.8, **changes):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, horizon + 1, size=num)
    lengths[0] = horizon
    valid = np.arange(horizon)[None] < lengths[:, None]
    columns = {name: rng.normal(size=valid.shape) for name in ("reward", "log_ratio", "q", "v")}
    columns |= {"last_value": rng.normal(size=num)} | changes
    return Trajectories(valid=valid, discount=discount, **columns)


def recursive_dr(logged):
    """Jiang & Li's backward recursion, eq. 10: V_DR = V + w (r + γ V_DR' - Q)."""
    values = []
    for i in range(logged.num_episodes):
        value = logged.last_value[i]
        for t in reversed(range(int(logged.valid[i].sum()))):
            ratio = np.exp(logged.log_ratio[i, t])
            target = logged.reward[i, t] + logged.discount * value
            value = logged.v[i, t] + ratio * (target - logged.q[i, t])
        values.append(value)
    return np.array(values)


def test_direct_method_takes_the_model_at_its_word():
    logged = random_log(0)
    assert weighted.estimate(doubly_robust.direct_method(logged)) == logged.v[:, 0].mean()
    given = random_log(0, first_value=np.arange(6.0))
    assert weighted.estimate(doubly_robust.direct_method(given)) == 2.5


def test_dr_by_hand():
    # One episode, w = 2, 3; r = 1, 5; Q = 4, 6; V = 7, 8; γ = ½:
    # 7 + 2·(1 - 4) + ½·2·8 + ½·6·(5 - 6) = 6
    logged = from_episodes(
        [np.array([1.0, 5.0])],
        [np.log([2.0, 3.0])],
        0.5,
        q=[np.array([4.0, 6.0])],
        v=[np.array([7.0, 8.0])],
    )
    assert weighted.estimate(doubly_robust.doubly_robust(logged)) == pytest.approx(6.0)


@pytest.mark.parametrize("seed", range(5))
def test_dr_agrees_with_the_backward_recursion(seed):
    logged = random_log(seed)
    found = weighted.contributions(doubly_robust.doubly_robust(logged))
    np.testing.assert_allclose(found, recursive_dr(logged), rtol=1e-10)


def loop_returns(logged, counts):
    """Thomas & Brunskill's eq. 9, g_j for j = -1 ... T - 1, of a resample, loop by loop."""
    num, horizon = logged.reward.shape
    paid = logged.reward.copy()
    for i in range(num):
        last = int(logged.valid[i].sum()) - 1
        paid[i, last] += logged.discount * logged.last_value[i]
    rho = np.exp(np.cumsum(np.where(logged.valid, logged.log_ratio, 0.0), axis=1))

    def w(t, i):
        return 1 / counts.sum() if t < 0 else rho[i, t] / (counts * rho[:, t]).sum()

    result = []
    for j in range(-1, horizon):
        g = 0.0
        for i in range(num):
            for t in range(j + 1):
                g += counts[i] * logged.discount**t * w(t, i) * paid[i, t]
                model = w(t, i) * logged.q[i, t] - w(t - 1, i) * logged.v[i, t]
                g -= counts[i] * logged.discount**t * model
            if j + 1 < horizon:
                g += counts[i] * logged.discount ** (j + 1) * w(j, i) * logged.v[i, j + 1]
        result.append(g)
    return np.array(result)


@pytest.mark.parametrize("seed", range(3))
def test_wdr_and_each_partial_return_agree_with_loops(seed):
    logged = random_log(seed)
    expected = loop_returns(logged, np.ones(6))
    wdr = doubly_robust.weighted_doubly_robust(logged)
    assert weighted.estimate(wdr) == pytest.approx(expected[-1], rel=1e-10)
    for j in range(-1, 4):  # MAGIC with one return to blend is that return
        alone = doubly_robust.magic(logged, steps=np.array([j]))
        assert weighted.estimate(alone.means) == pytest.approx(expected[j + 1], rel=1e-10)


def test_wdr_is_normalized_anew_in_each_resample():
    logged = random_log(1)
    counts = np.array([3.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    found = weighted.resampled(doubly_robust.weighted_doubly_robust(logged), counts[None])
    assert found[0] == pytest.approx(loop_returns(logged, counts)[-1], rel=1e-10)


def test_without_a_model_dr_is_pdis_and_wdr_is_wpdis():
    zeros = np.zeros((6, 4))
    logged = random_log(2, q=zeros, v=zeros)
    for robust, plain in (
        (doubly_robust.doubly_robust, importance.per_decision),
        (doubly_robust.weighted_doubly_robust, importance.weighted_per_decision),
    ):
        expected = weighted.estimate(plain(logged))
        assert weighted.estimate(robust(logged)) == pytest.approx(expected, rel=1e-10)


def test_a_model_without_error_along_the_log_leaves_nothing_to_correct():
    logged = random_log(3)
    following = np.concatenate([logged.v[:, 1:], np.zeros((6, 1))], axis=1)
    following[np.arange(6), logged.valid.sum(axis=1) - 1] = logged.last_value
    perfect = random_log(3, q=logged.reward + logged.discount * following)  # Q = r + γ V'
    found = weighted.contributions(doubly_robust.doubly_robust(perfect))
    np.testing.assert_allclose(found, perfect.v[:, 0], rtol=1e-9)
    for means in (
        doubly_robust.weighted_doubly_robust(perfect),
        doubly_robust.magic(perfect).means,
    ):
        assert weighted.estimate(means) == pytest.approx(perfect.v[:, 0].mean(), rel=1e-9)


def test_estimates_that_need_a_model_say_so():
    logged = random_log(0, q=None, v=None)
    with pytest.raises(ValueError, match="direct method needs a model"):
        doubly_robust.direct_method(logged)
    for estimator in (doubly_robust.doubly_robust, doubly_robust.magic):
        with pytest.raises(ValueError, match="give both q and v"):
            estimator(logged)


@pytest.mark.parametrize("resamples", [200, 1])
def test_magic_solves_what_the_paper_states(resamples):
    base = random_log(4, num=30)
    logged = random_log(
        4, num=30, q=base.q + 3, v=base.v + 3, log_ratio=0.2 * base.log_ratio
    )  # the model is wrong by 3
    blend = doubly_robust.magic(logged, seed=5, resamples=resamples)
    returns = loop_returns(logged, np.ones(30))
    np.testing.assert_array_equal(blend.steps, [-1, 0, 1, 2, 3])
    assert blend.blend.min() >= 0
    assert blend.blend.sum() == pytest.approx(1.0)
    assert weighted.estimate(blend.means) == pytest.approx(blend.blend @ returns, rel=1e-9)
    # Ω and b from their definitions; then no point of the simplex may do better
    counts = weighted.resample_counts(30, resamples, np.random.default_rng(5))
    values = [loop_returns(logged, count)[-1] for count in counts]
    low = min(returns[-1], np.quantile(values, 0.05))
    high = max(returns[-1], np.quantile(values, 0.95))
    bias = np.where(returns > high, returns - high, np.where(returns < low, returns - low, 0))
    assert np.count_nonzero(bias) >= 3
    assert bias[-1] == 0
    parts = np.array([loop_parts(logged, i) for i in range(30)])
    matrix = 30 * np.cov(parts.T, ddof=1) + np.outer(bias, bias)
    gradient = matrix @ blend.blend
    assert np.count_nonzero(blend.blend) >= 2
    assert gradient.min() >= blend.blend @ gradient * (1 - 1e-6)  # the condition of optimality


def loop_parts(logged, i):
    """What trajectory i adds to each g_j: all others' rewards, Q and V set to 0."""
    only = np.zeros((logged.num_episodes, 1))
    only[i] = 1.0
    alone = Trajectories(
        logged.reward * only,
        logged.log_ratio,
        logged.valid,
        logged.discount,
        q=logged.q * only,
        v=logged.v * only,
        last_value=logged.last_value * only[:, 0],
    )
    return loop_returns(alone, np.ones(logged.num_episodes))


def test_magic_prefers_a_model_without_bias_and_leaves_one_with():
    rng = np.random.default_rng(0)
    num, horizon = 400, 3
    log_ratio = np.log(np.where(rng.random((num, horizon)) < 0.5, 1.6, 0.4))
    reward = 1 + 0.1 * rng.normal(size=(num, horizon))
    true = np.broadcast_to([3.0, 2.0, 1.0], (num, horizon)).copy()
    valid = np.ones((num, horizon), bool)
    good = doubly_robust.magic(Trajectories(reward, log_ratio, valid, 1.0, true, true))
    assert weighted.estimate(good.means) == pytest.approx(3.0, abs=0.02)
    wrong = Trajectories(reward, log_ratio, valid, 1.0, true + 5, true + 5)
    blend = doubly_robust.magic(wrong)
    assert blend.blend[0] < 0.05  # the model alone says 8
    assert weighted.estimate(blend.means) == pytest.approx(3.0, abs=0.5)


def test_magic_of_long_episodes_blends_some_of_the_returns():
    logged = random_log(0, horizon=2000, log_ratio=0.01 * np.ones((6, 2000)))
    blend = doubly_robust.magic(logged, resamples=20)
    assert 30 < len(blend.steps) <= 64
    assert (blend.steps[0], blend.steps[-1]) == (-1, 1999)
    assert np.isfinite(weighted.estimate(blend.means))


def test_magic_refuses_what_has_no_spread_or_no_such_step():
    one = from_episodes([np.ones(2)], [np.zeros(2)], 0.9, q=[np.ones(2)], v=[np.ones(2)])
    with pytest.raises(ValueError, match="two episodes at least"):
        doubly_robust.magic(one)
    with pytest.raises(ValueError, match=r"steps to blend must lie in \[-1, 3\]"):
        doubly_robust.magic(random_log(0), steps=np.array([4]))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1.0, 0.0], [0.0, 3.0]], [0.75, 0.25]),  # inverse variances
        ([[1.0, 2.0], [2.0, 5.0]], [1.0, 0.0]),  # the free optimum (1.5, -0.5) is outside
        ([[0.0, 0.0], [0.0, 3.0]], [1.0, 0.0]),
        ([[1e-12, 0.0], [0.0, 3e-12]], [0.75, 0.25]),  # click rates are small: so are variances
        ([[1.0, 0.0, 0.0], [0.0, 1e8, 0.0], [0.0, 0.0, 1.0]], [0.5, 0.0, 0.5]),
    ],
)
def test_the_simplex_minimum_by_hand(matrix, expected):
    found = doubly_robust.simplex_minimum(np.array(matrix))
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_no_random_point_of_the_simplex_beats_the_minimum():
    rng = np.random.default_rng(0)
    for _ in range(20):
        root = rng.normal(size=(8, 5))
        matrix = root @ root.T + 1e-3 * np.eye(8)
        best = doubly_robust.simplex_minimum(matrix)
        others = rng.dirichlet(np.full(8, 0.3), size=2000)
        least = np.einsum("ni,ij,nj->n", others, matrix, others).min()
        assert best @ matrix @ best <= least + 1e-12
