"""Pure functions from one `JaxEnv` to another."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Observation


class TimeLimitState(NamedTuple):
    """The environment's state, and the steps taken in this episode."""

    env: Any
    elapsed: Array  # int32


class AutoresetState(NamedTuple):
    """The environment's state, and whether the last step ended the episode."""

    env: Any
    done: Array  # bool


def time_limit(env: JaxEnv, max_steps: int) -> JaxEnv:
    """Truncates episodes after `max_steps` steps; one that terminates on that very step stays so.

    EnvPool differs there: it reports such a step as truncated only.

    Raises:
        ValueError: `max_steps` is not positive.
    """
    if max_steps <= 0:
        raise ValueError(f"max_episode_steps must be at least 1, not {max_steps}.")

    spec = dataclasses.replace(env.spec, max_episode_steps=max_steps)

    def reset(key: Array) -> tuple[TimeLimitState, Observation]:
        state, observation = env.reset(key)
        return TimeLimitState(state, jnp.int32(0)), observation

    def step(state: TimeLimitState, action: Array, key: Array) -> tuple[TimeLimitState, TimeStep]:
        inner, timestep = env.step(state.env, action, key)
        elapsed = state.elapsed + 1
        late = (elapsed >= max_steps) & ~timestep.terminated
        timestep = timestep._replace(truncated=timestep.truncated | late)
        return TimeLimitState(inner, elapsed), timestep

    return JaxEnv(spec, reset, step)


class FrameStackState(NamedTuple):
    """The environment's state, and the frames before the newest, oldest first."""

    env: Any
    earlier: Array  # uint8 [H, W, (count - 1) · C]


def frame_stack(env: JaxEnv, count: int) -> JaxEnv:
    """Shows the last `count` frames as one, `[H, W, count · C]`, the newest in the last channels.

    An episode starts with its first frame in every place. Goes inside of `autoreset`.

    Raises:
        ValueError: `count` is not positive, or the environment shows no frame alone.
    """
    spec = env.spec
    if count < 1:
        raise ValueError(f"{spec.name}: stack must be at least 1, not {count}.")
    if spec.observation_dtype != "uint8" or len(spec.observation_shape) != 3:
        raise ValueError(f"{spec.name} shows no frames to stack.")
    if count == 1:
        return env  # whose state holds no empty array: checkpoints store none
    channels = spec.observation_shape[-1]
    stacked = (*spec.observation_shape[:-1], count * channels)

    def shown(earlier: Array, observation: Observation) -> tuple[Array, Observation]:
        frames = jnp.concatenate([earlier, observation.features], axis=-1)
        return frames[..., channels:], observation._replace(features=frames)

    def reset(key: Array) -> tuple[FrameStackState, Observation]:
        state, observation = env.reset(key)
        earlier = jnp.tile(observation.features, count - 1)
        earlier, observation = shown(earlier, observation)
        return FrameStackState(state, earlier), observation

    def step(state: FrameStackState, action: Array, key: Array) -> tuple[FrameStackState, TimeStep]:
        inner, timestep = env.step(state.env, action, key)
        earlier, observation = shown(state.earlier, timestep.observation)
        return FrameStackState(inner, earlier), timestep._replace(observation=observation)

    return JaxEnv(dataclasses.replace(spec, observation_shape=stacked), reset, step)


def autoreset(env: JaxEnv) -> JaxEnv:
    """Restarts on the step after an ending one, as `rljax.types` describes.

    That step ignores its action, gives reward 0, ends nothing, and returns the first observation of
    the next episode, which `key` draws.
    """

    def reset(key: Array) -> tuple[AutoresetState, Observation]:
        state, observation = env.reset(key)
        return AutoresetState(state, jnp.bool_(False)), observation

    def step(state: AutoresetState, action: Array, key: Array) -> tuple[AutoresetState, TimeStep]:
        # Under vmap both branches run whatever one writes; only one of them uses the key's draws.
        first_state, first_observation = env.reset(key)
        first = TimeStep(first_observation, jnp.float32(0), jnp.bool_(False), jnp.bool_(False))
        next_state, timestep = jax.tree.map(
            lambda fresh, stepped: jnp.where(state.done, fresh, stepped),
            (first_state, first),
            env.step(state.env, action, key),
        )
        return AutoresetState(next_state, timestep.terminated | timestep.truncated), timestep

    return JaxEnv(env.spec, reset, step)
