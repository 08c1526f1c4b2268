"""CartPole without velocities: one look does not tell which way anything moves.

As `rljax.envs.cartpole`, but only the cart's position and the pole's angle are shown. A policy
without a memory keeps the pole up for some 50 steps; with the last position in mind, for all 500.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from rljax.envs import cartpole
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Observation

_SHOWN = (0, 2)  # m, rad


def make(max_episode_steps: int = 500) -> JaxEnv:
    """One CartPole; actions int32, observations float32 `[2]`: position in m, angle in rad."""
    env = cartpole.make(max_episode_steps)

    def shown(observation: Observation) -> Observation:
        return observation._replace(features=observation.features[jnp.array(_SHOWN)])

    def reset(key: Array) -> tuple[Any, Observation]:
        state, observation = env.reset(key)
        return state, shown(observation)

    def step(state: Any, action: Array, key: Array) -> tuple[Any, TimeStep]:
        state, timestep = env.step(state, action, key)
        return state, timestep._replace(observation=shown(timestep.observation))

    spec = dataclasses.replace(
        env.spec, name="rljax:cartpole_positions", observation_shape=(len(_SHOWN),)
    )
    return JaxEnv(spec, reset, step)
