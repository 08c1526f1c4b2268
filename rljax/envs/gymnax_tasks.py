"""Tasks of Gymnax (Lange 2022, github.com/RobertTLange/gymnax) in the graph; extra `gymnax`.

    gymnax:CartPole-v1, gymnax:Breakout-MinAtar, gymnax:DeepSea-bsuite, ...

Boards of zeros and ones (MinAtar) are shown as frames of 0 and 255; everything else is a vector.
Gymnax ends an episode by its rules and by its time limit alike; here the latter is a truncation:
what ends with the limit lifted as well is an end by the rules.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from rljax.envs import adapting
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation

_LIMIT = "max_steps_in_episode"
_NEVER = 2**30  # steps


def make(name: str, options: Mapping[str, Any]) -> JaxEnv:
    """One environment, without autoreset; options are `max_episode_steps` and Gymnax's parameters.

    Raises:
        ImportError: Gymnax is not installed.
        ValueError: there is no such task or option, or its spaces are not supported.
    """
    gymnax = adapting.library("gymnax", "gymnax")
    adapting.check_name("Gymnax", name, gymnax.registered_envs)
    env, params = gymnax.make(name)
    known = [field.name for field in dataclasses.fields(params)]
    limited = _LIMIT in known
    chosen = dict(options)
    if "max_episode_steps" in chosen and limited:
        chosen[_LIMIT] = chosen.pop("max_episode_steps")
    for option in chosen:
        if option not in known:
            raise ValueError(
                f"gymnax:{name} has no option {option!r}; its options: {', '.join(known)}."
            )
    params = params.replace(**chosen)
    limit = getattr(params, _LIMIT) if limited else None
    if limit is not None and limit < 1:
        raise ValueError(f"max_episode_steps must be at least 1, not {limit}.")
    lifted = params.replace(**{_LIMIT: _NEVER}) if limited else params
    actions, shown = env.action_space(params), env.observation_space(params)
    if not hasattr(shown, "shape") or not (hasattr(actions, "n") or hasattr(actions, "low")):
        raise ValueError(f"gymnax:{name} has spaces that are not supported: {actions}, {shown}.")
    discrete = hasattr(actions, "n")
    board = len(shown.shape) == 3 and jnp.all(shown.low == 0) and jnp.all(shown.high == 1)
    spec = EnvSpec(
        f"gymnax:{name}",
        tuple(shown.shape) if board else adapting.vector_shape(shown.shape),
        "uint8" if board else "float32",
        Discrete(int(actions.n))
        if discrete
        else adapting.box(actions.low, actions.high, actions.shape),
        max_episode_steps=None if limit is None else int(limit),
    )

    def observation(features: Any) -> Observation:
        if board:
            return Observation((255 * jnp.asarray(features, jnp.float32)).astype(jnp.uint8))
        return adapting.vector(features)

    def reset(key: Array) -> tuple[Any, Observation]:
        features, state = env.reset_env(key, params)
        return state, observation(features)

    def step(state: Any, action: Array, key: Array) -> tuple[Any, TimeStep]:
        action = action if discrete else action.reshape(actions.shape)
        features, after, reward, done, _ = env.step_env(key, state, action, params)
        done = jnp.bool_(done)
        terminated = done
        if limited:  # the same step, of which XLA does twice only what the limit decides
            terminated &= jnp.bool_(env.step_env(key, state, action, lifted)[3])
        reward = jnp.float32(reward).reshape(())
        timestep = TimeStep(observation(features), reward, terminated, done & ~terminated)
        return adapting.alike(after, state), timestep

    return JaxEnv(spec, reset, step)
