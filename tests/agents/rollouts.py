"""Made-up rollouts of feed-forward policies."""

import jax
import jax.numpy as jnp

from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation, Trajectory, Transition

T, B = 6, 8
SPECS = {
    "discrete": EnvSpec("discrete", (3,), "float32", Discrete(4)),
    "masked": EnvSpec("masked", (3,), "float32", Discrete(4), has_mask=True),
    "multi_discrete": EnvSpec("multi", (3,), "float32", MultiDiscrete((2, 3))),
    "box": EnvSpec("box", (3,), "float32", Box((-1.0, -2.0), (1.0, 2.0))),
}
PIXELS = EnvSpec("pixels", (8, 8, 1), "uint8", Discrete(4))


def rollout_of(agent, state, key, *, ended=None) -> Trajectory:
    """A made-up rollout whose actions and log-probabilities are this policy's own.

    `ended[t, b]`: row t ended an episode (odd environments truncate, even ones terminate).
    """
    keys = jax.random.split(key, 5)
    if ended is None:
        ended = jnp.zeros((T, B), bool).at[2, 1].set(True).at[3, 2].set(True)
    valid = jnp.concatenate([jnp.ones((1, B), bool), ~ended[:-1]])
    mask = None
    if agent.spec.has_mask:
        mask = jax.random.bernoulli(keys[3], 0.5, (T + 1, B, 4)).at[..., 0].set(True)
    features = 2 + 3 * jax.random.normal(keys[0], (T + 1, B, *agent.spec.observation_shape))
    if agent.spec is PIXELS:
        features = jnp.clip(20 * features + 128, 0, 255).astype(jnp.uint8)
    rows = Observation(features[:-1], None if mask is None else mask[:-1])
    last = Observation(features[-1], None if mask is None else mask[-1])
    _, action, extras = agent.act(state.policy, (), rows, keys[1], False)
    reward = jnp.where(valid, jax.random.normal(keys[2], (T, B)), 0.0)
    discount = jnp.where(ended & (jnp.arange(B) % 2 == 0)[None], 0.0, 1.0)
    transitions = Transition(
        rows, action, reward, discount, valid, {"log_prob": extras["log_prob"]}
    )
    return Trajectory(transitions, last, ())
