"""Tasks of Brax (Freeman et al. 2021, arXiv:2106.13281) in the graph; extra `brax`.

    brax:ant, brax:halfcheetah, brax:humanoid, ...

Options are `max_episode_steps` (1000, as in Brax's own training) and those of the task, such as
`backend` ("generalized", "spring", "positional" or "mjx").
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs import adapting, wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Box, EnvSpec, Observation


def make(name: str, options: Mapping[str, Any]) -> JaxEnv:
    """One environment, without autoreset; actions lie within -1 and 1.

    Raises:
        ImportError: Brax is not installed.
        ValueError: there is no such task, or it refuses an option.
    """
    envs = adapting.library("brax.envs", "brax")
    adapting.check_name("Brax", name, envs._envs)
    options = dict(options)
    max_steps = options.pop("max_episode_steps", 1000)
    try:
        env = envs.get_environment(name, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"Brax refuses brax:{name} with {options}: {error}") from error
    return wrappers.time_limit(adapt(env, f"brax:{name}"), max_steps)


def adapt(env: Any, name: str, repeat: int = 1) -> JaxEnv:
    """An environment whose state holds `obs`, `reward` and `done`, as Brax and MuJoCo's have it.

    Of observations in several parts, policies see the one called "state". Each action is taken
    `repeat` times, and the rewards are added. Whatever the environment calls done is an end by its
    rules: time limits are ours to set.

    Raises:
        ValueError: observations are no vectors.
    """
    first = jax.eval_shape(env.reset, jax.random.key(0)).obs
    seen = first["state"] if isinstance(first, Mapping) and "state" in first else first
    if isinstance(seen, Mapping) or len(seen.shape) != 1:
        raise ValueError(f"{name} shows other things than vectors, which is not supported.")
    spec = EnvSpec(
        name, seen.shape, "float32", Box((-1.0,) * env.action_size, (1.0,) * env.action_size)
    )

    def observation(state: Any) -> Observation:
        return adapting.vector(state.obs["state"] if seen is not first else state.obs)

    def reset(key: Array) -> tuple[Any, Observation]:
        state = env.reset(key)
        return state, observation(state)

    def step(state: Any, action: Array, key: Array) -> tuple[Any, TimeStep]:
        del key  # what is random was drawn at the start, or comes from the state
        action = jnp.clip(action, -1.0, 1.0)

        def once(state: Any, _: None) -> tuple[Any, Array]:
            after = adapting.alike(env.step(state, action), state)
            return after, jnp.float32(after.reward)

        after, rewards = jax.lax.scan(once, state, length=repeat)
        ended = jnp.bool_(after.done)
        return after, TimeStep(observation(after), jnp.sum(rewards), ended, jnp.bool_(False))

    return JaxEnv(spec, reset, step)
