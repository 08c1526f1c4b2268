"""Catch in pixels: the game of `rljax.envs.catch`, drawn as frames, to try what sees on a CPU.

Frames are uint8 `[10 · scale, 5 · scale, stack]`: 255 where the ball or the paddle is, else 0. With
`scale` 1 they are the board itself, of a cell a pixel, which the torso "grid" looks at; from 8 on
they are large enough for "nature".
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from rljax.envs import catch, wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Observation


def make(scale: int = 8, stack: int = 1) -> JaxEnv:
    """One game; `scale` is pixels a side of a cell, `stack` how many of the last frames are shown.

    Raises:
        ValueError: `scale` or `stack` is not positive.
    """
    if scale < 1:
        raise ValueError(f"rljax:pixel_catch: scale must be at least 1, not {scale}.")
    board = catch.make()
    shape = (catch.ROWS * scale, catch.COLUMNS * scale, 1)

    def draw(observation: Observation) -> Observation:
        cells = observation.features.reshape(catch.ROWS, catch.COLUMNS)
        pixels = jnp.repeat(jnp.repeat(cells, scale, axis=0), scale, axis=1)
        return Observation((255 * pixels[..., None]).astype(jnp.uint8))

    def reset(key: Array) -> tuple[Any, Observation]:
        state, observation = board.reset(key)
        return state, draw(observation)

    def step(state: Any, action: Array, key: Array) -> tuple[Any, TimeStep]:
        state, timestep = board.step(state, action, key)
        return state, timestep._replace(observation=draw(timestep.observation))

    spec = dataclasses.replace(
        board.spec, name="rljax:pixel_catch", observation_shape=shape, observation_dtype="uint8"
    )
    return wrappers.frame_stack(JaxEnv(spec, reset, step), stack)
