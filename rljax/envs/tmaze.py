"""A T-maze in the graph: a hint, a corridor, a turn (Bakker 2001, NIPS 14, "RL with LSTM", §4.1).

The agent starts at the foot of the T, where alone it sees which way to turn; the corridor looks the
same everywhere, and the junction the same in both mazes. An action is 0 left, 1 ahead or 2 right.
Ahead moves one cell; turns in the corridor and ahead at the junction run into a wall: they cost 0.1
and move nothing. A turn at the junction ends the episode, with 1 for the hinted side and -1 for the
other. The best return is 1, in `length` + 1 steps; without a memory it is 0 on average.

Departs from Bakker: no way back, so that finding the junction is easy and the memory alone is hard;
rewards are 1 and -1, not 4 and -0.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs import wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation

WALL_COST = 0.1


class State(NamedTuple):
    """Cells walked, int32, and the side to turn to: 0 left, 2 right, int32."""

    cell: Array
    side: Array


def make(length: int = 10, max_episode_steps: int | None = None) -> JaxEnv:
    """One maze of `length` cells before the junction; actions int32.

    Observations are float32 `[4]`: hint left, hint right, in the corridor, at the junction.
    Episodes are cut off after 5 (`length` + 1) steps, if nothing else is said.

    Raises:
        ValueError: `length` or `max_episode_steps` is not positive.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, not {length}.")

    def observe(state: State) -> Observation:
        start, junction = state.cell == 0, state.cell == length
        shown = [start & (state.side == 0), start & (state.side == 2), ~start & ~junction, junction]
        return Observation(jnp.stack(shown).astype(jnp.float32))

    def reset(key: Array) -> tuple[State, Observation]:
        state = State(jnp.int32(0), 2 * jax.random.bernoulli(key).astype(jnp.int32))
        return state, observe(state)

    def step(state: State, action: Array, key: Array) -> tuple[State, TimeStep]:
        del key
        junction = state.cell == length
        turned = junction & (action != 1)
        moved = ~junction & (action == 1)
        reward = jnp.where(turned, jnp.where(action == state.side, 1.0, -1.0), -WALL_COST)
        reward = jnp.where(moved, 0.0, reward)
        state = State(state.cell + moved, state.side)
        return state, TimeStep(observe(state), reward, turned, jnp.bool_(False))

    spec = EnvSpec("rljax:tmaze", (4,), "float32", Discrete(3))
    limit = 5 * (length + 1) if max_episode_steps is None else max_episode_steps
    return wrappers.time_limit(JaxEnv(spec, reset, step), limit)
