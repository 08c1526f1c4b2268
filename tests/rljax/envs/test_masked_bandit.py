import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.envs import masked_bandit


def rewards(policy, num: int = 4000) -> np.ndarray:
    env = masked_bandit.make()

    def play(key):
        state, observation = env.reset(key)
        _, timestep = env.step(state, policy(observation, key), key)
        return timestep

    timesteps = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), num))
    assert timesteps.terminated.all()
    assert not timesteps.truncated.any()
    return np.asarray(timesteps.reward)


def test_the_best_allowed_action_earns_three_quarters():
    best = rewards(lambda o, key: jnp.argmax(jnp.where(o.mask, o.features, -1)))
    # greatest of 3 uniform numbers: mean 3/4, standard deviation √(3/80) = 0.19, over √4000: 0.003
    np.testing.assert_allclose(best.mean(), 0.75, atol=0.012)


def test_ignoring_the_mask_is_punished_half_of_the_time():
    greedy = rewards(lambda o, key: jnp.argmax(o.features))
    np.testing.assert_allclose((greedy == masked_bandit.PENALTY).mean(), 0.5, atol=0.04)
    assert greedy.mean() < -4


def test_half_of_the_actions_are_allowed_and_all_are_at_times():
    _, observations = jax.vmap(masked_bandit.make().reset)(jax.random.split(jax.random.key(0), 200))
    assert (observations.mask.sum(axis=1) == 3).all()
    assert observations.mask.any(axis=0).all()
    assert observations.mask.dtype == bool
    assert masked_bandit.make().spec.has_mask


def test_one_action_is_too_few():
    with pytest.raises(ValueError, match="at least 2"):
        masked_bandit.make(num_actions=1)
