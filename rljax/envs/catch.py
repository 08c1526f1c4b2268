"""Catch in the graph, after bsuite (Osband et al. 2020, arXiv:1908.03568, section A.2).

A ball falls straight down a board of 10 rows and 5 columns, one row a step, from a random column.
The paddle in the last row moves left (0), stays (1) or moves right (2). When the ball arrives the
episode terminates, with reward 1 if the paddle is under it and -1 if not; all other rewards are 0.
An episode takes 9 steps, and the best return is 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation

ROWS = 10
COLUMNS = 5


class State(NamedTuple):
    """Places on the board; int32 scalars."""

    ball_row: Array
    ball_column: Array
    paddle_column: Array


def make() -> JaxEnv:
    """One game; actions int32, observations float32 `[50]`: the board with 1 at ball and paddle."""
    spec = EnvSpec(
        "rljax:catch", (ROWS * COLUMNS,), "float32", Discrete(3), max_episode_steps=ROWS - 1
    )
    return JaxEnv(spec, _reset, _step)


def _reset(key: Array) -> tuple[State, Observation]:
    state = State(jnp.int32(0), jax.random.randint(key, (), 0, COLUMNS), jnp.int32(COLUMNS // 2))
    return state, _observe(state)


def _step(state: State, action: Array, key: Array) -> tuple[State, TimeStep]:
    del key  # the only chance is in the ball's first column
    state = State(
        state.ball_row + 1,
        state.ball_column,
        jnp.clip(state.paddle_column + action - 1, 0, COLUMNS - 1),
    )
    landed = state.ball_row == ROWS - 1
    caught = state.ball_column == state.paddle_column
    reward = jnp.where(landed, jnp.where(caught, 1.0, -1.0), 0.0)
    return state, TimeStep(_observe(state), reward, landed, jnp.bool_(False))


def _observe(state: State) -> Observation:
    cells = jnp.arange(ROWS * COLUMNS)
    ball = cells == state.ball_row * COLUMNS + state.ball_column
    paddle = cells == (ROWS - 1) * COLUMNS + state.paddle_column
    return Observation((ball | paddle).astype(jnp.float32))
