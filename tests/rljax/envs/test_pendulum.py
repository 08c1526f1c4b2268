import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from rljax.envs import pendulum


def test_every_step_agrees_with_gymnasium(key):
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    ours = pendulum.make()
    step = jax.jit(ours.step)
    theirs.reset(seed=0)
    state, _ = ours.reset(key)
    speeds = []
    for torque in np.random.default_rng(0).uniform(-3, 3, 300).astype(np.float32):  # beyond ±2 too
        theirs.state = np.asarray(state.env, np.float64)  # so that errors do not add up
        torque = np.float32(2.5 * np.sign(state.env.angular_velocity)) if torque > 0 else torque
        expected, reward, terminated, _, _ = theirs.step(np.array([torque]))
        state, timestep = step(state, jnp.array([torque]), key)
        np.testing.assert_allclose(timestep.observation.features, expected, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(timestep.reward, reward, rtol=2e-5, atol=1e-5)
        assert not terminated
        assert not timestep.terminated
        speeds.append(abs(expected[2]))
    assert max(speeds) == 8  # the speed limit was really met


def test_hanging_still_by_hand(key):
    # angle π, no torque: cost π², and gravity has no lever: nothing moves
    env = pendulum.make()
    state, _ = env.reset(key)
    state = state._replace(env=pendulum.State(jnp.float32(jnp.pi), jnp.float32(0)))
    _, timestep = env.step(state, jnp.zeros(1), key)
    np.testing.assert_allclose(timestep.reward, -(np.pi**2), rtol=1e-6)
    np.testing.assert_allclose(timestep.observation.features, [-1, 0, 0], atol=1e-5)


def test_torque_is_clipped_to_its_bounds(key):
    env = pendulum.make()
    state, _ = env.reset(key)
    rewards = [env.step(state, jnp.array([u]), key)[1].reward for u in (1.0, 2.0, 50.0)]
    assert rewards[0] > rewards[1]
    assert rewards[1] == rewards[2]
    assert env.spec.action.bounded


def test_resets_cover_the_circle():
    states, _ = jax.vmap(pendulum.make().reset)(jax.random.split(jax.random.key(0), 500))
    angle, speed = states.env
    assert angle.min() < -3
    assert angle.max() > 3
    assert 0.9 < np.abs(speed).max() <= 1
