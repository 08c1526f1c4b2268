"""Ratios of visits by a network: the loss by hand, and what it learns beside exact numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.offline import dataset
from rljax.ope import dice, visits, weighted
from rljax.ope.trajectories import from_episodes
from rljax.types import Discrete, EnvSpec, Observation

CONFIG = dice.Config(total_updates=1_500, batch_size=128, discount=0.5, hidden_sizes=(32,))


def episode(places, actions, rewards, terminated, num_places):
    seen = np.eye(num_places, dtype=np.float32)[places]
    return dataset.Episode(
        Observation(seen), np.array(actions, np.int32), np.array(rewards, np.float32), terminated
    )


def made(num_places, episodes):
    spec = EnvSpec("places", (num_places,), "float32", Discrete(2))
    return dataset.make(spec, [episode(*one, num_places) for one in episodes])


def test_the_loss_is_least_where_flow_is_in_balance():
    """The walk of test_visits.py: w = 1.5, 1.2 in A, B, if M = 1."""
    place, following = np.array([0, 0, 0, 0, 1, 1]), np.array([2, 2, 1, 1, 2, 2])
    discount = np.array([0, 0, 0.5, 0.5, 0, 0], np.float32)
    ratio = np.array([0.4, 0.4, 1.6, 1.6, 0.4, 1.6], np.float32)

    def mean(w, target, mass=1.0):
        inflow = discount * ratio * target[place]
        start = jnp.zeros(6, int)
        return jnp.mean(dice.loss(w[place], w[following], w[start], inflow, mass))

    right = jnp.array([1.5, 1.2, 0.0])
    # ½ (4·1.5² + 2·1.2²)/6 - (2·½·1.6·1.5·1.2)/6 - 1.5
    assert mean(right, right) == pytest.approx(0.99 - 0.48 - 1.5)
    np.testing.assert_allclose(jax.grad(mean)(right, right), np.zeros(3), atol=1e-6)
    # Half of all flow for twice the mass, and a target that is off moves B alone.
    np.testing.assert_allclose(jax.grad(mean)(right / 2, right / 2, 2.0), np.zeros(3), atol=1e-6)
    moved = jax.grad(mean)(right, 2 * right)
    np.testing.assert_allclose(moved, [0, -0.4, 0], atol=1e-6)
    np.testing.assert_array_equal(jax.grad(mean, 1)(right, right), np.zeros(3))


def test_visits_of_a_walk_that_terminates():
    steps = [
        ([0, 2], [0], [0.0], True),
        ([0, 2], [0], [0.0], True),
        ([0, 1, 2], [1, 0], [1.0, 0.0], True),
        ([0, 1, 2], [1, 1], [1.0, 4.0], True),
    ]
    data = made(3, steps * 4)
    log_ratio = np.log(np.where(data.rows.action == 1, 1.6, 0.4))
    ratio = dice.evaluate(data, log_ratio, CONFIG)
    assert (ratio > 0).all()
    place = np.argmax(data.rows.observation.features, axis=1)
    rows = data.rows.valid
    np.testing.assert_allclose(ratio[rows], np.array([1.5, 1.2])[place[rows]], rtol=0.1)


NUM, GAMMA = 6, 0.8


def random_log(seed, num_episodes):
    """A random MDP, told by one-hot vectors; episodes of 10 steps at most.

    Gives the dataset, the ln ratios of its rows, where it starts, and the exact values of π.
    """
    rng = np.random.default_rng(seed)
    following = rng.dirichlet(np.full(NUM, 0.5), size=(NUM, 2))
    ends, pays = rng.uniform(0, 0.3, NUM), rng.normal(size=(NUM, 2))
    behavior, target = rng.uniform(0.3, 0.7, NUM), rng.uniform(0.1, 0.9, NUM)  # of action 1
    start = rng.dirichlet(np.ones(NUM))
    chosen = []
    for _ in range(num_episodes):
        places, actions, ended = [rng.choice(NUM, p=start)], [], False
        while len(actions) < 10 and not ended:
            here = places[-1]
            actions.append(int(rng.random() < behavior[here]))
            places.append(rng.choice(NUM, p=following[here, actions[-1]]))
            ended = bool(rng.random() < ends[here])
        chosen.append((places, actions, pays[places[:-1], actions], ended))
    data = made(NUM, chosen)
    place = np.argmax(data.rows.observation.features, axis=1)
    one = data.rows.action == 1
    ratio = np.where(one, (target / behavior)[place], ((1 - target) / (1 - behavior))[place])
    moves = target[:, None] * following[:, 1] + (1 - target)[:, None] * following[:, 0]
    moves *= (1 - ends)[:, None]
    paid = target * pays[:, 1] + (1 - target) * pays[:, 0]
    value_of = np.linalg.solve(np.eye(NUM) - GAMMA * moves, paid)
    return data, np.log(ratio), start, value_of


def solved(data, log_ratio):
    """W of each row where the log itself is the MDP: the flow as a linear system."""
    rows = np.flatnonzero(data.rows.valid)
    place = np.argmax(data.rows.observation.features, axis=1)
    start, flow, count = np.zeros(NUM), np.zeros((NUM, NUM)), np.zeros(NUM)
    for row in data.starts[:-1]:
        start[place[row]] += 1 / data.num_episodes
    for row in rows:
        count[place[row]] += 1 / len(rows)
        goes_on = GAMMA * data.rows.valid[row + 1] * np.exp(log_ratio[row])
        flow[place[row + 1], place[row]] += goes_on / len(rows)
    return np.linalg.solve(np.diag(count) - flow, start)[place]


def estimated(data, log_ratio, ratio, value_of, discount=GAMMA):
    """The value and the mass, with the exact values of the places behind time limits."""
    steps = [slice(a, b - 1) for a, b in zip(data.starts, data.starts[1:], strict=False)]
    reward = np.asarray(data.rows.reward, np.float64)
    place = np.argmax(data.rows.observation.features, axis=1)
    last = data.starts[1:] - 1
    logged = from_episodes(
        [reward[s] for s in steps],
        [log_ratio[s] for s in steps],
        discount,
        last_value=data.rows.discount[last - 1] * value_of[place[last]],
    )
    visited = np.zeros(logged.valid.shape)
    visited[logged.valid] = ratio[data.rows.valid]
    value = weighted.estimate(visits.marginalized_ratios(logged, visited))
    return value, visits.mass(logged, visited)


def test_an_exact_solution_of_the_flow_has_the_value_of_dynamic_programming():
    data, log_ratio, start, value_of = random_log(3, 1_500)
    found, mass = estimated(data, log_ratio, solved(data, log_ratio), value_of)
    assert mass == pytest.approx(1, abs=0.1)
    assert found == pytest.approx(start @ value_of, abs=0.1)
    alike = np.zeros_like(log_ratio)
    behaved, mass = estimated(data, alike, solved(data, alike), value_of)
    assert mass == pytest.approx(1, abs=1e-6)
    assert abs(behaved - start @ value_of) > 0.25  # it is not what the log earns


def test_the_network_finds_the_solution_of_the_linear_system():
    """With time limits, terminations and another policy."""
    data, log_ratio, start, value_of = random_log(3, 300)
    config = dataclasses.replace(CONFIG, discount=GAMMA, total_updates=2_000)
    ratio = dice.evaluate(data, log_ratio, config)
    rows, expected = data.rows.valid, solved(data, log_ratio)
    assert (ratio > 0).all()
    assert np.abs(ratio - expected)[rows].mean() < 0.1 * expected[rows].mean()
    found, mass = estimated(data, log_ratio, ratio, value_of)
    assert mass == pytest.approx(1, abs=0.1)
    exact = estimated(data, log_ratio, expected, value_of)[0]
    assert found == pytest.approx(exact, abs=0.1)
    assert found == pytest.approx(start @ value_of, abs=0.4)


def test_of_the_logs_own_policy_it_is_the_mean_discounted_return():
    """Places in turn: w is γ^t over the share of the steps, and the value the log's own."""
    walks = [(list(range(k + 1)), [0] * k, [1.0, 4.0, 2.0][:k], True) for k in (1, 2, 3)]
    data = made(4, walks * 10)
    ratio = dice.evaluate(data, np.zeros(len(data.rows.reward)), CONFIG)
    rows = data.rows.valid
    place = np.argmax(data.rows.observation.features, axis=1)[rows]
    spent = np.array([1, 0.5 * 2 / 3, 0.25 / 3])  # of 3, 2, 1 walks
    np.testing.assert_allclose(ratio[rows], (spent / np.array([3, 2, 1]) * 6)[place], rtol=0.15)
    alike = np.zeros(len(data.rows.reward))
    value, mass = estimated(data, alike, ratio, np.zeros(4), CONFIG.discount)
    assert value == pytest.approx((1 + 3 + 3.5) / 3, abs=0.1)
    assert mass == pytest.approx(1, abs=0.1)


def test_what_cannot_be_weighed_is_refused():
    data = made(3, [([0, 2], [0], [0.0], True)])
    with pytest.raises(ValueError, match="too large for a network"):
        dice.evaluate(data, np.full(2, np.inf), CONFIG)
    with pytest.raises(ValueError, match="below 1"):
        dice.evaluate(data, np.zeros(2), dataclasses.replace(CONFIG, discount=1.0))
