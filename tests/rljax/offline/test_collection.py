"""Episodes of rollouts: where they end, what leads on, whose action it was."""

import jax.numpy as jnp
import numpy as np
import pytest

from rljax import sources
from rljax.agent import Agent
from rljax.offline import collection, dataset
from rljax.types import Box, EnvSpec


def always(spec, action):
    """An agent of one action, whose log_prob is minus the time that its episode has lasted."""

    def act(policy, carry, observation, key, greedy):
        rows = observation.features.shape[0]
        chosen = jnp.broadcast_to(
            jnp.asarray(action, spec.action.dtype), (rows, *spec.action.shape)
        )
        return carry + 1, chosen, {"log_prob": -carry.astype(jnp.float32)}

    return Agent(spec, lambda key: (), lambda batch: jnp.zeros(batch, jnp.int32), act, act)


@pytest.mark.parametrize("name", ["rljax:cartpole", "CartPole-v1"])
def test_every_step_leads_to_the_row_behind_it(name, key):
    env = sources.open(sources.EnvSource(name, 3))
    collect = collection.collector(always(env.spec, 0), env, 3)
    episodes = collect((), 7, key)
    assert len(episodes) == 7
    data = dataset.make(env.spec, episodes)
    for episode in episodes:
        seen = episode.observation.features
        position, velocity, angle, turn = seen.T
        # Euler's steps: wherever an episode were shifted by a row, they would not fit.
        np.testing.assert_allclose(position[1:], position[:-1] + 0.02 * velocity[:-1], atol=1e-5)
        np.testing.assert_allclose(angle[1:], angle[:-1] + 0.02 * turn[:-1], atol=1e-5)
        assert episode.terminated
        assert abs(angle[-1]) > np.radians(12)
        assert (np.abs(angle[:-1]) <= np.radians(12)).all()
        assert episode.reward.sum() == len(episode.reward) == len(seen) - 1
        np.testing.assert_array_equal(episode.extras["log_prob"], -np.arange(len(episode.reward)))
    assert data.num_episodes == 7


def test_a_time_limit_is_no_termination(key):
    options = (("max_episode_steps", 5),)
    env = sources.open(sources.EnvSource("rljax:cartpole", 2, options=options))
    episodes = collection.collector(always(env.spec, 0), env, 2)((), 4, key)
    assert [len(episode.reward) for episode in episodes] == [5] * 4
    assert not any(episode.terminated for episode in episodes)


def test_actions_are_kept_as_the_box_took_them(key):
    env = sources.open(sources.EnvSource("rljax:pendulum", 2))
    episodes = collection.collector(always(env.spec, 7.0), env, 2)((), 2, key)
    assert all((episode.action == 2).all() for episode in episodes)
    box = EnvSpec("box", (3,), "float32", Box((-2.0,), (2.0,)))
    assert dataset.make(box, episodes).num_steps == 400


@pytest.mark.parametrize(
    ("scores", "wanted", "expected"),
    [
        ([0.0, 100.0, 240.0, 260.0], 250.0, 3),  # none nearer than 240, from below
        ([100.0, 900.0, 300.0, 520.0], 500.0, 2),  # what the run earned after its peak is left out
        ([600.0, 100.0], 500.0, 1),
        ([1.0, 2.0, 3.0], 9.0, 3),
    ],
)
def test_a_replay_ends_where_medium_is_first_reached(scores, wanted, expected):
    assert collection.until_reached(scores, wanted) == expected


def test_shares_and_the_nearest():
    assert list(collection.shares(10, 3)) == [4, 3, 3]
    assert list(collection.shares(2, 3)) == [1, 1, 0]
    assert collection.nearest([0.0, 100.0, 240.0, 260.0], 250.0) == 2
