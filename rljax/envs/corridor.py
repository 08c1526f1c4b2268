"""A corridor of locked doors, in the graph: a small task whose actions have two components.

The agent starts in the first cell and must reach the last. Between two cells stands a door with a
random code, which shows while one stands before it. An action is (move, code): move 0 is left, 1
stay, 2 right, and one gets through to the right only with the right code, so that neither component
helps without the other. Every step costs 0.1 and arriving gives 1 on top: the best return is
1 - 0.1 (length - 1), which is 0.5 for the standard 6 cells, in 5 steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs import wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import EnvSpec, MultiDiscrete, Observation

NUM_CODES = 3
STEP_COST = 0.1


class State(NamedTuple):
    """Where the agent stands, int32, and the code of the door to the right of each cell."""

    cell: Array
    codes: Array  # int32 [length]; the last cell's is never asked


def make(length: int = 6, max_episode_steps: int = 50) -> JaxEnv:
    """One corridor; actions int32 `[2]`, observations float32 `[length + 3]`: cell, code, one-hot.

    Raises:
        ValueError: `length` is below 2 or `max_episode_steps` is not positive.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, not {length}.")

    def observe(state: State) -> Observation:
        cell = jax.nn.one_hot(state.cell, length)
        return Observation(
            jnp.concatenate([cell, jax.nn.one_hot(state.codes[state.cell], NUM_CODES)])
        )

    def reset(key: Array) -> tuple[State, Observation]:
        state = State(jnp.int32(0), jax.random.randint(key, (length,), 0, NUM_CODES))
        return state, observe(state)

    def step(state: State, action: Array, key: Array) -> tuple[State, TimeStep]:
        del key
        opened = action[1] == state.codes[state.cell]
        move = jnp.where((action[0] == 2) & ~opened, 0, action[0] - 1)
        state = State(jnp.maximum(state.cell + move, 0), state.codes)
        arrived = state.cell == length - 1
        reward = jnp.where(arrived, 1 - STEP_COST, -STEP_COST)
        return state, TimeStep(observe(state), reward, arrived, jnp.bool_(False))

    spec = EnvSpec(
        "rljax:corridor", (length + NUM_CODES,), "float32", MultiDiscrete((3, NUM_CODES))
    )
    return wrappers.time_limit(JaxEnv(spec, reset, step), max_episode_steps)
