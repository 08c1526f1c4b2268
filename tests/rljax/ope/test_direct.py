"""Fitted Q evaluation beside values that are known by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.agent import Agent
from rljax.offline import dataset
from rljax.ope import direct
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation

SPEC = EnvSpec("corridor", (3,), "float32", Discrete(2))
BOX = EnvSpec("box", (1,), "float32", Box((-2.0,), (2.0,)))
CONFIG = direct.Config(total_updates=1_500, batch_size=64, discount=0.5, hidden_sizes=(32,))


def walk(actions, terminated):
    """Places 0, 1, 2 in turn, as one-hot vectors; action 1 pays 1 in place 0, and 4 in place 1."""
    steps = len(actions)
    seen = np.eye(3, dtype=np.float32)[: steps + 1]
    pay = np.array([1.0, 4.0])[:steps] * np.array(actions)
    return dataset.Episode(
        Observation(seen), np.array(actions, np.int32), pay.astype(np.float32), terminated
    )


def walks(terminated):
    return dataset.make(SPEC, [walk([a, b], terminated) for a in (0, 1) for b in (0, 1)] * 4)


def target(chance):
    """Takes action 1 with this chance, everywhere."""
    row = jnp.array([1 - chance, chance])

    def probabilities(observation):
        return jnp.broadcast_to(row[None], (observation.features.shape[0], 2))

    return direct.Target(probabilities, None)


@pytest.mark.parametrize("chance", [1.0, 0.25])
def test_values_of_a_walk_that_terminates(chance):
    data = walks(terminated=True)
    values = direct.evaluate(data, target(chance), CONFIG)
    second = 4 * chance  # of place 1
    v = np.array([chance + 0.5 * second, second])
    rows = data.rows.valid
    place = np.argmax(data.rows.observation.features, axis=1)[rows]
    np.testing.assert_allclose(values.v[rows], v[place], atol=0.1)
    q = data.rows.reward[rows] + np.where(place == 0, 0.5 * second, 0.0)
    np.testing.assert_allclose(values.q[rows], q, atol=0.15)


def test_a_model_that_cannot_learn_is_none():
    """Of rewards whose squares are no float32, Adam's steps are 0: Q would stay as it began."""
    data = walks(terminated=True)
    huge = dataclasses.replace(data, rows=data.rows._replace(reward=data.rows.reward * 1e30))
    config = dataclasses.replace(CONFIG, total_updates=10)
    with pytest.raises(direct.NoModel, match=r"loss/\w+ is inf within 10 updates"):
        direct.evaluate(huge, target(1.0), config)


def test_behind_a_time_limit_the_model_goes_on():
    """Cut in place 1 or 2, whose values other episodes tell: nothing ends there."""
    cut = [walk([a], False) for a in (0, 1)] * 4
    data = dataset.make(SPEC, [*cut, *walks(terminated=True).episodes()])
    values = direct.evaluate(data, target(1.0), CONFIG)
    assert values.v[0] == pytest.approx(1 + 0.5 * 4, abs=0.15)
    assert values.v[1] == pytest.approx(4, abs=0.15)  # the row where the first was cut


def test_real_actions_are_drawn_from_the_policy():
    rng = np.random.default_rng(0)
    action = rng.uniform(-2, 2, (400, 1)).astype(np.float32)
    episodes = [
        dataset.Episode(
            Observation(np.zeros((2, 1), np.float32)), a[None], (3 * a).astype(np.float32), True
        )
        for a in action
    ]
    data = dataset.make(BOX, episodes)
    one = direct.Target(None, lambda observation, key: jnp.ones_like(observation.features))
    values = direct.evaluate(data, one, dataclasses.replace(CONFIG, num_draws=1))
    assert values.v[0] == pytest.approx(3, abs=0.3)
    rows = data.rows.valid
    assert np.corrcoef(values.q[rows], data.rows.reward[rows])[0, 1] > 0.99


def agent(spec, carry=()):
    def act(policy, carry, observation, key, greedy):
        logits = jnp.array([[0.0, policy]])
        return carry, jnp.argmax(logits, -1), {"probabilities": jax.nn.softmax(logits)}

    return Agent(spec, lambda key: 0, lambda batch: carry, act, lambda *args: args)


def test_an_agents_chances_and_its_greedy_choice():
    seen = Observation(jnp.zeros((1, 3)))
    sampled = direct.target_of(agent(SPEC), 1.0, greedy=False).probabilities(seen)
    np.testing.assert_allclose(sampled, [[1 / (1 + np.e), np.e / (1 + np.e)]], rtol=1e-6)
    np.testing.assert_array_equal(
        direct.target_of(agent(SPEC), 1.0, greedy=True).probabilities(seen), [[0, 1]]
    )
    with pytest.raises(ValueError, match="with a memory"):
        direct.target_of(agent(SPEC, jnp.zeros(1)), 1.0, greedy=True)
    several = EnvSpec("several", (3,), "float32", MultiDiscrete((2, 2)))
    with pytest.raises(ValueError, match="several choices"):
        direct.target_of(agent(several), 1.0, greedy=True)
