"""Pendulum swing-up in the graph: Gymnasium's Pendulum-v1, in float32.

A torque of at most ±2 N·m must swing a rod up and hold it there. The reward is minus a cost of the
state *before* the step; the task never terminates. The best return is about -150 over 200 steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs import wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Box, EnvSpec, Observation

GRAVITY = 10.0  # m/s²
MASS = 1.0  # kg
LENGTH = 1.0  # m
TIME_STEP = 0.05  # s
MAX_TORQUE = 2.0  # N·m
MAX_SPEED = 8.0  # rad/s


class State(NamedTuple):
    """Float32 scalars."""

    angle: Array  # rad, 0 upright, not wrapped
    angular_velocity: Array  # rad/s


def make(max_episode_steps: int = 200) -> JaxEnv:
    """One pendulum; actions float32 `[1]`, clipped here; observations `[3]`: cos, sin, speed."""
    spec = EnvSpec("rljax:pendulum", (3,), "float32", Box((-MAX_TORQUE,), (MAX_TORQUE,)))
    return wrappers.time_limit(JaxEnv(spec, _reset, _step), max_episode_steps)


def _reset(key: Array) -> tuple[State, Observation]:
    limits = jnp.array([jnp.pi, 1.0])
    state = State(*jax.random.uniform(key, (2,), minval=-limits, maxval=limits))
    return state, _observe(state)


def _step(state: State, action: Array, key: Array) -> tuple[State, TimeStep]:
    del key  # deterministic
    torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
    wrapped = (state.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    cost = wrapped**2 + 0.1 * state.angular_velocity**2 + 0.001 * torque**2
    acceleration = (
        3 * GRAVITY / (2 * LENGTH) * jnp.sin(state.angle) + 3 / (MASS * LENGTH**2) * torque
    )
    speed = jnp.clip(state.angular_velocity + acceleration * TIME_STEP, -MAX_SPEED, MAX_SPEED)
    state = State(state.angle + speed * TIME_STEP, speed)
    return state, TimeStep(_observe(state), -cost, jnp.bool_(False), jnp.bool_(False))


def _observe(state: State) -> Observation:
    return Observation(
        jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.angular_velocity])
    )
