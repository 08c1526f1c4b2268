"""The learned sepsis MDP as an oracle: exact values against all sequential estimators.

States are 2 components (diabetic or not) of 720; an episode ends where the next state pays -1
(death) or +1 (discharge), or after 20 steps. The value is computed backwards in time, exactly.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np
import pytest

from rljax.ope import doubly_robust, importance, marginal, table, weighted
from rljax.ope.trajectories import Trajectories

ROOT = pathlib.Path(__file__).resolve().parents[3]
DATA = pathlib.Path(os.environ.get("RLJAX_DATA", ROOT.parent / "shared" / "data")) / "sepsis_mdp"
HORIZON, GAMMA = 20, 0.99
STATES, ACTIONS = 1440, 8


class Sepsis(NamedTuple):
    """Transitions as sorted rows of (component, action, state)."""

    row: np.ndarray  # [M]
    probability: np.ndarray  # [M]
    following: np.ndarray  # [M], of 1440
    first: np.ndarray  # [11521]: where each row begins
    reward: np.ndarray  # [1440], paid on arrival; where it is not 0 the episode ends
    initial: np.ndarray  # [1440]
    optimal: np.ndarray  # [1440]


class Log(NamedTuple):
    state: np.ndarray  # [E, T]
    action: np.ndarray
    reward: np.ndarray
    valid: np.ndarray
    last_state: np.ndarray  # [E]: where the last step led to


@pytest.fixture(scope="module")
def mdp():
    if not (DATA / "sepsis_mdp.npz").exists():
        pytest.skip("the sepsis MDP is not in RLJAX_DATA")
    stored = np.load(DATA / "sepsis_mdp.npz")
    component, action, state, following = stored["tx_idx"].astype(int)
    row = (component * ACTIONS + action) * 720 + state
    assert (np.diff(row) >= 0).all()
    return Sepsis(
        row,
        stored["tx_val"],
        component * 720 + following,
        np.searchsorted(row, np.arange(2 * ACTIONS * 720 + 1)),
        np.tile(stored["reward_next_state"], 2),
        (stored["p_mixture"][:, None] * stored["p_initial_state"]).ravel(),
        np.load(DATA / "policies.npz")["optimal_action"].astype(int),
    )


def policy(mdp, epsilon):
    """The optimal action but for a share ε of uniformly drawn ones, `[1440, 8]`."""
    return epsilon / ACTIONS + (1 - epsilon) * np.eye(ACTIONS)[mdp.optimal]


def action_values(mdp, value, gamma):
    """One backward step: `[1440]` -> `[1440, 8]`."""
    gain = mdp.reward + gamma * np.where(mdp.reward == 0, value, 0.0)
    q = np.bincount(mdp.row, mdp.probability * gain[mdp.following], 2 * ACTIONS * 720)
    return q.reshape(2, ACTIONS, 720).transpose(0, 2, 1).reshape(STATES, ACTIONS)


def exact(mdp, target, horizon=HORIZON, gamma=GAMMA):
    """Q `[T, 1440, 8]` and V `[T, 1440]` of a policy with that many steps to go, and its value."""
    value, qs, vs = np.zeros(STATES), [], []
    for _ in range(horizon):
        q = action_values(mdp, value, gamma)
        value = (target * q).sum(axis=1)
        qs.append(q)
        vs.append(value)
    return np.array(qs[::-1]), np.array(vs[::-1]), float(mdp.initial @ value)


def without_limit(mdp, target, gamma=GAMMA):
    """Q `[1440, 8]` and V `[1440]` of a policy that goes on until death or discharge."""
    value = np.zeros(STATES)
    for _ in range(1200):  # γ^1200 = 6e-6, and few episodes last that long
        q = action_values(mdp, value, gamma)
        value = (target * q).sum(axis=1)
    return q, value


def draw(probability, rng):
    """One index per row of `[E, K]`."""
    cumulative = np.cumsum(probability, axis=1)
    point = rng.random((len(cumulative), 1)) * cumulative[:, -1:]
    return (cumulative <= point).sum(axis=1)


def simulate(mdp, behavior, num, rng, horizon=HORIZON):
    total = np.cumsum(mdp.probability)
    state = rng.choice(STATES, size=num, p=mdp.initial / mdp.initial.sum())
    alive = np.ones(num, bool)
    columns = []
    for _ in range(horizon):
        action = draw(behavior[state], rng)
        row = (state // 720 * ACTIONS + action) * 720 + state % 720
        first, end = mdp.first[row], mdp.first[row + 1]
        before = total[first] - mdp.probability[first]
        point = before + rng.random(num) * (total[end - 1] - before)
        index = np.clip(np.searchsorted(total, point, side="right"), first, end - 1)
        following = np.where(alive, mdp.following[index], state)
        reward = np.where(alive, mdp.reward[following], 0.0)
        columns.append((state, action, reward, alive))
        state, alive = following, alive & (reward == 0)
    return Log(*(np.stack(column, axis=1) for column in zip(*columns, strict=True)), state)


def weigh(log, target, behavior, q=None, v=None, last_value=None, gamma=GAMMA):
    """Trajectories; q `[T, 1440, 8]` and v `[T, 1440]` are the model."""
    step = np.arange(log.state.shape[1])[None]
    ratio = np.log(target[log.state, log.action]) - np.log(behavior[log.state, log.action])
    return Trajectories(
        log.reward,
        ratio,
        log.valid,
        gamma,
        None if q is None else q[step, log.state, log.action],
        None if v is None else v[step, log.state],
        last_value=last_value,
    )


def distort(q, target):
    """A model with errors: shrunk, shifted and noisy; V stays the mean of Q under π."""
    q = 0.7 * q - 0.05 + 0.1 * np.random.default_rng(9).normal(size=q.shape[1:])[None]
    return q, (target[None] * q).sum(axis=2)


ESTIMATORS = {
    "is": importance.importance_sampling,
    "wis": importance.weighted_importance_sampling,
    "pdis": importance.per_decision,
    "wpdis": importance.weighted_per_decision,
    "dr": doubly_robust.doubly_robust,
    "wdr": doubly_robust.weighted_doubly_robust,
}


def test_the_value_of_the_behavior_policy_is_its_mean_return(mdp):
    behavior = policy(mdp, 0.2)
    truth = exact(mdp, behavior)[2]
    log = simulate(mdp, behavior, 20_000, np.random.default_rng(0))
    returns = log.reward @ GAMMA ** np.arange(HORIZON)
    assert abs(returns.mean() - truth) < 4 * returns.std() / np.sqrt(20_000)
    assert 0.05 < (log.reward != 0).any(axis=1).mean() < 0.95  # both kinds of ending


def test_every_estimator_finds_the_value_of_another_policy(mdp):
    target, behavior = policy(mdp, 0.05), policy(mdp, 0.2)
    q, _, truth = exact(mdp, target)
    log = simulate(mdp, behavior, 20_000, np.random.default_rng(1))
    q, v = distort(q, target)
    logged = weigh(log, target, behavior, q, v)
    logged_value = exact(mdp, behavior)[2]
    for name, estimator in ESTIMATORS.items():
        means = estimator(logged)
        error = weighted.contributions(means).std() / np.sqrt(20_000)
        assert abs(weighted.estimate(means) - truth) < 4 * error, name
        assert 4 * error < 0.5 * abs(truth - logged_value), name  # not what b earns
    biased = weighted.estimate(doubly_robust.direct_method(logged))
    assert abs(biased - truth) > 0.05
    blend = weighted.estimate(doubly_robust.magic(logged).means)
    assert abs(blend - truth) < 0.02
    counts = weighted.resample_counts(20_000, 30, np.random.default_rng(0))
    marginals = marginal.resampled(logged, log.state, counts)
    found = marginal.marginal_importance_sampling(logged, log.state)
    assert abs(found - truth) < 4 * marginals.std()


def test_an_exact_model_is_right_by_itself_and_quiets_dr(mdp):
    target, behavior = policy(mdp, 0.05), policy(mdp, 0.2)
    q, v, truth = exact(mdp, target)
    log = simulate(mdp, behavior, 2000, np.random.default_rng(2))
    logged = weigh(log, target, behavior, q, v)
    model = weighted.contributions(doubly_robust.direct_method(logged))
    assert abs(model.mean() - truth) < 4 * model.std() / np.sqrt(2000)
    robust = weighted.contributions(doubly_robust.doubly_robust(logged))
    steps = weighted.contributions(importance.per_decision(logged))
    assert abs(robust.mean() - truth) < 4 * robust.std() / np.sqrt(2000)
    assert robust.std() < 0.9 * steps.std()  # what is left is the patients' own chance


def test_a_time_limit_is_no_end(mdp):
    """Cut after 5 steps, the log finds the value without limit if it knows V of the last state."""
    target, behavior = policy(mdp, 0.05), policy(mdp, 0.2)
    q, v = without_limit(mdp, target)
    truth = float(mdp.initial @ v)
    short = exact(mdp, target, horizon=5)[2]
    log = simulate(mdp, behavior, 20_000, np.random.default_rng(3), horizon=5)
    last_value = np.where(mdp.reward[log.last_state] == 0, v[log.last_state], 0.0)
    model = distort(np.broadcast_to(q, (5, *q.shape)), target)
    for limit, expected in ((last_value, truth), (None, short)):
        logged = weigh(log, target, behavior, *model, last_value=limit)
        for name, estimator in ESTIMATORS.items():
            means = estimator(logged)
            error = weighted.contributions(means).std() / np.sqrt(20_000)
            assert abs(weighted.estimate(means) - expected) < 4 * error, name
            assert 8 * error < abs(truth - short), name


class Replications(NamedTuple):
    """Of many logs of one policy, judged by the table of estimates."""

    bias: dict[str, float]  # in standard errors of the mean
    covered: dict[str, np.ndarray]  # bool [R]: the interval holds the truth
    trust: np.ndarray  # [R]: the verdict


def replicate(mdp, num_replications, num_episodes, resamples, epsilon=0.1, share=1.0, seed=0):
    """`share` is how much of the distortion the model has."""
    target, behavior = policy(mdp, epsilon), policy(mdp, 0.2)
    exact_q, exact_v, truth = exact(mdp, target)
    q, v = distort(exact_q, target)
    q, v = (share * x + (1 - share) * right for x, right in ((q, exact_q), (v, exact_v)))
    rng = np.random.default_rng(seed)
    reports = []
    for _ in range(num_replications):
        logged = weigh(simulate(mdp, behavior, num_episodes, rng), target, behavior, q, v)
        bootstrap = table.Bootstrap(resamples=resamples, seed=int(rng.integers(10**6)))
        reports.append(table.evaluate(logged, bootstrap=bootstrap))
    rows = {row.name: [] for row in reports[0].estimates}
    for report in reports:
        for row in report.estimates:
            rows[row.name].append(row)
    nominal = {name: found for name, found in rows.items() if found[0].low is not None}
    assert set(nominal) == set(ESTIMATORS)  # not dm and magic, whose model may be wrong
    values = {name: np.array([row.value for row in found]) for name, found in nominal.items()}
    spread = {name: found.std(ddof=1) / np.sqrt(len(found)) for name, found in values.items()}
    return Replications(
        {name: (found.mean() - truth) / spread[name] for name, found in values.items()},
        {
            name: np.array([row.low <= truth <= row.high for row in found])
            for name, found in nominal.items()
        },
        np.array([report.verdict.trust for report in reports]),
    )


def test_estimators_are_unbiased_and_intervals_cover(mdp):
    found = replicate(mdp, 40, 300, 300, share=0.0)
    for name in ESTIMATORS:
        assert abs(found.bias[name]) < 4, name  # in standard errors
        assert found.covered[name].mean() >= 0.82, name  # 38 expected; 32 is four deviations less
    assert (found.trust == "high").mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0], ids=["right", "a little wrong", "wrong"])
def test_where_trust_is_high_intervals_cover(mdp, share):
    """Whatever the model. √(0.95·0.05/200) = 0.015 is the deviation of a coverage of 200."""
    found = replicate(mdp, 200, 500, 300, share=share, seed=1)
    high = found.trust == "high"
    assert high.sum() > (160 if share < 1 else 0)
    for name in ESTIMATORS:
        assert abs(found.bias[name]) < 4, name
        assert 0.89 <= found.covered[name].mean() <= 0.995, name
        deviation = np.sqrt(0.95 * 0.05 / high.sum())
        assert found.covered[name][high].mean() >= 0.95 - 4 * deviation, name


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "num"), [(0.0, 300), (0.05, 60)])
def test_trust_is_not_high_where_few_episodes_count(mdp, epsilon, num):
    with np.errstate(divide="ignore"):  # ε = 0: all actions but one have a weight of 0
        far = replicate(mdp, 200, num, 200, epsilon=epsilon, share=0.3)
    assert (far.trust == "high").mean() <= 0.01


def test_the_table_trusts_a_close_policy_and_not_a_far_one(mdp):
    behavior = policy(mdp, 0.2)
    log = simulate(mdp, behavior, 1000, np.random.default_rng(4))
    near, far = policy(mdp, 0.1), policy(mdp, 1.0)
    q, v, truth = exact(mdp, near)
    report = table.evaluate(weigh(log, near, behavior, q, v), state=log.state)
    assert report.verdict.trust == "high", report.verdict
    for row in report.estimates:
        if row.name not in ("dm", "magic"):
            assert row.low <= truth <= row.high, row
    q, v = (x - 0.2 for x in distort(q, near))
    wrong = table.evaluate(weigh(log, near, behavior, q, v))
    assert wrong.verdict.trust == "low"
    assert "disagree" in wrong.verdict.reasons[0]
    assert any("dm says" in reason for reason in wrong.verdict.reasons)
    truth = exact(mdp, far)[2]
    report = table.evaluate(weigh(log, far, behavior), state=log.state)
    assert report.verdict.trust == "none"
    assert "where 1 is due" in report.verdict.reasons[0]
    right = [row for row in report.estimates if row.low <= truth <= row.high]
    assert len(right) < len(report.estimates) / 2  # so that is deserved
