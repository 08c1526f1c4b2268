"""CartPole in the graph: Gymnasium's CartPole-v1 (Barto, Sutton & Anderson 1983), in float32.

A pole hangs by its foot on a cart that is pushed left (0) or right (1) with 10 N. Every step gives
reward 1; the episode terminates when the cart leaves ±2.4 m or the pole leans more than 12°.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax.envs import wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation

GRAVITY = 9.8  # m/s²
POLE_MASS = 0.1  # kg
TOTAL_MASS = 1.1  # kg, with the cart's 1 kg
HALF_LENGTH = 0.5  # m, of the pole
FORCE = 10.0  # N
TIME_STEP = 0.02  # s
POSITION_LIMIT = 2.4  # m
ANGLE_LIMIT = math.radians(12)


class State(NamedTuple):
    """The observation, by name; all float32 scalars."""

    position: Array  # m
    velocity: Array  # m/s
    angle: Array  # rad, 0 upright
    angular_velocity: Array  # rad/s


def make(max_episode_steps: int = 500) -> JaxEnv:
    """One CartPole; actions int32, observations float32 `[4]` in the order of `State`."""
    spec = EnvSpec("rljax:cartpole", (4,), "float32", Discrete(2))
    return wrappers.time_limit(JaxEnv(spec, _reset, _step), max_episode_steps)


def dynamics(state: State, force: Float[Array, ""]) -> State:
    """One Euler step under `force` in N (Florian 2007, eqs. 23-24, without friction)."""
    sine, cosine = jnp.sin(state.angle), jnp.cos(state.angle)
    pole_moment = POLE_MASS * HALF_LENGTH
    push = (force + pole_moment * state.angular_velocity**2 * sine) / TOTAL_MASS
    angular_acceleration = (GRAVITY * sine - cosine * push) / (
        HALF_LENGTH * (4 / 3 - POLE_MASS * cosine**2 / TOTAL_MASS)
    )
    acceleration = push - pole_moment * angular_acceleration * cosine / TOTAL_MASS
    return State(  # positions move with the old velocities, as in Gymnasium's "euler"
        state.position + TIME_STEP * state.velocity,
        state.velocity + TIME_STEP * acceleration,
        state.angle + TIME_STEP * state.angular_velocity,
        state.angular_velocity + TIME_STEP * angular_acceleration,
    )


def _reset(key: Array) -> tuple[State, Observation]:
    state = State(*jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05))
    return state, Observation(jnp.stack(state))


def _step(state: State, action: Array, key: Array) -> tuple[State, TimeStep]:
    del key  # deterministic
    state = dynamics(state, jnp.where(action == 1, FORCE, -FORCE))
    terminated = (jnp.abs(state.position) > POSITION_LIMIT) | (jnp.abs(state.angle) > ANGLE_LIMIT)
    observation = Observation(jnp.stack(state))
    return state, TimeStep(observation, jnp.float32(1), terminated, jnp.bool_(False))
