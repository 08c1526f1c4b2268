"""One meaning of the rows around an episode's end, whatever the environment runs on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import sources
from rljax.envs.base import JaxEnv
from rljax.sources import EnvSource

LIMIT = 6  # fewer steps than CartPole takes to fall
CARTPOLES = ["envpool:CartPole-v1", "gymnasium:CartPole-v1", "rljax:cartpole"]


def rows(name: str, num_rows: int, limit: int = LIMIT):
    """First observation, then time steps `[T, 2]`; the cart is always pushed to the right."""
    env = sources.open(EnvSource(name, 2, options=(("max_episode_steps", limit),)))
    right = np.ones(2, np.int32)
    if isinstance(env, JaxEnv):
        keys = jax.random.split(jax.random.key(0), (num_rows + 1, 2))
        state, observation = jax.vmap(env.reset)(keys[0])
        step = jax.jit(jax.vmap(env.step))
        stepped = []
        for key in keys[1:]:
            state, timestep = step(state, jnp.asarray(right), key)
            stepped.append(timestep)
    else:
        observation = env.reset()
        stepped = [env.step(right) for _ in range(num_rows)]
    return observation, jax.tree.map(lambda *x: np.stack(x), *stepped)


@pytest.mark.parametrize("name", CARTPOLES)
def test_rows_around_a_time_limit(name):
    first, steps = rows(name, 15)
    assert steps.truncated[:, 0].tolist() == ([False] * 5 + [True, False]) * 2 + [False]
    assert not steps.terminated.any()
    assert steps.reward[:, 0].tolist() == ([1] * 6 + [0]) * 2 + [1]
    features = np.concatenate([first.features[None], steps.observation.features])
    # CartPole starts within 0.05, and one push gives a velocity of 0.2: the restarting row, 7,
    # shows a start that no action has touched
    starts = np.abs(features).max(axis=2) <= 0.05
    assert starts.all(axis=1).tolist() == ([True] + [False] * 6) * 2 + [True, False]
    assert (features[0] != features[7]).all()  # every episode is another one
    # row 6 shows the true final observation: its position is row 5's plus 0.02 · velocity
    np.testing.assert_allclose(
        features[6, :, 0], features[5, :, 0] + 0.02 * features[5, :, 1], atol=1e-6
    )


@pytest.mark.parametrize("name", CARTPOLES)
def test_rows_around_a_fall(name):
    _, steps = rows(name, 30, limit=100)
    ended = int(steps.terminated[:, 0].argmax())
    assert 7 <= ended + 1 <= 11  # always pushed to the right, the pole falls after about nine steps
    assert not steps.truncated.any()
    assert steps.reward[ended, 0] == 1
    assert steps.reward[ended + 1, 0] == 0
    assert not steps.terminated[ended + 1, 0]
    assert np.abs(steps.observation.features[ended, 0, 2]) > 0.2  # really the fallen pole
    assert np.abs(steps.observation.features[ended + 1, 0]).max() <= 0.05


def test_a_fall_on_the_very_limit():
    _, unlimited = rows("rljax:cartpole", 30, limit=100)
    limit = int(unlimited.terminated[:, 0].argmax()) + 1
    _, ours = rows("rljax:cartpole", limit, limit=limit)
    assert ours.terminated[-1, 0]
    assert not ours.truncated[-1, 0]
    _, unlimited = rows("envpool:CartPole-v1", 30, limit=100)
    limit = int(unlimited.terminated[:, 0].argmax()) + 1
    _, theirs = rows("envpool:CartPole-v1", limit, limit=limit)
    assert theirs.truncated[-1, 0]  # EnvPool's known habit; docs/environments.md tells
    assert not theirs.terminated[-1, 0]
