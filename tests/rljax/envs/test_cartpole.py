import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.envs import cartpole


def test_every_step_agrees_with_gymnasium(key):
    theirs = gymnasium.make("CartPole-v1").unwrapped
    ours = cartpole.make()
    step = jax.jit(ours.step)
    actions = np.random.default_rng(0).integers(0, 2, 400)
    episodes = 0
    state, observation = ours.reset(key)
    theirs.reset(seed=0)
    for i, action in enumerate(actions):
        theirs.state = np.asarray(observation.features, np.float64)  # so that errors do not add up
        expected, reward, terminated, _, _ = theirs.step(int(action))
        state, timestep = step(state, jnp.int32(action), key)
        observation = timestep.observation
        np.testing.assert_allclose(observation.features, expected, rtol=1e-5, atol=1e-6)
        assert timestep.reward == reward
        assert bool(timestep.terminated) == terminated
        if terminated:
            episodes += 1
            state, observation = ours.reset(jax.random.key(i))
            theirs.reset()
    assert episodes > 10  # random play falls after about 20 steps: the limits were really met


def test_pushing_right_from_rest_by_hand():
    # upright and at rest: sin 0, cos 1, so push = 10 / 1.1, and with 4/3 - 0.1/1.1 = 1.242424
    # angular acceleration = -push / (0.5 · 1.242424) = -14.634146
    # acceleration = push + 0.05 · 14.634146 / 1.1 = 9.756098; both times 0.02 s
    rest = cartpole.State(*jnp.zeros(4))
    moved = cartpole.dynamics(rest, jnp.float32(10))
    np.testing.assert_allclose(moved, [0, 0.19512195, 0, -0.29268293], rtol=1e-6)


@pytest.mark.parametrize(
    ("position", "angle", "terminated"),
    [
        (2.39, 0.0, False),
        (2.41, 0.0, True),
        (-2.41, 0.0, True),
        (0.0, 0.208, False),
        (0.0, -0.22, True),
    ],
)
def test_limits_are_2_4_meters_and_12_degrees(key, position, angle, terminated):
    env = cartpole.make()
    state, _ = env.reset(key)
    state = state._replace(env=cartpole.State(*jnp.array([position, 0.0, angle, 0.0])))
    _, timestep = env.step(
        state, jnp.int32(1), key
    )  # positions move with the old velocity: not yet
    assert bool(timestep.terminated) == terminated


def test_resets_start_within_0_05_and_differ():
    _, observations = jax.vmap(cartpole.make().reset)(jax.random.split(jax.random.key(0), 100))
    assert np.abs(observations.features).max() <= 0.05
    assert np.abs(observations.features).max() > 0.04
    assert np.unique(observations.features[:, 0]).size == 100


def test_is_truncated_after_its_limit(key):
    env = cartpole.make(max_episode_steps=2)
    state, _ = env.reset(key)
    state, first = env.step(state, jnp.int32(1), key)
    _, second = env.step(state, jnp.int32(0), key)
    assert not first.truncated
    assert second.truncated
    assert cartpole.make().spec.max_episode_steps == 500
