import jax
import jax.numpy as jnp
import numpy as np

from rljax.envs import cartpole, cartpole_positions


def test_it_is_cartpole_with_half_of_it_hidden(key):
    whole, half = cartpole.make(7), cartpole_positions.make(7)
    assert half.spec.observation_shape == (2,)
    assert half.spec.name == "rljax:cartpole_positions"
    assert half.spec.action == whole.spec.action
    (state, seen), (other, shown) = whole.reset(key), half.reset(key)
    np.testing.assert_array_equal(shown.features, seen.features[jnp.array([0, 2])])
    step, half_step = jax.jit(whole.step), jax.jit(half.step)
    for t in range(7):
        state, timestep = step(state, jnp.int32(t % 2), key)
        other, shown = half_step(other, jnp.int32(t % 2), key)
        features = timestep.observation.features
        np.testing.assert_array_equal(shown.observation.features, [features[0], features[2]])
        assert (shown.reward, shown.terminated, shown.truncated) == (
            timestep.reward,
            timestep.terminated,
            timestep.truncated,
        )
    assert shown.truncated  # the limit is passed on
