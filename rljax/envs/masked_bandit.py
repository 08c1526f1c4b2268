"""A contextual bandit with action masks, in the graph: the smallest test that masks are obeyed.

The features are the actions' own rewards, uniform in [0, 1); a random half of the actions is
allowed. A forbidden one costs 10. Every episode is one step long. The best of k allowed rewards is
k / (k + 1) on average (the greatest of k uniform numbers): 0.75 with the standard 3 of 6, while a
policy that picks blindly among the allowed gets 0.5 and one that ignores the mask loses half its
steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation

PENALTY = -10.0  # the reward of a forbidden action


class State(NamedTuple):
    """All of it is shown; arrays `[num_actions]`."""

    rewards: Array  # float32
    mask: Array  # bool


def make(num_actions: int = 6) -> JaxEnv:
    """One bandit; actions int32, features float32 `[num_actions]`, mask bool `[num_actions]`.

    Raises:
        ValueError: `num_actions` is below 2, so that no action could be forbidden.
    """
    if num_actions < 2:
        raise ValueError(f"num_actions must be at least 2, not {num_actions}.")

    def reset(key: Array) -> tuple[State, Observation]:
        reward_key, mask_key = jax.random.split(key)
        rewards = jax.random.uniform(reward_key, (num_actions,))
        mask = jax.random.permutation(mask_key, jnp.arange(num_actions) < num_actions // 2)
        return State(rewards, mask), Observation(rewards, mask)

    def step(state: State, action: Array, key: Array) -> tuple[State, TimeStep]:
        del key
        reward = jnp.where(state.mask[action], state.rewards[action], PENALTY)
        return state, TimeStep(Observation(*state), reward, jnp.bool_(True), jnp.bool_(False))

    spec = EnvSpec(
        "rljax:masked_bandit",
        (num_actions,),
        "float32",
        Discrete(num_actions),
        has_mask=True,
        max_episode_steps=1,
    )
    return JaxEnv(spec, reset, step)
